"""Writes the measured table into README.md from the results that the other benchmarks left; measures nothing itself.

python samples/benchmarks/readme.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import readme_fleet
import readme_server
import readme_split
from common import HERE, RESULTS, no_options

README = HERE.parents[1] / "README.md"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
Row = tuple[str, str, str, str]


def load(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def efficientnet(result: dict[str, Any], photographs: str) -> list[Row]:
    command = (
        f"`samples/benchmarks/efficientnet.py{'' if photographs == 'wheels' else f' --photographs {photographs}'}`"
    )
    ours = {name: row for name, row in result["rows"].items() if name.startswith("edgekit") and "int8" in name}
    peers = {name: row for name, row in result["rows"].items() if not name.startswith("edgekit")}
    best = max(peers.values(), key=lambda row: row["sqnr_db"])
    text = "; ".join(
        f"{name.split()[1]} {row['agreement']:.3f} ({row['low']:.2f}-{row['high']:.2f}) / {row['sqnr_db']:.1f} dB"
        for name, row in ours.items()
    )
    rows = [
        (
            f"EfficientNet-Lite0 int8 against float, {result['samples']} held-out views ({photographs}): "
            "agreement (95 %) / SQNR",
            "0.95 / 24 dB",
            f"{text}; best peer {best['agreement']:.3f} / {best['sqnr_db']:.1f} dB",
            command,
        )
    ]
    if photographs == "wheels":
        name, row = min(ours.items(), key=lambda entry: entry[1]["p50_ms"])
        peer, theirs = min(peers.items(), key=lambda entry: entry[1]["p50_ms"])
        rows.append(
            (
                "its latency, best format, against the fastest peer's int8",
                "1.0x",
                f"{row['p50_ms'] / theirs['p50_ms']:.2f}x ({name}, {row['p50_ms']:.2f} ms; "
                f"{peer}, {theirs['p50_ms']:.2f} ms)",
                command,
            )
        )
        ratios = "; ".join(
            f"{name.split()[1]} {row['p50_ms'] / result['rows'][name.replace('int8', 'float')]['p50_ms']:.2f}x"
            for name, row in ours.items()
        )
        rows.append(("int8 latency of its float twin, same format", "below 1x", ratios, command))
    return rows


def fashion(result: dict[str, Any]) -> list[Row]:
    rows = result["rows"]
    losses = []
    for name, row in rows.items():
        model, format, precision = name.split()
        if precision != "fp32":
            before = rows[f"{model} {format} fp32"]["accuracy"]
            losses.append(f"{model} {format} {100 * row['accuracy']:.2f} ({100 * (before - row['accuracy']):+.2f})")
    text = "; ".join(losses)
    goal = "0.1 point (CNN)"
    return [("Fashion-MNIST, 10,000 images: int8 accuracy % (loss)", goal, text, "`samples/benchmarks/fashion.py`")]


def minilm(result: dict[str, Any]) -> list[Row]:
    """Speed-ups over the float file as torch.onnx writes it, and over that of LiteRT."""
    plain, own = result["rows"]["torch.onnx float"], result["rows"]["edgekit float"]
    ours, peer = result["rows"]["edgekit int8-dynamic"], result["rows"]["ONNX Runtime quantize_dynamic"]
    lite = result["rows"]["edgekit int8-dynamic, LiteRT"], result["rows"]["ai-edge-quantizer dynamic_wi8_afp32"]

    def told(row: dict[str, Any]) -> str:
        share = row["size_bytes"] / plain["size_bytes"]
        return (
            f"{share:.2f}x the size, {row['speedup']:.2f}x as fast ({row['p50_ms']:.1f} ms), cosine {row['cosine']:.4f}"
        )

    def judged(row: dict[str, Any]) -> str:
        return "; ".join(
            f"{kind} {100 * row[kind]['recall']['value']:.1f} ({100 * row[kind]['recall_lost']['value']:+.1f}"
            f" [{100 * row[kind]['recall_lost']['low']:+.1f}, {100 * row[kind]['recall_lost']['high']:+.1f}])"
            for kind in ("neighbours", "summary", "title")
        )

    name, command = f"MiniLM-L6 int8-dynamic, {result['tokens']} tokens", "`samples/benchmarks/minilm.py`"
    text = f"{told(ours)}; peer {told(peer)}; edgekit's float file {own['speedup']:.2f}x as fast"
    recall = f"{name}: recall@1 in % (points lost, 95 %) among {result['pairs']} texts"
    return [
        (f"{name}: size, speed, cosine against torch.onnx's float file", "0.3x, 3x, 0.995", text, command),
        (
            f"{name}, LiteRT: the same against LiteRT's float file",
            "0.3x, 3x, 0.995",
            f"{told(lite[0])}; peer (ai-edge-quantizer) {told(lite[1])}",
            command,
        ),
        (recall, "", f"{judged(ours)}; peer: {judged(peer)}", command),
    ]


def dinov2(result: dict[str, Any]) -> list[Row]:
    """Losses in points against the float features on the same test images."""
    whole = result["rows"]["edgekit float"]
    goals = {
        "edgekit int8": ".998 / .98; 0.3; 0.42x",
        "edgekit float, merge@0.7": "0.3; 0.78x",
        "edgekit int8, merge@0.57": "1; 0.28x",
        "edgekit int8, merge@0.4": "2; 0.20x",
    }
    return [
        (
            f"DINOv2 ViT-S/14, {name}: cosine mean / min; points lost by k-NN, by a linear probe; latency over float",
            goals.get(name, ""),
            f"{row['cosine_mean']:.4f} / {row['cosine_min']:.3f}; {100 * (whole['knn'] - row['knn']):+.1f}, "
            f"{100 * (whole['probe'] - row['probe']):+.1f}; {row['times_float']:.3f}x ({row['p50_ms']:.1f} ms)",
            "`samples/benchmarks/dinov2.py`",
        )
        for name, row in result["rows"].items()
        if name != "edgekit float"
    ]


def tokens(result: dict[str, Any]) -> list[Row]:
    """One row a family: latency of the merged encoder over the whole one by format, and what was lost."""
    found = []
    for family, rows in result["rows"].items():
        merged = rows["merge"]
        ratios = ", ".join(f"{format} {row['ratio']:.2f}x" for format, row in merged["formats"].items())
        lost = f"; {merged['points_lost']:+.2f} points" if "points_lost" in merged else " (random weights)"
        name = f"{family}, tokens merged to {result['flops']:g} of the encoder's FLOPs: latency over whole, loss"
        found.append((name, "0.78x, 0.3 point", ratios + lost, "`samples/benchmarks/tokens.py`"))
    return found


def low_bits(result: dict[str, Any]) -> list[Row]:
    rows = result["rows"]
    ours, command = rows["RepQuant W6A6"], "`samples/benchmarks/low_bits.py`"
    plains = "; ".join(
        f"{name} {row['sqnr_db']:.1f} dB" for name, row in rows.items() if "W6A6" in name and "Rep" not in name
    )
    others = "; ".join(
        f"{name} {row['sqnr_db']:.1f} dB, {row['lost_points']:+.2f}, {row['size_bytes'] / 1e3:.0f} kB"
        for name, row in rows.items()
        if "W6A6" not in name and "sqnr_db" in row
    )
    return [
        (
            f"small ViT in W6A6, RepQuant: SQNR of the logits; points lost on {result['test']:,} images; plain",
            "6 dB above plain; 1 point",
            f"{ours['sqnr_db']:.1f} dB; {ours['lost_points']:+.2f}; {plains}",
            command,
        ),
        ("the same at other bits: SQNR, points lost, size", "", others, command),
    ]


def overhead(result: dict[str, Any]) -> list[Row]:
    text = "; ".join(
        f"{name.replace('efficientnet-lite0', 'lite0')} {100 * (row['overhead_ratio'] - 1):+.1f} %, "
        f"{row['overhead_us']:.0f} us"
        for name, row in result["rows"].items()
    )
    return [("session over bare runtime, p50", "3 % or 20 us", text, "`samples/benchmarks/overhead.py`")]


def coverage(result: dict[str, Any]) -> list[Row]:
    text = f"{100 * result['share']:.1f} % ({result['passed']} of {result['total']})"
    return [("coverage matrix, cells that pass", "90 %", text, "`samples/benchmarks/coverage.py`")]


def latency_model(result: dict[str, Any]) -> list[Row]:
    found = result["quality"]["leave_one_out"]
    text = (
        f"{100 * found['median_error']:.1f} %, {found['rank_correlation']:.3f} over {result['networks']} networks in "
        f"float and int8 ({result['clock']})"
    )
    name = "predicted against measured latency here, leave-one-out: median error, rank correlation"
    return [(name, "20 %, 0.95", text, "`samples/benchmarks/latency_model.py`")]


def commands(result: dict[str, Any]) -> list[Row]:
    start, made = result["start_s"], result.get("export")
    rows = [
        (
            "`edgekit --help`; run-side import (python alone)",
            "0.3 s; 0.5 s",
            f"{start['edgekit --help']:.2f} s; {start['run-side import']:.2f} s ({start['python alone']:.2f} s)",
            "`samples/benchmarks/commands.py`",
        )
    ]
    if made:
        text = f"{made['seconds']:.0f} s, {made['peak_memory_bytes'] / 1e9:.1f} GB ({made['candidates']} candidates)"
        name = f"export of EfficientNet-Lite0 for {made['device']}, two cores"
        rows.append((name, "90 s, 3 GB", text, "`samples/benchmarks/commands.py`"))
    return rows


def install_size(result: dict[str, Any]) -> list[Row]:
    text = f"{result['total_bytes'] / 1e6:.1f} MB, bytecode {result['bytecode_bytes'] / 1e6:.0f} MB more"
    name = f"run-side install for a Raspberry Pi, `edgekit[{result['extra']}]`, {result['platform']}; no torch"
    return [(name, "150 MB", text, "`samples/benchmarks/install_size.py`")]


def search(result: dict[str, Any]) -> list[Row]:
    """One line a (device, limit) pair, and how far the additive model was from what was built."""

    def figures(row: dict[str, Any] | None) -> str:
        if row is None:
            return "none fits"
        energy = "" if row["energy_mj"] is None else f", {row['energy_mj']:.3g} mJ"
        interval = f"[{row['low']:+.2f}, {row['high']:+.2f}]"
        figures = f"{row['latency_ms']:.3g} ms{energy}, {row['size_bytes'] / 1e3:.0f} kB"
        return f"{row['drop']:+.2f} {interval} points, {figures}"

    rows = [
        (
            f"joint search of fashion-vit for {row['device']}, {row['limit'].split('=')[0]} limited to the least of a "
            f"one-knob recipe within {row['lost']:g} points",
            "better",
            f"{figures(row['search'])}; best one-knob recipe ({row['one_knob']['asked']}) {figures(row['one_knob'])}",
            "`samples/benchmarks/search.py`",
        )
        for row in result["rows"]
    ]
    errors = f"{result['drop_error_median']:.2f} point, {100 * result['latency_error_median']:.1f} %"
    text = f"{result['better']} of {len(result['rows'])}; {errors}"
    name = "joint search better than one knob; expected against built: points lost, latency (medians)"
    return [*rows, (name, "4 of 5; 0.3 point, 10 %", text, "`samples/benchmarks/search.py`")]


def minilm_pruned(result: dict[str, Any]) -> list[Row]:
    """Recall@1 over that of the whole model, the mean of three kinds of pairs."""
    told = "; ".join(
        f"{name} {row['ratio@1']:.3f} (size {row['times_size']:.2f}x, latency {row['times_whole']:.2f}x)"
        for name, row in result["rows"].items()
        if name != "whole"
    )
    name = (
        f"MiniLM-L6, {result['share']:.2f} of the encoder's FLOPs, {result['minutes']:g} minutes of recovery on "
        f"{result['training_threads']} threads: retrieval recall over the whole model's"
    )
    return [(name, "0.97 (vib)", told, "`samples/benchmarks/minilm_pruned.py`")]


def fashion_pruned(result: dict[str, Any]) -> list[Row]:
    """Points lost with their 95 % interval."""
    told = "; ".join(
        f"{name} {row['lost'][0]:+.2f} [{row['lost'][1]:+.2f}, {row['lost'][2]:+.2f}] at {row['times_whole']:.2f}x"
        for name, row in result["rows"].items()
        if name != "whole"
    )
    name = f"fashion-vit, {result['share']:.2f} of the encoder's FLOPs: points lost on 10,000 images, latency"
    return [(name, "", told, "`samples/benchmarks/fashion_pruned.py`")]


def adaptive(result: dict[str, Any]) -> list[Row]:
    """Accuracy with what is lost of the whole model's, and the mean cost as a share of the whole model's."""
    rows, command = result["rows"], "`samples/benchmarks/adaptive.py`"

    def told(name: str) -> str:
        row = rows[name]
        if "lost_points" not in row:
            return f"{name} {100 * row['accuracy']:.2f} % at {row['cost']:.2f}x"
        lost = f"{row['lost_points']:+.2f} [{row['lost_low']:+.2f}, {row['lost_high']:+.2f}]"
        return f"{name} {100 * row['accuracy']:.2f} % ({lost}) at {row['cost']:.2f}x"

    widths = [name for name in rows if "width" in name]
    exits = [name for name in rows if "exits" in name]
    sizes = result["tasks"]
    kept = "; ".join(
        f"{task} {100 * row['accuracy']:.2f} %, {row['size_bytes'] / sizes['all']['size_bytes']:.2f}x the bytes"
        for task, row in sizes.items()
        if task != "all"
    )
    name = f"fashion-vit-adaptive, {result['images']:,} images: accuracy (points lost, 95 %) at mean cost"
    return [
        (f"{name}, by width", "", "; ".join(map(told, widths)), command),
        (f"{name}, by exit", "", "; ".join(map(told, exits)), command),
        ("fashion-vit-tasks: one task of three alone", "", kept, command),
    ]


SECTIONS = {
    "efficientnet-wheels": lambda result: efficientnet(result, "wheels"),
    "efficientnet-debian": lambda result: efficientnet(result, "debian"),
    "fashion": fashion,
    "minilm": minilm,
    "dinov2": dinov2,
    "low_bits": low_bits,
    "tokens": tokens,
    "overhead": overhead,
    "coverage": coverage,
    "latency_model": latency_model,
    "commands": commands,
    "install_size": install_size,
    "search": search,
    "adaptive": adaptive,
    "minilm_pruned": minilm_pruned,
    "fashion_pruned": fashion_pruned,
    **readme_split.SECTIONS,
    **readme_server.SECTIONS,
    **readme_fleet.SECTIONS,
}


def _short(commit: str) -> str:
    return commit[:10] if len(commit) == 40 else commit


def _machine(run: dict[str, Any]) -> str:
    isa = run["isa"] if isinstance(run["isa"], str) else f"x86_64 {' '.join(run['isa'])}"
    return f"{run.get('cpu') or run['device']}, {isa}"


def table() -> str:
    rows: list[Row] = []
    facts: dict[str, list[str]] = {}
    for name, section in SECTIONS.items():
        result = load(name)
        if result is None:
            continue
        rows += section(result)
        run = result.get("environment") or result.get("parts", {}).get("agents") or result
        if "commit" in run:
            machine = _machine(run)
            facts.setdefault(machine, []).append(f"{name} at {_short(run['commit'])}")
    lines = ["| | goal | measured | by `python` |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", "One thread unless said, medians, peers in turns in the same process.", ""]
    lines += [f"- {machine}: {', '.join(sorted(names))}" for machine, names in sorted(facts.items())]
    lines += ["", "Raw results: `samples/benchmarks/results/`."]
    return "\n".join(lines)


def write_between(path: Path, begin: str, end: str, content: str) -> None:
    text = path.read_text(encoding="utf-8")
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    path.write_text(f"{head}{begin}\n{content}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    no_options(__doc__)
    write_between(README, BEGIN, END, table())
