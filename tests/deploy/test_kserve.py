"""The InferenceService against a schema of just what is written, names and types as KServe's Go types have them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema_rs import validator_for

from edgekit.bundle import Bundle
from edgekit.deploy import KServeOptions, inference_service, served_parts
from edgekit.deploy.kserve import bundle_in_container, command_line
from edgekit.deploy.served import ARENA, PROCESS_BYTES, WEIGHT_COPIES
from edgekit.errors import DeviceError, NodeError, UsageError
from edgekit.runtimes.server import BatchOptions


def closed(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


TEXT, COUNT = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}
QUANTITIES = closed(
    {"cpu": {"type": "string", "pattern": r"^\d+$"}, "memory": {"type": "string", "pattern": r"^\d+Mi$"}},
    {"nvidia.com/gpu": {"type": "string", "pattern": r"^[1-9]\d*$"}},
)
TIMING = {"periodSeconds": COUNT, "timeoutSeconds": COUNT, "failureThreshold": COUNT}
HTTP = closed({"path": TEXT, "port": COUNT, "scheme": {"enum": ["HTTP", "HTTPS"]}})
PROBE = {
    "oneOf": [
        closed({"httpGet": HTTP, **TIMING}, {"initialDelaySeconds": COUNT}),
        closed({"exec": closed({"command": {"type": "array", "items": TEXT}}), "initialDelaySeconds": COUNT, **TIMING}),
    ]
}
CONTAINER = closed(
    {
        "name": {"const": "kserve-container"},
        "image": TEXT,
        "command": {"type": "array", "items": TEXT},
        "args": {"type": "array", "items": TEXT},
        "env": {"type": "array", "items": closed({"name": TEXT, "value": TEXT})},
        "ports": {
            "type": "array",
            "items": closed({"name": {"enum": ["http1", "h2c"]}, "containerPort": COUNT, "protocol": {"const": "TCP"}}),
        },
        "resources": closed({"requests": QUANTITIES, "limits": QUANTITIES}),
        "securityContext": closed(
            {
                "runAsNonRoot": {"const": True},
                "allowPrivilegeEscalation": {"const": False},
                "capabilities": closed({"drop": {"const": ["ALL"]}}),
                "readOnlyRootFilesystem": {"const": True},
            }
        ),
        "volumeMounts": {
            "type": "array",
            "items": closed({"name": TEXT, "mountPath": TEXT}, {"readOnly": {"type": "boolean"}}),
        },
        "livenessProbe": PROBE,
    },
    {"readinessProbe": PROBE},
)
SCHEMA = closed(
    {
        "apiVersion": {"const": "serving.kserve.io/v1beta1"},
        "kind": {"const": "InferenceService"},
        "metadata": closed(
            {
                "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 40},
                "labels": {"type": "object", "additionalProperties": TEXT},
                "annotations": {"type": "object", "additionalProperties": TEXT},
            },
            {"namespace": TEXT},
        ),
        "spec": closed(
            {
                "predictor": closed(
                    {
                        "minReplicas": COUNT,
                        "maxReplicas": {"type": "integer", "minimum": 1},
                        "scaleMetric": {"enum": ["concurrency", "cpu"]},
                        "scaleTarget": {"type": "integer", "minimum": 1},
                        "containers": {"type": "array", "items": CONTAINER, "minItems": 1, "maxItems": 1},
                        "volumes": {
                            "type": "array",
                            "items": {
                                "oneOf": [
                                    closed({"name": TEXT, "emptyDir": closed({})}),
                                    closed({"name": TEXT, "secret": closed({"secretName": TEXT})}),
                                ]
                            },
                        },
                    },
                    {
                        "canaryTrafficPercent": {"type": "integer", "minimum": 0, "maximum": 100},
                        "terminationGracePeriodSeconds": COUNT,
                    },
                )
            }
        ),
    }
)

MANY: tuple[dict[str, Any], ...] = (
    {},
    {"name": "cats", "namespace": "vision", "storage_uri": "s3://models/cats.edgekit", "canary_percent": 10},
    {"min_replicas": 0, "max_replicas": 9, "cpus": 4, "protocol": "grpc", "secret": "keys"},
    {"mode": "standard", "secret": "keys", "memory_mb": 512, "scale_target": 70},
    {"mode": "standard", "secret": "keys", "protocol": "grpc"},
)


def service(bundle: Path, **options: Any) -> dict[str, Any]:
    with Bundle.open(bundle) as opened:
        return inference_service(opened, KServeOptions(image="registry.example/edgekit:1", **options))


def container(made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = made["spec"]["predictor"]["containers"][0]
    return found


@pytest.mark.parametrize("options", MANY)
def test_it_has_kserves_shape_and_survives_yaml(tail_bundle: Path, options: dict[str, Any]) -> None:
    made = service(tail_bundle, **options)
    validator_for(SCHEMA).validate(made)
    assert yaml.safe_load(yaml.safe_dump(made, sort_keys=False)) == made


def test_it_serves_the_bundle_by_protocol_v2_and_says_which(tail_bundle: Path) -> None:
    made = service(tail_bundle, cpus=2, batch=BatchOptions(8, 1.5, 20))
    environment = {entry["name"]: entry["value"] for entry in container(made)["env"]}
    assert environment["PROTOCOL"] == "v2" and "STORAGE_URI" not in environment
    words = command_line(made)
    assert words.startswith("edgekit serve /bundles/net.edgekit --tier cloud --host 127.0.0.1")
    for wanted in ("--threads 2", "--max-batch 8", "--max-delay-ms 1.5", "--queue 20"):
        assert wanted in words
    assert made["metadata"]["name"] == "net-9"
    with Bundle.open(tail_bundle) as bundle:
        assert made["metadata"]["annotations"]["edgekit/digest"] == bundle.digest


def test_the_words_are_those_that_serve_takes(tail_bundle: Path) -> None:
    from edgekit.cli.serve import command

    for options in MANY:
        made = service(tail_bundle, **options)
        context = command.make_context("serve", list(container(made)["args"]), resilient_parsing=False)
        assert context.params["tier"] == "cloud" and len(context.params["bundles"]) == 1
        assert (context.params["token_file"] is not None) == bool(options.get("secret"))
        assert (context.params["tls"] is not None) == (options.get("mode") == "standard")


def test_memory_comes_from_the_bundles_own_costs(tail_bundle: Path) -> None:
    with Bundle.open(tail_bundle) as bundle:
        (part,) = served_parts(bundle, "cloud")
        file_bytes = bundle.manifest.part("tail").size_bytes
    assert part.memory_bytes(16) == WEIGHT_COPIES * file_bytes + ARENA * 16 * 1_000_000
    resources = container(service(tail_bundle, batch=BatchOptions(max_batch=64)))["resources"]
    needed = PROCESS_BYTES + WEIGHT_COPIES * file_bytes + ARENA * 64 * 1_000_000
    assert resources["requests"]["memory"] == f"{math.ceil(needed / (1 << 20))}Mi"
    assert int(resources["limits"]["memory"][:-2]) << 20 >= needed + file_bytes
    assert container(service(tail_bundle, memory_mb=700))["resources"]["limits"]["memory"] == "700Mi"


def test_a_gpu_is_torchs_and_asks_for_its_programs(
    tail_bundle: Path, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DeviceError, match=r"Net\.9\.tail runs on no GPU"):
        service(tail_bundle, gpus=1)
    tail_bundle.unlink()
    x, y = (("x", "float32", ("batch", 4)),), (("y", "float32", ("batch", 4)),)
    made = service(make_bundle({"tail": ("cloud", x, y)}, companion=".torch.pt2"), gpus=2)
    validator_for(SCHEMA).validate(made)
    assert "--engine torch --device cuda" in command_line(made)
    assert container(made)["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_scale_follows_the_mode(tail_bundle: Path) -> None:
    behind = service(tail_bundle, batch=BatchOptions(max_batch=24))["spec"]["predictor"]
    assert (behind["scaleMetric"], behind["scaleTarget"]) == ("concurrency", 24)
    plain = service(tail_bundle, mode="standard", secret="keys")
    assert (plain["spec"]["predictor"]["scaleMetric"], plain["spec"]["predictor"]["scaleTarget"]) == ("cpu", 80)
    assert plain["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"


def test_probes_ask_the_health_paths_where_the_node_listens(tail_bundle: Path) -> None:
    behind = container(service(tail_bundle))
    assert behind["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert "127.0.0.1:8101/v2/health/live" in behind["livenessProbe"]["exec"]["command"][-1]
    plain = container(service(tail_bundle, mode="standard", secret="keys"))
    for probe, path in (("readinessProbe", "/v2/health/ready"), ("livenessProbe", "/v2/health/live")):
        assert plain[probe]["httpGet"] == {"path": path, "port": 8101, "scheme": "HTTPS"}


def test_knative_is_shown_one_port_and_a_deployment_both(tail_bundle: Path) -> None:
    assert [p["containerPort"] for p in container(service(tail_bundle))["ports"]] == [8101]
    (port,) = container(service(tail_bundle, protocol="grpc"))["ports"]
    assert (port["name"], port["containerPort"]) == ("h2c", 8102)
    both = container(service(tail_bundle, mode="standard", secret="keys", protocol="grpc"))["ports"]
    assert [p["containerPort"] for p in both] == [8102, 8101]


def test_a_stored_file_lies_below_the_mount_and_a_stored_folder_is_the_mount(tail_bundle: Path) -> None:
    with Bundle.open(tail_bundle) as bundle:
        assert bundle_in_container(bundle, "s3://models/net.edgekit") == "/mnt/models/net.edgekit"
        assert bundle_in_container(bundle, "pvc://claim/folder") == "/mnt/models/net.edgekit"
    made = service(tail_bundle, storage_uri="s3://models/net.edgekit")
    assert {"name": "STORAGE_URI", "value": "s3://models/net.edgekit"} in container(made)["env"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "standard"}, "without --secret"),
        ({"mode": "standard", "secret": "keys", "canary_percent": 5}, "--canary"),
        ({"mode": "standard", "secret": "keys", "min_replicas": 0}, "1 <= MIN"),
        ({"min_replicas": 4, "max_replicas": 2}, "4:2 replicas"),
        ({"canary_percent": 101}, "101 %"),
        ({"storage_uri": "models/cats"}, "allowed gs://"),
        ({"name": "Cats"}, "'Cats'"),
        ({"name": "c" * 41}, "at most 40"),
    ],
)
def test_what_kserve_would_refuse_is_refused_here(tail_bundle: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        service(tail_bundle, **options)


def test_a_tier_without_parts_is_refused(tail_bundle: Path) -> None:
    with pytest.raises(NodeError, match="no part for the tier edge"):
        service(tail_bundle, tier="edge")


FINE = {
    "image": ["edgekit", "edgekit:1", "registry.example/team/edgekit:1.2-rc", "localhost:5000/edgekit", "[::1]:5000/a"],
    "namespace": ["a", "models-2", "0"],
    "secret": ["keys", "keys.v2", "a-b.c-d"],
    "storage_uri": ["s3://models/cats.edgekit", "pvc://claim/folder"],
}
WRONG = {
    "image": ["a\nb", "a b: c", "Upper", "a:", "a:b:c", "http://a/b", "a//b", "/a", "a/", "a@sha256:12", "-a", "a\n"],
    "namespace": ["UPPER/..", "a.b", "-a", "a-", "a" * 64, "a\n", "ä"],
    "secret": ["a: b", "A", ".a", "a..b", "a" * 254, "a\n", "a/b"],
    "storage_uri": ["s3://a\nb", "s3://a b", "ftp://a"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in FINE.items() for text in texts])
def test_names_that_a_cluster_takes_are_taken(name: str, text: str) -> None:
    assert getattr(KServeOptions(**{"image": "i", name: text}), name) == text


def test_an_image_may_be_named_by_its_digest() -> None:
    KServeOptions(image=f"registry.example/edgekit:1@sha256:{'0' * 64}")


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_names_that_a_cluster_would_refuse_are_refused_with_what_is_allowed(name: str, text: str) -> None:
    with pytest.raises(UsageError, match="allowed") as caught:
        KServeOptions(**{"image": "i", name: text})
    assert repr(text) in caught.value.message and caught.value.hint


def test_a_bundles_name_breaks_out_of_no_comment(tail_bundle: Path, tmp_path: Path) -> None:
    with (
        Bundle.open(shutil.copy(tail_bundle, tmp_path / "a\nb: c")) as bundle,
        pytest.raises(UsageError, match="printed"),
    ):
        inference_service(bundle, KServeOptions(image="i"))
