from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bundle import Bundle
from edgekit.capacity.tiers import stops
from edgekit.errors import PlanError, UnknownNameError
from tests.runtimes.server.conftest import make_split


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Head on the device, middle on the edge, tail in the cloud; frames of 60 bytes at the finest rate."""
    return make_split(tmp_path_factory.mktemp("tiers") / "net.edgekit")


def test_a_split_bundle_stops_on_each_tier_above(split: Path) -> None:
    with Bundle.open(split) as bundle:
        found = stops(bundle.manifest)
        assert [(stop.tier, stop.part.name) for stop in found] == [("edge", "middle"), ("cloud", "tail")]
        # Frames at the finest rate go up; raw float32 rows come down: 6 features, 3 scores.
        assert [(stop.up_bytes, stop.down_bytes) for stop in found] == [(60, 24), (60, 12)]
        assert [stop.part.name for stop in stops(bundle.manifest, tier="cloud")] == ["tail"]


def test_a_whole_bundle_is_served_whole(whole_bundle: Path) -> None:
    with Bundle.open(whole_bundle) as bundle:
        for tier in ("edge", "cloud"):
            (found,) = stops(bundle.manifest, tier=tier)  # type: ignore[arg-type]
            assert (found.tier, found.part.name, found.up_bytes, found.down_bytes) == (tier, "whole", 256, 256)


def test_a_variant_that_stays_on_the_device_names_those_that_do_not(split: Path) -> None:
    with Bundle.open(split) as bundle:
        with pytest.raises(PlanError) as caught:
            stops(bundle.manifest, "local")
        assert "--variant three" in caught.value.hint
        with pytest.raises(UnknownNameError, match="three") as unknown:
            stops(bundle.manifest, "thre")
        assert unknown.value.nearest == "three"
