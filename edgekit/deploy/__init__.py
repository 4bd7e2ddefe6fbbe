"""What other people's clusters need to serve a bundle: a manifest for KServe, a repository for Triton, an image."""

from edgekit.deploy.containerfile import containerfile
from edgekit.deploy.kserve import KServeOptions, inference_service
from edgekit.deploy.served import ServedPart, served_parts
from edgekit.deploy.triton import TritonOptions, TritonRepository, write_repository

__all__ = [
    "KServeOptions",
    "ServedPart",
    "TritonOptions",
    "TritonRepository",
    "containerfile",
    "inference_service",
    "served_parts",
    "write_repository",
]
