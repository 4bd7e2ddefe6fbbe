"""`edgekit deploy`: kserve, triton, containerfile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.bundle.manifest import TIERS
from edgekit.cli.command import command as make_command
from edgekit.cli.command import group
from edgekit.cli.options import Decorator, FiniteRange, option
from edgekit.cli.output import Column, Output, Table
from edgekit.errors import MissingExtraError, UsageError

BUNDLE = click.argument("path", type=click.Path(path_type=Path), metavar="BUNDLE")
tier_option = click.option(
    "--tier", type=click.Choice(TIERS), default="cloud", show_default=True, help="Whose parts, and those below it."
)


def batch_options(command: Any) -> Any:
    """--max-batch, --max-delay-ms, --queue: as `edgekit serve` has them."""
    for decorate in reversed(_BATCH):
        command = decorate(command)
    return command


_BATCH: tuple[Decorator, ...] = (
    option("--max-batch", heading="Load", type=click.IntRange(1, 4096), default=16, show_default=True, help="Rows."),
    option(
        "--max-delay-ms",
        heading="Load",
        type=FiniteRange(0, 1000),
        default=0.0,
        show_default=True,
        help="Wait so long for more to run together.",
    ),
    option(
        "--queue",
        heading="Load",
        type=click.IntRange(1, 100_000),
        default=64,
        show_default=True,
        help="Requests that may wait; further ones are refused.",
    ),
)


@group(
    """
    edgekit deploy kserve cats.edgekit --image registry.example/edgekit:1 > service.yaml
    edgekit deploy triton cats.edgekit -o model_repository/
    edgekit deploy containerfile cats.edgekit > Containerfile
    """,
    name="deploy",
)
@click.pass_context
def command(context: click.Context, out: Output) -> None:
    """Write what other clusters need to serve a bundle: KServe, Triton, an image."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@make_command(
    """
    edgekit deploy kserve cats.edgekit --image registry.example/edgekit:1 > service.yaml
    edgekit deploy kserve cats.edgekit --image registry.example/edgekit:1 \\
        --storage-uri s3://models/cats.edgekit --replicas 0:8 --canary 10
    edgekit deploy kserve cats.edgekit --image registry.example/edgekit:1 --mode standard --secret cats-keys
    """,
    name="kserve",
    short="Print an InferenceService for KServe.",
)
@BUNDLE
@option("--image", heading="Service", required=True, help="With edgekit in it: `edgekit deploy containerfile`.")
@option("--name", heading="Service", default="", help="Of the service; the bundle's without.")
@option("--namespace", heading="Service", default="", help="In which it is made; kubectl's without.")
@option("--storage-uri", heading="Service", default="", help="Whence KServe fetches the bundle; else the image has it.")
@option(
    "--mode",
    heading="Service",
    type=click.Choice(["knative", "standard"]),
    default="knative",
    show_default=True,
    help="KServe's: behind Knative, or a plain Deployment, which wants a token and TLS.",
)
@option(
    "--protocol",
    heading="Service",
    type=click.Choice(["rest", "grpc"]),
    default="rest",
    show_default=True,
    help="Which port the service shows first; Knative shows one.",
)
@option("--secret", heading="Service", default="", help="With `token`; for --mode standard also tls.crt and tls.key.")
@tier_option
@option("--replicas", heading="Scale", default="1:3", show_default=True, metavar="MIN:MAX", help="0 only with Knative.")
@option("--scale-target", heading="Scale", type=click.IntRange(1), help="Requests at once, or percent of the CPUs.")
@option("--canary", heading="Scale", type=click.IntRange(0, 100), metavar="PERCENT", help="Traffic to this revision.")
@option("--cpus", heading="Resources", type=click.IntRange(1), default=1, show_default=True, help="And threads.")
@option("--gpus", heading="Resources", type=click.IntRange(0), default=0, show_default=True, help="nvidia.com/gpu.")
@option("--memory-mb", heading="Resources", type=click.IntRange(64), help="Instead of what the bundle's costs say.")
@batch_options
def kserve_command(out: Output, path: Path, **settings: Any) -> None:
    """Print an InferenceService that runs `edgekit serve` on BUNDLE."""
    from edgekit.bundle import Bundle
    from edgekit.deploy import KServeOptions, inference_service
    from edgekit.deploy.kserve import command_line

    least, most = _replicas(settings["replicas"])
    options = KServeOptions(
        image=settings["image"],
        name=settings["name"],
        namespace=settings["namespace"],
        mode=settings["mode"],
        protocol=settings["protocol"],
        tier=settings["tier"],
        storage_uri=settings["storage_uri"],
        min_replicas=least,
        max_replicas=most,
        scale_target=settings["scale_target"],
        canary_percent=settings["canary"],
        cpus=settings["cpus"],
        gpus=settings["gpus"],
        memory_mb=settings["memory_mb"],
        secret=settings["secret"],
        batch=_batch(settings),
    )
    with Bundle.open(path) as bundle:
        service = inference_service(bundle, options)
    if out.json:
        out.emit({"service": service})
        return
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("pyyaml", "deploy", "writing YAML") from error
    out.line(f"# {command_line(service)}")
    out.line(yaml.safe_dump(service, sort_keys=False, width=120).rstrip("\n"))
    if not options.storage_uri:
        out.remark(
            f"the image has to carry the bundle as /bundles/{path.name} (`deploy containerfile --with-bundle`), "
            "or --storage-uri says whence it comes"
        )


@make_command(
    """
    edgekit deploy triton cats.edgekit -o model_repository/
    edgekit deploy triton cats.edgekit -o model_repository/ --gpu --instances 2 --max-batch 64 --force
    """,
    name="triton",
    short="Write a model repository for Triton.",
)
@BUNDLE
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The repository.")
@click.option("--force", is_flag=True, help="Replace an earlier repository there.")
@tier_option
@click.option("--instances", type=click.IntRange(1, 64), default=1, show_default=True, help="Of each model.")
@click.option("--gpu", is_flag=True, help="Instances on the GPU.")
@click.option("--threads", type=click.IntRange(1), help="Of each instance; Triton's choice without.")
@batch_options
def triton_command(out: Output, path: Path, output: Path, force: bool, **settings: Any) -> None:
    """Write a model repository for Triton: BUNDLE's ONNX parts, and an ensemble for each plan that runs through
    several."""
    from edgekit.bundle import Bundle
    from edgekit.deploy import TritonOptions, write_repository

    options = TritonOptions(
        tier=settings["tier"],
        batch=_batch(settings),
        instances=settings["instances"],
        on_gpu=settings["gpu"],
        threads=settings["threads"],
    )
    with Bundle.open(path) as bundle:
        written = write_repository(bundle, output, options, force=force)
    out.emit(
        {
            "path": str(written.path),
            "models": list(written.models),
            "ensembles": list(written.ensembles),
            "notes": list(written.notes),
        }
    )
    rows = [(name, "model") for name in written.models] + [(name, "ensemble") for name in written.ensembles]
    out.table(Table((Column("name", style="cyan"), Column("kind")), rows, str(written.path)))
    for note in written.notes:
        out.remark(note)
    out.remark(f"tritonserver --model-repository={output}")


@make_command(
    """
    edgekit deploy containerfile cats.edgekit > Containerfile
    edgekit deploy containerfile cats.edgekit --with-bundle > Containerfile
    """,
    name="containerfile",
    short="Print a Containerfile of an image that serves.",
)
@BUNDLE
@tier_option
@click.option("--with-bundle", is_flag=True, help="The image carries the bundle, in /bundles.")
def containerfile_command(out: Output, path: Path, tier: Any, with_bundle: bool) -> None:
    """Print a Containerfile: edgekit from its source, with the runtimes that BUNDLE's parts want."""
    from edgekit.bundle import Bundle
    from edgekit.deploy import containerfile

    with Bundle.open(path) as bundle:
        text = containerfile(bundle, tier, with_bundle=with_bundle)
    out.emit({"containerfile": text})
    out.line(text.rstrip("\n"))
    if not with_bundle:
        out.remark("the image carries no bundle: --with-bundle, or `edgekit deploy kserve --storage-uri`, brings one")


def _batch(settings: dict[str, Any]) -> Any:
    from edgekit.runtimes.server import BatchOptions

    return BatchOptions(settings["max_batch"], settings["max_delay_ms"], settings["queue"])


def _replicas(text: str) -> tuple[int, int]:
    least, colon, most = text.partition(":")
    if not least.isdecimal() or (colon and not most.isdecimal()):
        raise UsageError(f"{text!r} replicas, allowed N or MIN:MAX", hint="such as --replicas 1:4")
    return int(least), int(most or least)


for _one in (kserve_command, triton_command, containerfile_command):
    command.add_command(_one)
