"""Pictures and texts straight to a node: what a bundle's manifest says of its input is done here, before the queue."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Part, Postprocess, Preprocess, TextPreprocess
from edgekit.errors import InputError
from edgekit.runtimes.predict import ranked
from edgekit.runtimes.preprocess import TextEncoder
from edgekit.runtimes.protocol.tensors import object_array
from edgekit.runtimes.server.decoding import DecodePool

Samples = list[dict[str, np.ndarray]]

IMAGE, TEXT = "image", "text"
TOP_OUTPUT = "top"


class Media(ABC):
    """`name` of the BYTES tensor, shape [n], that stands for a model's inputs."""

    name: str

    @abstractmethod
    def samples(self, items: Sequence[bytes], deadline: float = math.inf) -> Samples:
        """The model's inputs. `deadline` on `time.monotonic`'s clock. Raises InputError for an item that is none; where
        it takes time, QueueFullError, LateError and DeadlineError."""


class Pictures(Media):
    name = IMAGE

    def __init__(self, config: Preprocess, part: Part, pool: DecodePool) -> None:
        first = part.inputs[0].shape[0]
        self._config, self._input, self._pool = config, part.inputs[0].name, pool
        self._rows = first if isinstance(first, int) else None

    def samples(self, items: Sequence[bytes], deadline: float = math.inf) -> Samples:
        config = self._config
        sides = (config.crop, config.crop)
        channels = len(config.mean)
        shape = (channels, *sides) if config.layout == "NCHW" else (*sides, channels)
        batch = np.empty((len(items), *shape), np.float32)
        self._pool.fill(batch, items, config, deadline)
        rows = self._rows or len(items)
        if len(items) % rows:
            raise InputError(f"{len(items)} pictures, allowed a multiple of {rows}: the batch of the model")
        return [{self._input: batch[at : at + rows]} for at in range(0, len(items), rows)]


class Texts(Media):
    """Each text is a sample of its own length: what runs together has the same."""

    name = TEXT

    def __init__(self, encoder: TextEncoder) -> None:
        self._encode = encoder

    def samples(self, items: Sequence[bytes], deadline: float = math.inf) -> Samples:
        texts = []
        for index, item in enumerate(items):
            try:
                texts.append(item.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise InputError(f"{TEXT} {index} is not UTF-8: {error.reason}", hint="send text") from error
        return [self._encode(text) for text in texts]


def open_media(bundle: Bundle, part: Part, pool: DecodePool) -> Media | None:
    """None where the manifest does not say how `part`'s inputs come from a picture or a text (a tail's do not).
    Raises MissingExtraError, DataError for a tokenizer that is none."""
    config = bundle.manifest.preprocess
    if isinstance(config, TextPreprocess):
        columns = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
        if {entry.name for entry in part.inputs} <= columns:
            specs = [entry.spec() for entry in part.inputs]
            return Texts(TextEncoder(config, bundle.asset_path(config.tokenizer), specs))
        return None
    if config is None or len(part.inputs) != 1 or part.inputs[0].dtype != "float32":
        return None
    sides = (config.crop, config.crop)
    row = (len(config.mean), *sides) if config.layout == "NCHW" else (*sides, len(config.mean))
    shape = part.inputs[0].shape
    fits = len(shape) == 4 and all(size in (wanted, str(size)) for size, wanted in zip(shape[1:], row, strict=True))
    return Pictures(config, part, pool) if fits else None


def items_of(tensors: Mapping[str, np.ndarray], media: Media, most: int) -> list[bytes] | None:
    """The pictures or texts of a request, None where it brings ordinary tensors. Raises InputError for anything in
    between, or more than `most`."""
    brought = [name for name, array in tensors.items() if array.dtype == object]
    if not brought:
        return None
    array = tensors[brought[0]]
    if list(tensors) != [media.name] or array.ndim != 1 or not 1 <= array.size <= most:
        raise InputError(
            f"BYTES {brought[0]!r} of shape {list(array.shape)} beside {len(tensors) - 1} other tensors, "
            f"allowed {media.name!r} alone, of shape [1] to [{most}]"
        )
    return [bytes(item) for item in array]


def classifier(post: Postprocess | None, part: Part, count: int) -> Postprocess:
    """How the outputs of `part` are read as labels. Raises InputError where they are none, or fewer than `count`."""
    shapes = {entry.name: entry.shape for entry in part.outputs}
    if post is None or post.kind != "classification" or post.output not in shapes or part.loop is not None:
        raise InputError(f"{part.name} is no classifier: it has no labels", hint="leave edgekit_top away")
    classes = shapes[post.output][-1]
    if isinstance(classes, int) and count > classes:
        raise InputError(f"edgekit_top is {count}, allowed 1 to {classes}")
    return post


def top_labels(outputs: Mapping[str, np.ndarray], post: Postprocess, count: int) -> np.ndarray:
    """BYTES [n, k], best first, each `probability:index:label` (as Triton's classification extension writes them)."""
    scores = outputs[post.output]
    rows = scores.reshape(-1, scores.shape[-1])
    named = [
        f"{share:.6f}:{index}:{label}".encode() for row in rows for label, index, share in ranked(row, post, count)
    ]
    return object_array(named, (len(rows), count))
