from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UnknownNameError, UsageError
from edgekit.recipe import Recipe, recipe_options
from edgekit.registry import EXPORTERS, OBSERVERS, QUANTIZERS


def test_every_field_has_help_a_type_and_a_flag() -> None:
    for option in recipe_options():
        assert option.help
        assert not option.help.endswith(".")
        assert option.type in (str, int, float, bool)
        assert option.flag == "--" + option.name.replace("_", "-")


def test_choices_come_from_the_registries() -> None:
    options = {option.name: option for option in recipe_options()}
    for name, registry in (("format", EXPORTERS), ("quantize", QUANTIZERS), ("observer", OBSERVERS)):
        choices = options[name].choices
        assert choices is not None
        assert set(registry) <= set(choices())


def test_defaults_need_only_source_and_device() -> None:
    recipe = Recipe(source="efficientnet-lite0", device="jetson")
    assert (recipe.format, recipe.quantize, recipe.max_drop) == ("auto", "auto", 1.0)
    required = [option.name for option in recipe_options() if option.required]
    assert required == ["source", "device"]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("seed", "0", "seed is '0' (str), allowed int"),
        ("seed", True, "allowed int"),
        ("force", 1, "allowed bool"),
        ("max_drop", "1", "allowed float"),
        ("device", None, "allowed str"),
        ("calibration_samples", 0, "allowed 1 or more"),
        ("max_drop", -0.5, "allowed 0 or more"),
        ("max_drop", float("nan"), "allowed 0 or more"),
    ],
)
def test_a_value_that_cannot_be_is_a_usage_error(key: str, value: object, says: str) -> None:
    with pytest.raises(UsageError, match=r"allowed") as caught:
        Recipe.of({"source": "minilm", "device": "jetson", key: value})
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [("format", "onxx", "onnx"), ("quantize", "int-8", "int8"), ("observer", "msse", "mse")],
)
def test_an_unknown_choice_names_the_nearest(key: str, value: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        Recipe.of({"source": "minilm", "device": "jetson", key: value})
    assert caught.value.nearest == nearest


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown recipe key 'max-drop'") as caught:
        Recipe.of({"source": "minilm", "device": "jetson", "max-drop": 1.0})
    assert caught.value.nearest == "max_drop"


def test_a_missing_key_says_what_it_is() -> None:
    with pytest.raises(UsageError, match="no device is given") as caught:
        Recipe.of({"source": "minilm"})
    assert "device profile" in caught.value.hint


def test_an_integer_is_taken_where_a_float_is_wanted() -> None:
    recipe = Recipe.of({"source": "minilm", "device": "jetson", "max_drop": 1})
    assert isinstance(recipe.max_drop, float)


def test_a_path_object_becomes_its_string(tmp_path: Path) -> None:
    assert Recipe.of({"source": "minilm", "device": tmp_path / "mine.toml"}).device == str(tmp_path / "mine.toml")


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('source = "minilm"\ndevice = "jetson"\nmax_drop = 2\n')
    recipe = Recipe.from_toml(path, device="android")
    assert (recipe.source, recipe.device, recipe.max_drop) == ("minilm", "android", 2.0)


@pytest.mark.parametrize("content", [b"device = ", b"\xff\xfe", None])
def test_a_file_that_is_no_recipe_is_a_usage_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"recipe\.toml"):
        Recipe.from_toml(path)


def test_provenance_does_not_know_where_the_bundle_goes() -> None:
    here = Recipe(source="minilm", device="jetson", output="a.edgekit", force=True, sign="k", directory=True)
    there = Recipe(source="minilm", device="jetson", output="b.edgekit")
    assert here.provenance() == there.provenance()
    assert Recipe(source="minilm", device="jetson", seed=1).provenance() != there.provenance()


@given(
    source=st.text(min_size=1),
    output=st.none() | st.text(),
    max_drop=st.floats(0, 100),
    min_sqnr=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    seed=st.integers(0, 2**62),
    force=st.booleans(),
)
def test_toml_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    source: str,
    output: str | None,
    max_drop: float,
    min_sqnr: float | None,
    seed: int,
    force: bool,
) -> None:
    recipe = Recipe(
        source=source, device="jetson", output=output, max_drop=max_drop, min_sqnr=min_sqnr, seed=seed, force=force
    )
    path = tmp_path_factory.mktemp("toml") / "recipe.toml"
    path.write_bytes(recipe.to_toml().encode())
    assert Recipe.from_toml(path) == recipe
