"""Work done side by side: batches of like length within a budget of tokens, taken by as many threads as there are streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_END = object()


def batches(lengths: np.ndarray, most_tokens: int, most_rows: int | None = None) -> list[np.ndarray]:
    """Rows, longest first, in batches of at most `most_tokens` tokens with their padding (or of one row), and of `most_rows` rows."""
    order, found, begin = np.argsort(-lengths, kind="stable"), [], 0
    while begin < len(order):
        rows = max(1, min(most_rows or len(order), most_tokens // max(int(lengths[order[begin]]), 1)))
        found.append(order[begin : begin + rows])
        begin += rows
    return found


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a thread of its own while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = pool.submit(next, items, _END)
            yield item  # type: ignore[misc]  # no _END


def side_by_side(items: Iterator[T], do: Callable[[T], None], streams: int) -> None:
    """Do every item, `streams` of them at a time; the first error ends it and is raised."""
    if streams == 1:
        for item in items:
            do(item)
        return
    lock, failed = Lock(), False

    def take() -> None:
        nonlocal failed
        while True:
            with lock:
                item = _END if failed else next(items, _END)
            if item is _END:
                return
            try:
                do(item)  # type: ignore[arg-type]
            except BaseException:
                failed = True
                raise

    with ThreadPoolExecutor(streams) as pool:
        for taken in [pool.submit(take) for _ in range(streams)]:
            taken.result()
