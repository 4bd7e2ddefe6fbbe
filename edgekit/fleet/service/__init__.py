"""What is done to database, registry and trust together; HTTP, command line and tests call the same methods."""

from edgekit.fleet.service.service import FleetService

__all__ = ["FleetService"]
