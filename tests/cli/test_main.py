"""What all commands share: help, names, errors, exit codes, streams."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from edgekit import errors
from edgekit.cli.command import CONTEXT, Exampled
from edgekit.cli.main import COMMANDS, cli

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]


def _every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    context = click.Context(cli)
    for name in COMMANDS:
        found.append((name,))
        made = cli.get_command(context, name)
        if isinstance(made, click.Group):
            found += [(name, inner) for inner in made.list_commands(context)]
    return found


@pytest.mark.parametrize("path", _every_command(), ids=" ".join)
def test_every_command_has_help_with_examples_and_the_common_options(invoke: Invoke, path: tuple[str, ...]) -> None:
    text = invoke(*path, "--help").stdout
    examples = text.split("Examples:\n")[1].splitlines()
    assert any(line.startswith(f"  edgekit {path[0]}") for line in examples)
    for option in ("--json", "--quiet", "--verbose", "--help"):
        assert option in text
    assert max(map(len, text.splitlines())) <= CONTEXT["max_content_width"]


@pytest.mark.parametrize("name", [None, *dict.fromkeys(path[0] for path in _every_command() if len(path) > 1)])
def test_no_line_in_a_list_of_commands_is_cut_short(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = invoke(*([name] if name else []), "--help").stdout
    listed = text.split("Commands:\n")[1].split("\n\n")[0]
    assert "..." not in listed


@pytest.mark.parametrize("path", _every_command(), ids=" ".join)
def test_numbers_are_shown_alike_in_every_help(invoke: Invoke, path: tuple[str, ...]) -> None:
    text = invoke(*path, "--help").stdout
    assert [word for word in ("INTEGER", "FLOAT") if word in text] == []


@pytest.mark.parametrize("path", _every_command(), ids=" ".join)
def test_every_option_has_a_help_text(path: tuple[str, ...]) -> None:
    context, made = click.Context(cli), cli.get_command(click.Context(cli), path[0])
    if len(path) > 1:
        assert isinstance(made, click.Group)
        made = made.get_command(context, path[1])
    assert isinstance(made, Exampled)
    assert isinstance(made, click.Command)
    assert made.help
    assert [param.name for param in made.params if isinstance(param, click.Option) and not param.help] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_in_the_overview_stands_for_a_command_of_that_name(name: str) -> None:
    made = cli.get_command(click.Context(cli), name)
    assert made is not None
    assert made.name == name


def test_the_overview_lists_commands_and_exit_codes(invoke: Invoke) -> None:
    text = invoke().stdout
    assert text == invoke("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in text
    for code in errors.exit_codes():
        assert f"\n  {code} " in text.split("Exit codes:")[1]


def test_every_exit_code_has_a_meaning(invoke_json: InvokeJson) -> None:
    rows = invoke_json("exit-codes")["exit_codes"]
    assert {row["code"] for row in rows} == set(errors.exit_codes())
    assert all(row["meaning"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (("exprt",), "export"),
        (("devices", "sho"), "show"),
        (("devices", "show", "jetsn"), "jetson"),
        (("export", "minilm", "--device", "raspbery-pi"), "raspberry-pi"),
        (("export", "minilm", "--device", "jetson", "--format", "onxx"), "onnx"),
        (("export", "minilm", "--device", "jetson", "--quantize", "int-8"), "int8"),
        (("completion", "bsh"), "bash"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(invoke: Invoke, arguments: tuple[str, ...], nearest: str) -> None:
    result = invoke(*arguments, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: unknown ")
    assert f"hint: did you mean '{nearest}'?" in result.stderr


def test_an_unknown_option_is_told_with_the_nearest(invoke: Invoke) -> None:
    result = invoke("verify", "x.edgekit", "--kee", "k", code=2)
    assert "error: no such option --kee\nhint: did you mean --key?" in result.stderr


def test_an_error_with_json_is_one_object_on_stdout_and_words_on_stderr(invoke: Invoke) -> None:
    result = invoke("verify", "no-such.edgekit", "--json", code=9)
    failure = json.loads(result.stdout)
    assert failure["schema_version"] == 1
    assert failure["error"]["kind"] == "BundleError"
    assert failure["error"]["exit_code"] == 9
    assert "no-such.edgekit" in failure["error"]["message"]
    assert failure["error"]["hint"]
    assert result.stderr.startswith("error: ")
    assert "\nhint: " in result.stderr


def _kinds() -> list[type[errors.EdgekitError]]:
    return [errors.EdgekitError, *errors.EdgekitError.__subclasses__()]


@pytest.mark.parametrize("kind", _kinds(), ids=lambda kind: kind.__name__)
def test_each_kind_of_error_ends_with_its_code(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, kind: type[errors.EdgekitError]
) -> None:
    wanted: errors.EdgekitError
    if kind is errors.MissingExtraError:
        wanted = errors.MissingExtraError("onnxruntime", "onnx", "running")
    else:
        wanted = kind("it broke", hint="mend it")

    def verify(*_: object) -> None:
        raise wanted

    monkeypatch.setattr("edgekit.bundle.verify", verify)
    result = invoke("verify", "x.edgekit", code=kind.exit_code)
    assert result.stderr == f"error: {wanted.message}\nhint: {wanted.hint}\n"


def test_a_quality_error_shows_its_layers(
    invoke: Invoke, invoke_json: InvokeJson, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(*_: object) -> None:
        raise errors.QualityError("too far", layers=[("conv_1", 11.25), ("conv_2", 19.0)], hint="raise --max-drop")

    monkeypatch.setattr("edgekit.bundle.verify", verify)
    words = invoke("verify", "x.edgekit", code=8).stderr
    assert [line.split() for line in words.splitlines()[-2:]] == [["conv_1", "11.2"], ["conv_2", "19.0"]]
    layers = invoke_json("verify", "x.edgekit", code=8)["error"]["layers"]
    assert layers == [{"name": "conv_1", "sqnr_db": 11.25}, {"name": "conv_2", "sqnr_db": 19.0}]


def test_notes_on_an_error_are_told(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*_: object) -> None:
        error = errors.ExportError("refused")
        error.__notes__ = ["in pass Fold, after Capture"]  # what add_note does from Python 3.11 on
        raise error

    monkeypatch.setattr("edgekit.bundle.verify", verify)
    assert invoke("verify", "x.edgekit", code=7).stderr == "error: refused\n  in pass Fold, after Capture\n"


@pytest.mark.parametrize("flags", [(), ("-v",)])
def test_an_unexpected_error_is_short_and_has_a_traceback_only_when_asked(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    def verify(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("edgekit.bundle.verify", verify)
    result = invoke("verify", "x.edgekit", *flags, code=1)
    assert "error: unexpected RuntimeError: a bug" in result.stderr
    assert ("Traceback" in result.stderr) == bool(flags)


def test_an_interrupt_ends_with_130(invoke: Invoke, invoke_json: InvokeJson, monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgekit.bundle.verify", verify)
    assert "error: interrupted" in invoke("verify", "x.edgekit", code=130).stderr
    assert invoke_json("verify", "x.edgekit", code=130)["error"]["exit_code"] == 130


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_each_shell(invoke: Invoke, invoke_json: InvokeJson, shell: str) -> None:
    script = invoke("completion", shell).stdout
    assert f"_EDGEKIT_COMPLETE={shell}_complete" in script
    assert invoke_json("completion", shell)["script"].strip() == script.strip()


@pytest.mark.parametrize(
    ("words", "expected"),
    [("edgekit ins", "inspect"), ("edgekit devices show jets", "jetson"), ("edgekit export --format on", "onnx")],
)
def test_a_shell_completes_commands_devices_and_formats(words: str, expected: str) -> None:
    environment = {**os.environ, "_EDGEKIT_COMPLETE": "bash_complete", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(len(words.split()) - 1)
    done = subprocess.run(
        [sys.executable, "-m", "edgekit"], env=environment, capture_output=True, text=True, check=True
    )
    assert expected in [line.split(",")[1] for line in done.stdout.splitlines()]


def test_help_imports_no_heavy_package() -> None:
    script = (
        "import sys\n"
        "from edgekit.cli.main import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'rich', 'pydantic', 'PIL', 'onnxruntime', 'onnx', 'scipy', 'logging.config'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_run_side_commands_never_import_torch(bundle: Path, photos: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from edgekit.cli.main import cli\n"
        f"for words in (['inspect', {str(bundle)!r}], ['run', {str(bundle)!r}, '-i', {str(photos / 'red')!r}],\n"
        f"              ['evaluate', {str(bundle)!r}, '--data', {str(photos)!r}], ['verify', {str(bundle)!r}],\n"
        f"              ['benchmark', {str(bundle)!r}, '--runs', '3'], ['devices']):\n"
        "    try:\n        cli.main(words)\n    except SystemExit as end:\n        assert end.code == 0, words\n"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("words", [("inspect", "--json"), ("inspect", "--nonsense", "--json"), ("inspect",)])
def test_a_closed_pipe_is_told_to_nobody(bundle: Path, words: tuple[str, ...]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit", *words, str(bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as stream:
        said = stream.read()
    process.wait()
    assert b"Traceback" not in said
    assert b"Broken" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "code"),
    [(("--help",), 10), (("inspect", "--json"), 10), (("inspect",), 10), (("inspect", "--nonsense", "--json"), 2)],
)
def test_a_full_disk_below_stdout_ends_with_10_and_a_sentence(
    bundle: Path, words: tuple[str, ...], code: int, buffered: str
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edgekit", *words, *([str(bundle)] if "inspect" in words else [])],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": buffered},
        )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr
    if code == 10:
        assert "error: cannot write: No space left on device\nhint: free some space" in done.stderr


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_130_after_cleaning_up(tmp_path: Path, kind: signal.Signals) -> None:
    script = (
        "import sys, time\n"
        "from tempfile import TemporaryDirectory\n"
        "from edgekit.cli.main import main\n"
        "class Slow:\n"
        "    def export_recipe(recipe, fresh, progress):\n"
        f"        with TemporaryDirectory(dir={str(tmp_path)!r}):\n"
        "            progress('started', 0, 0)\n"
        "            time.sleep(60)\n"
        "sys.modules['edgekit.pipeline'] = Slow\n"
        "sys.argv = ['edgekit', 'export', 'minilm', '--device', 'jetson']\n"
        "main()\n"
    )
    # A shell's background job ignores SIGINT and hands that down; a user's terminal does not.
    here = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", script], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, here)
    assert process.stderr is not None
    while "started" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(kind)
    said, told = process.communicate()
    assert process.returncode == 130
    assert (said, list(tmp_path.iterdir())) == ("", [])
    assert "error: interrupted: nothing half-written is left" in told


@pytest.mark.parametrize(
    ("flags", "kept"), [((), ["own warning"]), (("-v",), ["own info", "own warning", "other warning"]), (("-q",), [])]
)
def test_logs_are_told_by_who_made_them(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], kept: list[str]
) -> None:
    def generate_key(path: Path) -> Path:
        for owner, name in (("own", "edgekit"), ("other", "onnx_ir.passes")):
            logging.getLogger(name).info("%s info", owner)
            logging.getLogger(name).warning("%s warning", owner)
        return path

    monkeypatch.setattr("edgekit.bundle.generate_key", generate_key)
    before = logging.getLogger().level, list(logging.getLogger().handlers)
    lines = invoke("keygen", "k", *flags).stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == kept
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == before
