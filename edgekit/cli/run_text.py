"""`edgekit run` of a model that writes a text, token by token: a prompt goes in, what follows it comes out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.cli.output import Output
from edgekit.cli.wording import count_text, ms_text
from edgekit.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.bundle.manifest import Part

ENDS = {"stop": "the model ended it", "length": "at its longest", "loop": "it went round", "deadline": "out of time"}


@dataclass(frozen=True)
class Written:
    """`tokens` of `text`; `steps` of the model, those that read the prompt among them."""

    prompt: str
    text: str
    tokens: int
    steps: int
    finish: str
    total_ms: float

    def to_json(self) -> dict[str, Any]:
        return {"input": self.prompt, **{key: value for key, value in vars(self).items() if key != "prompt"}}


def writing_part(bundle: Bundle, name: str | None) -> Part | None:
    """The part `name`, or the default one, where it goes on from a text; else None."""
    from edgekit.bundle.loop import Choice

    wanted = name or bundle.manifest.variants[0].parts[0]
    part = next((part for part in bundle.manifest.parts if part.name == wanted), None)
    feed = part.loop.feed if part is not None and part.loop is not None else None
    return part if isinstance(feed, Choice) and feed.encoding == "bytes" else None


def write_texts(bundle: Bundle, part: Part, inputs: Sequence[str], threads: int | None) -> list[Written]:
    """The likeliest text after each of `inputs`: prompts, or files of them. Raises MissingExtraError, DataError,
    InputError for a prompt that is too long, SessionError."""
    from edgekit.runtimes.load import load

    prompts = [_prompt(text) for text in inputs]
    try:
        from edgekit.runtimes.protocol.asking import Asking
        from edgekit.runtimes.server.iteration import IterationOptions
        from edgekit.runtimes.server.looped import Looped
    except ImportError as error:
        raise MissingExtraError(error.name or "starlette", "serve", "running a model step by step") from error
    assert part.loop is not None
    with load(bundle, part=part.name, threads=threads) as session:
        options = IterationOptions(slots=1)
        looped = Looped(part.name, part.loop, session.run, session.inputs, session.outputs, options)
        try:
            return [_write(looped, prompt, Asking()) for prompt in prompts]
        finally:
            looped.close()


def show_texts(out: Output, written: Sequence[Written]) -> None:
    """Prompt and text as they stand, and a line on what it took."""
    for one in written:
        out.line(one.prompt + one.text)
        out.line()
        pace = f"{1e3 * one.steps / one.total_ms:,.0f} steps a second" if one.total_ms else ""
        out.line(f"{count_text(one.tokens, 'token')} in {ms_text(one.total_ms)} ms, {pace}; {ENDS[one.finish]}")


def _write(looped: Any, prompt: str, asking: Any) -> Written:
    given = np.empty(1, object)
    given[0] = prompt.encode()
    start = time.perf_counter()
    outcome = looped.submit({"text": given}, asking).result()
    total_ms = 1e3 * (time.perf_counter() - start)
    text = bytes(outcome.tensors["text"][0])
    return Written(prompt, text.decode(errors="replace"), len(text), outcome.steps, outcome.finish, total_ms)


def _prompt(text: str) -> str:
    """What a file of that name holds, or the text itself."""
    try:
        path = Path(text)
        return path.read_text(encoding="utf-8") if path.is_file() else text
    except UnicodeDecodeError as error:
        raise DataError(f"{text} is no UTF-8 text", hint="--input takes a text here, or a file of one") from error
    except (OSError, ValueError):
        return text  # too long for a name of a file
