"""What a sweep leaves to read: sweep.json, a table in Markdown, a plot, and the best setting as a config that is ready to run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertfast.errors import BertfastError
from bertfast.storage import replacing, write_json
from bertfast.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS, TABLE, PLOT, BEST = REPORTS = ("sweep.json", "sweep.md", "sweep.png", "best.json")


@dataclass(frozen=True)
class Trial:
    """One training run. state: "waiting", "running" (or cut short), "complete" or "failed"; `error` says why it failed."""

    setting: int
    seed: int
    values: dict[str, Any]
    state: str
    score: float | None
    folder: str
    seconds: float | None
    error: str | None = None


def need_matplotlib() -> None:
    """Raise BertfastError, naming the command that installs it, where there is no matplotlib to draw with."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise BertfastError("bertfast sweep needs matplotlib, which is not installed: pip install 'bertfast[sweep]'") from None


def summarise(trials: Sequence[Trial]) -> dict[str, Any]:
    """Settings with the mean and spread of their scores, the best mean first; the best; and all trials.

    The spread is the sample standard deviation over seeds (None for one seed). The best is the highest mean among the settings of which most
    seeds have finished, so that one lucky seed does not win.
    """
    settings = []
    for number in dict.fromkeys(trial.setting for trial in trials):
        own = [trial for trial in trials if trial.setting == number]
        done = [trial for trial in own if trial.state == "complete"]
        scores = np.array([trial.score for trial in done], dtype=np.float64)
        facts: dict[str, Any] = {"setting": number, "values": own[0].values, "scores": {str(trial.seed): trial.score for trial in done}}
        facts |= {name: None for name in ("mean", "std", "min", "max", "train_seconds")}
        if len(scores):
            facts |= {"mean": float(scores.mean()), "min": float(scores.min()), "max": float(scores.max())}
            facts["std"] = float(scores.std(ddof=1)) if len(scores) > 1 else None
            facts["train_seconds"] = float(np.mean([trial.seconds for trial in done]))
        settings.append(facts)
    settings.sort(key=lambda facts: (facts["mean"] is None, -(facts["mean"] or 0.0), facts["setting"]))
    most = max((len(facts["scores"]) for facts in settings), default=0)
    best = next((facts for facts in settings if most and len(facts["scores"]) == most), None)
    states = [trial.state for trial in trials]
    counts = {state: states.count(state) for state in ("complete", "failed", "running", "waiting")}
    return {"best": best, "counts": counts, "settings": settings, "trials": [asdict(trial) for trial in trials]}


def write_reports(folder: Path, results: dict[str, Any], best: dict[str, Any] | None, with_plot: bool) -> None:
    """Write sweep.json and the table, and where there is a best setting its config and the plot."""
    write_json(folder / RESULTS, results)
    with replacing(folder / TABLE) as file:
        file.write("\n".join(markdown(results)) + "\n")
    if best is not None:
        write_json(folder / BEST, best)
    if best is not None and with_plot:
        draw(folder / PLOT, results)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Dotted keys by their last words, or whole where those are the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: key if last.count(word) > 1 else word for key, word in zip(keys, last, strict=True)}


def brief(values: Mapping[str, Any]) -> str:
    """A setting in a line."""
    names = short_names(list(values))
    return ", ".join(f"{names[key]} {_shown(value)}" for key, value in values.items())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table, for Markdown and for the terminal."""
    settings = results["settings"]
    names = short_names(list(settings[0]["values"])) if settings else {}
    figures = ("mean", "std", "min", "max")
    rows = [
        [
            *(_shown(facts["values"][key]) for key in names),
            *("" if facts[name] is None else f"{facts[name]:.4f}" for name in figures),
            str(len(facts["scores"])),
            "" if facts["train_seconds"] is None else f"{facts['train_seconds']:.1f}",
        ]
        for facts in settings
    ]
    return [*names.values(), *figures, "seeds", "seconds"], rows


def _closing(results: dict[str, Any]) -> list[str]:
    """What stands under the table: the best, and what failed."""
    best, counts = results["best"], results["counts"]
    shown = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
    lines = [f"{counted(sum(counts.values()), 'trial')}: {shown}"]
    if results["score"] is not None:
        lines.insert(0, f"score: {results['score']}")
    if best is not None:
        spread = "" if best["std"] is None else f" +- {best['std']:.4f}"
        lines.append(f"best by its mean over {counted(len(best['scores']), 'seed')}: {brief(best['values'])}: {best['mean']:.4f}{spread}")
    failed = [trial for trial in results["trials"] if trial["state"] == "failed"]
    return lines + [f"failed: {brief(trial['values'])}, seed {trial['seed']}: {trial['error']}" for trial in failed]


def markdown(results: dict[str, Any]) -> list[str]:
    """The lines of sweep.md."""
    header, rows = _rows(results)
    table = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    return ["# Sweep", "", *table, "", *(f"- {line}" for line in _closing(results))]


def print_results(folder: Path, results: dict[str, Any]) -> None:
    """Print the table on standard output, and where the rest is."""
    from rich.console import Console
    from rich.table import Table

    header, rows = _rows(results)
    table, best = Table(*header), results["best"]
    for facts, row in zip(results["settings"], rows, strict=True):
        table.add_row(*row, style="bold green" if best is not None and facts["setting"] == best["setting"] else None)
    console = Console(highlight=False)
    console.print(table)
    for line in _closing(results):
        console.print(line, markup=False)
    console.print(f"{folder / RESULTS}, {TABLE}, {PLOT}; to train the best: bertfast train --config {folder / BEST}", markup=False)


def draw(path: Path, results: dict[str, Any]) -> None:
    """Write `figure_of` these results as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    beside = path.with_name(f".{path.name}")
    FigureCanvasAgg(figure_of(results)).print_figure(beside, format="png", dpi=120, metadata={"Software": None})
    beside.replace(path)


def figure_of(results: dict[str, Any]) -> Figure:
    """Each setting's scores as points, with their mean and standard deviation, the best on top."""
    from matplotlib.figure import Figure

    settings = [facts for facts in results["settings"] if facts["scores"]][::-1]
    figure = Figure(figsize=(8, 1.5 + 0.3 * len(settings)), layout="constrained")
    axes, places = figure.add_subplot(), range(len(settings))
    means, spreads = ([facts[name] or 0.0 for facts in settings] for name in ("mean", "std"))
    axes.errorbar(means, places, xerr=spreads, fmt="o", capsize=3, label="mean and standard deviation over seeds")
    points = [(score, place) for place, facts in zip(places, settings, strict=True) for score in facts["scores"].values()]
    axes.scatter([score for score, _ in points], [place for _, place in points], s=10, color="black", alpha=0.5, zorder=3, label="a seed")
    axes.set(yticks=list(places), yticklabels=[brief(facts["values"]) for facts in settings], xlabel=results["score"])
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure
