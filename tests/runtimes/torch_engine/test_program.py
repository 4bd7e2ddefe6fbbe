"""A program is read before torch sees it: what could run code, or is no program, is refused."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekit.errors import SessionError
from edgekit.runtimes.torch_engine.program import load_program

Edit = Callable[[dict[str, bytes]], None]


@pytest.fixture(scope="module")
def members() -> dict[str, bytes]:
    """Of a program as `edgekit export` writes it, without the folder above them."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(nn.Linear(3, 2), (torch.rand(2, 3),), dynamic_shapes=({0: batch},))
    program.example_inputs = None
    content = io.BytesIO()
    torch.export.save(program, content)
    with zipfile.ZipFile(content) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def written(path: Path, members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"net/{name}", content)
    return path


def in_json(member: str, change: Callable[[Any], None]) -> Edit:
    def edit(members: dict[str, bytes]) -> None:
        value = json.loads(members[member])
        change(value)
        members[member] = json.dumps(value).encode()

    return edit


def put(name: str, content: bytes) -> Edit:
    return lambda members: members.update({name: content})


def call(target: str) -> Edit:
    def change(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][0]["target"] = target

    return in_json("models/model.json", change)


def size(text: str) -> Edit:
    def change(model: Any) -> None:
        values = model["graph_module"]["graph"]["tensor_values"]
        for value in values.values():
            value["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}

    return in_json("models/model.json", change)


def pickled_weight(config: Any) -> None:
    next(iter(config["config"].values()))["use_pickle"] = True


def far_weight(config: Any) -> None:
    next(iter(config["config"].values()))["path_name"] = "../../models/model.json"


def guarded(model: Any) -> None:
    model["guards_code"] = ["print('mine') or True"]


HOSTILE: dict[str, tuple[Edit, str]] = {
    "example inputs": (put("data/sample_inputs/model.pt", b"\x80\x02."), "example inputs as a pickle"),
    "a pickled weight": (in_json("data/weights/model_weights_config.json", pickled_weight), "as a pickle"),
    "a weight elsewhere": (in_json("data/weights/model_weights_config.json", far_weight), "keeps a weight in"),
    "weights of old": (put("data/weights/model.pt", b"anything"), "no exported program needs"),
    "an opaque object": (put("data/constants/opaque_obj_0", b"."), "no exported program needs"),
    "machine code": (put("data/aotinductor/model/net.so", b"\x7fELF"), "no exported program needs"),
    "guards": (in_json("models/model.json", guarded), "guards"),
    "a function of Python": (call("torch.serialization.os.system"), "allowed operators"),
    "a function of operator": (call("_operator.methodcaller"), "allowed operators"),
    "an operator that reads files": (call("torch.ops.aten.from_file.default"), "allowed operators"),
    "a name that ends later": (call("torch.ops.aten.add.Tensor\nimport os"), "allowed operators"),
    "a size that is code": (size("__import__('os').getcwd()"), "allowed arithmetic"),
    "a size with a name": (size("exec(s1)"), "allowed arithmetic"),
}


def test_a_program_as_it_is_written_loads(members: dict[str, bytes], tmp_path: Path) -> None:
    program = load_program(written(tmp_path / "net.torch.pt2", members))
    assert program.module(check_guards=False)(torch.rand(5, 3)).shape == (5, 2)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_could_run_code_is_refused_before_torch_sees_it(
    name: str, members: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("torch was asked to load it"))
    edit, told = HOSTILE[name]
    changed = dict(members)
    edit(changed)
    assert changed != members
    with pytest.raises(SessionError, match=told):
        load_program(written(tmp_path / "net.torch.pt2", changed))


def test_compressed_members_are_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="compresses"):
        load_program(written(tmp_path / "net.torch.pt2", members, compression=zipfile.ZIP_DEFLATED))


def test_a_name_given_twice_is_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    path = written(tmp_path / "net.torch.pt2", members)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("net/models/model.json", b"{}")
    with pytest.raises(SessionError, match="twice"):
        load_program(path)


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "lacking", "no-json"])
def test_a_damaged_file_is_a_session_error_that_names_it(
    damage: str, members: dict[str, bytes], tmp_path: Path
) -> None:
    path = written(tmp_path / "net.torch.pt2", members)
    content = path.read_bytes()
    if damage in ("empty", "truncated", "text"):
        path.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "text": b"no model\n" * 9}[damage])
    elif damage == "lacking":
        written(path, {name: value for name, value in members.items() if name != "models/model.json"})
    else:
        written(path, {**members, "models/model.json": b"{"})
    with pytest.raises(SessionError, match=path.name):
        load_program(path)
