"""What a process that serves a fleet sets for itself."""

from __future__ import annotations

import gc

from edgekit.fleet.server.run import Listening, make_server
from edgekit.fleet.service import FleetService


def test_a_server_stops_rarely_to_collect_all_that_its_connections_hold(served: FleetService) -> None:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    try:
        make_server(served, Listening(port=0))
        assert gc.get_threshold() == (700, 10, 100)
    finally:
        gc.set_threshold(*before)
