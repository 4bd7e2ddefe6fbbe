"""The sections of the page, each from the report alone; "" where there is nothing to show."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from edgekit.report.model import EvaluationReport, Sample
from edgekit.report.plots import Bar, bar_plot, decibels, layer_plot, roofline_plot
from edgekit.report.text import (
    DASH,
    MEASURES,
    facts,
    legend,
    measure_text,
    more,
    ms_text,
    size_text,
    table,
    three_digits,
)

# A narrow screen scrolls a wide plot, by keyboard too.
WIDE = '<figure class="plot" tabindex="0">'


def speed_section(report: EvaluationReport) -> str:
    latency, bars, captions = report.latency_ms, [], []
    if latency is not None:
        if latency.float_host is not None:
            name = f"{_float_name(report)}, measured here"
            bars.append(Bar(name, latency.float_host, ms_text(latency.float_host), "k0"))
        if latency.whole_host is not None and report.precision != "fp32":
            name = f"Whole model in {report.precision}, measured here"
            bars.append(Bar(name, latency.whole_host, ms_text(latency.whole_host), "k0"))
        if latency.host is not None:
            bars.append(Bar("This artifact, measured here", latency.host, ms_text(latency.host), "k1"))
            threads = f"{latency.threads} thread{'s' if latency.threads != 1 else ''}"
            runs = f", {latency.runs} runs" if latency.runs else ""
            captions.append(f"Measured: median{runs}, {threads}, {latency.isa or report.isa}.")
        for entry in latency.predicted:
            name = report.device_title if entry.device == report.device and report.device_title else entry.device
            bars.append(Bar(f"Predicted, {name}", entry.p50, ms_text(entry.p50), "k3", entry.low, entry.high))
        if latency.predicted:
            captions.append("Predicted: the whisker holds the latency model's error.")
    left = [_figure("Latency", bar_plot(bars, "Latency"), " ".join(captions))] if bars else []
    right = []
    sizes = _size_bars(report)
    if sizes:
        right.append(_figure("Size", bar_plot(sizes, "Size"), ""))
    stages = [Bar(name.capitalize(), value, ms_text(value), "k1") for name, value in report.stages_ms.items()]
    if stages:
        total = ms_text(sum(report.stages_ms.values()))
        caption = f"From the file to the answer, measured here: {total} in all."
        right.append(_figure("Where the time goes", bar_plot(stages, "Where the time goes"), caption))
    columns = "".join(f"<div>{''.join(figures)}</div>" for figures in (left, right) if figures)
    return f'<div class="pair">{columns}</div>' if columns else ""


def _size_bars(report: EvaluationReport) -> list[Bar]:
    if report.memory is None:
        return []
    named = (
        (_float_name(report), report.float_size_bytes, "k0"),
        ("This artifact", report.memory.artifact_bytes, "k1"),
        ("Live tensors at the peak", report.memory.peak_activation_bytes, "k3"),
    )
    return [Bar(name, size, size_text(size), color) for name, size, color in named if size]


def _float_name(report: EvaluationReport) -> str:
    return "Whole model in float" if any(one.whole for one in report.candidates) else "Float twin"


def layers_section(report: EvaluationReport) -> str:
    if not report.layers:
        return ""
    precisions = list(dict.fromkeys(layer.precision for layer in report.layers))
    colors = _colors(precisions)
    worst = sorted(report.layers, key=lambda layer: layer.sqnr_db)
    rows = [("", (layer.name, decibels(layer.sqnr_db), layer.precision)) for layer in worst]
    lowest = ", ".join(f"{layer.name} ({decibels(layer.sqnr_db)})" for layer in worst[:3])
    return (
        '<p class="note">Signal to quantization noise of every layer\'s output against the float model, in decibels. '
        "Higher is closer; 20 dB is an error of a tenth of the signal.</p>"
        f"{WIDE}{layer_plot(report.layers, colors, 'Signal to noise by layer')}"
        f"<figcaption>Lowest: {escape(lowest)}.</figcaption></figure>"
        f"{legend([(color, name) for name, color in colors.items()])}"
        f"{more('All layers, worst first', table('Layers', ('Layer', 'SQNR', 'Precision'), rows, (1,)))}"
    )


def candidates_section(report: EvaluationReport) -> str:
    if not report.candidates:
        return ""
    head = ("Format", "Precision", "Agreement", "SQNR", "Here", "Predicted", "Size", "Outcome")
    rows = []
    for entry in report.candidates:
        predicted = DASH if entry.predicted_ms is None else ms_text(entry.predicted_ms)
        if entry.predicted_low_ms is not None and entry.predicted_high_ms is not None:
            predicted += f" ({three_digits(entry.predicted_low_ms)}{DASH}{three_digits(entry.predicted_high_ms)})"
        cells = (
            f"{entry.format}, whole" if entry.whole else entry.format,
            entry.precision,
            DASH if entry.agreement is None else f"{entry.agreement:.3f}",
            DASH if entry.sqnr_db is None else decibels(entry.sqnr_db),
            DASH if entry.host_p50_ms is None else ms_text(entry.host_p50_ms),
            predicted,
            DASH if entry.size_bytes is None else size_text(entry.size_bytes),
            "Chosen" if entry.chosen else entry.why_not,
        )
        rows.append(("chosen" if entry.chosen else "", cells))
    return (
        '<p class="note">Everything that was tried for this device, and why the others lost.</p>'
        f"{table('Alternatives', head, rows, (2, 3, 4, 5, 6))}"
    )


def samples_section(report: EvaluationReport) -> str:
    if not report.samples:
        return ""
    items = "".join(_sample(sample) for sample in report.samples)
    return (
        '<p class="note">Answers of the artifact in its own runtime, most probable first.</p>'
        f'<ul class="samples">{items}</ul>'
    )


def _sample(sample: Sample) -> str:
    image = ""
    if sample.thumbnail:
        image = f'<img src="data:{sample.media_type};base64,{sample.thumbnail}" alt="{escape(sample.name)}">'
    answers = "".join(
        f'<li><span class="label">{escape(label)}</span><span>{100 * probability:.1f} %</span></li>'
        for label, probability in sample.top
    )
    differs = ""
    if sample.top and sample.float_top and sample.top[0][0] != sample.float_top[0][0]:
        differs = f'<p class="file">The float model says {escape(sample.float_top[0][0])}.</p>'
    return f'<li>{image}<p class="file">{escape(sample.name)}</p><ol>{answers}</ol>{differs}</li>'


def roofline_section(report: EvaluationReport) -> str:
    roofline = report.roofline
    if roofline is None or not roofline.points or not roofline.peaks_gflops or roofline.bandwidth_gbps <= 0:
        return ""
    kinds = list(dict.fromkeys(point.kind for point in roofline.points))
    colors = _colors(kinds)
    intensity = ""
    moved = sum(
        point.gflops * point.milliseconds / point.flop_per_byte for point in roofline.points if point.flop_per_byte
    )
    work = sum(point.gflops * point.milliseconds for point in roofline.points)
    if moved > 0:
        intensity = f" The whole model does {three_digits(work / moved)} FLOP for each byte that it moves."
    total = sum(point.milliseconds for point in roofline.points) or 1.0
    rows = [
        (
            "",
            (
                point.name,
                point.kind,
                point.precision,
                three_digits(point.flop_per_byte),
                three_digits(point.gflops),
                f"{100 * point.milliseconds / total:.1f} %",
            ),
        )
        for point in sorted(roofline.points, key=lambda point: -point.milliseconds)
    ]
    head = ("Segment", "Kind", "Precision", "FLOP/byte", "GFLOP/s", "Time")
    words = (
        f"Each dot is a fused segment on {escape(roofline.device)} ({escape(roofline.unit)}), its area the time "
        f"that it takes. Under the slope it waits for memory, {roofline.bandwidth_gbps:g} GB/s; under the flat "
        "it computes."
    )
    return (
        f'<p class="note">{words}{intensity}</p>'
        f"{WIDE}{roofline_plot(roofline, colors, 'Roofline')}</figure>"
        f"{legend([(color, name) for name, color in colors.items()])}"
        f"{more('All segments, slowest first', table('Segments', head, rows, (3, 4, 5)))}"
    )


def parity_section(report: EvaluationReport) -> str:
    pieces = []
    if report.parity:
        rows = [("", (step.step, decibels(step.sqnr_db), f"{step.max_abs:.3g}")) for step in report.parity]
        pieces.append(
            '<p class="note">Each step\'s outputs compared with those of the step before, on real samples; the last '
            "one in the artifact's own runtime.</p>"
            f"{table('Parity', ('Step', 'SQNR', 'Largest difference'), rows, (1, 2))}"
        )
    if report.quality is not None:
        pieces.append(f"<h3>Quality</h3>{facts(_quality_facts(report))}")
    if report.fallbacks:
        lines = [("", (entry.layer, entry.precision, entry.why)) for entry in report.fallbacks]
        pieces.append(
            "<h3>Layers kept at a higher precision</h3>"
            f"{table('Layers kept at a higher precision', ('Layer', 'Precision', 'Why'), lines, ())}"
        )
    return "".join(pieces)


def _quality_facts(report: EvaluationReport) -> list[tuple[str, str]]:
    quality = report.quality
    assert quality is not None
    pairs = [
        ("Reference", quality.reference),
        ("Samples", f"{quality.samples:,}, {'none' if quality.held_out else 'some'} of them seen in calibration"),
    ]
    for measure in ("accuracy", "top1_agreement", "cosine", "sqnr_db"):
        value = quality.value if measure == quality.measure else getattr(quality, measure, None)
        if value is not None:
            pairs.append((MEASURES[measure], measure_text(measure, value, quality.samples)))
    if quality.float_accuracy is not None:
        pairs.append(("Float model's accuracy", measure_text("accuracy", quality.float_accuracy, quality.samples)))
    return pairs


def provenance_section(report: EvaluationReport) -> str:
    pairs = [
        ("Bundle", report.bundle),
        ("Task", report.task),
        ("Device", report.device),
        ("Measured on", report.host),
        ("Instruction set", report.isa),
        ("Commit", report.commit or ""),
        ("Work per inference", f"{report.flops / 1e9:.3g} GFLOP" if report.flops else ""),
        ("Energy", report.energy.method if report.energy is not None else ""),
        ("Peak memory while exporting", size_text(report.peak_memory_bytes) if report.peak_memory_bytes else ""),
        ("Peak memory while running", _peak_rss(report)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))),
    ]
    pieces = [facts(pairs)]
    if report.changes:
        changes = [("", (change.name, change.detail)) for change in report.changes]
        pieces.append(f"<h3>What was done to the model</h3>{table('Passes', ('Pass', 'What it did'), changes, ())}")
    if report.seconds:
        rows = [("", (name, f"{seconds:.1f} s")) for name, seconds in report.seconds.items()]
        pieces.append(f"<h3>Time by pass</h3>{table('Time by pass', ('Pass', 'Seconds'), rows, (1,))}")
    if report.notes:
        pieces.append("<h3>Notes</h3><ul>" + "".join(f"<li>{escape(note)}</li>" for note in report.notes) + "</ul>")
    return "".join(pieces)


def _peak_rss(report: EvaluationReport) -> str:
    rss = report.memory.peak_rss_bytes if report.memory is not None else None
    return size_text(rss) if rss else ""


def _colors(names: Sequence[str]) -> dict[str, str]:
    """Classes k1 to k6 in order of appearance; more names share k7."""
    return {name: f"k{min(index, 7)}" for index, name in enumerate(names, 1)}


def _figure(title: str, plot: str, caption: str) -> str:
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<h3>{escape(title)}</h3><figure>{plot}{note}</figure>"
