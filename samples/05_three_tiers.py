"""Three tiers step by step: one bundle, a head here, the middle on an edge node, the top in the cloud.

python -m samples.05_three_tiers

Exports the small Fashion-MNIST net, starts a cloud server and an edge node as processes of their own, asks them under
each policy, then kills the edge in the middle and goes on: the answers come from the device, marked degraded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import edgekit
from edgekit.zoo.fashion import fashion_cnn
from samples.coordinated import ServingProcess

POLICIES = ("local", "offload", "split", "three-tier", "auto")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fashion.edgekit"
        bundle = edgekit.export(
            "fashion-cnn", device="raspberry-pi-4", edge="x86-server", cloud="x86-server", format="onnx",
            split="features.5", max_drop=2.0, output=str(path),
        )  # fmt: skip
        print("ways to run it:", ", ".join(variant.name for variant in bundle.manifest.variants))
        image = {"image": fashion_cnn().held_out[0]["image"].numpy()}
        with ServingProcess(path, "cloud") as cloud, ServingProcess(path, "edge", "--upstream", cloud.url) as edge:
            for policy in POLICIES:
                with edgekit.connect(path, edge=edge.url, policy=policy, deadline_ms=300) as session:
                    session.ask(image)  # the first one finds the connection cold
                    print(f"{policy:12}", session.ask(image).summary())
            with edgekit.connect(path, edge=edge.url, policy="split", deadline_ms=300) as session:
                print("edge up:    ", session.ask(image).summary())
                edge.process.kill()
                edge.process.wait()
                print("edge killed:", session.ask(image).summary())


if __name__ == "__main__":
    main()
