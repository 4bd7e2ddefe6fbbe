"""Which heads a server with another bundle can answer: by the digests that both ends compare."""

from __future__ import annotations

from edgekit.bundle.manifest import Manifest


def serves(servers: Manifest, heads: Manifest) -> bool:
    """Whether a server with the bundle `servers` answers every device with the bundle `heads`: each of their variants
    that leaves the device is there under the same name, with the same parts and codecs (`Manifest.plan_digest`), which
    is what nodes and coordinators ask of each other."""
    if servers.name != heads.name:
        return False
    theirs, ours = _remote(heads), _remote(servers)
    return all(ours.get(name) == digest for name, digest in theirs.items())


def _remote(manifest: Manifest) -> dict[str, str]:
    return {
        variant.name: manifest.plan_digest(variant.name)
        for variant in manifest.variants
        if any(manifest.part(part).tier != "device" for part in variant.parts)
    }
