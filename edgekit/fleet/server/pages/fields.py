"""Fields of forms as what they mean. All raise UsageError, saying which field and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from edgekit.errors import UsageError
from edgekit.fleet.protocol.wire import Labels, Name


def number(fields: Mapping[str, str], key: str, default: float) -> float:
    """`default` for a field that is empty."""
    text = fields.get(key, "").strip()
    if not text:
        return default
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UsageError(f"{key.replace('_', ' ')} {text!r:.40}, allowed a number", hint=f"{default:g}")
    return found


def whole(fields: Mapping[str, str], key: str, default: int) -> int:
    found = number(fields, key, default)
    if found != int(found):
        raise UsageError(f"{key.replace('_', ' ')} {found:g}, allowed a whole number", hint=f"{default}")
    return int(found)


def seconds(fields: Mapping[str, str], key: str, unit_s: float, default: float, most: float) -> float:
    """Of a field that counts in units of `unit_s`, above 0 and up to `most` of them."""
    found = number(fields, key, default)
    if not 0 < found <= most:
        raise UsageError(f"{key.replace('_', ' ')} {found:g}, allowed above 0 up to {most:g}", hint=f"{default:g}")
    return unit_s * found


def share(text: str, what: str) -> float:
    """ "5%" and "0.05" are the same."""
    plain = text.strip()
    try:
        found = float(plain.removesuffix("%")) / (100 if plain.endswith("%") else 1)
    except ValueError:
        found = math.nan
    if not 0 <= found <= 1:
        raise UsageError(f"{what} {text!r:.40}, allowed 0 % to 100 %", hint="5%")
    return found


def shares(text: str, what: str) -> tuple[float, ...]:
    return tuple(share(word, what) for word in text.replace(";", ",").split(",") if word.strip())


def labels(text: str) -> dict[str, str]:
    """board=rpi4, site=lab; also one a line."""
    found = {}
    for word in filter(None, (part.strip() for part in text.replace("\n", ",").split(","))):
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"label {word!r:.60}, allowed key=value", hint="board=rpi4")
        found[key.strip()] = value.strip()
    try:
        return TypeAdapter(Labels).validate_python(found)
    except ValidationError as error:
        where = ".".join(str(key) for key in error.errors()[0]["loc"] if key != "[key]")
        raise UsageError(
            f"label {where!r:.60}: keys of small letters, digits, dots and dashes; values the same with large letters",
            hint="board=rpi4",
        ) from error


def name(text: str, what: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(text.strip())
    except ValidationError as error:
        raise UsageError(
            f"{what} {text!r:.80}, allowed small letters, digits, dots and dashes, 63 at most", hint="pi-lab"
        ) from error


def version_of(fields: Mapping[str, str]) -> int | None:
    """That the form was filled in for."""
    text = fields.get("version", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
