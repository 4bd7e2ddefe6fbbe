"""`edgekit serve --engine ray`: nodes by the dozen, on Ray Serve."""

from edgekit.runtimes.ray_engine.cluster import RayNode, check_installed
from edgekit.runtimes.ray_engine.options import RayOptions, Replicas

__all__ = ["RayNode", "RayOptions", "Replicas", "check_installed"]
