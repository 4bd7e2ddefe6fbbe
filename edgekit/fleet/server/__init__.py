"""The service over HTTP: one file for each kind of thing, `app` joins them, `run` listens."""

from edgekit.fleet.server.app import create_app

__all__ = ["create_app"]
