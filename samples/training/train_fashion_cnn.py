"""Trains the small MobileNetV2-style net (64 k parameters) on Fashion-MNIST.

python -m samples.training.train_fashion_cnn -o fashion-cnn.safetensors
"""

from __future__ import annotations

from edgekit.zoo.fashion import FashionCnn
from samples.training.command import training_command
from samples.training.trainer import Options, train


@training_command(__doc__, epochs=6, batch=128, learning_rate=0.004)
def main(options: Options) -> None:
    train(FashionCnn, options)


if __name__ == "__main__":
    main()
