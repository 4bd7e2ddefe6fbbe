"""A folder of bundles, served together: those that lie in it, or that links in it lead to, by name. The last answers
who names no bundle. What comes and goes there counts when the node is told to look again (SIGHUP)."""

from __future__ import annotations

from pathlib import Path

from edgekit.bundle.layout import INDEX


def on_shelf(folder: Path) -> list[Path] | None:
    """Where the bundles lie, links followed, so that a link that leads elsewhere later moves nothing that is served;
    None for a folder that is a bundle itself, and for a file."""
    if not folder.is_dir() or (folder / INDEX).exists():
        return None
    return [entry.resolve() for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
