"""What a request may ask of a node beside its tensors, where the model can do it, and what the answer then says.

Pictures, texts: instead of a model's tensors a request may bring one BYTES tensor `image` (JPEG, PNG, WebP, GIF or BMP
bytes) or `text` (UTF-8) of shape [n], where the bundle's manifest says how the inputs come from it: the model's
metadata over REST then has it under `alternative_inputs`, its configuration names it in `edgekit_alternatives`.

Iterated models (`Loop` in the manifest): a request brings what is fed, without the carried state: a whole recording
under the name of the fed input, [n] or [1, n]; or a prompt, token ids under that name, or `text` of shape [1] where the
tokens are bytes. The answer has one row for each step, or the tokens (and the `text`).

| parameter of the request | type   | meaning                                                                      |
|--------------------------|--------|------------------------------------------------------------------------------|
| `edgekit_top`            | int64  | a classifier also answers `top`, BYTES [n, k], `probability:index:label`     |
| `edgekit_max_steps`      | int64  | at most so many tokens of an answer (the prompt's do not count), or windows; |
|                          |        | more than the node's `--max-steps` is no error: the answer then ends at the  |
|                          |        | node's, `edgekit_finish` is `length`                                         |
| `edgekit_temperature`    | double | 0 (without it) chooses the likeliest token, above it draws                   |
| `edgekit_seed`           | int64  | of the draws: the same seed gives the same answer in any company             |
| `edgekit_stream`         | bool   | over ModelStreamInfer: pieces as they come                                   |

| parameter of the answer  | type   | meaning                                                                      |
|--------------------------|--------|------------------------------------------------------------------------------|
| `edgekit_finish`         | string | `stop`; `length`: a bound was met; `loop`: the text went round; `deadline`   |
| `edgekit_steps`          | int64  | steps of the model that were run, those that read the prompt among them      |

`edgekit_degraded` is true where a deadline or a tenant's budget of tokens made the answer shorter than was asked. A
streamed answer ends with a response that has `triton_final_response` true and the whole answer's parameters.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.errors import InputError
from edgekit.runtimes.protocol.calls import CHECKSUM, Parameter
from edgekit.runtimes.protocol.frames import BUNDLE, DEADLINE, NEXT_RATE, PLAN, SENDER

TOP = "edgekit_top"
MAX_STEPS = "edgekit_max_steps"
TEMPERATURE = "edgekit_temperature"
SEED = "edgekit_seed"
STREAM = "edgekit_stream"
FINISH = "edgekit_finish"
STEPS = "edgekit_steps"
FINAL = "triton_final_response"

# In a model's configuration only: names of BYTES tensors that may stand for the inputs, and the loop of its manifest.
ALTERNATIVES = "edgekit_alternatives"
LOOP = "edgekit_loop"

MAX_TEMPERATURE = 100.0
MAX_INTEGER = (1 << 63) - 1  # int64: what gRPC can carry
PREFIX = "edgekit_"
KNOWN = (PLAN, BUNDLE, DEADLINE, NEXT_RATE, SENDER, CHECKSUM, TOP, MAX_STEPS, TEMPERATURE, SEED, STREAM)


@dataclass(frozen=True)
class Asking:
    """`top` 0: no labels. `max_steps` None: as many as the node allows."""

    top: int = 0
    max_steps: int | None = None
    temperature: float = 0.0
    seed: int = 0
    stream: bool = False

    @classmethod
    def of(cls, parameters: Mapping[str, Parameter]) -> Asking:
        """Raises InputError for a parameter of a wrong type or out of its range."""
        temperature = parameters.get(TEMPERATURE, 0.0)
        if isinstance(temperature, bool | str) or not 0 <= temperature <= MAX_TEMPERATURE:
            raise InputError(f"{TEMPERATURE} is {temperature!r:.40}, allowed 0 to {MAX_TEMPERATURE:g}")
        stream = parameters.get(STREAM, False)
        if not isinstance(stream, bool):
            raise InputError(f"{STREAM} is {stream!r:.40}, allowed true or false")
        return cls(
            top=_integer(parameters, TOP, 1) or 0,
            max_steps=_integer(parameters, MAX_STEPS, 1),
            temperature=float(temperature),
            seed=_integer(parameters, SEED, 0) or 0,
            stream=stream,
        )


def check_names(parameters: Mapping[str, Parameter]) -> None:
    """Raises InputError for a parameter that bears our prefix and is none of ours: it would be ignored otherwise."""
    for name in parameters:
        if name.startswith(PREFIX) and name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, n=1)
            raise InputError(
                f"unknown parameter {name!r:.60}, known: {', '.join(KNOWN)}",
                hint=f"did you mean {near[0]}?" if near else "leave it out",
            )


def _integer(parameters: Mapping[str, Parameter], key: str, least: int) -> int | None:
    value = parameters.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_INTEGER:
        raise InputError(f"{key} is {value!r:.40}, allowed an integer from {least} to {MAX_INTEGER}")
    return value
