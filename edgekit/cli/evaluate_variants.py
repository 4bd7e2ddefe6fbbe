"""`edgekit evaluate --variants`: every variant that runs on this device, and the bound of any choice between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.cli.output import Cell, Column, Output, Table
from edgekit.cli.wording import ms_text, percent_text
from edgekit.errors import DataError
from edgekit.progress import Progress

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.cli.evaluation_data import Samples


def judge_variants(bundle: Bundle, samples: Samples, threads: int | None, progress: Progress) -> dict[str, Any]:
    """Accuracy with its interval, mean inference in ms and the share that left early, by variant; `oracle`: for each
    sample the cheapest variant that is right (Duo-LLM), which no router beats. Raises DataError without classes."""
    import numpy as np

    from edgekit.planning.exits import oracle
    from edgekit.report.metrics import wilson_interval
    from edgekit.runtimes.coordinator.connect import connect
    from edgekit.runtimes.predict import Predictor

    post = bundle.manifest.postprocess
    if samples.classes is None or post is None or post.kind != "classification":
        raise DataError(
            "--variants needs to know what is right, and these samples have no classes",
            hint="sort the data into class folders, or give an array `labels` in a .npz file",
        )
    names = [variant.name for variant in bundle.manifest.variants if not variant.codecs]
    truth = np.asarray(samples.classes)
    right, costs, rows = [], [], {}
    for number, name in enumerate(names):
        answers, laps, early = [], [], 0
        session = connect(bundle, policy=f"local:{name}", threads=threads)
        with session:
            predictor = Predictor(bundle, session)
            for place, source in enumerate(samples.sources):
                prediction = predictor.predict(source, count=1)
                answers.append(np.asarray(prediction.outputs[post.output]).reshape(-1).argmax())
                laps.append(prediction.latency_ms["inference"])
                answer = session.last
                early += answer is not None and answer.exited
                progress(f"evaluate {name}", number * len(truth) + place + 1, len(names) * len(truth))
        right.append(np.asarray(answers) == truth)
        costs.append(float(np.mean(laps)))
        accuracy = float(right[-1].mean())
        low, high = wilson_interval(accuracy, len(truth))
        rows[name] = {
            "accuracy": accuracy,
            "low": low,
            "high": high,
            "mean_ms": costs[-1],
            "left_early": early / len(truth),
        }
    bound = oracle(np.stack(right), costs)
    chosen = dict(zip(names, bound.left, strict=True))
    return {"variants": rows, "oracle": {"accuracy": bound.accuracy, "mean_ms": bound.cost, "shares": chosen}}


def show_variants(out: Output, found: dict[str, Any]) -> None:
    columns = (
        Column("variant", style="cyan"),
        Column("accuracy", number=True),
        Column("95 %"),
        Column("mean ms", number=True),
        Column("left early", number=True),
    )
    rows: list[tuple[str | Cell, ...]] = [
        (
            name,
            percent_text(row["accuracy"]),
            f"{percent_text(row['low'])} to {percent_text(row['high'])}",
            ms_text(row["mean_ms"]),
            percent_text(row["left_early"]) if row["left_early"] else "",
        )
        for name, row in found["variants"].items()
    ]
    bound = found["oracle"]
    rows.append(
        (
            Cell("oracle", "bold"),
            percent_text(bound["accuracy"]),
            "no choice does better",
            ms_text(bound["mean_ms"]),
            "",
        )
    )
    out.table(Table(columns, rows))
