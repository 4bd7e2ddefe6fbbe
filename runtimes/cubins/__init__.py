"""Compiled kernels out of a bundle, launched through CUDA's driver: numpy and ctypes, neither torch nor Triton.

    with Bundle.open("cats-kernels.edgekit") as bundle, open_decoder(bundle, "cut") as decoder:
        features = decoder.decode(symbols, rates, places)    # by the GPU where it proves itself, else in numpy

    with Bundle.open("cats-kernels.edgekit") as bundle, open_gpu() as gpu:
        assign = KernelSet(bundle, gpu).find("kmeans-assign")
        assign((blocks,), {"points": gpu.upload(points), ...})

`edgekit kernels pack` puts the kernels into a bundle. Triton's assemblers are of CUDA 12.9 (sm_80, sm_87) and 13.4
(from sm_90 on): the driver has to be of that line or newer. The host side is tested against an emulated driver; no
Jetson and no other GPU has run it.
"""

from edgekit.runtimes.cubins.checked import FeatureDecoder, open_decoder
from edgekit.runtimes.cubins.driver import DeviceArray, Gpu, open_gpu
from edgekit.runtimes.cubins.kernel_set import Function, KernelSet
from edgekit.runtimes.cubins.ragged_decode import RaggedDecoder
from edgekit.runtimes.cubins.table import TABLE, Cubin, CubinTable, read_table

__all__ = [
    "TABLE",
    "Cubin",
    "CubinTable",
    "DeviceArray",
    "FeatureDecoder",
    "Function",
    "Gpu",
    "KernelSet",
    "RaggedDecoder",
    "open_decoder",
    "open_gpu",
    "read_table",
]
