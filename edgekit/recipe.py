"""A Recipe: everything a user can ask of an export, stated once.

The command line's options, the keys of a recipe file and the keyword arguments of `edgekit.export` are the fields of
this one dataclass; its help texts, choices and limits stand in the fields' metadata.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_args, get_type_hints

from edgekit.devices.device import ALIASES, profile_names
from edgekit.errors import UnknownNameError, UsageError
from edgekit.registry import BOTTLENECKS, EXPORTERS, OBSERVERS, QUANTIZERS, SAMPLES, TOKEN_METHODS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Option:
    """What a field of Recipe means to a user.

    `choices` closes the set of values; `suggestions` only helps a shell to complete an open one. `kind` is what an
    error calls the value. `shapes_artifact` is False for options that leave the exported bytes as they are (paths,
    keys, presentation), which therefore stay out of the bundle's provenance. `repeats`: the command line takes it
    several times, and joins the values with commas.
    """

    name: str
    type: type
    default: Scalar
    required: bool
    help: str
    group: str
    kind: str
    metavar: str
    short: str | None
    choices: Callable[[], Iterable[str]] | None
    suggestions: Callable[[], Iterable[str]] | None
    minimum: float | None
    is_path: bool
    shapes_artifact: bool
    repeats: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def check(self, value: Any) -> Scalar:
        """The value as its field holds it. Raises UsageError or UnknownNameError."""
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if value is None and self.default is None and not self.required:
            return None
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, self.type) or (isinstance(value, bool) and self.type is not bool):
            raise UsageError(
                f"{self.name} is {value!r} ({type(value).__name__}), allowed {self.type.__name__}",
                hint=f"{self.name}: {self.help}",
            )
        if self.choices is not None and value not in set(self.choices()):
            raise UnknownNameError(self.kind, str(value), self.choices())
        if self.minimum is not None and isinstance(value, int | float) and not value >= self.minimum:
            raise UsageError(f"{self.name} is {value}, allowed {self.minimum:g} or more")
        return cast(Scalar, value)


def _option(
    help: str,
    group: str,
    *,
    default: Any = MISSING,
    kind: str = "",
    metavar: str = "",
    short: str | None = None,
    choices: Callable[[], Iterable[str]] | None = None,
    suggestions: Callable[[], Iterable[str]] | None = None,
    minimum: float | None = None,
    is_path: bool = False,
    shapes_artifact: bool = True,
    repeats: bool = False,
) -> Any:
    facts = {
        "help": help,
        "group": group,
        "kind": kind,
        "metavar": metavar,
        "short": short,
        "choices": choices,
        "suggestions": suggestions,
        "minimum": minimum,
        "is_path": is_path,
        "shapes_artifact": shapes_artifact,
        "repeats": repeats,
    }
    return field(default=default, metadata=facts)


def _formats() -> list[str]:
    return ["auto", *EXPORTERS]


def _quantizers() -> list[str]:
    return ["auto", "none", *QUANTIZERS]


def _bottlenecks() -> list[str]:
    return ["auto", "none", *BOTTLENECKS]


def _devices() -> list[str]:
    return [*profile_names(), *ALIASES]


@dataclass(frozen=True)
class Recipe:
    """Raises UsageError for a value of the wrong type or out of range, UnknownNameError for one outside its choices.

    Paths are strings, relative to the working directory.
    """

    source: str = _option(
        "sample name, package.module:callable, .pt2 or .onnx file, or Hugging Face directory",
        "Source",
        suggestions=lambda: SAMPLES,
        is_path=True,
    )
    device: str = _option(
        "device profile: a name, an alias or the path of a TOML file",
        "Target",
        metavar="NAME|FILE",
        short="-d",
        suggestions=_devices,
        is_path=True,
    )
    output: str | None = _option(
        "where the bundle goes; <name>-<device>.edgekit without it",
        "Output",
        default=None,
        metavar="PATH",
        short="-o",
        is_path=True,
        shapes_artifact=False,
    )
    format: str = _option(
        "artifact format; auto measures those that the device runs and keeps the fastest within the limits",
        "Target",
        default="auto",
        kind="format",
        choices=_formats,
    )
    prune_tokens: str = _option(
        "of a transformer encoder: auto finds the strongest pruning within half of --max-drop, or a method with the "
        f"share of the FLOPs that is left ({', '.join(TOKEN_METHODS)}), as merge@0.7",
        "Tokens",
        default="none",
        metavar="auto|none|METHOD[@SHARE]",
        suggestions=lambda: ["auto", "none", *TOKEN_METHODS],
    )
    prune_weights: str = _option(
        "of a transformer encoder: auto finds the smallest within half of --max-drop, or a method with the share of "
        "its FLOPs that is left: vib (heads, feed-forward units and layers by the information that they carry), magnitude "
        "(widths by the largest weights), layers (those that change least), as vib@0.5",
        "Weights",
        default="none",
        metavar="auto|none|METHOD[@SHARE]",
        suggestions=lambda: ["auto", "none", "vib", "magnitude", "layers"],
    )
    recover: float = _option(
        "minutes that the pruned model learns from the whole one, on --train or on the calibration inputs; resumable",
        "Weights",
        default=5.0,
        metavar="MINUTES",
        minimum=0,
    )
    prune_heads: str = _option(
        "of a transformer encoder: the share of the attention heads that is left, or auto, as many as a quarter of "
        "--max-drop spares",
        "Tokens",
        default="none",
        metavar="auto|none|SHARE",
    )
    length: int | None = _option(
        "tokens that a text model takes, padded to and cut at; without it any number, and with --prune-tokens the "
        "longest sample's",
        "Tokens",
        default=None,
        metavar="N",
        minimum=2,
    )
    keep_task: str | None = _option(
        "of a model of several tasks with experts of their own, the only one that is packed",
        "Variants",
        default=None,
        metavar="TASK",
    )
    widths: str | None = _option(
        "shares of a transformer encoder's heads and feed-forward units to pack as smaller variants beside the whole "
        "model, separated by commas, as 1.0,0.75,0.5",
        "Variants",
        default=None,
        metavar="SHARES",
    )
    exits: str = _option(
        "blocks of a transformer encoder behind which a sample that is easy may leave, separated by commas; auto takes "
        "those that pay",
        "Variants",
        default="none",
        metavar="auto|none|BLOCKS",
    )
    quantize: str = _option(
        "quantizer; none keeps fp32, auto tries those that the device's kernels have",
        "Quantization",
        default="auto",
        kind="quantizer",
        choices=_quantizers,
    )
    calibration: str | None = _option(
        "folder of images, .npy/.npz files or a text file to calibrate and judge on; a sample brings its own",
        "Quantization",
        default=None,
        metavar="PATH",
        short="-c",
        is_path=True,
    )
    calibration_samples: int = _option(
        "how many inputs to calibrate on, at most", "Quantization", default=128, metavar="N", minimum=1
    )
    observer: str = _option(
        "how activation ranges are found", "Quantization", default="auto", kind="observer", choices=lambda: OBSERVERS
    )
    equalize: bool = _option("even out weight ranges across layers (CLE) first", "Quantization", default=False)
    bias_correction: bool = _option("cancel the mean error that rounding leaves", "Quantization", default=True)
    learned_rounding: bool = _option(
        "learn which way each weight rounds, layer by layer; resumable", "Quantization", default=True
    )
    edge: str | None = _option(
        "profile of the edge node that takes over what is cut off: a name, an alias or a TOML file",
        "Split",
        default=None,
        metavar="NAME|FILE",
        suggestions=_devices,
        is_path=True,
    )
    cloud: str | None = _option(
        "profile of the cloud server behind the edge node, likewise",
        "Split",
        default=None,
        metavar="NAME|FILE",
        suggestions=_devices,
        is_path=True,
    )
    split: str = _option(
        "where to cut: auto finds the cuts worth having over a range of links, none leaves the model whole, or the "
        "names of cuts, separated by commas (`edgekit inspect` lists them)",
        "Split",
        default="auto",
        metavar="auto|none|CUTS",
    )
    bottleneck: str = _option(
        "how features are made small at a cut; auto takes the best under --max-drop at each rate",
        "Split",
        default="auto",
        kind="bottleneck",
        choices=_bottlenecks,
    )
    train: str | None = _option(
        "folder of images, labelled or not, to train the bottleneck on (without it only the training-free ones), or a "
        "folder or a text file to recover pruned weights on",
        "Split",
        default=None,
        metavar="DIR",
        is_path=True,
    )
    epochs: int = _option(
        "how many times training sees the folder, at most", "Split", default=5, metavar="N", minimum=1
    )
    max_drop: float = _option(
        "refuse where more than this many points (percent) are lost: of accuracy where labels are known, of expected "
        "accuracy for other classifiers, of 100 x (1 - cosine) for the rest",
        "Limits",
        default=1.0,
        metavar="POINTS",
        minimum=0,
    )
    min_sqnr: float | None = _option(
        "refuse below this signal-to-quantization-noise ratio", "Limits", default=None, metavar="DB"
    )
    limit: str | None = _option(
        "search all recipes for the best within these: latency=8ms, size=10MB, memory=64MB, energy=40mJ, bytes=2kB, "
        "drop=0.5; several separated by commas",
        "Limits",
        default=None,
        metavar="NAME=VALUE",
        repeats=True,
    )
    budget: str | None = _option(
        "how long a search may take, as 90s or 20min; 10min without it", "Limits", default=None, metavar="TIME"
    )
    opset: int | None = _option(
        "ONNX opset of --format onnx: 13, 17, or 18 to 23", "Target", default=None, metavar="N", minimum=13
    )
    channels_last: bool = _option("take images as NHWC, as cameras deliver them", "Target", default=False)
    threads: int = _option(
        "threads for the timing on this machine",
        "Limits",
        default=1,
        metavar="N",
        minimum=1,
        shapes_artifact=False,
    )
    include_float: bool = _option("pack the float twin too, to evaluate against it later", "Output", default=False)
    sign: str | None = _option(
        "private key to sign with (ed25519; `edgekit keygen` makes one)",
        "Output",
        default=None,
        metavar="KEY",
        is_path=True,
        shapes_artifact=False,
    )
    directory: bool = _option("write a directory instead of an archive", "Output", default=False, shapes_artifact=False)
    report: bool = _option("write the HTML report into the bundle", "Output", default=True, shapes_artifact=False)
    force: bool = _option("replace an existing output", "Output", default=False, shapes_artifact=False)
    name: str | None = _option("what the bundle calls the model", "Output", default=None, metavar="NAME")
    seed: int = _option("seed of everything random", "Quantization", default=0, metavar="N", minimum=0)

    def __post_init__(self) -> None:
        for option in recipe_options():
            object.__setattr__(self, option.name, option.check(getattr(self, option.name)))

    @classmethod
    def of(cls, values: Mapping[str, object], origin: str = "recipe key") -> Recipe:
        """From names and values. Raises UnknownNameError, with the nearest key, and UsageError for a missing one."""
        known = {option.name: option for option in recipe_options()}
        for key in values:
            if key not in known:
                raise UnknownNameError(origin, key, known)
        for option in known.values():
            if option.required and option.name not in values:
                hint = f"{option.name}: {option.help}"
                raise UsageError(f"no {option.name} is given", hint=hint)
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

    def provenance(self) -> dict[str, Scalar]:
        """Only what shapes the artifact, so that the same model exported to another path gives the same bytes."""
        values = self.to_dict()
        return {option.name: values[option.name] for option in recipe_options() if option.shapes_artifact}


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
