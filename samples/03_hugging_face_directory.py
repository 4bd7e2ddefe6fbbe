"""A local Hugging Face directory, with dynamic batch and sequence length, exported and run.

Give a directory written by `save_pretrained`; without one, a small BERT with random weights is written and taken.

    python samples/03_hugging_face_directory.py [DIRECTORY]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import edgekit


def write_small_bert(directory: Path) -> Path:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        id2label={0: "negative", 1: "positive"},
    )
    BertForSequenceClassification(config).save_pretrained(directory)
    return directory


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(sys.argv[1]) if len(sys.argv) > 1 else write_small_bert(Path(folder) / "small-bert")
        bundle = edgekit.export(
            str(directory),
            device="x86-server",
            format="onnx",
            quantize="none",
            output=str(Path(folder) / "text.edgekit"),
        )
        with edgekit.load(bundle) as session:
            for spec in session.inputs:
                print(f"{spec.name}: {spec.dtype} {list(spec.shape)}")
            for length in (8, 40):
                ids = np.arange(2 * length, dtype=np.int64).reshape(2, length) + 5
                outputs = session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
                print({name: value.shape for name, value in outputs.items()})


if __name__ == "__main__":
    main()
