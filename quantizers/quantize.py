"""From a precision's name to a quantized Model: what the build flow asks of this wing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgekit.errors import DataError, DeviceError
from edgekit.model import Model
from edgekit.progress import Progress, silent
from edgekit.quantization import Quantization, Scheme
from edgekit.quantizers.anatomy import weighted_layers
from edgekit.quantizers.base import Quantizer
from edgekit.quantizers.lower import to_pt2e
from edgekit.quantizers.sensitivity import layer_sqnr
from edgekit.recipe import Recipe
from edgekit.registry import QUANTIZERS

FLOAT = "fp32"
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d")


@dataclass(frozen=True)
class QuantizerOptions:
    """What a user may say about every quantizer; a method takes those of these fields that it has itself.

    `cache_dir`: where a method that takes minutes keeps what is finished, to go on there after an interruption.
    """

    observer: str = "auto"
    equalize: bool = False
    bias_correction: bool = True
    learned_rounding: bool = True
    cache_dir: Path | None = None

    @classmethod
    def of(cls, recipe: Recipe, cache_dir: Path | None = None) -> QuantizerOptions:
        return cls(recipe.observer, recipe.equalize, recipe.bias_correction, recipe.learned_rounding, cache_dir)


def equalizes(precision: str, options: QuantizerOptions) -> bool:
    """Whether the method that `precision` names starts from an equalized copy of the float Model."""
    return options.equalize and "equalize" in {field.name for field in fields(QUANTIZERS.load(precision))}


def quantize(
    model: Model,
    precision: str,
    scheme: Scheme,
    options: QuantizerOptions,
    keep: tuple[tuple[str, str], ...],
    progress: Progress,
    siblings: Sequence[Model] = (),
) -> Model:
    """`model` quantized by the method that `precision` names; `keep` lists (layer, why) that stay float.

    `siblings`: what the same call gave in other schemes; what would end the same is taken from there.
    """
    method: type[Quantizer] = QUANTIZERS.load(precision)
    own = {field.name for field in fields(method)}
    chosen = {field.name: getattr(options, field.name) for field in fields(options) if field.name in own}
    quantizer = method(scheme=scheme, keep=keep, **chosen)
    if siblings and not method.reads_scheme:
        record = siblings[0].quantization
        assert record is not None
        return replace(siblings[0], quantization=replace(record, scheme=scheme))
    grids_alone: dict[str, Any] = dict.fromkeys(own & {"learned_rounding", "bias_correction"}, False)
    if siblings and grids_alone:
        plain = replace(quantizer, **grids_alone)(model, silent)
        for sibling in siblings:
            if _rounds_alike(plain, sibling):
                return replace(sibling, quantization=plain.quantization)
    return quantizer(model, progress)


def _rounds_alike(plain: Model, sibling: Model) -> bool:
    """Whether the two records differ at most in their name and in the grids of the model's own outputs.

    A layer's rounding depends on what reaches it, so that those grids change nothing.
    """
    own, other = plain.quantization, sibling.quantization
    assert own is not None and other is not None
    if own.weights.keys() != other.weights.keys() or own.layers != other.layers:
        return False
    if own.scheme.weight_limit != other.scheme.weight_limit:
        return False
    ends = {node.name for node in plain.graph.graph.nodes if all(user.op == "output" for user in node.users)}
    names = own.activations.keys() | other.activations.keys()
    return all(own.activations.get(name) == other.activations.get(name) for name in names - ends) and all(
        _same_weights(own, other, name) for name in own.weights
    )


def _same_weights(own: Quantization, other: Quantization, name: str) -> bool:
    mine, theirs = own.weights[name], other.weights[name]
    return mine.axis == theirs.axis and mine.bits == theirs.bits and mine.scale.equal(theirs.scale)


def simulate(model: Model) -> Model:
    """The quantized Model as torch computes it: the reference that every artifact is held against."""
    if model.quantization is None or not model.quantization.weights:
        return model
    return model.evolve_quietly(module=to_pt2e(model), quantization=None)


def worst_layers(reference: Model, quantized: Model) -> list[tuple[str, float]]:
    """(layer, SQNR in dB of its output against the float model), worst first; [] for what has no torch graph."""
    if quantized.onnx_path is not None:
        return []
    return sorted(layer_sqnr(reference, quantized), key=lambda row: row[1])


def proposed_precisions(
    model: Model,
    asked: str,
    carried: Sequence[str],
    runs: Sequence[str],
    format: str,
    device: str,
    float_outputs: bool = False,
) -> list[str]:
    """The precisions to build, fp32 first: it is what the others are compared with.

    `carried`: what the exporter can write. `runs`: what the device's kernels have. `auto` takes static int8 for
    models that spend their work in convolutions and dynamic int8 for the others, and fp16 where the device has it.
    `float_outputs`: the format's integer products write floats, as the scheme says; static int8 is then worth a try in
    the others too, and the gate and the clock decide. Elsewhere their residual streams would lie on 8 bits.
    Raises DeviceError where `asked` cannot be had, DataError where static int8 lacks calibration data.
    """
    possible = [precision for precision in carried if precision in runs or precision == FLOAT]
    if asked == "none":
        return [FLOAT]
    if asked != "auto":
        if asked not in possible:
            raise DeviceError(
                f"{device} cannot run {format} in {asked}",
                hint=f"there it runs: {', '.join(possible)}; or --format auto",
            )
        if asked == "int8" and not model.calibration:
            raise DataError(
                "int8 needs calibration data, got none", hint="--calibration DIR, or --quantize int8-dynamic"
            )
        return [FLOAT, asked]
    if model.calibration and wants_static(model, possible):
        integer = ["int8"]
    elif "int8-dynamic" in possible and has_products(model):
        both = bool(model.calibration) and float_outputs and "int8" in possible
        integer = ["int8", "int8-dynamic"] if both else ["int8-dynamic"]
    else:
        integer = []
    return [FLOAT, *integer, *(["fp16"] if "fp16" in possible else [])]


def wants_static(model: Model, possible: Sequence[str]) -> bool:
    """Whether static int8, which needs calibration data, is what suits `model`."""
    return "int8" in possible and ("int8-dynamic" not in possible or mostly_convolutions(model))


def has_products(model: Model) -> bool:
    """Whether there is a linear layer, which is what dynamic int8 changes. A trained .onnx file is taken to."""
    if model.onnx_path is not None:
        return True
    return any(not layer.is_convolution for layer in weighted_layers(model.graph))


def mostly_convolutions(model: Model) -> bool:
    """Whether more weights sit in convolutions than in linear layers and matrix products: static int8 pays there.

    A trained .onnx file is taken to: the gate and the clock correct that.
    """
    if model.onnx_path is not None:
        return True
    convolutional = linear = 0
    for node in model.graph.graph.nodes:
        if node.op != "call_function" or not hasattr(node.target, "__name__"):
            continue
        name = str(node.target).split(".")[1] if "." in str(node.target) else ""
        weight = sum(
            source.meta["val"].numel()
            for source in node.all_input_nodes
            if source.op == "get_attr" and hasattr(source.meta.get("val"), "numel")
        )
        if name in CONVOLUTIONS:
            convolutional += weight
        elif name in ("linear", "addmm", "mm", "matmul"):
            linear += weight
    return convolutional > linear
