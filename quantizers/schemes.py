"""The integers that each target wants, by name.

ONNX Runtime's x86 kernels want unsigned activations (u8 x s8); its ARM kernels, XNNPACK and LiteRT want signed ones;
TensorRT wants symmetric ones, zero point 0. Weights are symmetric per channel in [-127, 127] everywhere.
"""

from __future__ import annotations

from edgekit.errors import UnknownNameError
from edgekit.quantization import Scheme

ONNX_X86 = Scheme("onnx-x86", activation_dtype="uint8", float_outputs=True, integer_scores=True)
ONNX_X86_NO_VNNI = Scheme("onnx-x86-no-vnni", activation_dtype="uint8", reduce_range=True, float_outputs=True)
ONNX_ARM = Scheme("onnx-arm", float_outputs=True)
XNNPACK = Scheme("xnnpack")
LITERT = Scheme("litert")
TENSORRT = Scheme("tensorrt", symmetric_activations=True, float_outputs=True)

SCHEMES = {scheme.name: scheme for scheme in (ONNX_X86, ONNX_X86_NO_VNNI, ONNX_ARM, XNNPACK, LITERT, TENSORRT)}


def scheme_named(name: str) -> Scheme:
    """Raises UnknownNameError with the nearest name."""
    if name not in SCHEMES:
        raise UnknownNameError("scheme", name, SCHEMES)
    return SCHEMES[name]
