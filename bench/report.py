"""Tables and plots of the rows that the suites wrote, and the README's table.

    python -m bench.report [FILE ...] [--output FOLDER] [--readme README.md]

Reads bench/results/*.jsonl where no file is named; writes report.md and plots as PNG. With --readme, what stands between the two markers is replaced.
A tie is called so, here too: no ratio is made from medians.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.harness import ROOT
from bench.intervals import Ratio
from bertfast.storage.files import replacing

BEGIN, END = "<!-- bench:begin (python -m bench.report writes what follows) -->", "<!-- bench:end -->"
RESULTS = ROOT / "bench" / "results"
Row = dict[str, Any]


def read_rows(files: Iterable[Path]) -> list[Row]:
    """All rows, each with its `suite` (those without one are known by their file: "cpu-kernels.jsonl").

    Raises:
        SystemExit: naming the file and line that is no row.
    """
    rows = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                rows.append({"suite": file.stem.rpartition("-")[2], **json.loads(line)})
            except (ValueError, TypeError):
                raise SystemExit(f"{file}, line {number}: is no row of a benchmark") from None
    return rows


def of_suite(rows: Sequence[Row], suite: str, *keys: str) -> list[Row]:
    """The rows of a suite that have these keys."""
    return [row for row in rows if row["suite"] == suite and "fault" not in row and all(key in row for key in keys)]


def table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(map(str, header))} |", f"|{'---|' * len(header)}", *(f"| {' | '.join(map(str, line))} |" for line in lines), ""]


def ratios_of(row: Row) -> str:
    return "; ".join(f"{Ratio.from_row(ratio)} {ratio['to']}" for ratio in row.get("ratios", []))


# ----------------------------------------------------------------------------------------------------------------------------------- tables


def step_table(rows: Sequence[Row]) -> list[str]:
    found = of_suite(rows, "step", "samples_per_second", "case")
    header = ("case", "contender", "samples/s (25 %, median, 75 %)", "against")
    return table(
        header, ((row["case"], row["contender"], "{}, **{}**, {}".format(*row["samples_per_second"]), ratios_of(row)) for row in found)
    )


def task_table(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in of_suite(rows, "task", "metrics"):
        scores = ", ".join(f"{split} {name} {value:.4f}" for split, found in row["metrics"].items() for name, value in found.items())
        timed = (row["train_seconds"], row["samples_per_second"]) if "train_seconds" in row else ("", "")
        size = f"{row['task']}, {row['rows'] or 'all'} rows, {row['epochs']} epochs" if "epochs" in row else row["task"]
        lines.append((size, row["contender"], *timed, ratios_of(row), scores))
    return table(("task", "contender", "seconds", "samples/s", "against", "scores"), lines)


def packing_table(rows: Sequence[Row]) -> list[str]:
    fill = (
        (row["set"], row["budget"], f"{row['fill']:.3%}", f"{row['fill_padded_to_longest']:.1%}", row["seconds"][1])
        for row in of_suite(rows, "packing", "fill")
    )
    lines = table(("set", "budget", "fill", "padded to the longest of 32", "planned in s"), fill)
    sets: dict[str, dict[int, Row]] = {}
    for row in of_suite(rows, "packing", "balance"):
        sets.setdefault(row["set"], {})[row["ranks"]] = row
    ranks = sorted({count for found in sets.values() for count in found})
    cells = (
        (name, *(f"{found[n]['balance']:.4f} ({found[n]['at_random']:.2f})" if n in found else "" for n in ranks))
        for name, found in sets.items()
    )
    return [*lines, *(["Balance over ranks (in brackets, of parts cut at random):", ""] if ranks else []), *table(("set", *ranks), cells)]


def data_table(rows: Sequence[Row]) -> list[str]:
    found = of_suite(rows, "data", "contender")
    figures = [
        (
            row["contender"],
            round(row["pairs_per_second"][1]) if "pairs_per_second" in row else "",
            row.get("seconds_to_first_step", ["", ""])[1],
            ratios_of(row),
        )
        for row in found
    ]
    return table(("contender", "pairs/s", "seconds to the first step", "against"), figures)


def export_table(rows: Sequence[Row]) -> list[str]:
    found = of_suite(rows, "export", "milliseconds")
    return table(
        ("case", "contender", "ms a batch", "against"),
        ((row["case"], row["contender"], row["milliseconds"][1], ratios_of(row)) for row in found),
    )


def scale_table(rows: Sequence[Row]) -> list[str]:
    fits = (
        (row["case"], row["contender"], row["exponent"], "{} to {}".format(*row["interval"])) for row in of_suite(rows, "scale", "exponent")
    )
    lines = table(("cost against", "contender", "exponent", "interval"), fits)
    overhead = ((row["case"], row["contender"], row["seconds"][1], ratios_of(row)) for row in of_suite(rows, "scale", "overhead"))
    lines += table(("DeepSpeed's overhead", "contender", "seconds a step", "against"), overhead)
    memory = (
        (row["stage"], row["ranks"], f"{row['peak_bytes'] / 1e9:.2f}", f"{row['estimate_bytes'] / 1e9:.2f}")
        for row in of_suite(rows, "scale", "stage")
    )
    lines += table(("ZeRO stage", "ranks", "measured GB a rank", "model states on paper, GB"), memory)
    simulated = (
        (row["lengths"], row["ranks"], f"{row['efficiency']:.1%}", f"{row['at_random']:.1%}")
        for row in of_suite(rows, "scale", "efficiency")
    )
    return lines + table(("lengths", "GPUs (simulated)", "efficiency", "parts cut at random"), simulated)


def recipes_table(rows: Sequence[Row]) -> list[str]:
    lines = table(
        ("pre-training", "contender", "held-out MLM loss", "MLM accuracy", "steps", "seconds"),
        (
            (row["case"], row["contender"], f"{row['held_out']['mlm_loss']:.3f}", f"{row['held_out']['mlm_accuracy']:.3f}", row["steps"], row["train_seconds"])
            for row in of_suite(rows, "recipes", "held_out")
        ),
    )  # fmt: skip
    lines += table(
        ("fine-tuning", "contender", "accuracy: mean", "standard deviation", "seeds", "seconds", "tokens read"),
        (
            (
                row["case"],
                row["contender"],
                f"{row['accuracy']['mean']:.4f}",
                "" if row["accuracy"]["std"] is None else f"{row['accuracy']['std']:.4f}",
                len(row["accuracy"]["values"]),
                row.get("note") or row["train_seconds"],
                f"{row['tokens']:,}" if "tokens" in row else "",
            )
            for row in of_suite(rows, "recipes", "accuracy")
        ),
    )
    speed = (
        (row["case"], row["contender"], row["tokens_per_second"][1], f"{row['peak_bytes'] / 1e9:.2f}", ratios_of(row))
        for row in of_suite(rows, "recipes", "tokens_per_second")
    )
    return lines + table(("speed", "contender", "tokens/s", "peak GB", "against"), speed)


def kernels_table(rows: Sequence[Row]) -> list[str]:
    found = of_suite(rows, "kernels", "microseconds")
    key = lambda row: (row["op"], row["size"], row["dropout"], row["direction"])  # noqa: E731
    return table(("op", "size", "dropout", "direction", "contender", "us", "share of the roofline"),
                 ((*key(row), row["contender"], row["microseconds"][1], f"{row['share']:.1%}") for row in found))  # fmt: skip


TABLES = {
    "step": ("Training step", step_table),
    "task": ("Fine-tuning runs", task_table),
    "packing": ("Packing", packing_table),
    "data": ("Data", data_table),
    "export": ("Exported models", export_table),
    "scale": ("Scale", scale_table),
    "recipes": ("Recipes", recipes_table),
    "kernels": ("Kernels", kernels_table),
}


def origin(rows: Sequence[Row]) -> list[str]:
    """Where the rows of one suite come from, a line a run."""
    runs = dict.fromkeys((row.get("device", "device not recorded"), row.get("commit", "?"), row.get("command", "")) for row in rows)
    return [
        f"Measured on {device}, commit {commit}: `{command}`" if command else f"Measured on {device}, commit {commit}"
        for device, commit, command in runs
    ]


def report(rows: Sequence[Row], plots: Sequence[Path] = ()) -> list[str]:
    """The lines of report.md: for each suite that has rows its table, where it comes from, and its plots."""
    lines = [
        "# Benchmarks",
        "",
        "A ratio is how many times as fast a contender is, with its 99 % interval; where that covers 1, it is a tie.",
        "",
    ]
    for suite, (title, make) in TABLES.items():
        found = [row for row in rows if row["suite"] == suite]
        if found:
            lines += [f"## {title}", "", *compact(make(found)), *(f"{line}  " for line in origin(found)), ""]
            lines += [f"![{plot.stem}]({plot.name})" for plot in plots if plot.stem.startswith(f"{suite}-")] + [""]
            lines += [
                f"- {row.get('contender', '?')} did not run ({row.get('case', '')}): {row['fault']}" for row in found if "fault" in row
            ]
    return lines


def compact(lines: Sequence[str]) -> list[str]:
    """Without tables of no rows."""
    kept: list[str] = []
    for index, line in enumerate(lines):
        is_head = index + 1 < len(lines) and lines[index + 1].startswith("|---")
        is_empty = (index + 2 >= len(lines) or not lines[index + 2].startswith("|")) if is_head else False
        is_rule_of_empty = line.startswith("|---") and (index + 1 >= len(lines) or not lines[index + 1].startswith("|"))
        if not is_empty and not is_rule_of_empty:
            kept.append(line)
    return kept


def step_summary(rows: Sequence[Row]) -> list[str]:
    """Of the training step a column a case, as short as it goes."""
    found = of_suite(rows, "step", "samples_per_second", "case")
    cases = list(dict.fromkeys(row["case"] for row in found))
    cells: dict[str, dict[str, str]] = {}
    for row in found:
        ratios = "".join(f"<br>{Ratio.from_row(ratio)} {ratio['to']}" for ratio in row.get("ratios", []))
        shown = ratios if row["contender"].startswith("bertfast") else ""
        cells.setdefault(row["contender"], {})[row["case"]] = f"**{row['samples_per_second'][1]:.0f}**{shown}"
    return table(("samples/s", *cases), ((name, *(of.get(case, "") for case in cases)) for name, of in cells.items()))


def export_summary(rows: Sequence[Row]) -> list[str]:
    """Of the exported models a column a contender: milliseconds, and how many times as fast as the first."""
    lines: list[str] = []
    found = of_suite(rows, "export", "milliseconds")
    for measure in dict.fromkeys(row.get("measure") for row in found):
        some = [row for row in found if row.get("measure") == measure]
        names = list(dict.fromkeys(row["contender"] for row in some))
        cells: dict[str, dict[str, str]] = {}
        for row in some:
            ratios = "".join(f"<br>{Ratio.from_row(ratio)}" for ratio in row.get("ratios", []) if ratio["to"] == names[0])
            cells.setdefault(row["case"], {})[row["contender"]] = f"{row['milliseconds'][1]:.4g}{ratios}"
        lines += table(("ms", *names), ((case, *(of.get(name, "") for name in names)) for case, of in cells.items()))
    return lines


def packing_summary(rows: Sequence[Row]) -> list[str]:
    """Of each set that stands for a kind of text one line: the fill of the best budget, and the balance over 64 and 1,024 ranks."""
    lines = []
    for name in ("sst2_train", "mnli_dev_matched", "imdb_train", "wikipedia_512"):
        fills = [row for row in of_suite(rows, "packing", "fill") if row["set"] == name]
        balance = {row["ranks"]: row for row in of_suite(rows, "packing", "balance") if row["set"] == name}
        if fills:
            best = max(fills, key=lambda row: row["fill"])
            shares = (f"{balance[n]['balance']:.4f} ({balance[n]['at_random']:.2f})" if n in balance else "" for n in (64, 1024))
            lines.append((name, best["budget"], f"{best['fill']:.2%}", f"{best['fill_padded_to_longest']:.1%}", *shares))
    header = ("lengths", "tokens a batch", "fill", "padded to the longest of 32", "balance over 64 ranks (cut at random)", "over 1,024")
    return table(header, lines)


SUMMARIES = {
    **TABLES,
    "step": (TABLES["step"][0], step_summary),
    "export": (TABLES["export"][0], export_summary),
    "packing": (TABLES["packing"][0], packing_summary),
}
_IN_README = ("step", "task", "packing", "data", "export")


def readme_lines(rows: Sequence[Row], plots: Sequence[str] = ()) -> list[str]:
    """What stands between the README's markers: of each suite its short table, where its rows come from, and its plots (paths from the README)."""
    lines = [
        "A ratio is how many times as fast a contender is as the one named (else the first), with its 99 % interval; where that covers 1, it is a tie.",
        "",
    ]
    for suite in _IN_README:
        title, make = SUMMARIES[suite]
        found = [row for row in rows if row["suite"] == suite]
        if found:
            lines += [f"### {title}", "", *compact(make(found)), *(f"{line}  " for line in origin(found)), ""]
            lines += [f"![{Path(plot).stem}]({plot})" for plot in plots if Path(plot).stem.startswith(f"{suite}-")] + [""]
    return lines


def update_readme(path: Path, rows: Sequence[Row], plots: Sequence[Path] = ()) -> None:
    """Replace what stands between the markers; plots that lie below the README's folder are shown.

    Raises:
        SystemExit: the file has no markers.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path}: has no lines '{BEGIN}' and '{END}' for the table to stand between")
    here = path.resolve().parent
    shown = [plot.resolve().relative_to(here).as_posix() for plot in plots if plot.resolve().is_relative_to(here)]
    with replacing(path) as file:
        file.write("\n".join([f"{before}{BEGIN}", "", *readme_lines(rows, shown), f"{END}{after}"]))


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="left out: bench/results/*.jsonl")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder for report.md and the plots")
    parser.add_argument("--readme", type=Path, help="a file with markers, whose table is replaced")
    options = parser.parse_args(words)
    rows = read_rows(options.files or sorted(RESULTS.glob("*.jsonl")))
    if not rows:
        print("there are no rows; run a suite with --output first")
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    from bench.plots import draw_all

    plots = draw_all(rows, options.output)
    with replacing(options.output / "report.md") as file:
        file.write("\n".join(report(rows, plots)) + "\n")
    if options.readme:
        update_readme(options.readme, rows, plots)
    print(f"{options.output / 'report.md'}: {len(rows)} rows, {len(plots)} plots")
    return 0


if __name__ == "__main__":
    sys.exit(main())
