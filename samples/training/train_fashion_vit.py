"""Trains the small vision transformer (0.2 M parameters) on Fashion-MNIST.

python -m samples.training.train_fashion_vit -o fashion-vit.safetensors
"""

from __future__ import annotations

from edgekit.zoo.fashion import FashionVit
from samples.training.command import training_command
from samples.training.trainer import Options, train


@training_command(__doc__, epochs=3, batch=64, learning_rate=0.0015)
def main(options: Options) -> None:
    train(FashionVit, options)


if __name__ == "__main__":
    main()
