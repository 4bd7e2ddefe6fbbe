"""An InferenceService for KServe (serving.kserve.io/v1beta1) that runs `edgekit serve` in a container.

Two ways to run it, as KServe has them:

- `knative`: Knative's proxy stands before the node in the same pod and takes connections from outside, so that the
  node listens on the pod's loopback alone. Scales on concurrency, down to none; canaries.
- `standard`: a plain Deployment. Others reach the node itself, so it wants a token and a certificate, both from a
  Secret; what stands before it must speak TLS to it. Scales on CPU.

Sources: KServe's Go types (pkg/apis/serving/v1beta1: component.go, predictor_custom.go) and validation, of 0.16, and
Knative's queue proxy. Checked against those, never applied to a cluster.
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Preprocess, Tier
from edgekit.deploy.served import DECODING_BYTES, memory_bytes, served_parts
from edgekit.errors import DeviceError, UsageError
from edgekit.runtimes.server import BatchOptions
from edgekit.runtimes.torch_engine import PROGRAM_SUFFIX

Mode = Literal["knative", "standard"]
Protocol = Literal["rest", "grpc"]

API_VERSION, KIND = "serving.kserve.io/v1beta1", "InferenceService"
# The names by which KServe finds the container, its protocol and what to fetch, and where it puts what it fetched.
CONTAINER, PROTOCOL, STORAGE_URI, MOUNT = "kserve-container", "PROTOCOL", "STORAGE_URI", "/mnt/models"
REST_PORT, GRPC_PORT = 8101, 8102
BUNDLES, SECRET_MOUNT, SCRATCH = "/bundles", "/etc/edgekit", "/tmp"
CPU_PERCENT, GRACE_S = 80, 10
# Before it has loaded its parts a node answers nobody, and is not to be killed for it.
LOADING_S = 60

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
# What the API server takes as a namespace and as the name of a Secret (RFC 1123: a label, a subdomain).
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAMESPACE, _SECRET = re.compile(_LABEL), re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
# An image as container runtimes read it (distribution's reference grammar): registry, path, tag, digest.
_PATH = r"[a-z0-9]+((\.|_{1,2}|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    r"(([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?/)?"
    rf"{_PATH}(/{_PATH})*(:\w[\w.-]{{0,127}})?(@[A-Za-z][A-Za-z0-9+._-]*:[0-9a-fA-F]{{32,128}})?",
    re.ASCII,
)
_SCHEMES = ("gs", "s3", "hdfs", "webhdfs", "https", "http", "pvc", "hf", "oci")


@dataclass(frozen=True)
class KServeOptions:
    """`image`: has edgekit in it (`edgekit deploy containerfile`), and the bundle below /bundles unless `storage_uri`
    says whence KServe fetches it: the file, or the folder that it lies in. `scale_target`: requests at once in a
    replica (knative; None: a full batch, at least 2) or percent of its CPUs (standard; None: 80). `secret`: holds
    `token`, and for `standard` `tls.crt` and `tls.key`. `memory_mb`: instead of what the bundle's costs say. With
    `gpus` torch serves, which the image then must have.
    """

    image: str
    name: str = ""
    namespace: str = ""
    mode: Mode = "knative"
    protocol: Protocol = "rest"
    tier: Tier = "cloud"
    storage_uri: str = ""
    min_replicas: int = 1
    max_replicas: int = 3
    scale_target: int | None = None
    canary_percent: int | None = None
    cpus: int = 1
    gpus: int = 0
    memory_mb: int | None = None
    secret: str = ""
    batch: BatchOptions = field(default_factory=BatchOptions)

    def __post_init__(self) -> None:
        self._check_replicas()
        if not self.image.strip():
            raise UsageError("no image", hint="build one: `edgekit deploy containerfile BUNDLE > Containerfile`")
        if not _IMAGE.fullmatch(self.image):
            raise UsageError(
                f"the image {self.image!r}, allowed [registry[:port]/]name[:tag][@digest], the name in lower case",
                hint="such as --image registry.example/edgekit:1",
            )
        if self.namespace and not _NAMESPACE.fullmatch(self.namespace):
            raise UsageError(
                f"the namespace {self.namespace!r}, allowed a-z, 0-9 and '-' between them, at most 63 characters",
                hint="`kubectl get namespaces` lists those that there are",
            )
        if self.secret and not _SECRET.fullmatch(self.secret):
            raise UsageError(
                f"the secret {self.secret!r}, allowed a-z, 0-9, '-' and '.' between them, at most 253 characters",
                hint="`kubectl get secrets` lists those that there are",
            )
        storage = self.storage_uri
        if storage and (storage.partition("://")[0] not in _SCHEMES or not _is_one_word(storage)):
            raise UsageError(
                f"the storage {self.storage_uri!r}, allowed {'://, '.join(_SCHEMES)}://",
                hint="such as s3://models/cats.edgekit, or pvc://claim/folder",
            )
        if self.mode == "standard" and not self.secret:
            raise UsageError(
                "--mode standard without --secret: others would reach a node without a token and TLS",
                hint="kubectl create secret generic NAME --from-file=token --from-file=tls.crt --from-file=tls.key",
            )
        if self.mode == "standard" and self.canary_percent is not None:
            raise UsageError(
                "--canary with --mode standard: KServe splits traffic in the mode knative alone",
                hint="--mode knative, or two services behind a split of your own",
            )
        if self.canary_percent is not None and not 0 <= self.canary_percent <= 100:
            raise UsageError(f"{self.canary_percent} % canary, allowed 0 to 100", hint="such as --canary 10")

    def _check_replicas(self) -> None:
        least = 0 if self.mode == "knative" else 1
        if not least <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise UsageError(
                f"{self.min_replicas}:{self.max_replicas} replicas, allowed MIN:MAX with {least} <= MIN <= MAX",
                hint="such as --replicas 1:4; none at all when idle needs --mode knative",
            )


def _is_one_word(text: str) -> bool:
    return text.isprintable() and not re.search(r"\s", text)


def inference_service(bundle: Bundle, options: KServeOptions) -> dict[str, Any]:
    """The object, for YAML or JSON. Raises NodeError, UsageError for a name that KServe would refuse, DeviceError where
    GPUs are asked for and a part has no program for torch."""
    manifest = bundle.manifest
    if not bundle.path.name.isprintable():
        raise UsageError(f"the bundle is called {bundle.path.name!r}, allowed what can be printed", hint="rename it")
    metadata: dict[str, Any] = {
        "name": _name(options.name or re.sub(r"[^a-z0-9]+", "-", manifest.name.lower()).strip("-")),
        "labels": {"app.kubernetes.io/managed-by": "edgekit"},
        "annotations": {
            "serving.kserve.io/deploymentMode": options.mode.capitalize(),
            "edgekit/bundle": manifest.name,
            "edgekit/digest": bundle.digest,
        },
    }
    if options.namespace:
        metadata["namespace"] = options.namespace
    predictor: dict[str, Any] = {"minReplicas": options.min_replicas, "maxReplicas": options.max_replicas}
    predictor |= _scale(options)
    if options.canary_percent is not None:
        predictor["canaryTrafficPercent"] = options.canary_percent
    if options.mode == "standard":
        predictor["terminationGracePeriodSeconds"] = GRACE_S + 5
    predictor |= {"containers": [_container(bundle, options)], "volumes": _volumes(options)}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {"predictor": predictor}}


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"the name {name!r}, allowed a-z, 0-9 and '-', a letter first, at most 40 characters",
            hint="give one with --name",
        )
    return name


def _scale(options: KServeOptions) -> dict[str, Any]:
    """Above a full batch at once requests only wait: time for another replica."""
    if options.mode == "knative":
        return {"scaleMetric": "concurrency", "scaleTarget": options.scale_target or max(2, options.batch.max_batch)}
    return {"scaleMetric": "cpu", "scaleTarget": options.scale_target or CPU_PERCENT}


def _container(bundle: Bundle, options: KServeOptions) -> dict[str, Any]:
    environment = {PROTOCOL: "v2", "EDGEKIT_CACHE": f"{SCRATCH}/edgekit", "OMP_WAIT_POLICY": "PASSIVE"}
    if options.storage_uri:
        environment[STORAGE_URI] = options.storage_uri
    mounts: list[dict[str, Any]] = [{"name": "scratch", "mountPath": SCRATCH}]
    if options.secret:
        mounts.append({"name": "secret", "mountPath": SECRET_MOUNT, "readOnly": True})
    return {
        "name": CONTAINER,
        "image": options.image,
        "command": ["edgekit", "serve"],
        "args": _arguments(bundle, options),
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "ports": _ports(options),
        "resources": _resources(bundle, options),
        **_probes(options),
        "securityContext": {
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": mounts,
    }


def bundle_in_container(bundle: Bundle, storage_uri: str) -> str:
    """KServe puts a file below its mount under the file's own name, and a folder's contents right there."""
    if not storage_uri:
        return f"{BUNDLES}/{bundle.path.name}"
    last = PurePosixPath(storage_uri.partition("://")[2]).name
    if last == bundle.path.name and bundle.path.is_dir():
        return MOUNT
    return f"{MOUNT}/{bundle.path.name}"


def _arguments(bundle: Bundle, options: KServeOptions) -> list[str]:
    words = [bundle_in_container(bundle, options.storage_uri), "--tier", options.tier]
    words += ["--host", "127.0.0.1" if options.mode == "knative" else "0.0.0.0"]
    words += ["--port", str(REST_PORT), "--grpc-port", str(GRPC_PORT), "--threads", str(options.cpus)]
    words += ["--max-batch", str(options.batch.max_batch), "--max-delay-ms", f"{options.batch.max_delay_ms:g}"]
    words += ["--queue", str(options.batch.queue), "--grace", str(GRACE_S)]
    if options.gpus:
        _check_programs(bundle, options)
        words += ["--engine", "torch", "--device", "cuda"]
    if options.secret:
        words += ["--token-file", f"{SECRET_MOUNT}/token"]
    if options.mode == "standard":
        words += ["--tls", f"{SECRET_MOUNT}/tls.crt,{SECRET_MOUNT}/tls.key"]
    return words


def _check_programs(bundle: Bundle, options: KServeOptions) -> None:
    """Raises DeviceError for a part without a program for torch, which is what runs on a GPU."""
    parts = served_parts(bundle, options.tier)
    without = [p.name for p in parts if not any(c.file.endswith(PROGRAM_SUFFIX) for c in p.part.companions)]
    if without:
        raise DeviceError(
            f"--gpus, but {', '.join(without)} runs on no GPU: allowed parts with a program for torch",
            hint="export the bundle with --engine torch, or leave --gpus out",
        )


def _ports(options: KServeOptions) -> list[dict[str, Any]]:
    """Knative takes one port, and `h2c` as its name for gRPC."""
    rest = {"name": "http1", "containerPort": REST_PORT, "protocol": "TCP"}
    grpc = {"name": "h2c", "containerPort": GRPC_PORT, "protocol": "TCP"}
    if options.mode == "standard":
        return [rest, grpc] if options.protocol == "rest" else [grpc, rest]
    return [rest if options.protocol == "rest" else grpc]


def _resources(bundle: Bundle, options: KServeOptions) -> dict[str, Any]:
    """The limit leaves room for what comes and goes: a quarter more, weights once again while a bundle is exchanged,
    and pictures that are decoded."""
    parts = served_parts(bundle, options.tier)
    needed = memory_bytes(parts, options.batch.max_batch)
    most = needed + needed // 4 + sum(part.weights_bytes for part in parts)
    if isinstance(bundle.manifest.preprocess, Preprocess):
        most += DECODING_BYTES
    if options.memory_mb is not None:
        needed = most = options.memory_mb << 20
    limits: dict[str, str] = {"cpu": str(options.cpus), "memory": _mebibytes(most)}
    if options.gpus:
        limits["nvidia.com/gpu"] = str(options.gpus)
    return {"requests": {"cpu": str(options.cpus), "memory": _mebibytes(needed)}, "limits": limits}


def _mebibytes(size_bytes: int) -> str:
    return f"{math.ceil(size_bytes / (1 << 20))}Mi"


def _probes(options: KServeOptions) -> dict[str, Any]:
    """The protocol's health paths, which need no token. From within the container where the node listens there alone
    and the port outside may be gRPC's: then Knative's own check of that port stays."""
    timing = {"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3}

    def over_http(path: str, scheme: str) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": REST_PORT, "scheme": scheme}, **timing}

    if options.mode == "standard":
        return {
            "readinessProbe": over_http("/v2/health/ready", "HTTPS"),
            "livenessProbe": {**over_http("/v2/health/live", "HTTPS"), "initialDelaySeconds": LOADING_S},
        }
    ask = f"from urllib.request import urlopen; urlopen('http://127.0.0.1:{REST_PORT}/v2/health/live', timeout=4)"
    alive = {"exec": {"command": ["python", "-c", ask]}, "initialDelaySeconds": LOADING_S, **timing}
    if options.protocol == "grpc":
        return {"livenessProbe": alive}
    return {"readinessProbe": over_http("/v2/health/ready", "HTTP"), "livenessProbe": alive}


def _volumes(options: KServeOptions) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [{"name": "scratch", "emptyDir": {}}]
    if options.secret:
        volumes.append({"name": "secret", "secret": {"secretName": options.secret}})
    return volumes


def command_line(service: dict[str, Any]) -> str:
    """What the container runs, as a shell would take it."""
    container = service["spec"]["predictor"]["containers"][0]
    return shlex.join([*container["command"], *container["args"]])
