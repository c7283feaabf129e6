"""A split from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bertfast.errors import DataError
from bertfast.readers.own_formats import unescaped
from bertfast.readers.rows import Rows, Source, expected_layout, label_of, missing_column, not_a_text, place
from bertfast.tasks import HubSet, Task

HUB_BLOCK_ROWS = 10_000

HUB_SECONDS = 5  # to answer one question; `datasets` repeats each of its own for half a minute, and longer where packets are dropped


def hub_source(task: Task, hub: HubSet, split: str) -> Source:
    name = f"{hub.name} ({hub.config})" if hub.config else hub.name
    hub_split = hub.splits.get(split, split)
    try:
        import datasets

        with _offline_unless_hub_answers():
            data = datasets.load_dataset(hub.name, hub.config, split=hub_split)
    except Exception as error:  # the library raises many kinds: no network, no such set, a set that is only a loading script
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"task {task.name}: split {hub_split!r} of {name} could not be loaded from the hub ({type(error).__name__}: {reason[0]}). "
            f"Give data_dir, a folder with {expected_layout(task, split)}, or data_file"
        ) from error
    where = f"{name}, split {hub_split}"
    rows = partial(_read_hub, data, hub, where)
    if task.layout.newline_escape is not None:
        rows = partial(unescaped, rows, task.layout.newline_escape)
    return Source(where, rows, lambda: f"hub {hub.name} {hub.config} {hub_split} {data._fingerprint}", "row")


@contextmanager
def _offline_unless_hub_answers() -> Iterator[None]:
    """Ask the hub once. Where it does not answer, `datasets` uses what an earlier run left in its cache, and asks no further."""
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    switches = [(constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")]
    before = [getattr(module, name) for module, name in switches]
    try:
        if not any(before):
            get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)  # any status is an answer
    except Exception:  # the kinds differ between the HTTP libraries that huggingface_hub has used; each means that there is no answer
        for module, name in switches:
            setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(switches, before, strict=True):
            setattr(module, name, value)


def _read_hub(data, hub: HubSet, where: str) -> Iterator[Rows]:
    for column in (*(part for parts in hub.text_columns for part in parts), hub.label_column):
        if column not in data.column_names:
            raise DataError(missing_column((column,), data.column_names, where))
    for first in range(0, len(data), HUB_BLOCK_ROWS):
        block = data[first : first + HUB_BLOCK_ROWS]
        for column in (part for parts in hub.text_columns for part in parts):
            for row, text in enumerate(block[column], first):
                if not isinstance(text, str):
                    raise DataError(not_a_text(text, place(where, "row", row, None), column))
        texts = [[" ".join(parts) for parts in zip(*(block[part] for part in columns), strict=True)] for columns in hub.text_columns]
        labels = [
            label_of(label, place(where, "row", row, None), hub.label_column) for row, label in enumerate(block[hub.label_column], first)
        ]
        yield Rows(texts, labels, range(first, first + len(labels)))
