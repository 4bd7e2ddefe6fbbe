"""What a codec costs: encode and decode of a 30 KB feature (192 x 7 x 7 float32), one thread.

    python samples/benchmarks/codecs.py

Components fade as the principal axes of a real cut do (EfficientNet-Lite0 after block 14: about 1.5 KB keep nine of
ten answers). Beside each rate: bytes with the frame, the tables' own entropy, and what copying the feature once costs,
below which no codec can be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import environment, medians_ms, no_options, rounded, save

from edgekit.runtimes.codecs import range_coder
from edgekit.runtimes.codecs.affine import AffineCodec, fit_affine_tables
from edgekit.runtimes.codecs.base import Codec
from edgekit.runtimes.codecs.frame import Frame, frame_size, pack, unpack
from edgekit.runtimes.codecs.plain import PlainCodec
from edgekit.runtimes.codecs.refinement import decode_refinement, encode_refinement
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.codecs.transform_tables import fit_transform_tables
from edgekit.tensors import TensorSpec

SHAPE = (192, 7, 7)
STEPS = tuple(0.1 * 3 ** (k / 2) for k in range(7))
GOAL_MS = 1.0
SPEC = TensorSpec("feature", "float32", ("batch", *SHAPE))


def draw(samples: int, seed: int) -> np.ndarray:
    fade = np.exp(-np.arange(SHAPE[0]) / 32)[:, None, None]
    return (np.random.default_rng(seed).laplace(size=(samples, *SHAPE)) * fade).astype(np.float32)


def time_rates(codec: Codec, feature: np.ndarray, lap_s: float) -> dict[str, dict[str, float]]:
    calls, payloads = {}, [codec.encode([feature], rate) for rate in range(codec.rates)]
    for rate, payload in enumerate(payloads):
        calls[f"encode {rate}"] = lambda rate=rate: codec.encode([feature], rate)
        calls[f"decode {rate}"] = lambda rate=rate, payload=payload: codec.decode(payload, [feature.shape], rate)
    times = medians_ms(calls, rounds=5, lap_s=lap_s)
    rows = {}
    for rate, payload in enumerate(payloads):
        row = {"encode_ms": times[f"encode {rate}"], "decode_ms": times[f"decode {rate}"]}
        row["bytes"] = float(frame_size(len(payload), [feature.shape]))
        if isinstance(codec, TransformCodec):
            ordered = codec.layouts[rate].contexts.ordered(codec.quantize(feature, rate), codec.places(feature.shape))
            ideal = codec.tables.bits(*ordered) / 8
            row["bytes_over_entropy"] = len(payload) / ideal
        rows[str(rate)] = row
    return rows


def measure(lap_s: float = 0.1) -> dict[str, Any]:
    calibration, feature = draw(256, 0), draw(1, 1)
    transform = TransformCodec([SPEC], len(STEPS), fit_transform_tables(calibration, STEPS))
    codecs: dict[str, Codec] = {
        "transform": transform,
        "transform by position": TransformCodec(
            [SPEC], len(STEPS), fit_transform_tables(calibration, STEPS, per_position=True)
        ),
        "affine": AffineCodec([SPEC], 3, fit_affine_tables(calibration)),
        "plain": PlainCodec([SPEC], 2, None),
    }
    rows = {name: time_rates(codec, feature, lap_s) for name, codec in codecs.items()}
    coarse, payload = transform.encode([feature], 4), transform.encode([feature], 2)
    more = encode_refinement(transform, [feature], 4, 2)
    frame = Frame(payload, (feature.shape,), 2, "0" * 64, "0" * 64, "0" * 64)
    data = pack(frame)
    other = medians_ms(
        {
            "copy": feature.copy,
            "pack": lambda: pack(frame),
            "unpack": lambda: unpack(data),
            "refine encode": lambda: encode_refinement(transform, [feature], 4, 2),
            "refine decode": lambda: decode_refinement(transform, coarse, more, [feature.shape], 4, 2),
        },
        rounds=5,
        lap_s=lap_s,
    )
    refined = {"bytes": len(coarse) + len(more), "bytes_at_once": len(payload)}
    return {"rows": rows, "other_ms": other, "refinement_4_to_2": refined, "frame_bytes": len(data) - len(payload)}


def main() -> None:
    no_options(__doc__)
    result = rounded(measure())
    copy_ms = result["other_ms"]["copy"]
    coder = "constriction" if range_coder.constriction is not None else "plain Python"
    print(f"30 KB feature, coder: {coder}; one copy of it: {1e3 * copy_ms:.2f} us\n")
    print(f"{'codec':24} rate  bytes  x entropy  encode ms  decode ms  x copy")
    for name, rates in result["rows"].items():
        for rate, row in rates.items():
            ratio = f"{row['bytes_over_entropy']:.4f}" if "bytes_over_entropy" in row else "-"
            slow = (row["encode_ms"] + row["decode_ms"]) / copy_ms
            late = " above the goal" if max(row["encode_ms"], row["decode_ms"]) > GOAL_MS else ""
            print(
                f"{name:24} {rate:>4} {row['bytes']:6.0f} {ratio:>10} {row['encode_ms']:10.3f} {row['decode_ms']:10.3f}"
                f" {slow:7.0f}{late}"
            )
    print("\n" + ", ".join(f"{name} {1e3 * value:.1f} us" for name, value in result["other_ms"].items()))
    print("refining 4 to 2:", result["refinement_4_to_2"], "frame:", result["frame_bytes"], "bytes")
    facts = environment(1, ("numpy", "constriction", "zstandard", "google-crc32c"))
    print("\nwritten:", save("codecs", {**facts, "coder": coder, **result}))


if __name__ == "__main__":
    main()
