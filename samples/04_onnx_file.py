"""A trained ONNX file that has no PyTorch module: kept as a graph, packed, and run over a sound window by window.

python samples/04_onnx_file.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import edgekit
from edgekit.zoo.silero import CONTEXT, RATE_HZ, WINDOW, babble


def main() -> None:
    sound = babble(seed=7, seconds=3.0)
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), sound])
    state = np.zeros((2, 1, 128), np.float32)
    line = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = edgekit.export(
            "silero-vad",
            device="raspberry-pi-5",
            format="onnx",
            quantize="none",
            output=str(Path(folder) / "voice.edgekit"),
        )
        with edgekit.load(bundle) as session:
            for start in range(0, len(sound) - WINDOW + 1, WINDOW):
                window = padded[None, start : start + CONTEXT + WINDOW]
                outputs = session.run({"input": window, "state": state})
                state = outputs["stateN"]
                line.append("#" if outputs["output"].item() > 0.5 else ".")
    print(f"speech in {len(sound) / RATE_HZ:.1f} s, 32 ms a mark: {''.join(line)}")


if __name__ == "__main__":
    main()
