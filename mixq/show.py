"""Results as text for the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixq.config import MixedPrecisionConfig
from mixq.documents import read_text
from mixq.drop import metric_label
from mixq.summary import parse_summary

if TYPE_CHECKING:
    from mixq.api import EvaluationReport
    from mixq.devices import Device
    from mixq.sensitivity import Sensitivity


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns padded to their widest cell, two spaces between."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def sensitivity(found: Sensitivity) -> str:
    """The ranked table, and how far each measure can be trusted."""
    header = ("rank", "layer", "op", "scheme", "MACs (M)", "SQNR (dB)", "output MSE", "KL (nats)", "drop")
    rows = [
        (
            row.rank,
            row.layer,
            row.op,
            row.scheme,
            f"{row.macs / 1e6:.2f}",
            f"{row.sqnr_db:.1f}",
            f"{row.output_mse:.2e}",
            "-" if row.kl is None else f"{row.kl:.2e}",
            f"{row.drop:+.4f}",
        )
        for row in found.rows
    ]
    taus = ", ".join(f"{name} {value:+.2f}" for name, value in found.kendall().items())
    return (
        f"{table(header, rows)}\n\n"
        f"Kendall's τ with the measured drop of single layers, {found.evaluated_rows} rows: {taus}"
        "\n(1: ranks as the drop does; 0: says nothing of it; nan: no layer alone changes the metric)"
    )


def result(summary: Mapping[str, Any], folder: Path) -> str:
    """The end of a search."""
    best = summary["best"]
    if best is None:
        return (
            f"nothing that met the constraints {summary['constraints']} beats FP32: "
            f"the FP32 model is the answer, in {folder}"
        )
    primary = metric_label(summary["primary"], summary.get("higher_is_better", True))
    lines = [
        f"{best['speedup']:.2f}× as fast as FP32 ({best['latency_ms']:.3f} ms, {summary['threads']} thread(s), "
        f"{summary['runtime']}), {best['compression']:.2f}× smaller ({best['size_bytes'] / 1e6:.2f} MB)",
        f"{primary} {best['metric']:.4f}, drop {best['drop']:+.4f} on the search split{_bound(summary)}",
    ]
    held = best["holdout"]
    if held:
        low, high = held["drop_interval"]
        lines.append(f"holdout: {held['metric']:.4f}, drop {held['drop']:+.4f}, 95 % interval {low:+.4f} … {high:+.4f}")
    lines.append(f"layers: {', '.join(f'{n} {name}' for name, n in best['schemes'].items())}; the rest {best['rest']}")
    if best["silent_layers"]:
        lines.append(f"WARNING: not executed as asked: {', '.join(best['silent_layers'])}")
    if best.get("noisy"):
        lines.append(
            "WARNING: the latency was measured in noise; mixq evaluate, given a quiet machine, measures it anew"
        )
    counts = summary["trials"]
    lines.append(
        f"{sum(counts.values())} trials ({counts['pruned']} pruned, {counts['failed']} failed), "
        f"{summary['wall_s']:.0f} s, best found after {summary['time_to_best_s']:.0f} s; everything is in {folder}"
    )
    return "\n".join(lines)


def _bound(summary: Mapping[str, Any]) -> str:
    """With a confidence: what the drop stays below."""
    bound, confidence = summary["best"].get("drop_bound"), summary["constraints"].get("confidence")
    return "" if bound is None or confidence is None else f", at most {bound:+.4f} with a confidence of {confidence:g}"


def evaluation(found: EvaluationReport) -> str:
    """One configuration, measured."""
    rows = [(name, _number(value)) for name, value in found.evaluation.row().items()]
    rows += [(f"holdout {name}", _number(value)) for name, value in found.holdout.items()]
    for name in found.robustness["fp32"]:
        before, after = (found.robustness[which][name] for which in ("fp32", "config"))
        rows.append((f"under {name}", f"{_number(after)} (FP32: {_number(before)})"))
    kernels = table(
        ("layer", "executed", "kernel", "µs"),
        [(k.layer, k.executed, k.kernel, _number(k.time_us)) for k in found.evaluation.kernels],
    )
    return f"{table(('measure', 'value'), rows)}\n\n{kernels}"


def evaluation_json(found: EvaluationReport) -> str:
    return json.dumps(asdict(found), indent=2, default=dict)


def devices(found: Sequence[Device]) -> str:
    """What runs as what."""
    header = ("runtime", "precision", "executed", "kernel", "speed-up", "GFLOP/s", "note")
    rows = [
        (d.runtime, d.precision, d.executed, d.kernel, _number(d.speedup), _number(d.gflops), d.note) for d in found
    ]
    return table(header, rows)


def path(target: Path) -> str:
    """A configuration file, or a folder with a search's or an export's result."""
    if os.path.isdir(target):  # of a name that no file can have, Path.is_dir raises
        summary, config = target / "summary.json", target / "best.json"
        head = _known_result(summary) + "\n\n" if summary.exists() else ""
        return head + configuration(MixedPrecisionConfig.load(config))
    return configuration(MixedPrecisionConfig.load(target))


def _known_result(summary: Path) -> str:
    found = read_text(summary, "the summary", "search again, or verify the folder")
    return result(parse_summary(found, str(summary)), summary.parent)


def configuration(config: MixedPrecisionConfig) -> str:
    steps = "; ".join(f"{s.name} {dict(s.params)}" for s in config.recipe) or "-"
    lines = [f"config {config.id} for model {config.model}, rest {config.rest}, recipe {steps}"]
    if config.training is not None:
        lines.append(f"training: {config.training}")
    return "\n".join([*lines, table(("layer", "scheme"), [(n, str(s)) for n, s in config.schemes.items()])])


def difference(left: MixedPrecisionConfig, right: MixedPrecisionConfig) -> str:
    """A line for each thing that differs."""
    rows: list[tuple[str, object, object]] = []
    for name in ("model", "rest", "recipe", "training"):
        a, b = getattr(left, name), getattr(right, name)
        if a != b:
            rows.append((name, a, b))
    for layer in dict.fromkeys([*left.schemes, *right.schemes]):
        a, b = left.schemes.get(layer), right.schemes.get(layer)
        if a != b:
            rows.append((layer, a or "-", b or "-"))
    return table(("", left.id, right.id), rows) if rows else f"no difference: both are {left.id}"


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " … ".join(_number(item) for item in value)
    return "-" if value is None else str(value)
