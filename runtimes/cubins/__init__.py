"""Compiled kernels out of a bundle, launched through CUDA's driver: numpy and ctypes, neither torch nor Triton.

    with Bundle.open("cats-kernels.edgekit") as bundle, open_gpu() as gpu:
        kernels = KernelSet(bundle, gpu)
        decoder = RaggedDecoder(kernels, codec)
        features = decoder.decode(symbols, rates)

`edgekit kernels pack` puts the kernels into a bundle. Triton's assemblers are of CUDA 12.9 (sm_80, sm_87) and 13.4
(from sm_90 on): the driver has to be of that line or newer. The host side is tested against an emulated driver; no
Jetson and no other GPU has run it.
"""

from edgekit.runtimes.cubins.driver import DeviceArray, Gpu, open_gpu
from edgekit.runtimes.cubins.kernel_set import Function, KernelSet
from edgekit.runtimes.cubins.ragged_decode import RaggedDecoder
from edgekit.runtimes.cubins.table import TABLE, Cubin, CubinTable, read_table

__all__ = [
    "TABLE",
    "Cubin",
    "CubinTable",
    "DeviceArray",
    "Function",
    "Gpu",
    "KernelSet",
    "RaggedDecoder",
    "open_gpu",
    "read_table",
]
