"""One sample in, an answer out: preprocess, run, postprocess, each timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import Postprocess, TextPreprocess
from edgekit.errors import BundleError, DataError, InputError
from edgekit.runtimes.preprocess import make_feeder
from edgekit.runtimes.session import Session

Source = str | Path | np.ndarray | Image.Image | Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Prediction:
    """`outputs`: by name, as the session gave them. `top`: (label, probability), best first, of a classification.

    `latency_ms`: preprocess, inference, postprocess.
    """

    outputs: dict[str, np.ndarray]
    top: tuple[tuple[str, float], ...]
    latency_ms: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        answer: dict[str, Any] = (
            {"top": [{"label": label, "probability": probability} for label, probability in self.top]}
            if self.top
            else {"outputs": {name: value.tolist() for name, value in self.outputs.items()}}
        )
        return {**answer, "latency_ms": self.latency_ms}


class Predictor:
    """Samples as a user has them, through `session`, a session of `bundle`."""

    def __init__(self, bundle: Bundle, session: Session) -> None:
        """Raises InputError for anything but an open bundle and a session, BundleError where they do not fit."""
        if not isinstance(bundle, Bundle):
            raise InputError(
                f"Predictor takes an open bundle, not {type(bundle).__name__}",
                hint='bundle = edgekit.Bundle.open("cats.edgekit"), then edgekit.load(bundle) gives the session',
            )
        if not isinstance(session, Session):
            raise InputError(
                f"Predictor takes a session, not {type(session).__name__}",
                hint="edgekit.load(bundle) gives one, edgekit.connect(bundle, edge=...) another",
            )
        self.session = session
        manifest = bundle.manifest
        text = manifest.preprocess if isinstance(manifest.preprocess, TextPreprocess) else None
        tokenizer = bundle.asset_path(text.tokenizer) if text is not None else None
        self.feeds = make_feeder(manifest.preprocess, session.inputs, tokenizer)
        self._post = manifest.postprocess
        names = [spec.name for spec in session.outputs]
        if self._post is not None and self._post.output not in names:
            raise BundleError(
                f"the manifest reads the output {self._post.output!r}, the session gives {names}", hint="export again"
            )

    def predict(self, source: Source, *, count: int = 5) -> Prediction:
        """`source`: an image, .npy, .npz or text file, a text, an array, or arrays by name: one sample.

        `count` is how many labels `top` holds at most. Raises DataError or InputError for input that does not fit,
        SessionError where the runtime fails.
        """
        return timed_prediction(self.feeds, self.session, self._post, source, count=count)


def timed_prediction(
    feeder: Callable[[Any], dict[str, np.ndarray]],
    session: Session,
    post: Postprocess | None,
    source: Source,
    *,
    count: int = 5,
) -> Prediction:
    """`feeder` turns `source` into the session's inputs; each of the three stages is timed."""
    start = time.perf_counter()
    feeds = feeder(source)
    ready = time.perf_counter()
    outputs = session.run(feeds)
    done = time.perf_counter()
    top = top_labels(outputs, post, count)
    end = time.perf_counter()
    stages = {"preprocess": ready - start, "inference": done - ready, "postprocess": end - done}
    return Prediction(outputs, top, {name: seconds * 1e3 for name, seconds in stages.items()})


def top_labels(
    outputs: Mapping[str, np.ndarray], post: Postprocess | None, count: int
) -> tuple[tuple[str, float], ...]:
    """(label, probability), best first; empty where `post` names no classification. Raises DataError for a batch."""
    if post is None or post.kind != "classification":
        return ()
    scores = outputs[post.output]
    if scores.size != scores.shape[-1]:
        raise DataError(
            f"the output {post.output!r} has shape {list(scores.shape)}: a batch",
            hint="predict takes one sample at a time; run the session itself for batches",
        )
    return tuple((label, share) for label, _, share in ranked(scores.reshape(-1), post, count))


def ranked(scores: np.ndarray, post: Postprocess, count: int) -> tuple[tuple[str, int, float], ...]:
    """(label, index, probability), best first, of the scores [classes] of one sample."""
    shares = probabilities(scores)
    order = np.argsort(-shares, kind="stable")[:count]
    return tuple((_label(post.labels, int(index)), int(index), float(shares[index])) for index in order)


def _label(labels: tuple[str, ...], index: int) -> str:
    return labels[index] if index < len(labels) else str(index)


def probabilities(scores: np.ndarray) -> np.ndarray:
    """[..., classes] -> float64, the same shape: softmax, or `scores` themselves where they are probabilities already.

    Those lie in 0..1 and sum to 1 within what half precision and 8-bit outputs leave (1 %).
    """
    values = scores.astype(np.float64)
    sums = values.sum(-1)
    if values.min() >= 0 and values.max() <= 1 and np.all(np.abs(sums - 1) < 0.01):
        return values
    shifted = np.exp(values - values.max(-1, keepdims=True))
    shares: np.ndarray = shifted / shifted.sum(-1, keepdims=True)
    return shares
