"""The rows of the table, how a check is made, and how the table is printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from bertfast.errors import BertfastError
from bertfast.machine import out_of_memory

_TABLE_WIDTH = 140  # characters, where there is no terminal to fill


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    name: str
    result: Literal["ok", "warning", "failed", "skipped"]
    detail: str


class Found(NamedTuple):
    """What a check found out: a value that later checks need, a line for the table, and what is odd but no fault."""

    value: Any
    detail: str
    warning: str = ""


class Checks:
    """The checks made so far."""

    def __init__(self) -> None:
        self.rows: list[Check] = []

    def make(self, name: str, function: Callable[..., Found], *needs: Any) -> Any:
        """Make one check and return its value; None where it failed, or where one of `needs` is None and it could not be made."""
        if any(need is None for need in needs):
            self.rows.append(Check(name, "skipped", "needs a check that failed"))
            return None
        try:
            found = function(*needs)
        except BertfastError as error:
            self.rows.append(Check(name, "failed", str(error)))
            return None
        except Exception as error:
            if (fault := out_of_memory(error)) is None:
                raise
            self.rows.append(Check(name, "failed", f"{fault}; end what else runs here, or take a machine with more"))
            return None
        detail = f"{found.detail}; {found.warning}" if found.warning else found.detail
        self.rows.append(Check(name, "warning" if found.warning else "ok", detail))
        return found.value


def print_checks(checks: list[Check]) -> None:
    """Print the table on standard output, and how many checks failed."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
    table = Table("check", "result", "detail", show_lines=True)
    for check in checks:
        table.add_row(check.name, Text(check.result, colours[check.result]), Text(check.detail))  # Text: brackets are no markup here
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _TABLE_WIDTH)
    console.print(table)
    failed = [check.name for check in checks if check.result == "failed"]
    console.print(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}" if failed else "Nothing failed.")
