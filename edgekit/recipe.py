"""A Recipe: everything a user can ask of an export, stated once.

The command line's options, the keys of a recipe file and the keyword arguments of `edgekit.export` are the fields of
this one dataclass; its help texts, choices and limits stand in the fields' metadata.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from edgekit.devices.device import ALIASES, profile_names
from edgekit.errors import UnknownNameError, UsageError
from edgekit.option import Option, Scalar, option
from edgekit.registry import BOTTLENECKS, EXPORTERS, OBSERVERS, QUANTIZERS, SAMPLES, TOKEN_COMPRESSORS, TOKEN_METHODS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What a server runs its parts with.
ENGINES = ("runtime", "torch")


def _formats() -> list[str]:
    return ["auto", *EXPORTERS]


def _quantizers() -> list[str]:
    return ["auto", "none", *QUANTIZERS]


def _bottlenecks() -> list[str]:
    return ["auto", *BOTTLENECKS]


def _devices() -> list[str]:
    return [*profile_names(), *ALIASES]


@dataclass(frozen=True)
class Recipe:
    """Raises UsageError for a value of the wrong type or out of range, UnknownNameError for one outside its choices.

    Paths are strings, relative to the working directory.
    """

    source: str = option(
        "sample name, package.module:callable, .pt2 or .onnx file, or Hugging Face directory",
        "Source",
        suggestions=lambda: SAMPLES,
        is_path=True,
    )
    device: str = option(
        "device profile: a name, an alias or the path of a TOML file",
        "Target",
        metavar="NAME|FILE",
        short="-d",
        suggestions=_devices,
        is_path=True,
    )
    output: str | None = option(
        "where the bundle goes; <name>-<device>.edgekit without it",
        "Output",
        default=None,
        metavar="PATH",
        short="-o",
        is_path=True,
        shapes_artifact=False,
    )
    format: str = option(
        "artifact format; auto measures those that the device runs and keeps the fastest within the limits",
        "Target",
        default="auto",
        kind="format",
        choices=_formats,
    )
    engine: str = option(
        "what the servers run: runtime, each part's own format, or torch, for which the float program of every part "
        "above the device (or of the whole model, where the device is a server) goes into the bundle too",
        "Target",
        default="runtime",
        kind="engine",
        choices=lambda: ENGINES,
    )
    prune_tokens: str = option(
        "of a transformer encoder: auto finds the strongest pruning within half of --max-drop, or a method with the "
        f"share of the FLOPs that is left ({', '.join(TOKEN_METHODS)}), as merge@0.7",
        "Tokens",
        default="none",
        metavar="auto|none|METHOD[@SHARE]",
        suggestions=lambda: ["auto", "none", *TOKEN_METHODS],
    )
    compress_tokens: str = option(
        "to a number instead of a share, learned from the whole model: pool@16 (of an encoder's tokens, behind half of "
        "its blocks), query@9 (of a QueryReader's picture, for one question), frames@8 (of a ClipEncoder's clip)",
        "Tokens",
        default="none",
        metavar="none|METHOD@NUMBER",
        suggestions=lambda: ["none", *TOKEN_COMPRESSORS],
    )
    prune_weights: str = option(
        "of a transformer encoder: auto finds the smallest within half of --max-drop, or a method with the share of "
        "its FLOPs that is left: vib (heads, feed-forward units and layers by the information that they carry), "
        "magnitude (widths by the largest weights), layers (those that change least), as vib@0.5",
        "Weights",
        default="none",
        metavar="auto|none|METHOD[@SHARE]",
        suggestions=lambda: ["auto", "none", "vib", "magnitude", "layers"],
    )
    recover: float | None = option(
        "minutes that the pruned model learns from the whole one, on --train or on the calibration inputs; resumable; "
        "5 without it",
        "Weights",
        default=None,
        metavar="MINUTES",
        minimum=0,
    )
    prune_heads: str = option(
        "of a transformer encoder: the share of the attention heads that is left, or auto, as many as a quarter of "
        "--max-drop spares",
        "Tokens",
        default="none",
        metavar="auto|none|SHARE",
    )
    length: int | None = option(
        "tokens that a text model takes, padded to and cut at; without it any number, and with --prune-tokens the "
        "longest sample's",
        "Tokens",
        default=None,
        metavar="N",
        minimum=2,
    )
    keep_task: str | None = option(
        "of a model of several tasks with experts of their own, the only one that is packed",
        "Variants",
        default=None,
        metavar="TASK",
    )
    widths: str | None = option(
        "shares of a transformer encoder's heads and feed-forward units to pack as smaller variants beside the whole "
        "model, separated by commas, as 1.0,0.75,0.5",
        "Variants",
        default=None,
        metavar="SHARES",
    )
    exits: str = option(
        "blocks of a transformer encoder behind which a sample that is easy may leave, separated by commas; auto takes "
        "those that pay",
        "Variants",
        default="none",
        metavar="auto|none|BLOCKS",
    )
    quantize: str = option(
        "quantizer; none keeps fp32, auto tries those that the device's kernels have",
        "Quantization",
        default="auto",
        kind="quantizer",
        choices=_quantizers,
    )
    calibration: str | None = option(
        "folder of images, .npy/.npz files or a text file to calibrate and judge on; a sample brings its own",
        "Quantization",
        default=None,
        metavar="PATH",
        short="-c",
        is_path=True,
    )
    calibration_samples: int = option(
        "how many inputs to calibrate on, at most", "Quantization", default=128, metavar="N", minimum=1
    )
    observer: str = option(
        "how activation ranges are found", "Quantization", default="auto", kind="observer", choices=lambda: OBSERVERS
    )
    equalize: bool = option("even out weight ranges across layers (CLE) first", "Quantization", default=False)
    bias_correction: bool = option("cancel the mean error that rounding leaves", "Quantization", default=True)
    learned_rounding: bool = option(
        "learn which way each weight rounds, layer by layer; resumable", "Quantization", default=True
    )
    edge: str | None = option(
        "profile of the edge node that takes over what is cut off: a name, an alias or a TOML file",
        "Split",
        default=None,
        metavar="NAME|FILE",
        suggestions=_devices,
        is_path=True,
    )
    cloud: str | None = option(
        "profile of the cloud server behind the edge node, likewise",
        "Split",
        default=None,
        metavar="NAME|FILE",
        suggestions=_devices,
        is_path=True,
    )
    split: str = option(
        "where to cut: auto finds the cuts worth having over a range of links, none leaves the model whole, or the "
        "names of cuts, separated by commas (`edgekit inspect` lists them)",
        "Split",
        default="auto",
        metavar="auto|none|CUTS",
    )
    bottleneck: str = option(
        "how features are made small at a cut; auto takes the best under --max-drop at each rate",
        "Split",
        default="auto",
        kind="bottleneck",
        choices=_bottlenecks,
    )
    train: str | None = option(
        "folder of images, labelled or not, to train the bottleneck on (without it only the training-free ones), or a "
        "folder or a text file to recover pruned weights on",
        "Split",
        default=None,
        metavar="DIR",
        is_path=True,
    )
    epochs: int | None = option(
        "how many times training sees the folder, at most; 5 without it", "Split", default=None, metavar="N", minimum=1
    )
    max_drop: float = option(
        "refuse where more than this many points (percent) are lost: of accuracy where labels are known, of expected "
        "accuracy for other classifiers, of 100 x (1 - cosine) for the rest",
        "Limits",
        default=1.0,
        metavar="POINTS",
        minimum=0,
    )
    min_sqnr: float | None = option(
        "refuse below this signal-to-quantization-noise ratio", "Limits", default=None, metavar="DB"
    )
    limit: str | None = option(
        "search all recipes for the best within these: latency=8ms, size=10MB, memory=64MB, energy=40mJ, bytes=2kB, "
        "drop=0.5; several separated by commas",
        "Limits",
        default=None,
        metavar="NAME=VALUE",
        repeats=True,
    )
    budget: str | None = option(
        "how long a search may take once the model is loaded, as 90s or 20min; what is being built by then is ended; "
        "10min without it",
        "Limits",
        default=None,
        metavar="TIME",
    )
    opset: int | None = option(
        "ONNX opset of --format onnx: 13, 17, or 18 to 23", "Target", default=None, metavar="N", minimum=13
    )
    channels_last: bool = option("take images as NHWC, as cameras deliver them", "Target", default=False)
    threads: int = option(
        "threads for the timing on this machine",
        "Limits",
        default=1,
        metavar="N",
        minimum=1,
        shapes_artifact=False,
    )
    include_float: bool = option("pack the float twin too, to evaluate against it later", "Output", default=False)
    sign: str | None = option(
        "private key to sign with (ed25519; `edgekit keygen` makes one)",
        "Output",
        default=None,
        metavar="KEY",
        is_path=True,
        shapes_artifact=False,
    )
    directory: bool = option("write a directory instead of an archive", "Output", default=False, shapes_artifact=False)
    report: bool = option("write the HTML report into the bundle", "Output", default=True, shapes_artifact=False)
    force: bool = option("replace an existing output", "Output", default=False, shapes_artifact=False)
    name: str | None = option("what the bundle calls the model", "Output", default=None, metavar="NAME")
    seed: int = option("seed of everything random", "Quantization", default=0, metavar="N", minimum=0)

    def __post_init__(self) -> None:
        for one in recipe_options():
            object.__setattr__(self, one.name, one.check(getattr(self, one.name)))

    @classmethod
    def of(cls, values: Mapping[str, object], origin: str = "recipe key") -> Recipe:
        """From names and values. Raises UnknownNameError, with the nearest key, and UsageError for a missing one."""
        known = {one.name: one for one in recipe_options()}
        for key in values:
            if key not in known:
                raise UnknownNameError(origin, key, known)
        for one in known.values():
            if one.required and one.name not in values:
                hint = f"{one.name}: {one.help}"
                raise UsageError(f"no {one.name} is given", hint=hint)
        return cls(**{key: known[key].check(value) for key, value in values.items()})  # type: ignore[arg-type]

    @classmethod
    def from_toml(cls, path: str | Path, **overrides: object) -> Recipe:
        """A recipe file's keys, then `overrides` over them. Raises UsageError for a file that is not a recipe."""
        return cls.of({**read_recipe(path), **overrides})

    def to_dict(self) -> dict[str, Scalar]:
        return asdict(self)

    def to_toml(self) -> str:
        """A recipe file that `from_toml` reads back; what is None is left out."""
        lines = [f"{key} = {_toml(value)}" for key, value in self.to_dict().items() if value is not None]
        return "\n".join(lines) + "\n"

    @property
    def searches(self) -> bool:
        """Whether the best of many recipes is asked for, rather than this one."""
        return self.limit is not None or self.budget is not None

    @property
    def learns(self) -> bool:
        """Whether minutes of training are asked for, which an interruption does not lose."""
        return self.prune_weights != "none" or self.compress_tokens != "none" or self.train is not None

    def provenance(self) -> dict[str, Scalar]:
        """Only what shapes the artifact, so that the same model exported to another path gives the same bytes."""
        values = self.to_dict()
        return {one.name: values[one.name] for one in recipe_options() if one.shapes_artifact}


def read_recipe(path: str | Path) -> dict[str, object]:
    """The keys of a recipe file, unchecked. Raises UsageError where it cannot be read as TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe {path}: {error}", hint="--recipe takes a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the recipe {path} is not TOML: {error}", hint='keys look like  device = "jetson"') from error


def recipe_options() -> Iterator[Option]:
    """The options in the order of the fields."""
    return iter(_options())


@cache
def _options() -> tuple[Option, ...]:
    hints = get_type_hints(Recipe)
    found = []
    for entry in fields(Recipe):
        kinds = [kind for kind in get_args(hints[entry.name]) if kind is not NoneType] or [hints[entry.name]]
        required = entry.default is MISSING
        default: Any = None if required else entry.default
        found.append(Option(entry.name, kinds[0], default, required, **entry.metadata))
    return tuple(found)


def _toml(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in quoted) + '"'
    return repr(value)
