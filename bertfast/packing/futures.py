"""Work done ahead of need on threads, in order. Knows no torch: what only tokenises has none of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 3  # items that are ready before they are needed: steps, where batches are made


def ahead(work: Callable[[Item], Result], items: Iterable[Item], threads: int = 1, most: int = _AHEAD) -> Iterator[Result]:
    """`work` of each item, in order, done ahead of need on threads of its own, up to `most` items.

    What `work` raises is raised here, with its traceback, when its turn comes. Whoever stops taking (or closes the iterator) ends the threads.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="bertfast-ahead") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > most:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
