"""One device's answers beside the processor's eager ones, as a process: GPUs compile what other tests interpret.

python scene.py BUNDLE PART DEVICE PRECISION CACHE IMAGES.npy -> a JSON object
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from edgekit.bundle import Bundle
from edgekit.runtimes.torch_engine import TorchOptions, open_torch
from edgekit.runtimes.torch_engine.session import EngineSession


def main(bundle_path: str, name: str, device: str, precision: str, cache: str, images_path: str) -> None:
    bundle, images = Bundle.open(bundle_path), np.load(images_path)
    part = bundle.manifest.part(name)
    (given,), (answer,) = part.inputs, part.outputs

    def opened(**changes: object) -> EngineSession:
        plain = {
            "device": device,
            "precision": precision,
            "threads": 1,
            "cache_dir": Path(cache),
            "buckets": (1, 2, 4, 8),
        }
        session = open_torch(bundle, part, TorchOptions(**(plain | changes)))  # type: ignore[arg-type]
        assert isinstance(session, EngineSession)
        return session

    def run(session: EngineSession, rows: int) -> np.ndarray:
        return session.run({given.name: np.resize(images, (rows, *images.shape[1:]))})[answer.name]

    sizes = (*range(1, 10), 21)
    with opened(device="cpu", compile=False) as reference:
        wanted = {rows: run(reference, rows) for rows in sizes}
    with opened() as session:
        first = {rows: run(session, rows) for rows in sizes}
        again = {rows: run(session, rows) for rows in reversed(sizes)}
        size, is_compiled, has_lane = session._member.size_bytes, session.is_compiled, session._lane is not None
    with opened(memory_bytes=size * 3 // 2) as one, opened(memory_bytes=size * 3 // 2) as other:
        in_turns = [run(session, rows) for rows in (3, 8) for session in (one, other)]
        uploads = [one._member.uploads, other._member.uploads]
    told = {
        "compiled": is_compiled,
        "lane": has_lane,
        "distance": max(_distance(first[rows], wanted[rows]) for rows in sizes),
        "repeats": all(np.array_equal(first[rows], again[rows]) for rows in sizes),
        "evicted": all(np.array_equal(found, first[len(found)]) for found in in_turns),
        "uploads": uploads,
    }
    sys.stdout.write(json.dumps(told) + "\n")


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


if __name__ == "__main__":
    main(*sys.argv[1:])
