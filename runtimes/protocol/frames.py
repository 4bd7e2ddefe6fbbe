"""How edgekit's frames travel in the Open Inference Protocol.

**The model.** A part of a bundle is the model `<bundle>.<part>` (`model_name`). Version "1" is the first bundle of that
name given to the node, "2" the second; no version asks for the newest. `edgekit_bundle` picks by digest instead.

**The request.** What a part reads comes as its ordinary tensors, or coded: one input tensor `frame` of datatype BYTES
and shape [n], one frame (`edgekit.runtimes.codecs.frame`) for each sample or group of samples, in order; n answers
come back along the first axis. Frames of one request may have different rates. A frame's digests are the variant's
`Manifest.plan_digest`, the codec's `Manifest.codec_digest` and, as its model, the `sha256` of the part that reads it.
The request's parameters, all optional:

| parameter             | type   | meaning                                                                         |
|-----------------------|--------|---------------------------------------------------------------------------------|
| `edgekit_plan`        | string | `Manifest.plan_digest` of the variant: its last part answers                    |
| `edgekit_bundle`      | string | the bundle's digest, which must be served here                                  |
| `edgekit_deadline_ms` | double | what is left of the caller's time; relative, so that clocks need not agree; at  |
|                       |        | most 1e9 (eleven days): who has more time leaves it out                         |
| `edgekit_next_rate`   | int64  | the rung at which this node codes for the node above it; without, 0: the finest |
| `edgekit_sender`      | string | a name that the caller made up, by which its numbered frames can be refined     |

Triton's `timeout` (int64, microseconds; 0 for none) is taken as a deadline too, the earlier of the two counts.

A request that names a plan goes through the plan's remaining parts: those that this node holds run here, the next one
behind the variant's next codec at `edgekit_next_rate` on the node upstream. Without a plan the named part alone runs.

A caller that may want more (successive refinement) sends a coarse frame with a `sequence` number and its
`edgekit_sender`, and later, to the same model, a frame with that number, `coarse` set to the rate sent before, and the
refinement as its payload. A node that has let go of the coarse frame answers with a mismatch: send the finer one whole.

**The answer.** The outputs of the last part as ordinary tensors, and the parameters

| parameter            | type   | meaning                                                                          |
|----------------------|--------|----------------------------------------------------------------------------------|
| `edgekit_tier`       | string | where it was computed, in order: `edge`, `cloud` or `edge,cloud`                 |
| `edgekit_rate`       | string | coarsest rung read at each crossing, in order: `2` or `2,0`; none of raw tensors |
| `edgekit_compute_ms` | double | decoding, running and coding, summed over the nodes                              |
| `edgekit_queue_ms`   | double | waiting in queues, summed over the nodes                                         |
| `edgekit_forward_ms` | double | only from a node that forwarded: from sending to the answer of the upstream      |
| `edgekit_degraded`   | bool   | a coarser part answered, because the one that was asked would have been too late |
| `edgekit_coarser`    | string | which, in order: only where `edgekit_degraded` is true, and only from a node     |
|                      |        | that was started with `--degrade`                                                |

**Errors** (`edgekit.runtimes.protocol.status`): a damaged frame is DATA_LOSS / 400, one of another plan, codec, bundle
or model FAILED_PRECONDITION / 409, a full queue RESOURCE_EXHAUSTED / 429 with `retry-after` in seconds, a passed
deadline DEADLINE_EXCEEDED / 504, an upstream that cannot be reached and a node that drains UNAVAILABLE / 503.

**Handshake.** `ModelConfig` of a model lists in its parameters the whole digests that a client compares with its own:
`edgekit_bundle`, `edgekit_model` (the part's sha256), `edgekit_plan.<variant>` and `edgekit_codec.<codec>` for each
that the part is in; `edgekit_tier`, the part's; and `edgekit_versions`, all that are served of that name (`1,2`), so
that a client whose bundle is an older one finds it by asking for that version.

**Pictures, texts, iterated models**: what they bring, ask and are told stands in `edgekit.runtimes.protocol.asking`.

**Checksum.** `edgekit_crc32c` (int64) of a gRPC request or answer is the CRC32C over its raw contents in order; it is
checked where it is sent. Frames carry their own.

**Metadata** (gRPC) or headers (REST): `authorization: Bearer <token>`, and W3C's `traceparent`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.errors import InputError
from edgekit.runtimes.protocol.calls import InferAnswer, InferCall, Parameter
from edgekit.runtimes.protocol.tensors import object_array

FRAME = "frame"

PLAN = "edgekit_plan"
BUNDLE = "edgekit_bundle"
DEADLINE = "edgekit_deadline_ms"
NEXT_RATE = "edgekit_next_rate"
SENDER = "edgekit_sender"
TIMEOUT = "timeout"

LONGEST_S = 1e6  # of a deadline: what clocks and locks of any system can wait for

# In a model's configuration only.
CODEC = "edgekit_codec"
MODEL = "edgekit_model"
VERSIONS = "edgekit_versions"

TIER = "edgekit_tier"
RATE = "edgekit_rate"
COMPUTE = "edgekit_compute_ms"
QUEUE = "edgekit_queue_ms"
FORWARD = "edgekit_forward_ms"
DEGRADED = "edgekit_degraded"
COARSER = "edgekit_coarser"

_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")


def model_name(bundle: str, part: str) -> str:
    """What the part of a bundle (its manifest's name) is called on a node: fit for a URL."""
    return f"{_UNFIT.sub('-', bundle).strip('-') or 'model'}.{_UNFIT.sub('-', part).strip('-') or 'part'}"


@dataclass(frozen=True)
class Wish:
    """What a request asks beside its tensors."""

    plan: str = ""
    bundle: str = ""
    deadline_ms: float | None = None
    next_rate: int = 0
    sender: str = ""

    @classmethod
    def of(cls, parameters: Mapping[str, Parameter]) -> Wish:
        """Raises InputError for a parameter of a wrong type. Others than edgekit's own are left alone."""
        rate = parameters.get(NEXT_RATE, 0)
        if isinstance(rate, bool) or not isinstance(rate, int):
            raise InputError(f"{NEXT_RATE} is {rate!r:.40}, allowed an integer from 0")
        texts = {}
        for key in (PLAN, BUNDLE, SENDER):
            value = parameters.get(key, "")
            if not isinstance(value, str):
                raise InputError(f"{key} is {value!r:.40}, allowed text")
            texts[key] = value
        return cls(texts[PLAN], texts[BUNDLE], _deadline_ms(parameters), rate, texts[SENDER])

    def parameters(self) -> dict[str, Parameter]:
        """Of a request; what is not asked is left out."""
        given: dict[str, Parameter] = {}
        if self.plan:
            given[PLAN] = self.plan
        if self.bundle:
            given[BUNDLE] = self.bundle
        if self.deadline_ms is not None:
            given[DEADLINE] = self.deadline_ms
        if self.next_rate:
            given[NEXT_RATE] = self.next_rate
        if self.sender:
            given[SENDER] = self.sender
        return given


def _deadline_ms(parameters: Mapping[str, Parameter]) -> float | None:
    """The earlier one of both parameters. One that has passed is 0: its request is too late, and not wrong."""
    limits: list[float] = []
    deadline_ms, timeout_us = parameters.get(DEADLINE), parameters.get(TIMEOUT)
    # Compared before they are converted: JSON's integers have any length.
    if deadline_ms is not None:
        if isinstance(deadline_ms, bool | str) or not deadline_ms <= 1e3 * LONGEST_S:
            raise InputError(
                f"{DEADLINE} is {deadline_ms!r:.40}, allowed a number of milliseconds up to {1e3 * LONGEST_S:g}",
                hint="leave it out for none",
            )
        limits.append(float(max(deadline_ms, 0)))
    if isinstance(timeout_us, int) and not isinstance(timeout_us, bool) and timeout_us > 0:
        if timeout_us > 1e6 * LONGEST_S:
            raise InputError(
                f"{TIMEOUT} is {timeout_us!r:.40}, allowed microseconds up to {1e6 * LONGEST_S:g}",
                hint="leave it out for none",
            )
        limits.append(timeout_us / 1e3)
    return min(limits, default=None)


@dataclass(frozen=True)
class Served:
    """What an answer says of itself. `forward_ms` is 0 where no node forwarded."""

    tiers: tuple[str, ...] = ()
    rates: tuple[int, ...] = ()
    compute_ms: float = 0.0
    queue_ms: float = 0.0
    forward_ms: float = 0.0
    degraded: bool = False
    coarser: tuple[str, ...] = ()

    @classmethod
    def of(cls, answer: InferAnswer) -> Served:
        """Raises InputError where the parameters are not those of an edgekit node."""
        values = answer.parameters
        try:
            rates = str(values.get(RATE, ""))
            return cls(
                tiers=tuple(filter(None, str(values.get(TIER, "")).split(","))),
                rates=tuple(int(rate) for rate in rates.split(",")) if rates else (),
                compute_ms=float(values.get(COMPUTE, 0.0)),
                queue_ms=float(values.get(QUEUE, 0.0)),
                forward_ms=float(values.get(FORWARD, 0.0)),
                degraded=bool(values.get(DEGRADED, False)),
                coarser=tuple(filter(None, str(values.get(COARSER, "")).split(","))),
            )
        except ValueError as error:
            raise InputError(f"the answer's parameters do not fit: {error}") from error

    def parameters(self) -> dict[str, Parameter]:
        given: dict[str, Parameter] = {
            TIER: ",".join(self.tiers),
            RATE: ",".join(str(rate) for rate in self.rates),
            COMPUTE: self.compute_ms,
            QUEUE: self.queue_ms,
            DEGRADED: self.degraded,
        }
        if self.coarser:
            given[COARSER] = ",".join(self.coarser)
        if self.forward_ms:
            given[FORWARD] = self.forward_ms
        return given


def frame_call(
    model: str, frames: Sequence[bytes], wish: Wish = Wish(), *, version: str = "", id: str = ""
) -> InferCall:
    """A request that carries `frames` to `model`."""
    return InferCall(model, {FRAME: object_array(frames)}, wish.parameters(), version=version, id=id)


def frames_of(call: InferCall) -> list[bytes] | None:
    """The frames of a request, None where it brings ordinary tensors. Raises InputError for anything in between."""
    tensor = call.tensors.get(FRAME)
    if tensor is None or tensor.dtype != object:
        return None
    if len(call.tensors) != 1 or tensor.ndim != 1 or tensor.size == 0:
        raise InputError(
            f"tensor {FRAME!r} of shape {list(tensor.shape)} beside {len(call.tensors) - 1} others, "
            "allowed alone and of shape [n]"
        )
    return [bytes(item) for item in tensor]
