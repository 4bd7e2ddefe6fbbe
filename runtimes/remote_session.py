"""A part of a bundle that runs on a node, as a Session: raw tensors up, raw tensors down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from edgekit.bundle.manifest import Manifest
from edgekit.errors import MismatchError, UnknownNameError, UsageError
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.client import ClientOptions, NodeClient
from edgekit.runtimes.protocol.frames import BUNDLE, DEADLINE, model_name
from edgekit.runtimes.protocol.messages import METHODS
from edgekit.runtimes.protocol.tensors import DTYPES
from edgekit.runtimes.session import Feeds, Session, SessionOptions
from edgekit.tensors import TensorSpec

DEADLINE_MS = 30_000.0


class RemoteSession(Session):
    """`model` on the node at `url` (grpc://host:port, grpcs://host:port), of any server that speaks the Open Inference
    Protocol. Every run ends within `deadline_ms`.

    `run` raises RemoteError's children beside what any session raises. Closing it closes the connection.
    """

    format: ClassVar[str] = "remote"

    def __init__(
        self,
        url: str,
        model: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        options: ClientOptions = ClientOptions(),
        deadline_ms: float = DEADLINE_MS,
        bundle_digest: str = "",
    ) -> None:
        """`bundle_digest`, where given, is what the node must hold. Raises UsageError or NodeError; connects at the
        first run."""
        if not (math.isfinite(deadline_ms) and deadline_ms > 0):
            raise UsageError(f"a deadline of {deadline_ms} ms, allowed above 0")
        self.url, self.model, self.deadline_ms = url, model, deadline_ms
        self._bundle_digest = bundle_digest
        self._client = NodeClient(url, options)
        super().__init__(Path(model), inputs, outputs, SessionOptions(warmup=0))

    @classmethod
    def of_part(
        cls,
        url: str,
        manifest: Manifest,
        part: str,
        *,
        options: ClientOptions = ClientOptions(),
        deadline_ms: float = DEADLINE_MS,
        bundle_digest: str = "",
    ) -> RemoteSession:
        """A part of a bundle that the caller has too. Raises UnknownNameError."""
        known = {entry.name: entry for entry in manifest.parts}
        if part not in known:
            raise UnknownNameError("part", part, known)
        inputs, outputs = ([e.spec() for e in entries] for entries in (known[part].inputs, known[part].outputs))
        return cls(
            url,
            model_name(manifest.name, part),
            inputs,
            outputs,
            options=options,
            deadline_ms=deadline_ms,
            bundle_digest=bundle_digest,
        )

    @classmethod
    def of_server(
        cls, url: str, model: str, *, options: ClientOptions = ClientOptions(), deadline_ms: float = DEADLINE_MS
    ) -> RemoteSession:
        """Names, dtypes and shapes as the server's metadata tell them. Raises RemoteError's children, MismatchError
        for a model whose tensors have no numpy dtype."""
        with NodeClient(url, options) as client:
            request = METHODS["ModelMetadata"][0](name=model)
            told = client.call("ModelMetadata", request, timeout_s=deadline_ms / 1e3)
        inputs, outputs = ([_spec(entry) for entry in entries] for entries in (told.inputs, told.outputs))
        return cls(url, model, inputs, outputs, options=options, deadline_ms=deadline_ms)

    def _check_path(self) -> None:
        """The artifact is the node's."""

    def _load(self) -> None:
        """Connects at the first run."""

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        answer = self._client.infer(self._call(arrays), timeout_s=self.deadline_ms / 1e3)
        outputs = []
        for spec in self.outputs:
            array = answer.tensors.get(spec.name)
            reason = "no such output" if array is None else spec.mismatch(array)
            if array is None or reason is not None:
                raise MismatchError(f"{self.url}: the output {spec.name!r} of {self.model} has {reason}")
            outputs.append(array.copy())  # the answer's own memory is read-only
        return outputs

    def _call(self, arrays: Sequence[np.ndarray]) -> InferCall:
        tensors = {spec.name: array for spec, array in zip(self.inputs, arrays, strict=True)}
        parameters: dict[str, bool | int | float | str] = {DEADLINE: self.deadline_ms}
        if self._bundle_digest:
            parameters[BUNDLE] = self._bundle_digest
        return InferCall(self.model, tensors, parameters)

    def bare(self, feeds: Feeds) -> Callable[[], object]:
        """The client's call without this session's checks."""
        call = self._call([feeds[spec.name] for spec in self.inputs])
        return lambda: self._client.infer(call, timeout_s=self.deadline_ms / 1e3)

    def _close(self) -> None:
        self._client.close()


def _spec(entry: object) -> TensorSpec:
    """A dimension of -1 is open."""
    name, datatype, shape = entry.name, entry.datatype, entry.shape  # type: ignore[attr-defined]
    if datatype not in DTYPES:
        raise MismatchError(f"tensor {name!r} has the datatype {datatype}, allowed {', '.join(DTYPES)}")
    sizes = tuple(size if size >= 0 else f"{name}_{index}" for index, size in enumerate(shape))
    return TensorSpec(name, DTYPES[datatype].name, sizes)
