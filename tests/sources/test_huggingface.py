from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit.errors import SourceError
from edgekit.passes.capture import Capture
from edgekit.sources import resolve
from edgekit.sources.huggingface import image_preprocess

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def save(folder: Path, architecture: str, config: str, **options: Any) -> Path:
    torch.manual_seed(0)
    module = getattr(transformers, architecture)(getattr(transformers, config)(**options))
    module.save_pretrained(folder)
    return folder


def save_vit(folder: Path) -> Path:
    labels = {0: "cat", 1: "dog", 2: "hen"}
    save(
        folder,
        "ViTForImageClassification",
        "ViTConfig",
        image_size=32,
        patch_size=8,
        id2label=labels,
        label2id={label: number for number, label in labels.items()},
        **SMALL,
    )
    processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


def test_an_image_classifier_brings_preprocessing_and_labels(tmp_path: Path) -> None:
    model = resolve(save_vit(tmp_path / "vit"))
    assert (model.name, model.task, model.output_names) == ("vit", "image-classification", ("logits",))
    assert model.preprocess is not None and model.preprocess.kind == "image"
    assert (model.preprocess.crop, model.preprocess.interpolation) == (32, "bicubic")
    assert (model.preprocess.mean, model.preprocess.std) == ((127.5,) * 3, (63.75,) * 3)
    assert model.postprocess is not None
    assert model.postprocess.labels == ("cat", "dog", "hen")
    assert Capture()(model).output_specs[0].shape == ("batch", 3)
    assert resolve(tmp_path / "vit").source == model.source


@pytest.mark.parametrize(
    ("architecture", "config", "options", "outputs"),
    [
        ("BertModel", "BertConfig", {"max_position_embeddings": 64} | SMALL, ["last_hidden_state", "pooler_output"]),
        ("RobertaForSequenceClassification", "RobertaConfig", {"max_position_embeddings": 66} | SMALL, ["logits"]),
        (
            "LlamaForCausalLM",
            "LlamaConfig",
            {"max_position_embeddings": 64, "num_key_value_heads": 1} | SMALL,
            ["logits"],
        ),
        ("GPT2LMHeadModel", "GPT2Config", {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}, ["logits"]),
    ],
)
def test_text_models_have_dynamic_batch_and_length(
    tmp_path: Path, architecture: str, config: str, options: dict[str, Any], outputs: list[str]
) -> None:
    folder = save(tmp_path / "text", architecture, config, vocab_size=200, **options)
    model = resolve(folder)
    assert list(model.output_names) == outputs
    assert all(spec.shape == ("batch", "sequence") for spec in model.input_specs)
    captured = Capture()(model)
    ids = torch.arange(3, 33).reshape(3, 10)
    sample = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = model.forward(sample)
    for name, value in captured.forward(sample).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "bert", "BertModel", "BertConfig", vocab_size=200, **SMALL)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["BertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(SourceError, match="lacks 2 weights of BertForSequenceClassification"):
        resolve(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["NobodysModel"]}, "no architecture 'NobodysModel'"),
        ({"model_type": "nobody"}, "cannot load"),
    ],
)
def test_what_transformers_does_not_know_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = save(tmp_path / "bert", "BertModel", "BertConfig", vocab_size=200, **SMALL)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    with pytest.raises(SourceError, match=message):
        resolve(folder)


@pytest.mark.parametrize(
    ("processor", "resize", "crop"),
    [
        ({"size": 224}, 224, 224),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 256, 224),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, 256, 256),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 256, 224),
    ],
)
def test_processor_files_of_every_age_are_read(processor: dict[str, Any], resize: int, crop: int) -> None:
    found = image_preprocess(processor)
    assert found is not None
    assert (found.resize, found.crop) == (resize, crop)


def test_a_processor_without_a_square_size_says_nothing() -> None:
    assert image_preprocess({}) is None
    assert image_preprocess({"size": {"height": 480, "width": 640}}) is None
    assert image_preprocess({"size": {"shortest_edge": 800, "longest_edge": 1333}}) is None


def test_pixels_are_scaled_as_the_processor_says() -> None:
    plain = image_preprocess({"size": 8, "do_rescale": False, "do_normalize": False})
    assert plain is not None
    assert (plain.mean, plain.std) == ((0.0,) * 3, (1.0,) * 3)
    scaled = image_preprocess({"size": 8, "do_normalize": False})
    assert scaled is not None
    assert scaled.std == (255.0,) * 3


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_agrees_with_what_optimum_exports(tmp_path: Path, kind: str) -> None:
    """An independent way from the same directory to ONNX."""
    pytest.importorskip("optimum.exporters.onnx")
    from samples.benchmarks.optimum_export import compare_with_optimum

    if kind == "vit":
        folder = save_vit(tmp_path / "vit")
    else:
        options = {"vocab_size": 200, "max_position_embeddings": 64} | SMALL
        folder = save(tmp_path / "bert", "BertForSequenceClassification", "BertConfig", **options)
    # float32 sums in another order over at most 192 terms of size 1.
    assert compare_with_optimum(folder, tmp_path / "onnx") < 1e-5
