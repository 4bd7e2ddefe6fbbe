"""A benchmark tries configurations; a call outside of it takes its own."""

from __future__ import annotations

import pytest
import torch

from edgekit.registry import KERNELS
from edgekit.runtimes.kernels.base import Config, difference
from edgekit.runtimes.kernels.choice import choose, trying
from edgekit.runtimes.kernels.ragged_decode import DECODE
from edgekit.runtimes.kernels.timing import reproduces

CONFIGS = tuple(Config({"BLOCK": size}) for size in (16, 32, 64))


def test_the_own_choice_stands_outside_and_after_a_trial() -> None:
    assert choose(CONFIGS, 1) is CONFIGS[1]
    with trying(2) as trial:
        assert choose(CONFIGS, 1) is CONFIGS[2]
        assert (trial.offered, trial.taken) == (3, 2)
        with trying() as inner:
            assert choose(CONFIGS, 0) is CONFIGS[0] and inner.taken == 0
        assert choose(CONFIGS, 1) is CONFIGS[2]
    with pytest.raises(IndexError), trying(3):
        choose(CONFIGS, 1)
    assert choose(CONFIGS, 1) is CONFIGS[1]


@pytest.mark.parametrize("name", list(KERNELS))
def test_what_is_offered_is_what_was_compiled_for_it(name: str) -> None:
    kernel = KERNELS.load(name)
    with trying() as trial:
        kernel.launch(*kernel.examples()[0].arguments)
    configs = {config for entry in kernel.entries for config in map(_tiles, entry.configs)}
    assert 0 <= trial.taken < trial.offered <= max(len(configs), 1)


def _tiles(config: Config) -> tuple[object, ...]:
    return *((key, value) for key, value in config.constants.items() if "BLOCK" in key or key == "SPLITS"), config.warps


def test_every_tile_of_ragged_decoding_gives_the_same_batch() -> None:
    arguments = DECODE.examples()[0].arguments
    wanted = DECODE.reference(*arguments)
    for index in range(3):
        with trying(index) as trial:
            assert difference(DECODE.launch(*arguments), wanted) < 1e-6
        assert trial.taken == index and reproduces(DECODE, arguments, wanted, index)


def test_a_configuration_that_computes_something_else_is_not_taken() -> None:
    """Tiles of 64 channels for keys of 128 leave half of them out."""
    kernel = KERNELS.load("linear-attention")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 5, 100, generator=generator) for _ in range(3))
    arguments = (q, k, v, torch.tensor([0.9]), torch.zeros(1, 1, 100, 100))
    with trying() as trial:
        wanted = kernel.launch(*arguments)
    assert trial.taken == 1 and reproduces(kernel, arguments, wanted, 1)
    assert not reproduces(kernel, arguments, wanted, 0)
