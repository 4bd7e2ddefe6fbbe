"""The session that `connect` gives obeys what every session does, with a node above and without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.errors import InputError, SessionError
from edgekit.runtimes.coordinator.connect import SplitSession, connect
from edgekit.runtimes.server import Node, NodeOptions


@pytest.fixture(scope="module")
def open_batch(tmp_path_factory: pytest.TempPathFactory, make_bundle) -> Path:
    return make_bundle(tmp_path_factory.mktemp("open") / "net.edgekit", batch="batch")


@pytest.fixture(scope="module", params=["alone", "split"])
def session(request: pytest.FixtureRequest, open_batch: Path):
    if request.param == "alone":
        with connect(open_batch, threads=1) as opened:
            yield opened
        return
    with (
        Node([open_batch], NodeOptions(threads=1)) as node,
        connect(open_batch, node.grpc_url, deadline_ms=5000, policy="split@0", threads=1) as opened,
    ):
        yield opened


def feeds(rows: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).random((rows, 6), np.float32)}


def test_it_is_a_session_with_the_models_names(session: SplitSession) -> None:
    assert isinstance(session, edgekit.Session)
    assert [spec.name for spec in session.inputs] == ["x"]
    assert [spec.name for spec in session.outputs] == ["logits"]
    assert edgekit.connect is connect


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 32])
def test_any_batch_gives_the_models_numbers_in_order(session: SplitSession, truth, rows: int) -> None:
    given = feeds(rows)
    np.testing.assert_allclose(session.run(given)["logits"], truth(given["x"]), atol=1e-4)
    assert session.last is not None and not session.last.degraded, session.last.reason


def test_outputs_are_the_callers_to_keep(session: SplitSession) -> None:
    kept = session.run(feeds(seed=1))["logits"]
    copy = kept.copy()
    session.run(feeds(seed=2))
    np.testing.assert_array_equal(kept, copy)
    kept += 1  # writable


def test_inputs_are_left_as_they_were(session: SplitSession) -> None:
    given = feeds(5)
    given["x"].flags.writeable = False
    session.run(given)
    np.testing.assert_array_equal(given["x"], feeds(5)["x"])


@pytest.mark.parametrize("layout", ["fortran", "strided"])
def test_an_input_may_lie_in_memory_in_any_way(session: SplitSession, layout: str) -> None:
    given = feeds(4)
    plain = session.run(given)["logits"]
    if layout == "fortran":
        given["x"] = np.asfortranarray(given["x"])
    else:
        given["x"] = np.repeat(given["x"], 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(session.run(given)["logits"], plain)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"x": np.zeros((1, 6), np.float32), "y": np.zeros(1)},
        {"x": np.zeros((1, 6))},
        {"x": np.zeros((1, 7), np.float32)},
    ],
    ids=["missing", "unknown", "dtype", "shape"],
)
def test_what_does_not_fit_is_an_input_error_and_harms_nothing(session: SplitSession, truth, given) -> None:
    with pytest.raises(InputError):
        session.run(given)
    np.testing.assert_allclose(session.run(feeds())["logits"], truth(feeds()["x"]), atol=1e-4)


def test_the_bare_call_repeats(session: SplitSession) -> None:
    call = session.bare(feeds())
    call()
    call()


def test_close_is_idempotent_and_ends_running(open_batch: Path) -> None:
    session = connect(open_batch, threads=1)
    outputs = session.run(feeds())
    session.close()
    session.close()
    assert outputs["logits"].shape == (1, 3)
    with pytest.raises(SessionError, match="closed"):
        session.run(feeds())
    with pytest.raises(SessionError, match="closed"):
        session.ask(feeds())


def test_an_unknown_setting_is_refused(open_batch: Path) -> None:
    with pytest.raises(TypeError, match="tokn"):
        connect(open_batch, tokn="x")


def test_the_answer_tells_where_it_came_from_in_json_and_in_a_line(session: SplitSession) -> None:
    answer = session.ask(feeds())
    told = answer.to_json()
    assert {"tier", "variant", "rate", "degraded", "reason", "stages_ms", "bytes_sent", "total_ms"} <= told.keys()
    assert answer.variant in answer.summary()
