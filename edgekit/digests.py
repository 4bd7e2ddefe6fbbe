"""A sha256 that is the same for the same weights, on every machine and in every process."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn


def digest_module(module: nn.Module) -> str:
    """sha256 over the classes of the modules, and the names, dtypes, shapes and bytes of parameters and buffers."""
    sha = hashlib.sha256()
    for name, part in module.named_modules():
        sha.update(f"{name}={type(part).__qualname__}\n".encode())
    for name, value in module.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        sha.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}\n".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return sha.hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of the bytes of one file."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def digest_directory(path: Path) -> str:
    """sha256 over the relative names and bytes of every file below `path`, in sorted order."""
    sha = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        sha.update(f"{file.relative_to(path).as_posix()}={digest_file(file)}\n".encode())
    return sha.hexdigest()
