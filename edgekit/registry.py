"""Name -> "module:attribute". A variant costs one row here; its module is imported when it is first used.

Third parties add rows through entry points of the group `edgekit.<kind>` (`edgekit.exporters`, ...).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from edgekit.errors import UnknownNameError


class Registry(Mapping[str, str]):
    """The variants of one kind, by name. `registry.load(name)` imports and returns the object."""

    def __init__(self, kind: str, rows: dict[str, str]) -> None:
        self.kind = kind
        self._own = rows

    @cached_property
    def _rows(self) -> dict[str, str]:
        group = f"edgekit.{self.kind.replace(' ', '_')}s"
        return {point.name: point.value for point in entry_points(group=group)} | self._own

    def __getitem__(self, name: str) -> str:
        try:
            return self._rows[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._rows) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def load(self, name: str) -> Any:
        """Raises UnknownNameError for a name that nobody registered."""
        module, _, attribute = self[name].partition(":")
        return getattr(import_module(module), attribute)


EXPORTERS = Registry(
    "exporter",
    {
        "onnx": "edgekit.exporters.onnx_exporter:OnnxExporter",
        "tensorrt": "edgekit.exporters.tensorrt_exporter:TensorrtExporter",
        "litert": "edgekit.exporters.litert_exporter:LitertExporter",
        "executorch": "edgekit.exporters.executorch_exporter:ExecutorchExporter",
        "inductor": "edgekit.exporters.inductor_exporter:InductorExporter",
    },
)

SESSIONS = Registry(
    "session",
    {
        "onnx": "edgekit.runtimes.onnx_session:OnnxSession",
        "tensorrt": "edgekit.runtimes.onnx_session:TensorrtSession",
        "litert": "edgekit.runtimes.litert_session:LitertSession",
        "executorch": "edgekit.runtimes.executorch_session:ExecutorchSession",
        "inductor": "edgekit.runtimes.inductor_session:InductorSession",
        "torch": "edgekit.runtimes.torch_session:TorchSession",
    },
)

QUANTIZERS = Registry(
    "quantizer",
    {
        "int8": "edgekit.quantizers.static:StaticInt8",
        "int8-dynamic": "edgekit.quantizers.dynamic:DynamicInt8",
        "int8-weight-only": "edgekit.quantizers.weight_only:WeightOnlyInt8",
        "int4-weight-only": "edgekit.quantizers.weight_only:WeightOnlyInt4",
        "w6a6": "edgekit.quantizers.low_bits:W6A6",
        "w4a8": "edgekit.quantizers.low_bits:W4A8",
        "mxfp4": "edgekit.quantizers.mxfp4:Mxfp4",
        "fp16": "edgekit.quantizers.half:Fp16",
    },
)

OBSERVERS = Registry(
    "observer",
    {
        "auto": "edgekit.quantizers.observers:Suited",
        "min-max": "edgekit.quantizers.observers:MinMax",
        "percentile": "edgekit.quantizers.observers:Percentile",
        "mse": "edgekit.quantizers.observers:MeanSquaredError",
        "histogram": "edgekit.quantizers.observers:Histogram",
    },
)

SAMPLES = Registry(
    "sample",
    {
        "efficientnet-lite0": "edgekit.zoo.efficientnet:efficientnet_lite0",
        "minilm": "edgekit.zoo.minilm:minilm",
        "dinov2-small": "edgekit.zoo.dinov2:dinov2_small",
        "fashion-cnn": "edgekit.zoo.fashion:fashion_cnn",
        "fashion-vit": "edgekit.zoo.fashion:fashion_vit",
        "fashion-vit-adaptive": "edgekit.zoo.fashion_adaptive:fashion_vit_adaptive",
        "fashion-vit-tasks": "edgekit.zoo.fashion_tasks:fashion_tasks",
        "silero-vad": "edgekit.zoo.silero:silero_vad",
        "docstring-lm": "edgekit.zoo.docstring_lm:docstring_lm",
    },
)

CODECS = Registry(
    "codec",
    {
        "affine": "edgekit.runtimes.codecs.affine:AffineCodec",
        "transform": "edgekit.runtimes.codecs.transform:TransformCodec",
        "residual": "edgekit.runtimes.codecs.residual:ResidualCodec",
        "plain": "edgekit.runtimes.codecs.plain:PlainCodec",
        "image": "edgekit.runtimes.codecs.image:ImageCodec",
    },
)

BOTTLENECKS = Registry(
    "bottleneck",
    {
        "transform": "edgekit.passes.bottleneck.transform:TransformCoding",
        "learned": "edgekit.passes.bottleneck.learned:LearnedBottleneck",
        "vector": "edgekit.passes.bottleneck.vector:VectorBottleneck",
        "tokens": "edgekit.passes.bottleneck.tokens:TokenBottleneck",
    },
)

KERNELS = Registry(
    "kernel",
    {
        "kmeans-assign": "edgekit.runtimes.kernels.kmeans:ASSIGN",
        "kmeans-update": "edgekit.runtimes.kernels.kmeans:UPDATE",
        "ragged-decode": "edgekit.runtimes.kernels.ragged_decode:DECODE",
        "ragged-dequantize": "edgekit.runtimes.kernels.ragged_dequantize:DEQUANTIZE",
        "ragged-attention": "edgekit.runtimes.kernels.ragged_attention:ATTEND",
        "merge-shards": "edgekit.runtimes.kernels.merge_shards:MERGE",
        "decode-attention": "edgekit.runtimes.kernels.decode_attention:DECODE",
        "decode-codes": "edgekit.runtimes.kernels.decode_codes:DECODE",
        "linear-attention": "edgekit.runtimes.kernels.linear_attention:LINEAR_ATTENTION",
        "window-attention": "edgekit.runtimes.kernels.window_attention:WINDOW_ATTENTION",
        "sparse-attention": "edgekit.runtimes.kernels.sparse_attention:SPARSE_ATTENTION",
        "sparse-lm-head": "edgekit.runtimes.kernels.lm_head:LM_HEAD",
        "matmul-w8a8": "edgekit.runtimes.kernels.matmul_int8:W8A8",
        "matmul-w8a16": "edgekit.runtimes.kernels.matmul_int8:W8A16",
        "matmul-w4a16": "edgekit.runtimes.kernels.matmul_int4:W4A16",
        "matmul-mxfp4": "edgekit.runtimes.kernels.matmul_mxfp4:MXFP4",
        "rational": "edgekit.runtimes.kernels.rational:FORWARD",
        "rational-backward": "edgekit.runtimes.kernels.rational:BACKWARD",
        "token-bleu": "edgekit.runtimes.kernels.token_bleu:BLEU",
    },
)

TOKEN_COMPRESSORS = Registry(
    "token compressor",
    {
        "pool": "edgekit.passes.bottleneck.tokens_pass:PoolTokens",
        "query": "edgekit.passes.tokens.query:CompressByQuery",
        "frames": "edgekit.passes.tokens.frames:SelectFrames",
    },
)

TOKEN_METHODS = Registry(
    "token method",
    {
        "merge": "edgekit.passes.tokens.reducers:MergeSimilar",
        "class": "edgekit.passes.tokens.methods:keep_by_class",
        "accumulated": "edgekit.passes.tokens.methods:keep_by_accumulated",
        "neighbours": "edgekit.passes.tokens.methods:keep_by_neighbours",
        "diverse": "edgekit.passes.tokens.reducers:SelectDiverse",
    },
)
