"""A Containerfile for an image that serves a bundle: edgekit from its source, the runtimes that its parts want.

There is no published image, and a name on a package index is nobody's promise: the image is built from the source that
the user has. Written for podman and docker alike; no image was built where this was tested.
"""

from __future__ import annotations

import json
import re

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Tier
from edgekit.deploy.kserve import BUNDLES
from edgekit.deploy.served import served_parts
from edgekit.errors import DeviceError, UsageError

# format of a part -> the extra of edgekit that runs it in a container without a GPU's libraries
EXTRAS = {"onnx": "onnx", "litert": "litert", "executorch": "executorch"}
PYTHON = "docker.io/library/python:3.12-slim"
SOURCES = ("pyproject.toml", "README.md", "LICENSE"), ("edgekit", "exporters", "quantizers", "runtimes", "devices")
_FIT = " ._-+@=,~()"


def containerfile(bundle: Bundle, tier: Tier, *, with_bundle: bool) -> str:
    """`with_bundle`: the image carries it, which must lie in the folder of the build. Raises NodeError, DeviceError,
    UsageError for a file's name that cannot be copied."""
    parts = served_parts(bundle, tier)
    foreign = [f"{part.name} ({part.part.format})" for part in parts if part.part.format not in EXTRAS]
    if foreign:
        raise DeviceError(
            f"no image for {', '.join(foreign)}: allowed parts in the formats {', '.join(EXTRAS)}",
            hint="install that format's runtime in an image of your own, and `edgekit[serve]` beside it",
        )
    extras = ",".join(["serve", *dict.fromkeys(EXTRAS[part.part.format] for part in parts)])
    files, folders = SOURCES
    lines = [
        "# In the root of edgekit's source:",
        f"#   podman build -f Containerfile -t REGISTRY/{_image_name(bundle.manifest.name)}:{bundle.digest[:12]} .",
        f"FROM {PYTHON}",
        f"COPY {' '.join(files)} /src/",
        *(f"COPY {folder} /src/{folder}" for folder in folders),
        f'RUN pip install --no-cache-dir "/src[{extras}]" && rm -rf /src',
        "RUN useradd --uid 10001 --no-create-home edgekit",
    ]
    if with_bundle:
        # As JSON, where a space is part of a name.
        name = _copied_name(bundle.path.name)
        lines.append(f"COPY {json.dumps([name, f'{BUNDLES}/{name}'], ensure_ascii=False)}")
    lines += ["USER 10001", f"LABEL edgekit.digest={bundle.digest}", 'ENTRYPOINT ["edgekit"]']
    return "".join(f"{line}\n" for line in lines)


def _image_name(name: str) -> str:
    """What registries take: lower case, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "bundle"


def _copied_name(name: str) -> str:
    """Raises UsageError for a name in which a builder would find a pattern, a variable, a quote or an escape; those
    differ in what undoes them."""
    unfit = sorted({letter for letter in name if not (letter.isalnum() or letter in _FIT)})
    if unfit:
        raise UsageError(
            f"the bundle is called {name!r}, allowed letters, digits, spaces and {_FIT.strip()} in a Containerfile",
            hint="rename the file, or leave --with-bundle out and let the image fetch it",
        )
    return name
