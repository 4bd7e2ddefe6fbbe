"""`edgekit run`"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.command import command as make_command
from edgekit.cli.failure import report
from edgekit.cli.options import FiniteRange, certificate_option, file_option, option
from edgekit.cli.output import Output
from edgekit.cli.quantities import Milliseconds, Share
from edgekit.cli.run_text import show_texts, write_texts, writing_part
from edgekit.cli.run_view import line_of, show_one
from edgekit.cli.wording import ms_text
from edgekit.errors import (
    AuthenticationError,
    DataError,
    EdgekitError,
    InputError,
    MismatchError,
    RemoteError,
    SessionError,
    UnknownNameError,
    UsageError,
)

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.bundle.manifest import Tier
    from edgekit.runtimes.predict import Prediction, Predictor
    from edgekit.runtimes.session import Session
    from edgekit.runtimes.tracing.recorder import Recorder

# What befalls one input of several, and need not keep the others from being answered.
FAILS_ALONE = (DataError, InputError, SessionError, RemoteError)
REMOTE = "With edge and cloud"
BUDGET = "Within a budget"
_WHY = {AuthenticationError: "authentication failed", MismatchError: "it does not hold this bundle"}


@make_command(
    """
    edgekit run cats.edgekit --input photo.jpg
    edgekit run cats.edgekit --input photos/ --top 1 --threads 4
    edgekit run minilm.edgekit --input "How far is it to the station?" --json
    edgekit run model.edgekit --input feeds.npz --key release.key.pub
    edgekit run cats.edgekit --input photo.jpg --edge grpcs://edge:8102 --token-file token --deadline 300ms
    edgekit run fashion.edgekit --input shirt.png --budget 2ms
    edgekit run cats.edgekit --input photo.jpg --edge grpc://edge:8102 --trace device.jsonl
    """,
    name="run",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-i",
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="FILE|DIR|TEXT",
    help="Image, .npy, .npz or text file, a folder of them, or the text itself; may be given again.",
)
@click.option("--top", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many labels to show.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads of the runtime; all cores without it.")
@click.option("--part", metavar="NAME", help="Another part than the default one (`edgekit inspect` lists them).")
@click.option("--variant", metavar="NAME", help="One of the bundle's variants that run on this device alone.")
@option("--budget", heading=BUDGET, type=Milliseconds(), metavar="TIME", help="What loses least within it, as 2ms.")
@option(
    "--battery",
    heading=BUDGET,
    type=Share(),
    metavar="SHARE",
    help="Charge, as 15%; below 20 % what spends least runs. Linux tells it by itself.",
)
@click.option("--provider", metavar="NAME", help="ONNX Runtime's cpu, cuda or tensorrt; the best here without it.")
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Append each request's spans to this file; `edgekit trace` shows them.",
)
@click.option(
    "-k", "--key", type=click.Path(path_type=Path), metavar="FILE", help="Run only what this public key has signed."
)
@option("--edge", heading=REMOTE, metavar="URL", help="The edge node: grpc://host:port or grpcs://host:port.")
@option("--cloud", heading=REMOTE, metavar="URL", help="The cloud server, likewise.")
@option("--deadline", heading=REMOTE, type=Milliseconds(), metavar="TIME", help="Answer by then: 300ms, or 300; 2s.")
@option(
    "--policy",
    heading=REMOTE,
    metavar="NAME",
    help="auto, fit, local, offload, split, cascade or three-tier; auto without it.",
)
@option(
    "--refine", heading=REMOTE, is_flag=True, help="Send a coarse rate first, and more only where the answer is unsure."
)
@option(
    "--max-drop",
    heading=REMOTE,
    type=FiniteRange(0),
    metavar="POINTS",
    help="Allow more, or less, than the export did.",
)
@file_option("--token-file", heading=REMOTE, help="What the nodes ask for.")
@file_option("--ca", heading=REMOTE, help="Who signed their certificates (PEM).")
@certificate_option("--certificate", heading=REMOTE, help="Our own, where they ask for one.")
def command(
    out: Output,
    bundle: Path,
    inputs: Sequence[str],
    top: int,
    threads: int | None,
    part: str | None,
    provider: str | None,
    key: Path | None,
    trace: Path | None,
    variant: str | None,
    budget: float | None,
    battery: float | None,
    **remote: Any,
) -> None:
    """Run BUNDLE on each input: the most likely labels where it is a classifier, else the outputs.

    With --budget the variant that loses least within it is run, and the answer says where a larger one was left out.
    With --edge or --cloud the best way for the link of the moment is chosen for each input, and the answer says where
    it was computed. It comes by the deadline: where a node does not answer in time, from this device, marked degraded.
    A node that does not answer or refuses (its token, another bundle) is named on stderr. Where --policy needs one, a
    refusal ends the command (exit code 16), and a node that is down leaves this device's answer, marked degraded.
    Of several inputs each is tried: one that fails is told, and the exit code is the highest that any of them met.
    A model that writes text step by step goes on from each input; `edgekit serve` does so for many at once.
    """
    from edgekit.bundle import Bundle
    from edgekit.runtimes.load import load
    from edgekit.runtimes.predict import Predictor

    adapts = bool(variant or budget or battery is not None)
    connects = _checked_remote(remote, part, provider, adapts)
    if variant and (budget or remote["policy"] or remote["edge"] or remote["cloud"]):
        raise UsageError("--variant with --budget, --policy, --edge or --cloud", hint="leave the choice to one of them")
    with Bundle.open(bundle, key) as opened, _recording(trace) as recorder:
        if variant is not None:
            _check_variant(opened, variant)
        writing = writing_part(opened, part)
        if writing is not None:
            if connects or adapts or provider or trace is not None:
                raise UsageError(
                    f"{opened.manifest.name} writes text, on this device alone, with --part and --threads at most",
                    hint="leave the other options out; `edgekit serve` writes for others, and traces it",
                )
            written = write_texts(opened, writing, inputs, threads)
            show_texts(out, written)
            told = [one.to_json() for one in written]
            out.emit({"bundle": str(bundle), "format": writing.format, "threads": threads, "results": told})
            return
        sources = _sources(inputs, takes_text=getattr(opened.manifest.preprocess, "kind", "") == "text")
        with (
            _connect(opened, threads, remote, variant, budget, battery, recorder)
            if connects or adapts
            else load(opened, part=part, threads=threads, provider=provider)
        ) as session:
            predictor = Predictor(opened, session)
            results: list[dict[str, Any]] = []
            failures: list[EdgekitError] = []
            slowest = 0.0
            for source in sources:
                try:
                    prediction, trace_id = _predict(recorder, opened.manifest.name, predictor, source, top)
                except FAILS_ALONE as error:
                    if len(sources) == 1:
                        raise
                    failures.append(error)
                    report(error, f"{source}: {error.message}")
                    results.append({"input": str(source), "error": _error_entry(error)})
                    continue
                slowest = max(slowest, prediction.latency_ms.get("inference", 0.0))
                answer = getattr(session, "last", None)
                if answer is not None and answer.degraded:
                    _refuse_where_a_node_is_needed(session)
                how: dict[str, Any] = {"answer": answer.to_json()} if answer is not None else {}
                if trace_id:
                    how["trace_id"] = trace_id
                results.append({"input": str(source), **prediction.to_json(), **how})
                if len(sources) == 1:
                    show_one(out, prediction)
                    if answer is not None:
                        out.line(f"answered by the {answer.summary()}")
                    if trace_id:
                        out.line(f"trace {trace_id}")
                        out.remark(_how_to_look(trace_id, trace))
                else:
                    how_text = f"\t{answer.summary()}" if answer is not None else ""
                    out.line(line_of(source, prediction) + how_text + (f"\ttrace {trace_id}" if trace_id else ""))
            if budget is not None:
                _tell_slow(out, slowest, budget)
            refusals = _refusals(session)
            _tell_of_nodes(out, session, refusals)
    refused = {"refusals": [_refusal_entry(*entry) for entry in refusals.items()]} if connects else {}
    first = {key: value for key, value in results[0].items() if key != "input"} if len(results) == 1 else {}
    out.emit(
        {"bundle": str(bundle), "format": session.format, "threads": threads, "results": results, **refused, **first}
    )
    if failures:
        click.get_current_context().exit(max(error.exit_code for error in failures))


def _predict(
    recorder: Recorder | None, model: str, predictor: Predictor, source: str | Path, top: int
) -> tuple[Prediction, str]:
    """With the id of its trace, "" where none is recorded."""
    from edgekit.runtimes.traced_prediction import predict_traced

    if recorder is None:
        return predictor.predict(source, count=top), ""
    return predict_traced(recorder, model, predictor, source, count=top)


def _error_entry(error: EdgekitError) -> dict[str, Any]:
    return {"kind": type(error).__name__, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}


def _how_to_look(trace_id: str, file: Path | None) -> str:
    """Spans that went to a collector are looked at there."""
    return f"see it with  edgekit trace {trace_id[:12]} --from {file}" if file is not None else "sent by OTLP"


def _tell_slow(out: Output, slowest_ms: float, budget_ms: float) -> None:
    """A variant is chosen by what it usually takes."""
    if slowest_ms > budget_ms:
        out.remark(
            f"note: an answer took {ms_text(slowest_ms)} ms, more than the budget of {ms_text(budget_ms)}: the first "
            "one of a session is the slowest, and what else runs here counts too"
        )


def _refusals(session: Any) -> dict[Tier, RemoteError]:
    """Nodes that answer and refuse us, or that we may not ask; handshakes that are under way are waited for."""
    from edgekit.runtimes.coordinator.route import HANDSHAKE_S

    coordinator = getattr(session, "coordinator", None)
    return {} if coordinator is None else coordinator.refusals(HANDSHAKE_S)


def _tell_of_nodes(out: Output, session: Any, refusals: dict[Tier, RemoteError]) -> None:
    """Those that did not answer, that refused, and that hold part of another bundle."""
    coordinator = getattr(session, "coordinator", None)
    if coordinator is None:
        return
    for tier, why in coordinator.silent.items():
        if tier in refusals:
            continue
        if coordinator.policy.needs_node:
            needs = f"--policy {coordinator.policy} needs the {tier}, which does not answer ({why})"
            out.warn(f"{needs}: this device answered instead", f"start the {tier}'s node, or --policy auto")
        else:
            out.remark(f"note: the {tier} does not answer ({why}); ways through it were left out")
    for tier, refusal in refusals.items():
        out.warn(f"the {tier} was not used, {_WHY[type(refusal)]}: {refusal.message}", refusal.hint)
    for tier, reasons in coordinator.differing.items():
        if tier not in refusals:
            left_out = ", ".join(map(repr, reasons))
            out.remark(f"note: the {tier} holds another bundle; left out, as not the same there: {left_out}")


def _refuse_where_a_node_is_needed(session: Any) -> None:
    """Raises the refusal of a node where the policy that the user named has no way without one."""
    policy = session.coordinator.policy
    if not policy.needs_node:
        return
    for tier, refusal in _refusals(session).items():
        hint = f"{refusal.hint}; --policy auto answers on this device meanwhile"
        raise type(refusal)(f"--policy {policy} needs the {tier}: {refusal.message}", hint=hint)


def _refusal_entry(tier: Tier, refusal: RemoteError) -> dict[str, str]:
    return {"tier": tier, "kind": type(refusal).__name__, "message": refusal.message, "hint": refusal.hint}


def _checked_remote(remote: dict[str, Any], part: str | None, provider: str | None, adapts: bool) -> bool:
    """Whether a node is asked. Raises UsageError for options that would be ignored."""
    connects = remote["edge"] is not None or remote["cloud"] is not None
    given = [
        name for name in ("deadline", "policy", "refine", "token_file", "ca", "certificate", "max_drop") if remote[name]
    ]
    if given and not connects and not (adapts and set(given) <= {"deadline", "max_drop"}):
        raise UsageError(f"--{given[0].replace('_', '-')} without --edge or --cloud", hint="name the node to ask")
    if adapts and (part or provider):
        raise UsageError(
            "--part and --provider go with no choice of a variant", hint="leave --budget and --variant out"
        )
    if connects and (part or provider):
        raise UsageError("--part and --provider go with a run on this device alone", hint="leave --edge or --cloud out")
    return connects


def _check_variant(bundle: Bundle, name: str) -> None:
    """Raises UnknownNameError, or UsageError for one that needs a node."""
    known = {variant.name: variant for variant in bundle.manifest.variants}
    if name not in known:
        raise UnknownNameError("variant", name, known)
    if known[name].codecs:
        raise UsageError(
            f"the variant {name!r} does not run on this device alone", hint="--policy with --edge or --cloud"
        )


def _connect(
    bundle: Bundle,
    threads: int | None,
    remote: dict[str, Any],
    variant: str | None,
    budget_ms: float | None,
    battery: float | None,
    recorder: Recorder | None,
) -> Session:
    """What is asked for by name, or what fits the budget; else what is fastest within the drop of the export."""
    from edgekit.devices.battery import Battery, read_battery
    from edgekit.planning.plan import PlanLimits
    from edgekit.runtimes.coordinator.connect import connect
    from edgekit.runtimes.token_file import read_token

    fits = budget_ms is not None or battery is not None
    policy = remote["policy"] or (f"local:{variant}" if variant else "fit" if fits else "auto")
    # A budget takes what loses least within it: there the export's limit would only leave it with nothing.
    drop = remote["max_drop"] if policy == "fit" else _drop_limit(bundle, remote["max_drop"])
    given = None if battery is None else Battery(battery)
    return connect(
        bundle,
        edge=remote["edge"],
        cloud=remote["cloud"],
        deadline_ms=remote["deadline"],
        policy=policy,
        battery=read_battery if given is None else lambda: given,
        threads=threads,
        refine=remote["refine"],
        token=read_token(remote["token_file"]) if remote["token_file"] is not None else "",
        ca=remote["ca"],
        certificate=remote["certificate"],
        limits=PlanLimits(drop=drop, latency_ms=budget_ms),
        trace=recorder,
    )


@contextmanager
def _recording(trace: Path | None) -> Iterator[Recorder | None]:
    """What is recorded is written at the end, whatever came of it."""
    from edgekit.runtimes.tracing.recorder import open_recorder

    recorder = open_recorder("edgekit-device", trace)
    try:
        yield recorder
    finally:
        if recorder is not None:
            recorder.close()


def _drop_limit(bundle: Bundle, asked: float | None) -> float | None:
    """What the bundle was exported under, unless the user says otherwise."""
    stated = bundle.manifest.provenance.recipe.get("max_drop")
    return asked if asked is not None else float(stated) if isinstance(stated, int | float) else None


def _sources(inputs: Sequence[str], *, takes_text: bool) -> list[str | Path]:
    """Files of folders, files, and for a text model what is neither. Raises DataError for a path that is not there."""
    from edgekit.runtimes.preprocess import sample_files

    sources: list[str | Path] = []
    for text in inputs:
        path = Path(text)
        if _exists(path):
            sources += sample_files(path) if path.is_dir() else [path]
        elif takes_text:
            sources.append(text)
        else:
            raise DataError(f"no file at {text}", hint="--input takes an image, a .npy or .npz file, or a folder")
    return sources


def _exists(path: Path) -> bool:
    """A long text is no path: some systems raise instead of saying so."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
