from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.runtimes.codecs import range_coder
from edgekit.runtimes.codecs.entropy import integer_table
from edgekit.runtimes.codecs.range_coder import PRECISION, PlainDecoder, PlainEncoder, PlainModel, ending

if TYPE_CHECKING:
    from conftest import Case

WITHOUT_CONSTRICTION = """
import sys
sys.modules["constriction"] = None
import importlib.util
spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
cases = importlib.util.module_from_spec(spec)
sys.modules["cases"] = cases
spec.loader.exec_module(cases)
from edgekit.runtimes.codecs.range_coder import PlainEncoder, new_encoder
assert new_encoder is PlainEncoder
for case in cases.all_cases().values():
    codec, arrays = case.codec(), case.draw(2, 5)
    for rate in range(codec.rates):
        payload = codec.encode(arrays, rate)
        codec.decode(payload, [array.shape for array in arrays], rate)
        print(payload.hex())
"""

runs = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0.0, 1e-9, 1e-3, 1.0, 50.0, 1e7]), min_size=2, max_size=40), st.integers(0, 30)
    ),
    max_size=5,
)


def drawn(run: tuple[list[float], int], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    weights = integer_table(np.array(run[0]), 1 << PRECISION)
    likely = generator.choice(len(weights), run[1], p=weights / weights.sum())
    return weights, np.where(generator.random(run[1]) < 0.2, generator.integers(0, len(weights), run[1]), likely)


@pytest.mark.skipif(range_coder.constriction is None, reason="constriction is not installed: there is no second coder")
@settings(max_examples=200, deadline=None, derandomize=True)
@given(runs=runs, seed=st.integers(0, 1000))
def test_the_plain_coder_writes_and_reads_what_constriction_does(runs: list, seed: int) -> None:
    generator, plain, fast, written = np.random.default_rng(seed), PlainEncoder(), range_coder.new_encoder(), []
    for run in runs:
        weights, indices = drawn(run, generator)
        if run[1]:
            plain.encode(indices.astype(np.int32), PlainModel(weights))
            fast.encode(indices.astype(np.int32), range_coder.exact_model(weights))
            written.append((weights, indices))
    payload = ending(plain)
    assert payload == ending(fast)
    words = np.frombuffer(payload + bytes(8 + -len(payload) % 4), ">u4").astype(np.uint32)
    decoders = PlainDecoder(words), range_coder.open_decoder(payload)
    for weights, indices in written:
        models = PlainModel(weights), range_coder.exact_model(weights)
        for decoder, model in zip(decoders, models, strict=True):
            assert (decoder.decode(model, len(indices)) == indices).all()


def test_carries_run_through_the_words_before() -> None:
    """The last of many symbols lifts the interval over a chain of ones; a coder that drops carries is wrong here."""
    model = PlainModel(np.array([(1 << 24) - 1, 1]))
    for head in range(40):
        encoder = PlainEncoder()
        indices = np.array([0] * head + [1] * 30 + [0] * head + [1], np.int32)
        encoder.encode(indices, model)
        payload = ending(encoder)
        words = np.frombuffer(payload + bytes(8 + -len(payload) % 4), ">u4").astype(np.uint32)
        assert (PlainDecoder(words).decode(model, len(indices)) == indices).all()


@pytest.mark.skipif(range_coder.constriction is None, reason="constriction is not installed: there is no second coder")
def test_every_codec_writes_the_same_bytes_without_constriction(cases: dict[str, Case]) -> None:
    path = Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-c", WITHOUT_CONSTRICTION, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = []
    for case in cases.values():
        codec, arrays = case.codec(), case.draw(2, 5)
        lines += [codec.encode(arrays, rate).hex() for rate in range(codec.rates)]
    assert result.stdout.splitlines() == lines
