from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edgekit.digests import digest_directory, digest_file, digest_module


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def test_same_weights_same_digest_and_one_bit_more_another() -> None:
    assert digest_module(net()) == digest_module(net())
    changed = net()
    changed[1].num_batches_tracked += 1  # type: ignore[index, operator]
    assert digest_module(changed) != digest_module(net())


def test_structure_counts_where_weights_are_the_same() -> None:
    assert digest_module(nn.Sequential(nn.ReLU())) != digest_module(nn.Sequential(nn.GELU()))


def test_memory_layout_does_not_count() -> None:
    assert digest_module(net().to(memory_format=torch.channels_last)) == digest_module(net())


def test_empty_and_half_precision_tensors_are_digested() -> None:
    module = nn.Module()
    module.register_buffer("empty", torch.zeros(0))
    module.register_buffer("low", torch.ones(3, dtype=torch.bfloat16))
    assert len(digest_module(module)) == 64


def test_a_directory_counts_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1")
    before = digest_directory(tmp_path)
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert digest_directory(tmp_path) != before
    assert digest_file(tmp_path / "a" / "y") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
