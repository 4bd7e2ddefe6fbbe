"""Frames in and out of a node: checked against what is served here, decoded; encoded for the node above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgekit.errors import CodecError, MismatchError
from edgekit.runtimes.codecs.frame import Frame, check, pack, unpack
from edgekit.runtimes.codecs.rows import CodedRows
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.protocol.frames import Wish
from edgekit.runtimes.server.model import Link, ServedModel

Arrays = Mapping[str, np.ndarray]

LARGEST_SYMBOL = 32767  # int16


def read_frames(model: ServedModel, frames: Sequence[bytes], wish: Wish) -> tuple[list[Arrays], int]:
    """What each frame brings, under the names of the model's inputs (or as symbols, where the model's session decodes
    them itself, many at once), and the coarsest rate among them.

    Raises FrameError for damaged bytes, MismatchError for a frame of another plan, codec or part than served here (or
    than the plan that the request names), CodecError for a payload that its codec does not write.
    A frame that refines one that this caller has sent before is read with it (`refinement`).
    """
    if not model.links:
        raise MismatchError(f"{model.name} reads no frames: nothing in its bundle is coded for it", hint="send tensors")
    samples: list[Arrays] = []
    rate = 0
    for data in frames:
        frame = unpack(data)
        link = _link(model, frame, wish.plan)
        if frame.coarse is None and link.digest in model.read_inside and (rows := _coded(link, frame)) is not None:
            samples.append(rows)
            rate = max(rate, frame.rate)
            model.coarse.keep(wish.sender, frame)
            continue
        if frame.coarse is not None:
            arrays = model.coarse.decode(link.codec, wish.sender, frame)
        else:
            arrays = link.codec.decode(frame.payload, frame.shapes, frame.rate)
            model.coarse.keep(wish.sender, frame)
        names = [feature.name for feature in link.entry.features]
        samples.append(model.feeds(dict(zip(names, arrays, strict=True))))
        rate = max(rate, frame.rate)
    return samples, rate


def _coded(link: Link, frame: Frame) -> CodedRows | None:
    """The frame's symbols; None where they are larger than what decoders of batches take. Raises CodecError."""
    codec = link.codec
    assert isinstance(codec, TransformCodec)
    codec.check_rate(frame.rate)
    codec.check_shapes(frame.shapes)
    symbols = codec.symbols(frame.payload, frame.shapes[0], frame.rate)
    if np.abs(symbols).max(initial=0) > LARGEST_SYMBOL:
        return None
    return CodedRows.of(link.digest, frame.shapes[0], symbols, frame.rate)


def _link(model: ServedModel, frame: Frame, plan: str) -> Link:
    """Of the plan that the frame names by the first digits of its digest."""
    fitting = [digest for digest in model.plans if digest.startswith(frame.plan_digest)]
    whole = plan or (fitting[0] if fitting else next(iter(model.plans), ""))
    link = model.link_of(whole)
    check(frame, whole, link.digest, model.part.sha256)
    return link


def write_frames(
    model: ServedModel, link: Link, reader_digest: str, tensors: Mapping[str, np.ndarray], wish: Wish
) -> list[bytes]:
    """What `model` gave, coded through `link` at the rate wished for: one frame a sample.

    `reader_digest`: the sha256 of the part that reads them. Raises CodecError.
    """
    names = [feature.name for feature in link.entry.features]
    if set(names) <= set(tensors):
        arrays = [tensors[name] for name in names]
    elif len(names) == len(tensors):
        arrays = list(tensors.values())
    else:
        raise CodecError(f"{model.name} gives {sorted(tensors)}, the codec {link.entry.name} takes {names}")
    frames = []
    for row in range(len(arrays[0])):
        sample = [np.ascontiguousarray(array[row : row + 1]) for array in arrays]
        payload = link.codec.encode(sample, wish.next_rate)
        shapes = tuple(array.shape for array in sample)
        frames.append(pack(Frame(payload, shapes, wish.next_rate, wish.plan, link.digest, reader_digest)))
    return frames
