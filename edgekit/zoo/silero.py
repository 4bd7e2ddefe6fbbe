"""silero-vad 6 (github.com/snakers4/silero-vad, MIT): is this 32 ms of sound speech? A trained ONNX file, no module.

Of the files in its wheel, the one for 16 kHz alone: it has no branches, so that its layers can be quantized. It says
of its batch that it is 1, which nothing in its graph needs: said otherwise, many recordings run in one step.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from edgekit.bundle.cache import cache_root
from edgekit.bundle.loop import Carried, Chunks, Loop
from edgekit.errors import MissingExtraError
from edgekit.model import Model, Sample
from edgekit.zoo.packages import package_folder

RATE_HZ = 16_000
WINDOW, CONTEXT = 512, 64
LONGEST = 112_500  # windows, an hour of sound
BATCH_AXES = {"input": 0, "state": 1, "output": 0, "stateN": 1}

# Formant frequencies in Hz of five vowels, a man's voice (Peterson and Barney, J. Acoust. Soc. Am. 24, 1952, table II).
VOWELS = {
    "a": (730.0, 1090.0, 2440.0),
    "e": (530.0, 1840.0, 2480.0),
    "i": (270.0, 2290.0, 3010.0),
    "o": (570.0, 840.0, 2410.0),
    "u": (300.0, 870.0, 2240.0),
}
BANDWIDTHS_HZ = (90.0, 110.0, 170.0)


def silero_vad() -> Model:
    """`input` float32 [batch, 576] (64 samples of the past, 512 new ones), `state` [2, batch, 128] -> `output`
    [batch, 1], the probability of speech, and `stateN`. Raises MissingExtraError."""
    path = package_folder("silero_vad", "the sample silero-vad") / "data/silero_vad_openvino_16k.onnx"
    # The ONNX loader belongs to the exporters, a floor above.
    model: Model = import_module("edgekit.exporters.onnx_source").load_onnx_model(with_free_batch(path))
    calibration = run_through(model, babble(seed=0, seconds=6.0))
    return replace(
        model,
        name="silero-vad",
        task="voice-activity-detection",
        example_inputs=dict(calibration[8]),
        calibration=calibration[:128],
        held_out=run_through(model, babble(seed=1, seconds=4.0))[:96],
        loop=Loop(
            carried=(Carried(output="stateN", input="state", batch_axis=1),),
            feed=Chunks(input="input", hop=WINDOW, context=CONTEXT),
            max_steps=LONGEST,
        ),
        source=replace(model.source, kind="sample", reference="silero-vad"),
    )


def with_free_batch(path: Path) -> Path:
    """A copy of the file, in the cache, whose inputs and outputs take any batch. Raises MissingExtraError."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "export", "the sample silero-vad") from error
    proto = onnx.load(str(path))
    for entry in (*proto.graph.input, *proto.graph.output):
        entry.type.tensor_type.shape.dim[BATCH_AXES[entry.name]].dim_param = "batch"
    # What was inferred of the tensors between them counts on a batch of 1.
    del proto.graph.value_info[:]
    data = proto.SerializeToString(deterministic=True)
    target = cache_root() / "zoo" / f"silero-vad-{hashlib.sha256(data).hexdigest()[:16]}.onnx"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as scratch:
            scratch.write(data)
        Path(scratch.name).replace(target)  # whole or not at all, whoever else writes it
    return target


def run_through(model: Model, sound: np.ndarray) -> tuple[Sample, ...]:
    """The inputs of each window of `sound`, float32 [samples], with the state that the model itself has reached."""
    state = torch.zeros(2, 1, 128)
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), sound])
    samples: list[Sample] = []
    for start in range(0, len(sound) - WINDOW + 1, WINDOW):
        window = torch.from_numpy(padded[start : start + CONTEXT + WINDOW].copy())[None]
        samples.append({"input": window, "state": state})
        state = model.module(window, state)[1]
    return tuple(samples)


def babble(seed: int, seconds: float) -> np.ndarray:
    """Vowels of changing pitch with pauses between, over noise: a source and filter voice, float32 in -1..1."""
    generator = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < seconds * RATE_HZ:
        pitch_hz = generator.uniform(90, 180)
        for vowel in generator.choice(list(VOWELS), generator.integers(2, 6)):
            parts.append(_vowel(VOWELS[str(vowel)], pitch_hz * generator.uniform(0.85, 1.2), generator))
        parts.append(np.zeros(int(generator.uniform(0.2, 0.6) * RATE_HZ)))
    sound = np.concatenate(parts)[: int(seconds * RATE_HZ)]
    noise = generator.standard_normal(len(sound)) * 10 ** generator.uniform(-3.5, -2.5)
    return np.clip(0.5 * sound + noise, -1, 1).astype(np.float32)


def _vowel(formants: tuple[float, ...], pitch_hz: float, generator: np.random.Generator) -> np.ndarray:
    """A harmonic series, falling 12 dB an octave, weighted by the resonances and faded in and out."""
    length = int(generator.uniform(0.09, 0.22) * RATE_HZ)
    time_s = np.arange(length) / RATE_HZ
    glide = 1 + 0.06 * np.sin(2 * np.pi * 4.5 * time_s + generator.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch_hz * glide) / RATE_HZ
    wave = np.zeros(length)
    for number in range(1, int(4000 / pitch_hz)):
        frequency = number * pitch_hz
        gain = sum(
            1 / np.hypot(1, 2 * (frequency - centre) / width)
            for centre, width in zip(formants, BANDWIDTHS_HZ, strict=True)
        )
        wave += gain / number * np.sin(number * phase)
    ramp = np.minimum(1, np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.02 * RATE_HZ))
    voiced: np.ndarray = wave * ramp / np.abs(wave).max()
    return voiced
