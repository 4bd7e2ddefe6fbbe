"""Who a device is, as its folder says: what is damaged there is told in a line that shows nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.identity import IDENTITY, kept_name, load_identity


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"token": "ekd_secret", "fleet": "http://fleet"}', "device: Field required"),
        ('{"token": "ekd_secret', "Invalid JSON"),
        ("{}", "fleet: Field required"),
        ('["ekd_secret"]', "should be an object"),
    ],
)
def test_damaged_identity_is_told_in_one_line_without_its_token(home: Home, content: str, says: str) -> None:
    (home.path / IDENTITY).write_text(content)
    with pytest.raises(UsageError) as told:
        load_identity(home)
    assert "is damaged" in told.value.message and says in told.value.message
    assert "\n" not in told.value.message and "secret" not in f"{told.value!s}{told.value.__cause__!s}"
    assert "--again" in told.value.hint
    assert kept_name(home) is None


def test_identity_that_cannot_be_opened_is_told(home: Home) -> None:
    (home.path / IDENTITY).mkdir()
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        load_identity(home)


def test_folder_that_was_never_enrolled_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not enrolled"):
        load_identity(Home(tmp_path))
