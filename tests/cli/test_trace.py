"""`edgekit trace`: the picture as text, the table of stages, and every way in which there is nothing to show."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgekit.cli.main import cli
from edgekit.cli.trace_view import figure, flame, label_of, plain_text, tier_style
from edgekit.runtimes.tracing.joining import join
from edgekit.runtimes.tracing.span import Span

FIRST, SECOND, THIRD = "4bf92f3577b34da6a3ce929d0e0e4736", "4bf92f35ffffffffffffffffffffffff", "a" * 32
START_NS = 1_795_996_000_000_000_000
COLUMNS = 100


def make(number: Any, name: str, start_ms: float, end_ms: float, parent: Span | None = None, **named: Any) -> Span:
    at, trace, status = named.pop("at", "device"), named.pop("trace", FIRST), named.pop("status", "UNSET")
    return Span(
        name=name,
        trace_id=trace,
        span_id=f"{next(number):016x}",
        parent_id=parent.span_id if parent is not None else None,
        service=f"edgekit-{at}",
        instance=f"{at}-1",
        start_ns=START_NS + round(1e6 * start_ms),
        duration_ms=end_ms - start_ms,
        status=status,
        **{f"edgekit.{key}": value for key, value in named.items()},
    )


def request_over_three_tiers() -> list[Span]:
    """160 ms: a head, an attempt that fails, one that goes up to the cloud, a hedge that is let go of. The edge's
    clock is 4.3 s ahead."""
    number = itertools.count(1)
    request = make(number, "request", 0, 160, model="cats")
    facts = {"model": "cats", "variant": "split", "rates": [2, 1], "policy": "auto", "tier": "cloud"}
    ask = make(number, "ask", 6, 156, request, degraded=False, bytes_sent=1404, bytes_received=410, **facts)
    broken = "UnreachableError: grpc://edge:8102: Socket closed"
    failed = make(number, "send", 30, 60, ask, node="edge", attempt=1, status=broken)
    send = make(number, "send", 80, 156, ask, node="edge", attempt=2)
    edge = make(number, "infer", 4400, 4440, send, at="edge")
    forward = make(number, "forward", 4410, 4440, edge, at="edge")
    cloud = make(number, "infer", 115, 135, forward, at="cloud")
    return [
        request,
        make(number, "preprocess", 0, 6, request),
        ask,
        make(number, "head", 6, 28, ask),
        make(number, "encode", 28, 30, ask),
        failed,
        make(number, "pause", 60, 80, ask),
        send,
        edge,
        make(number, "compute", 4402, 4410, edge, at="edge"),
        forward,
        cloud,
        make(number, "queue", 115, 120, cloud, at="cloud"),
        make(number, "compute", 120, 135, cloud, at="cloud"),
        make(number, "local", 140, 156, ask, why="hedge", outcome="let go"),
        make(number, "postprocess", 156, 160, request),
    ]


def write(path: Path, *spans: Span, damage: str = "") -> Path:
    path.write_text("".join(span.model_dump_json() + "\n" for span in spans) + damage)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three requests in the files of three tiers, one line of which is damaged."""
    number = itertools.count(100)
    spans = request_over_three_tiers()
    failed = "DeadlineError: no answer within 30 ms"
    second = make(number, "ask", 1000, 1030, trace=SECOND, model="cats", status=failed)
    third = make(number, "ask", 2000, 2005, trace=THIRD, model="dogs", degraded=True, reason="edge: gone")
    write(tmp_path / "device.jsonl", *(span for span in spans if span.tier == "device"), second, third)
    write(tmp_path / "edge.jsonl", *(span for span in spans if span.tier == "edge"), damage="{torn\n")
    write(tmp_path / "cloud.jsonl", *(span for span in spans if span.tier == "cloud"))
    return tmp_path


def trace(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["trace", *map(str, words)])
    assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
    return result


PICTURE = """\
span                      tier   0       40.0      80.0       120.0  160.0       ms      %     self
request                   device ─────────────────────────────────────────    160.0  100.0      0.0
  preprocess              device ██                                             6.0    3.8
  ask                     device   ──────────────────────────────────────     150.0   93.8      0.0
    head                  device   █████                                       22.0   13.8
    encode                device        ▓                                       2.0    1.2
    send → edge ✗         device         ░░░░░░░                               30.0   18.8
    pause                 device                ▒▒▒▒▒                          20.0   12.5
    send → edge #2        device                     ░░░░░──────────░░░░░      76.0   47.5     36.0
      infer               edge                            ╌─────────           40.0   25.0      2.0
        compute           edge                             ██                   8.0    5.0
        forward → cloud   edge                               ░──────           30.0   18.8     10.0
          infer           cloud                               ──────           20.0   12.5      0.0
            queue         cloud                               ▒▒                5.0    3.1
            compute       cloud                                 ████           15.0    9.4
    local (hedge), let go device                                     ████      16.0   10.0
  postprocess             device                                         █      4.0    2.5
"""


def test_the_picture_of_a_request_at_100_columns(folder: Path) -> None:
    result = trace(FIRST, "--from", folder)
    assert PICTURE in result.stdout, result.stdout
    assert max(map(len, result.stdout.splitlines())) <= COLUMNS
    lines = result.stdout.splitlines()
    assert lines[0] == f"trace {FIRST}  2026-11-29 23:46:40 UTC  160 ms  ok"
    assert lines[1] == (
        "cats, variant split at rate 2, policy auto, answered by the cloud, 1.40 kB sent, 410 B received"
    )
    assert "█ compute 55.0  ▓ codec 2.0  ▒ queue 25.0  ░ link 76.0  ╌ rest 2.0  ms  ─ in the spans below" in lines
    assert "send → edge on the device: UnreachableError: grpc://edge:8102: Socket closed" in lines
    assert (
        "clock of the edge: 4302 ms ahead (±18.0); its spans are moved to the middle of what waited for them" in lines
    )


def test_stages_sum_to_the_whole_in_the_table_and_in_json(folder: Path) -> None:
    rows = [line.split() for line in trace(FIRST, "--from", folder).stdout.splitlines()]
    (total,) = [row for row in rows if row[:1] == ["total"]]
    assert total == ["total", "160.0", "100.0"]
    payload = json.loads(trace(FIRST, "--from", folder, "--json").stdout)
    assert sum(stage["ms"] for stage in payload["stages"]) == pytest.approx(payload["total_ms"], abs=1e-9) == 160
    named = {(stage["stage"], stage["where"]): stage["ms"] for stage in payload["stages"]}
    assert named["uplink", "device → edge"] == named["downlink", "edge → device"] == 18
    assert named["unaccounted", "edge"] == 2
    assert payload["clocks"] == [
        {"process": "edge-1", "tier": "edge", "offset_ms": -4302.0, "uncertainty_ms": 18.0},
    ]
    assert (payload["tiers"], payload["damaged_lines"]) == (["device", "edge", "cloud"], 1)
    cloud = next(span for span in payload["spans"] if span["tier"] == "cloud")
    assert (cloud["depth"], cloud["start_ms"], cloud["duration_ms"]) == (5, 115, 20)


def test_without_a_request_the_latest_are_listed(folder: Path) -> None:
    result = trace("--from", folder)
    rows = [line.split("  ") for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == ["trace", FIRST[:12], SECOND[:12], THIRD[:12]]
    assert "device → edge → cloud" in result.stdout and "DeadlineError" in rows[2][-1] and "degraded" in rows[3][-1]
    assert "1 line" in result.stderr and "left out" in result.stderr
    shortened = trace("--from", folder, "--limit", "1")
    assert len(shortened.stdout.splitlines()) == 2 and "the latest 1 of 3" in shortened.stderr
    payload = json.loads(trace("--from", folder, "--json").stdout)
    assert [(entry["trace_id"], entry["status"]) for entry in payload["traces"]] == [
        (FIRST, "ok"),
        (SECOND, "DeadlineError"),
        (THIRD, "degraded"),
    ]


@pytest.mark.parametrize(
    ("words", "found"), [("last", THIRD), ("slowest", FIRST), ("4BF92F357", FIRST), ("aa", THIRD), (SECOND, SECOND)]
)
def test_a_request_by_name_by_id_or_by_its_beginning(folder: Path, words: str, found: str) -> None:
    assert f"trace {found}" in trace(words, "--from", folder).stdout


def test_why_an_answer_was_degraded_or_none_is_said(folder: Path) -> None:
    assert "degraded: edge: gone" in trace("last", "--from", folder).stdout
    assert "DeadlineError: no answer within 30 ms" in trace(SECOND, "--from", folder).stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("4bf92f35",), 2, ("begins 2 of 3 traces", f"{FIRST[:20]}, {SECOND[:20]}")),
        (("4bf92f36",), 2, ("no trace '4bf92f36' among the 3 traces", f"nearest: {FIRST[:12]}, {SECOND[:12]}")),
        (("latest",), 2, ("no trace 'latest'", "or last, slowest")),
        (("last", "--from", "none.jsonl"), 4, ("cannot read none.jsonl", "--trace FILE")),
        (("last", "--token-file", "token"), 2, ("without --node",)),
        (("last", "--node", "grpc://edge:8102"), 2, ("no address of a node", "REST port")),
    ],
)
def test_what_cannot_be_shown_is_an_error_that_says_what_can(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, said: tuple[str, ...]
) -> None:
    monkeypatch.chdir(folder)
    output = " ".join(trace(*words, code=code).stderr.split())
    assert all(part in output for part in said), output


def test_where_nothing_was_recorded_it_says_how_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = trace(code=4)
    assert "no spans in this folder" in result.stderr and "edgekit run BUNDLE" in result.stderr
    write(tmp_path / "torn.jsonl", damage="{\n{\n")
    assert "2 lines could not be read" in trace("--from", tmp_path / "torn.jsonl", code=4).stderr


def test_a_tier_whose_file_is_missing_is_told(folder: Path) -> None:
    (folder / "edge.jsonl").unlink()
    output = trace(FIRST, "--from", folder).stdout
    assert "1 span at the end: parent not read" in output
    (folder / "device.jsonl").unlink()
    assert "above all of it: the caller's span" in trace(FIRST, "--from", folder).stdout


@pytest.mark.parametrize("width", [72, 80, 100, 140])
def test_the_picture_fits_any_width_and_every_span_has_its_bar(width: int) -> None:
    (joined,) = join(request_over_three_tiers()).values()
    lines = plain_text(flame(joined, width))
    assert len(lines) == 1 + len(request_over_three_tiers())
    assert all(len(line) <= width for line in lines)
    assert all(any(fill in line for fill in "█▓▒░╌─") for line in lines[1:])


def test_deep_labels_are_cut_and_bars_stay(make_deep: Callable[[], list[Span]]) -> None:
    (joined,) = join(make_deep()).values()
    lines = plain_text(flame(joined, 72))
    assert all(len(line) <= 72 for line in lines) and "…" in lines[-1]


@pytest.fixture
def make_deep() -> Callable[[], list[Span]]:
    def build() -> list[Span]:
        number = itertools.count(1)
        spans = [make(number, "ask", 0, 100)]
        for depth in range(30):
            spans.append(make(number, f"step-{depth}", depth, 100 - depth, spans[-1]))
        return spans

    return build


def test_what_lies_beyond_the_axis_is_marked_at_its_end() -> None:
    number = itertools.count(1)
    ask = make(number, "ask", 0, 100)
    send = make(number, "send", 10, 100, ask, node="edge", outcome="let go")
    late = make(number, "infer", 90, 250, send, at="edge")
    (joined,) = join([ask, send, late]).values()
    assert "▸" in plain_text(flame(joined))[-1]


def test_tiers_are_told_apart_by_colour_and_errors_are_red() -> None:
    (joined,) = join(request_over_three_tiers()).values()
    styles = {line[0][0].strip(): line[0][1] for line in flame(joined)}
    assert {tier_style(tier) for tier in ("device", "edge", "cloud")} == {"cyan", "green", "magenta"}
    assert styles["head"] == "cyan" and styles["send → edge ✗"] == "bold red"
    assert styles["local (hedge), let go"] == "cyan dim"
    assert {styles["infer"], styles["forward → cloud"]} == {"green", "magenta"}


def test_a_request_that_took_no_time_can_be_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "spans.jsonl", make(itertools.count(1), "ask", 5, 5))
    assert "0.000" in trace("last", "--from", path).stdout


def test_figures_of_a_trace_have_the_same_digits() -> None:
    assert [figure(0.0612, total) for total in (7, 70, 700)] == ["0.061", "0.06", "0.1"]


def test_a_label_says_which_attempt_and_why() -> None:
    labels = [label_of(branch) for branch in next(iter(join(request_over_three_tiers()).values())).branches()]
    assert {"send → edge ✗", "send → edge #2", "local (hedge), let go", "forward → cloud"} <= set(labels)


HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\u202e\x9b1m"


def test_what_a_terminal_would_obey_is_shown_instead(tmp_path: Path) -> None:
    """Names, tiers and reasons come from other machines."""
    number = itertools.count(1)
    root = make(number, f"request{HOSTILE}\nnext", 0, 9, at=f"edge{HOSTILE}", model=f"cats{HOSTILE}", policy=HOSTILE)
    broken = f"NodeError: {HOSTILE}"
    child = make(number, "send", 1, 8, root, node=HOSTILE, why=HOSTILE, status=broken, at=HOSTILE, reason=HOSTILE)
    path = tmp_path / "spans.jsonl"
    path.write_text("".join(json.dumps(one.model_dump()) + "\n" for one in (root, child)))
    for words in ((), ("last",), ("last", "--json"), (HOSTILE,)):
        result = CliRunner().invoke(cli, ["trace", *words, "--from", str(path)])
        said = result.stdout + result.stderr
        assert "\\x1b" in said or "\\u001b" in said
        assert not [letter for letter in said if not (letter.isprintable() or letter == "\n")]
    assert result.exit_code == 2
    shown = CliRunner().invoke(cli, ["trace", "last", "--from", str(path)]).stdout
    assert not any(line.startswith("next") for line in shown.splitlines())
