"""Span files with what real disks, crashes and strangers leave in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.errors import DataError
from edgekit.runtimes.tracing.files import MAX_LINE_BYTES, read_file, read_files, read_objects


def line(span) -> str:
    return span.model_dump_json() + "\n"


def test_damaged_lines_are_counted_and_the_rest_is_read(make, tmp_path: Path) -> None:
    good, other = make("ask", 0, 10, rates=[0, 1]), make("ask", 20, 30)
    entry = json.loads(line(good))
    damaged = [
        "not json\n",
        line(good)[:40] + "\n",
        "[1, 2]\n",
        json.dumps({**entry, "trace_id": "short"}) + "\n",
        json.dumps({**entry, "duration_ms": -1}) + "\n",
        json.dumps({**entry, "duration_ms": float("nan")}) + "\n",
        json.dumps({**entry, "start_ns": "soon"}) + "\n",
        json.dumps({key: value for key, value in entry.items() if key != "span_id"}) + "\n",
    ]
    path = tmp_path / "spans.jsonl"
    path.write_bytes((line(good) + "".join(damaged) + "\n" + line(other)).encode() + b"\xff\xfe\x00\n")
    reading = read_file(path)
    assert reading.spans == (good, other)
    assert reading.damaged == len(damaged) + 1
    assert reading.spans[0].attribute("rates") == [0, 1]


def test_a_line_that_is_still_being_written_is_not_damaged(make, tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_text(line(make("ask", 0, 10)) + line(make("ask", 20, 30))[:50])
    assert (len(read_file(path).spans), read_file(path).damaged) == (1, 0)


def test_a_line_without_end_is_not_held_in_memory(make, tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_bytes(b"x" * (2 * MAX_LINE_BYTES) + b"\n" + line(make("ask", 0, 10)).encode())
    assert (len(read_file(path).spans), read_file(path).damaged) == (1, 1)


def test_a_folder_gives_its_span_files_and_leaves_others_alone(make, tmp_path: Path) -> None:
    (tmp_path / "edge.jsonl").write_text(line(make("infer", 0, 1)) + "torn\n")
    (tmp_path / "cloud.jsonl").write_text(line(make("infer", 0, 1)))
    (tmp_path / "dataset.jsonl").write_text('{"text": "no span"}\n' * 3)
    (tmp_path / "notes.txt").write_text("x\n")
    reading = read_files([tmp_path])
    assert [path.name for path in reading.files] == ["cloud.jsonl", "edge.jsonl"]
    assert (len(reading.spans), reading.damaged) == (2, 1)


def test_a_binary_file_among_others_counts_its_lines(make, tmp_path: Path) -> None:
    (tmp_path / "edge.jsonl").write_text(line(make("infer", 0, 1)))
    (tmp_path / "broken.jsonl").write_bytes(bytes(range(256)) * 7)
    reading = read_files([tmp_path])
    assert (len(reading.spans), reading.damaged) == (1, 7)
    (tmp_path / "edge.jsonl").unlink()
    assert read_files([tmp_path]).damaged == read_file(tmp_path / "broken.jsonl").damaged == 7


def test_a_path_that_is_not_there_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: No such file") as caught:
        read_files([tmp_path / "none.jsonl"])
    assert "--trace FILE" in caught.value.hint


def test_objects_of_a_node_are_checked_alike(make) -> None:
    good = make("ask", 0, 10)
    reading = read_objects([good.model_dump(), "x", {"name": "ask"}, None])
    assert (reading.spans, reading.damaged) == ((good,), 3)
