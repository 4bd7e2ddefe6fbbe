"""Every error a user can meet.

    EdgekitError                     1   anything below
    ├── UsageError                   2   an option, name, recipe or token file that cannot be (click's own share 2)
    │   └── UnknownNameError         2   a name that no registry knows; carries the nearest one
    ├── SourceError                  3   the model could not be loaded, or is none that this can be done to
    │   ├── CaptureError             3   torch.export cannot capture it
    │   └── NumericsError            3   NaN or infinity in weights or outputs
    ├── DataError                    4   calibration, images or evaluation data cannot be used
    ├── DeviceError                  5   the device cannot run what was asked
    ├── MissingExtraError            6   an optional package is missing; carries the pip command
    ├── ExportError                  7   a converter refused the model
    │   └── UnsupportedOperatorError 7   ... because of an operator that it names
    ├── QualityError                 8   the accuracy limit cannot be met: nothing is written
    ├── BundleError                  9   not a bundle, or truncated, altered, hostile
    │   └── SignatureError           9   ... or not signed by the key given
    ├── OutputError                 10   the output path exists, or cannot be written; the disk is full
    ├── InputError                  11   wrong names, dtypes or shapes given to a session
    ├── SessionError                12   a runtime failed to load or run an artifact
    ├── CodecError                  13   a feature cannot be coded, a frame is damaged, a rate is not on the ladder
    │   └── FrameError              13   ... bytes from the wire that are no whole, fitting frame
    ├── PlanError                   14   no cut or plan meets the limits; says which limit binds
    ├── NodeError                   15   a node cannot serve: its port, certificate or bundle
    ├── RemoteError                 16   a node or fleet did not answer as asked
    │   ├── UnreachableError        16   ... nothing listens there, or the connection broke
    │   ├── AuthenticationError     16   ... it refuses the token or the certificate (or we refuse its)
    │   ├── OverloadedError         16   ... its queue is full: try later
    │   ├── MismatchError           16   ... it holds another bundle, plan or codec
    │   └── DeadlineError           16   ... not by the deadline
    └── FleetError                  17   the fleet has no such thing, forbids it, or is in a state that excludes it
        ├── AbsentError             17   ... no device, group, bundle, rollout or person of that name
        ├── ForbiddenError          17   ... the role of who asks does not allow it
        ├── ConflictError           17   ... something else stands in the way, or has changed since it was read
        ├── StoreError              17   ... its database or folder is down, locked, full or of another version
        └── RolloutError            17   ... a rollout ended without success

The number is the exit code of the command line and stays what it is. 130 means interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class EdgekitError(Exception):
    """What happened, and `hint`: what to do about it. `trail` is set by a pipeline: which pass failed, after which.
    `retry_after_s`: when whoever was asked wants to be asked again, None where it did not say."""

    exit_code = 1
    trail = ""
    retry_after_s: float | None = None

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        message = f"{self.message} ({self.trail})" if self.trail else self.message
        return f"{message}\n  hint: {self.hint}" if self.hint else message


class UsageError(EdgekitError):
    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is none of `known`."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
        self.nearest = near[0] if near else None
        hint = f"did you mean {self.nearest!r}? " if self.nearest else ""
        super().__init__(f"unknown {kind} {name!r}", hint=f"{hint}known: {', '.join(self.known)}")


class SourceError(EdgekitError):
    exit_code = 3


class CaptureError(SourceError):
    pass


class NumericsError(SourceError):
    pass


class DataError(EdgekitError):
    exit_code = 4


class DeviceError(EdgekitError):
    exit_code = 5


class MissingExtraError(EdgekitError):
    """`package` is not installed; the extra of edgekit named `extra` brings it."""

    exit_code = 6

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"{purpose} needs {package}, which is not installed", hint=f'pip install "edgekit[{extra}]"')


class ExportError(EdgekitError):
    exit_code = 7


class UnsupportedOperatorError(ExportError):
    """A format has no way to express `operator`."""

    def __init__(self, format: str, operator: str, *, detail: str = "", hint: str = "") -> None:
        self.format, self.operator = format, operator
        message = f"{format} cannot express the operator {operator}"
        super().__init__(f"{message}: {detail}" if detail else message, hint=hint)


class QualityError(EdgekitError):
    """The artifact is too far from the float model; `layers` lists the worst as (name, sqnr_db)."""

    exit_code = 8

    def __init__(self, message: str, *, layers: Iterable[tuple[str, float]] = (), hint: str = "") -> None:
        self.layers = list(layers)
        super().__init__(message, hint=hint)


class BundleError(EdgekitError):
    exit_code = 9


class SignatureError(BundleError):
    pass


class OutputError(EdgekitError):
    exit_code = 10


class InputError(EdgekitError):
    exit_code = 11


class SessionError(EdgekitError):
    exit_code = 12


class CodecError(EdgekitError):
    exit_code = 13


class FrameError(CodecError):
    pass


class PlanError(EdgekitError):
    """No plan meets the limits; `binding` names the limit that none of them meets. `found`: of a search, what it built
    all the same (`edgekit.search.outcome.Found`)."""

    exit_code = 14
    found: Any = None

    def __init__(self, message: str, *, binding: str = "", hint: str = "") -> None:
        self.binding = binding
        super().__init__(message, hint=hint)


class NodeError(EdgekitError):
    exit_code = 15


class RemoteError(EdgekitError):
    exit_code = 16


class UnreachableError(RemoteError):
    pass


class AuthenticationError(RemoteError):
    pass


class OverloadedError(RemoteError):
    pass


class MismatchError(RemoteError):
    pass


class DeadlineError(RemoteError):
    pass


class FleetError(EdgekitError):
    exit_code = 17


class AbsentError(FleetError):
    pass


class ForbiddenError(FleetError):
    pass


class ConflictError(FleetError):
    pass


class StoreError(FleetError):
    """`again`: another change crossed this one, which was undone; the same once more may well succeed."""

    def __init__(self, message: str, *, hint: str = "", again: bool = False) -> None:
        self.again = again
        super().__init__(message, hint=hint)


class RolloutError(FleetError):
    pass


INTERRUPTED = 130


def exit_codes() -> dict[int, str]:
    """The exit code of each kind of failure, for documentation: code -> error class name."""
    kinds: list[type[EdgekitError]] = [EdgekitError, *EdgekitError.__subclasses__()]
    return {kind.exit_code: kind.__name__ for kind in kinds} | {0: "success", INTERRUPTED: "interrupted"}
