from __future__ import annotations

import numpy as np
import pytest

from edgekit.bundle.loop import Choice, Chunks
from edgekit.errors import InputError, SessionError
from edgekit.runtimes.server.output_guard import GuardOptions
from edgekit.runtimes.server.sequences import Generation, Recording
from edgekit.tensors import TensorSpec

CHUNKS = Chunks(input="x", hop=4, context=2)
RESULTS = (TensorSpec("y", "float32", ("n", 1)),)
CHOICE = Choice(input="token", output="logits", stop=9)


def windows(samples: np.ndarray, most: int = 100) -> list[list[float]]:
    recording, row, seen = Recording(CHUNKS, samples, RESULTS, most), np.full(6, 7.0, np.float32), []
    finish = None
    while finish is None:
        recording.feed(row)
        seen.append(row.tolist())
        finish = recording.take({"y": np.array([[len(seen)]], np.float32)}, 0)
    np.testing.assert_array_equal(recording.answer()["y"][:, 0], np.arange(1, len(seen) + 1))
    assert finish == ("stop" if len(samples) <= 4 * most else "length")
    return seen


@pytest.mark.parametrize(
    ("length", "wanted"),
    [
        (1, [[0, 0, 1, 0, 0, 0]]),
        (4, [[0, 0, 1, 2, 3, 4]]),
        (5, [[0, 0, 1, 2, 3, 4], [3, 4, 5, 0, 0, 0]]),
        (9, [[0, 0, 1, 2, 3, 4], [3, 4, 5, 6, 7, 8], [7, 8, 9, 0, 0, 0]]),
    ],
)
def test_windows_overlap_by_their_context_and_end_in_zeros(length: int, wanted: list[list[float]]) -> None:
    assert windows(np.arange(1, length + 1, dtype=np.float32)) == wanted


def test_no_more_windows_are_heard_than_allowed() -> None:
    assert len(windows(np.zeros(400, np.float32), most=3)) == 3


@pytest.mark.parametrize("shape", [(0,), (2, 5), ()])
def test_what_is_no_single_sequence_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="one sequence"):
        Recording(CHUNKS, np.zeros(shape, np.float32), RESULTS, 9)


def write(generation: Generation, logits: list[list[float]]) -> tuple[list[int], str | None]:
    """What it was fed, and how it ended."""
    row, fed = np.zeros((), np.int64), []
    for line in logits:
        generation.feed(row)
        fed.append(int(row))
        finish = generation.take({"logits": np.array([line])}, 0)
        if finish is not None:
            return fed, finish
    return fed, None


def likes(token: int, by: float = 5.0) -> list[float]:
    return [by * (index == token) for index in range(10)]


def test_a_prompt_is_fed_first_and_then_what_was_chosen() -> None:
    generation = Generation(CHOICE, [3, 4], 100)
    assert write(generation, [likes(1), likes(2), likes(5), likes(9)]) == ([3, 4, 2, 5], "stop")
    assert generation.answer()["token"].tolist() == [2, 5]
    assert generation.answer(1)["token"].tolist() == [5]


def test_an_answer_is_no_longer_than_allowed() -> None:
    assert write(Generation(CHOICE, [3], 2), [likes(2)] * 5) == ([3, 2], "length")


def test_a_start_token_stands_before_any_prompt() -> None:
    started = CHOICE.model_copy(update={"start": 8})
    assert write(Generation(started, [], 1), [likes(2)]) == ([8], "length")
    with pytest.raises(InputError, match="prompt is empty"):
        Generation(CHOICE, [], 1)


def test_a_loop_ends_the_text() -> None:
    guard = GuardOptions(max_period=3, repeats=3, span=6)
    logits = [likes(token) for token in (1, 2, 3, 4, 3, 4, 3, 4, 3)]
    assert write(Generation(CHOICE, [0], 100, guard=guard), logits)[1] == "loop"


def test_text_is_answered_where_tokens_are_bytes() -> None:
    generation = Generation(CHOICE.model_copy(update={"encoding": "bytes"}), [0], 3)
    write(generation, [likes(7), likes(8), likes(7)])
    assert generation.answer()["text"].tolist() == [bytes([7, 8, 7])]


def test_drawing_follows_the_shares_and_the_seed() -> None:
    def draws(seed: int, temperature: float, by: float) -> list[int]:
        generation = Generation(CHOICE, [0], 400, temperature=temperature, seed=seed, guard=GuardOptions(max_period=0))
        write(generation, [likes(2, by)] * 400)
        return generation.answer()["token"].tolist()

    assert draws(1, 1.0, 0.5) == draws(1, 1.0, 0.5) != draws(2, 1.0, 0.5)
    assert set(draws(1, 0.05, 5.0)) == {2}
    # Of 10 symbols (9 stops), one e^3 times as likely as each other one.
    generation = Generation(CHOICE.model_copy(update={"stop": None}), [0], 4000, temperature=1.0, seed=3)
    write(generation, [likes(2, 3.0)] * 4000)
    tokens = generation.answer()["token"]
    share = np.exp(3) / (np.exp(3) + 9)
    assert abs((tokens == 2).mean() - share) < 4 * np.sqrt(share * (1 - share) / len(tokens))


def test_logits_without_a_number_are_an_error() -> None:
    with pytest.raises(SessionError, match="NaN or infinity"):
        write(Generation(CHOICE, [0], 4), [[float("nan")] * 10])
