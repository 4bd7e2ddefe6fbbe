"""edgekit: one command takes a PyTorch model to every edge device, and proves it right.

The names below load on first use, so that `import edgekit` costs nothing and the run side never meets torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.devices.device import Device, load_device
    from edgekit.errors import EdgekitError
    from edgekit.model import Model
    from edgekit.pipeline import export
    from edgekit.recipe import Recipe
    from edgekit.runtimes.coordinator.connect import connect
    from edgekit.runtimes.load import load
    from edgekit.runtimes.predict import Predictor
    from edgekit.runtimes.session import Session

__all__ = [
    "Bundle",
    "Device",
    "EdgekitError",
    "Model",
    "Predictor",
    "Recipe",
    "Session",
    "connect",
    "export",
    "load",
    "load_device",
]

_HOMES = {
    "Bundle": "edgekit.bundle",
    "Device": "edgekit.devices.device",
    "EdgekitError": "edgekit.errors",
    "Model": "edgekit.model",
    "Predictor": "edgekit.runtimes.predict",
    "Recipe": "edgekit.recipe",
    "Session": "edgekit.runtimes.session",
    "connect": "edgekit.runtimes.coordinator.connect",
    "export": "edgekit.pipeline",
    "load": "edgekit.runtimes.load",
    "load_device": "edgekit.devices.device",
}

try:
    __version__ = version("edgekit")
except PackageNotFoundError:  # run from a folder on the path, not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
