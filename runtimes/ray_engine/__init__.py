"""`edgekit serve --engine ray`: nodes by the dozen, on Ray Serve.

Every replica is a whole node: the engine, catalog and batching that one machine has. Before them stand Ray's own proxy,
in which the node's REST application is mounted, and on a cluster that was started here a face over gRPC. Both send a
request again whose replica was lost, hold to its deadline, and answer errors in the protocol's form.

What differs from one node:

- Some of Ray's services listen on every interface, whatever host is given: keep others off the machine's ports. A
  cluster started here asks its own processes for a token that nobody else has.
- Ray's proxy does not ask for certificates (`--client-ca` is refused) and cuts off no caller who is slow with headers:
  on an address that others reach, put a proxy that does before it.
- Coarse frames stay in the replica that read them: a refinement that meets another one is answered with a mismatch, and
  sent whole. Streams over gRPC are not passed on. `/metrics` is Ray's.
- A cluster of others (`address`) serves over REST, from paths that all of its machines share; where Serve runs there
  already, its proxies keep the settings that they have and send nothing again.
"""

from edgekit.runtimes.ray_engine.cluster import RayNode, check_installed
from edgekit.runtimes.ray_engine.options import RayOptions, Replicas

__all__ = ["RayNode", "RayOptions", "Replicas", "check_installed"]
