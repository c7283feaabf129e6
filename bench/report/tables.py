"""Of each suite its tables, in Markdown. A tie is called so, here too: no ratio is made from medians."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.harness.intervals import Ratio
from bench.report.rows import Row, of_suite
from bench.report.strongest import pairs, ratio_between

SHARES = (("any", 0.0), ("99 % or more", 0.99), ("all", 1.0))  # of the same answers as eager float32, and how they are called


def table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(map(str, header))} |", f"|{'---|' * len(header)}", *(f"| {' | '.join(map(str, line))} |" for line in lines), ""]


def ratios_of(row: Row) -> str:
    return "; ".join(f"{Ratio.from_row(ratio)} {ratio['to']}" for ratio in row.get("ratios", []))


def step_table(rows: Sequence[Row]) -> list[str]:
    found = of_suite(rows, "step", "samples_per_second", "case")
    strongest = (
        (
            case,
            peer["contender"],
            *(row["samples_per_second"][1] for row in (peer, ours)),
            ours["contender"],
            ratio_between(ours, peer),
            _memory(ours, peer),
        )
        for case, peer, ours in pairs([row for row in found if "samples" in row and not row["contender"].endswith("bare loop")])
    )
    lines = table(("case", "strongest peer", "its samples/s", "bertfast's", "of", "times as fast", "peak memory, of the peer's"), strongest)
    header = ("case", "contender", "samples/s (25 %, median, 75 %)", "peak GB", "against")
    every = (
        (row["case"], row["contender"], "{}, **{}**, {}".format(*row["samples_per_second"]), _gigabytes(row), ratios_of(row))
        for row in found
    )
    parts = (
        (
            row["case"],
            row["contender"],
            f"{row['matrix_rate_share']:.0%}",
            ", ".join(f"{kind} {share:.0%}" for kind, share in row["where"].items()),
        )
        for row in found
        if "where" in row
    )
    where = table(("case", "contender", "of the machine's rate of products", "where the time of a step goes"), parts)
    return [*lines, *table(header, every), *where]


def _gigabytes(row: Row) -> str:
    return f"{row['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in row else ""


def _memory(ours: Row, peer: Row) -> str:
    return f"{ours['peak_bytes'] / peer['peak_bytes']:.2f}" if ours.get("peak_bytes") and peer.get("peak_bytes") else ""


def task_table(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in of_suite(rows, "task", "metrics", "train_seconds"):
        scores = ", ".join(f"{split} {name} {value:.4f}" for split, found in row["metrics"].items() for name, value in found.items())
        size = f"{row['task']}, {row['rows'] or 'all'} rows, {row['epochs']} epochs"
        lines.append((size, row["contender"], _noted(row, row["train_seconds"]), row["samples_per_second"], ratios_of(row), scores))
    return table(("task", "contender", "seconds", "samples/s", "against", "scores"), lines)


def _noted(row: Row, figure: float) -> Any:
    """A figure, with what is to be known of how it was measured."""
    return f"{figure} ({row['note']})" if "note" in row else figure


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


def inference_table(rows: Sequence[Row]) -> list[str]:
    found = of_suite(rows, "inference", "milliseconds", "same")
    header = ("case", "the same answers", "strongest peer", "its ms", "bertfast's", "of", "times as fast")
    strongest = (
        (case, said, _named(peer), *(row["milliseconds"][1] for row in (peer, ours)), _named(ours), ratio_between(ours, peer))
        for said, least in SHARES
        for case, peer, ours in pairs(found, lambda row, least=least: row["same"] >= least)
    )
    every = (
        (
            row["case"],
            row["contender"],
            _noted(row, row["milliseconds"][1]),
            f"{row['same']:.2%}",
            f"{row['largest_difference']:g}",
            f"{row['alone_difference']:g}",
            *(_megabytes(row[name]) for name in ("resident_bytes", "peak_bytes", "file_bytes")),
            ratios_of(row),
        )
        for row in found
    )
    figures = ("same answers", "a logit is off by", "neighbours move it by", "MB after loading", "MB at most", "MB of files")
    lines = [*table(header, strongest), *table(("case", "contender", "ms", *figures, "against"), every)]
    commands = (
        (row["case"], row["contender"], row["milliseconds"][1], ratios_of(row))
        for row in of_suite(rows, "inference", "milliseconds")
        if "same" not in row
    )
    return [*lines, *table(("whole commands", "contender", "ms", "against"), commands)]


def _named(row: Row) -> str:
    return f"{row['contender']} ({row['same']:.2%})"


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.0f}"


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


def answers_table(rows: Sequence[Row]) -> list[str]:
    found = of_suite(rows, "answers", "method")
    lines = table(
        ("probabilities", "method", "calibration error: before", "after", "answered at a precision of 0.95", "precision by class"),
        (
            (
                row["case"],
                row["method"],
                *("{:.4f} [{:.4f}, {:.4f}]".format(*row[name]) for name in ("error_before", "error_after")),
                "not reached" if row["unreached"] else f"{row['answered']:.1%}",
                ", ".join(f"{name} {value:.3f} [{low:.3f}, {high:.3f}]" for name, (value, low, high) in row["precision"].items()),
            )
            for row in found
        ),
    )
    timed = ((row["case"], row["contender"], f"{row['seconds'][1]:.3f}", ratios_of(row)) for row in of_suite(rows, "answers", "contender"))
    return lines + table(("texts in memory", "contender", "seconds", "against"), timed)


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
    "inference": ("Inference", inference_table),
    "scale": ("Scale", scale_table),
    "recipes": ("Recipes", recipes_table),
    "answers": ("Answers", answers_table),
}
