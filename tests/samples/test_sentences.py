from __future__ import annotations

import pytest

import samples.sentences as text
from edgekit.errors import MissingExtraError, UnknownNameError
from edgekit.evaluation.disjoint import check_disjoint
from edgekit.zoo.minilm import sentences


@pytest.fixture(scope="module")
def one_package():
    """scikit-image alone: the other packages take seconds to read."""
    pytest.importorskip("skimage")
    patch = pytest.MonkeyPatch()
    patch.setattr(text, "PACKAGES", {"skimage": ("*",)})
    text._entries.cache_clear()
    yield
    patch.undo()
    text._entries.cache_clear()


@pytest.mark.usefixtures("one_package")
@pytest.mark.parametrize("kind", text.KINDS)
def test_pairs_hold_each_text_once_and_none_that_is_trained_or_calibrated_on(kind):
    pairs = text.sentence_pairs(kind, 10_000)
    both = pairs.first + pairs.second
    assert len(pairs.first) == len(pairs.second) > 15
    assert len(set(both)) == len(both)
    check_disjoint(text.training_sentences(), both)
    check_disjoint(sentences(), both)


@pytest.mark.usefixtures("one_package")
def test_training_sentences_are_distinct_and_not_the_zoo_s():
    found = text.training_sentences()
    assert len(set(found)) == len(found) > 300
    check_disjoint(sentences(), found)


@pytest.mark.usefixtures("one_package")
def test_every_call_gives_the_same_and_a_shorter_one_its_beginning():
    assert text.training_sentences(50) == text.training_sentences()[:50]
    assert text.sentence_pairs("title", 10).first == text.sentence_pairs("title", 30).first[:10]


def test_unrelated_leaves_no_text_at_its_place():
    pairs = text.Pairs(tuple("abcdefgh"), tuple("ABCDEFGH"))
    for seed in range(20):
        other = pairs.unrelated(seed)
        assert sorted(other) == sorted(pairs.second)
        assert all(mine != theirs for mine, theirs in zip(other, pairs.second, strict=True))


def test_an_unknown_kind_is_told_the_nearest():
    with pytest.raises(UnknownNameError, match="neighbours"):
        text.sentence_pairs("neighbour")


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(text, "PACKAGES", {"no_such_package": ("*",)})
    text._entries.cache_clear()
    with pytest.raises(MissingExtraError, match="no_such_package"):
        text.training_sentences()


def test_markup_goes_and_prose_stays():
    block = "Compute the ``roots`` of a :class:`~numpy.poly1d` object. It may be *very* slow for high degrees."
    assert text.prose_sentences(block) == (
        "Compute the roots of a poly1d object.",
        "It may be very slow for high degrees.",
    )


@pytest.mark.parametrize(
    "block",
    [
        "x : int The number of rows to take.",
        ">>> f(1)",
        "Args: the number of rows.",
        "Too short.",
        "no capital or stop",
    ],
)
def test_lists_code_and_scraps_are_not_prose(block):
    assert text.prose_sentences(block) == ()


def test_names_become_words():
    assert text.words("IncrementalPCA") == "incremental pca"
    assert text.words("_local_binary_pattern") == "local binary pattern"
