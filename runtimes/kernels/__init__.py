"""Triton kernels for servers with a GPU, each beside a plain torch reference that says what it computes.

`call(kernel, ...)` runs the kernel on CUDA tensors and the reference elsewhere. A kernel that does not reproduce its
reference on the GPU at hand is told loudly once and replaced by the reference: never another result.
"""

from edgekit.runtimes.kernels.base import Config, Cost, Entry, Example, Kernel, call

__all__ = ["Config", "Cost", "Entry", "Example", "Kernel", "call"]
