"""The device that a program is served on: whether it is there, and what it holds."""

from __future__ import annotations

import torch

from edgekit.errors import DeviceError

# What the driver, libraries and fragments take beside the models.
SPARE = 0.1


def find_device(name: str) -> torch.device:
    """`name`: cpu, cuda (the first GPU) or cuda:N. On a GPU float32 stays float32 from then on, in the whole process.

    Raises DeviceError where torch cannot reach it.
    """
    if name == "cpu":
        return torch.device("cpu")
    if torch.version.cuda is None:
        raise DeviceError(
            f"--device {name} needs a CUDA build of torch, torch {torch.__version__} is built without CUDA",
            hint="install torch 2.13.0 for your driver's CUDA (pytorch.org, Get Started), or take --device cpu",
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        raise DeviceError(
            f"--device {name}, and torch sees {count} GPUs",
            hint="`nvidia-smi` lists them; check the driver and CUDA_VISIBLE_DEVICES, or --device cpu: same answers",
        )
    keep_float32()
    return torch.device("cuda", index)


def keep_float32() -> None:
    """cuDNN would round the operands of float32 convolutions to TF32's 11 bits, unlike the processor. One setting for
    the process; inductor reads these two."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def device_bytes(device: torch.device) -> int:
    """What models may take together on a GPU where nobody said it: what was free when torch first looked, less a
    spare tenth."""
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    return int((free + held) * (1 - SPARE))
