"""A local Hugging Face directory becomes a Model through transformers; nothing is ever downloaded.

Example inputs follow from the configuration; preprocessing, labels and tokenizer from the files beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from edgekit.bundle.manifest import Postprocess, Preprocess, TextPreprocess
from edgekit.digests import digest_directory
from edgekit.errors import MissingExtraError, SourceError
from edgekit.model import Model, Sample, Source
from edgekit.sources.modules import name_outputs, run_once, slug

Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos"]

SEQUENCE = 128
# PIL's numbers for its filters, as preprocessor_config.json has them.
INTERPOLATIONS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
DECODERS = ("ForCausalLM", "LMHeadModel")
TASKS = {
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForObjectDetection": "object-detection",
    "ForSemanticSegmentation": "image-segmentation",
    "ForDepthEstimation": "depth-estimation",
    "ForAudioClassification": "audio-classification",
    "ForCTC": "speech-recognition",
}


def from_directory(path: Path) -> Model:
    """Raises SourceError where it is no model directory or its weights do not fit, MissingExtraError."""
    if not (path / "config.json").is_file():
        raise SourceError(
            f"{path} has no config.json", hint="give a directory written by save_pretrained of transformers"
        )
    if find_spec("transformers") is None:
        raise MissingExtraError("transformers", "export", "a Hugging Face directory")
    module = _load_module(path)
    config = module.config
    processor = _read_json(path / "preprocessor_config.json")
    inputs, dynamic = _example_inputs(module, processor)
    tokenizer = path / "tokenizer.json"
    reads_text = tokenizer.is_file() and "input_ids" in inputs
    preprocess: Preprocess | TextPreprocess | None = None
    if reads_text:
        preprocess = TextPreprocess(max_length=inputs["input_ids"].shape[1])
    elif "pixel_values" in inputs:
        preprocess = image_preprocess(processor)
    architecture = type(module).__name__
    task = next((task for ending, task in TASKS.items() if architecture.endswith(ending)), "feature-extraction")
    outputs = name_outputs(run_once(module, inputs))
    return Model(
        name=slug(path.resolve().name),
        module=module,
        example_inputs=inputs,
        output_names=outputs,
        task=task,
        dynamic=dynamic,
        preprocess=preprocess,
        postprocess=_postprocess(config, task, outputs),
        tokenizer=tokenizer if reads_text else None,
        source=Source("huggingface", path.resolve().name, digest_directory(path)),
    )


def _load_module(path: Path) -> nn.Module:
    """In float32 and eval mode, with plain attention, which every format has operators for."""
    import transformers

    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
            name = (config.architectures or [""])[0]
            kind = getattr(transformers, name, None) if name else transformers.AutoModel
            if kind is None:
                raise SourceError(
                    f"transformers {transformers.__version__} has no architecture {name!r}",
                    hint="build it in a function of your own and give package.module:callable",
                )
            if getattr(config, "use_cache", False):
                config.use_cache = False
            module, info = kind.from_pretrained(
                path,
                config=config,
                local_files_only=True,
                attn_implementation="eager",
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise SourceError(
            f"transformers cannot load {path}: {str(error).splitlines()[0]}",
            hint="transformers' AutoModel.from_pretrained on the directory shows the whole message",
        ) from error
    absent = sorted(info["missing_keys"])
    if absent:
        raise SourceError(
            f"the checkpoint in {path} lacks {len(absent)} weights of {type(module).__name__}, the first {absent[0]!r}",
            hint="config.json names another architecture than the one that was trained",
        )
    if name.endswith(DECODERS):
        _build_masks_without_vmap(module)
    loaded: nn.Module = module.eval()
    return loaded


def _build_masks_without_vmap(module: Any) -> None:
    """transformers makes causal masks with vmap, which torch.export cannot trace; it has a form without, for SDPA."""
    from transformers.integrations.executorch import sdpa_mask_without_vmap
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if not module._supports_sdpa:
        return
    ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa_without_vmap", sdpa_mask_without_vmap)
    ALL_ATTENTION_FUNCTIONS.register("sdpa_without_vmap", ALL_ATTENTION_FUNCTIONS["sdpa"])
    for part in module.modules():
        if hasattr(getattr(part, "config", None), "_attn_implementation"):
            part.config._attn_implementation = "sdpa_without_vmap"


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Progress bars and notes of transformers stay off stderr; what matters is raised."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{path} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _example_inputs(module: Any, processor: Mapping[str, Any]) -> tuple[Sample, dict[str, dict[int, str]]]:
    """Deterministic inputs of the usual size, and their dynamic dimensions."""
    config, main = module.config, module.main_input_name
    generator = torch.Generator().manual_seed(0)
    if main == "pixel_values":
        height, width = _image_size(config, processor)
        image = torch.randn(1, getattr(config, "num_channels", 3), height, width, generator=generator)
        return {main: image}, {main: {0: "batch"}}
    if main == "input_ids":
        return _text_inputs(config, generator)
    if main == "input_values":
        return {main: torch.randn(1, 16000, generator=generator)}, {main: {0: "batch"}}
    if main == "input_features":
        bins = int(getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None) or 80)
        frames = 2 * config.max_source_positions if hasattr(config, "max_source_positions") else 100
        return {main: torch.randn(1, bins, frames, generator=generator)}, {main: {0: "batch"}}
    raise SourceError(
        f"{type(module).__name__} takes {main!r}, for which there are no example inputs",
        hint="build it in a function that returns (module, example_inputs) and give package.module:callable",
    )


def _text_inputs(config: Any, generator: torch.Generator) -> tuple[Sample, dict[str, dict[int, str]]]:
    positions = getattr(config, "max_position_embeddings", None) or SEQUENCE
    # RoBERTa's positions begin after the padding index.
    offset = (config.pad_token_id or 0) + 1 if getattr(config, "model_type", "") in ("roberta", "xlm-roberta") else 0
    # Room is left above it: the sequence length is dynamic up to the model's own limit.
    length = max(2, min(SEQUENCE, (positions - offset) // 2))
    ids = torch.randint(min(1000, config.vocab_size // 2), config.vocab_size, (1, length), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones(1, length, dtype=torch.int64)}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids[:, :1].clone()
        text = {0: "batch", 1: "sequence"}
        return inputs, {"input_ids": text, "attention_mask": text, "decoder_input_ids": {0: "batch"}}
    return inputs, {name: {0: "batch", 1: "sequence"} for name in inputs}


def _image_size(config: Any, processor: Mapping[str, Any]) -> tuple[int, int]:
    preprocess = image_preprocess(processor)
    if preprocess is not None:
        return preprocess.crop, preprocess.crop
    size = getattr(config, "image_size", None) or 224
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) else (int(size), int(size))


def image_preprocess(processor: Mapping[str, Any]) -> Preprocess | None:
    """What preprocessor_config.json says, as resize of the shorter side, centre crop and normalisation.

    A processor that squeezes the picture into a square instead becomes a crop of the same size: shapes are kept.
    None where the file says nothing about size, or wants another shape than a square.
    """
    size = _side(processor.get("size"))
    if size is None:
        return None
    crop = _side(processor.get("crop_size")) if processor.get("do_center_crop", "crop_size" in processor) else None
    if crop is None and "crop_pct" in processor and size < 384:
        size, crop = int(size / processor["crop_pct"]), size
    scale = 1.0 / processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    normalised = processor.get("do_normalize", "image_mean" in processor)
    mean = processor.get("image_mean", [0.0]) if normalised else [0.0] * 3
    std = processor.get("image_std", [1.0]) if normalised else [1.0] * 3
    return Preprocess(
        mode="RGB" if len(mean) == 3 else "L",
        resize=size,
        crop=crop or size,
        interpolation=INTERPOLATIONS.get(processor.get("resample", 2), "bilinear"),
        mean=tuple(round(value * scale, 6) for value in mean),
        std=tuple(round(value * scale, 6) for value in std),
    )


def _side(size: object) -> int | None:
    """224, {"shortest_edge": 224} or {"height": 224, "width": 224}; None for what is no square."""
    if isinstance(size, int):
        return size
    if not isinstance(size, Mapping):
        return None
    if isinstance(size.get("shortest_edge"), int) and "longest_edge" not in size:
        return int(size["shortest_edge"])
    height = size.get("height")
    return height if isinstance(height, int) and height == size.get("width") else None


def _postprocess(config: Any, task: str, outputs: tuple[str, ...]) -> Postprocess | None:
    if task in ("image-classification", "text-classification", "audio-classification") and "logits" in outputs:
        names = {int(number): str(label) for number, label in (config.id2label or {}).items()}
        return Postprocess(
            kind="classification", output="logits", labels=tuple(names[number] for number in sorted(names))
        )
    if task == "feature-extraction" and "pooler_output" in outputs:
        return Postprocess(kind="embedding", output="pooler_output")
    return None
