"""The report's plots, each from the rows that it needs; one without rows is not drawn. Without matplotlib there are none, and it is said so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.report.rows import Row


def draw_all(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw what there are rows for; returns the files, named `<suite>-<what>.png`."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("matplotlib is not installed, so there are no plots: pip install matplotlib", file=sys.stderr)
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []
    for name, draw in PLOTS.items():
        figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
        if draw(axes, [row for row in rows if "fault" not in row]):
            handles, labels = axes.get_legend_handles_labels()
            if handles:
                axes.legend(handles, labels, fontsize=7)
            axes.grid(alpha=0.3)
            figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})
            made.append(folder / f"{name}.png")
        pyplot.close(figure)
    return made


def throughput(axes: Any, rows: Sequence[Row]) -> bool:
    """Samples a second against batch size; one batch size is drawn as bars."""
    found = [row for row in rows if row["suite"] == "step" and "samples_per_second" in row and "case" in row]
    if not found:
        return False
    if len({row.get("batch_size") for row in found}) == 1:
        names = [f"{row['case']}: {row['contender']}" for row in found]
        axes.barh(names, [row["samples_per_second"][1] for row in found])
        axes.set(xlabel="samples a second (median)")
        axes.tick_params(axis="y", labelsize=6)
        axes.invert_yaxis()
        return True
    for key in dict.fromkeys((row.get("model"), row.get("lengths"), row["contender"]) for row in found):
        line = sorted(
            (row["batch_size"], *row["samples_per_second"])
            for row in found
            if (row.get("model"), row.get("lengths"), row["contender"]) == key
        )
        sizes, low, middle, high = zip(*line, strict=True)
        axes.plot(sizes, middle, marker="o", markersize=3, label=", ".join(map(str, key)))
        axes.fill_between(sizes, low, high, alpha=0.15)
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="samples a second (median, quartiles)")
    return True


def time_to_score(axes: Any, rows: Sequence[Row]) -> bool:
    found = [row for row in rows if row["suite"] == "task" and row.get("curve")]
    for row in found:
        axes.plot(*zip(*row["curve"], strict=True), marker="o", markersize=3, label=f"{row['task']}: {row['contender']}")
    axes.set(xlabel="seconds of training", ylabel="score on a part of the dev set")
    return bool(found)


def roofline(axes: Any, rows: Sequence[Row]) -> bool:
    limits = [row for row in rows if row["suite"] == "kernels" and row.get("measure") == "roofline"]
    found = [
        row
        for row in rows
        if row["suite"] == "kernels" and row.get("microseconds") and row["contender"] == "bertfast" and row.get("gigabytes_per_second")
    ]
    if not limits or not found:
        return False
    peak, width = limits[-1]["flops_per_second"] / 1e12, limits[-1]["bytes_per_second"] / 1e12
    intensity = [max(row["teraflops"], 1e-6) / row["gigabytes_per_second"] * 1e3 for row in found]
    span = [min(intensity) / 2, max(*intensity, peak / width) * 2]
    axes.plot([span[0], peak / width, span[1]], [span[0] * width, peak, peak], color="black", label="roofline")
    for op in dict.fromkeys(row["op"] for row in found):
        points = [(at, row["teraflops"]) for at, row in zip(intensity, found, strict=True) if row["op"] == op]
        axes.scatter(*zip(*points, strict=True), s=12, label=op)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="TFLOP/s")
    return True


def agreement(axes: Any, rows: Sequence[Row]) -> bool:
    """Agreement against speed over a whole file, of everything that was tried: the losers stand lower or further left. Named are those of each side that
    nothing of that side beats in both."""
    found = [row for row in rows if row["suite"] == "inference" and "same" in row and "whole file, tokenising out" in row["case"]]
    for case, marker in zip(dict.fromkeys(row["case"] for row in found), "osD^vP*X", strict=False):
        for ours, colour in ((True, "tab:red"), (False, "tab:blue")):
            side = [row for row in found if row["case"] == case and row["contender"].startswith("bertfast") == ours]
            places = {row["contender"]: (row["texts"] / row["seconds"][1], row["same"]) for row in side}
            for name, at in places.items():
                axes.scatter(*at, s=18, marker=marker, color=colour, alpha=0.7)
                if not any(other[0] >= at[0] and other[1] >= at[1] for other in places.values() if other != at):
                    axes.annotate(name, at, fontsize=6, xytext=(3, -3), textcoords="offset points", rotation=-30, va="top", color=colour)
        axes.scatter([], [], marker=marker, color="black", label=case)
    axes.set(xscale="log", xlabel="texts a second (red: bertfast)", ylabel="share of answers equal to eager float32's")
    return bool(found)


def efficiency(axes: Any, rows: Sequence[Row]) -> bool:
    found = [row for row in rows if row["suite"] == "scale" and "efficiency" in row]
    for name in dict.fromkeys(row["lengths"] for row in found):
        line = sorted((row["ranks"], row["efficiency"], row["at_random"]) for row in found if row["lengths"] == name)
        ranks, ours, random = zip(*line, strict=True)
        axes.plot(ranks, ours, marker="o", label=f"{name}, bertfast's planner")
        axes.plot(ranks, random, marker="x", linestyle="--", label=f"{name}, cut at random")
    axes.set(xscale="log", xlabel="GPUs (simulated)", ylabel="data-parallel efficiency")
    return bool(found)


PLOTS: dict[str, Callable[[Any, Sequence[Row]], bool]] = {
    "step-throughput": throughput,
    "task-time_to_score": time_to_score,
    "kernels-roofline": roofline,
    "inference-agreement": agreement,
    "scale-efficiency": efficiency,
}
