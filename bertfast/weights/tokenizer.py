"""What a model's folder tells beside its weights: its tokenizer, and the classes that it was trained to tell apart."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast.errors import CheckpointError
from bertfast.tasks import Task
from bertfast.weights.files import refuse_pointer
from bertfast.weights.vocabulary import Written, check_as_written, drop_segments
from bertfast.wording import reason

if TYPE_CHECKING:
    from transformers import BertConfig

_VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "tokenizer.model", "spiece.model")
_SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_UNKNOWN = "x" * 1000  # WordPiece gives a word of more than 100 characters the number of unknown words, if it has one


def load_tokenizer(folder: Path, bert: BertConfig, belongs_to: Path | None = None) -> Any:
    """The tokenizer in `folder`, for a model with the embeddings of `bert`, whose folder is `belongs_to`.

    Its ids are those of transformers' AutoTokenizer, but that a vocab.txt with capitals is read with them where nothing says otherwise.

    Raises:
        CheckpointError: naming the folder where there is none, its files contradict each other, it has no [CLS], [SEP] or [PAD], has more tokens
            than the model has embeddings, or numbers its tokens otherwise than the tokenizer in the model's own folder.
    """
    if not _has_tokenizer(folder):  # transformers 5 makes an empty tokenizer, without a word
        raise CheckpointError(
            f"{folder}: no tokenizer is there (none of {', '.join(_VOCABULARY_FILES)}); name one as bertfast.model.tokenizer"
        )
    for name in (*_VOCABULARY_FILES, *_SETTINGS_FILES):
        refuse_pointer(folder / name)
    try:
        written = Written.of(folder)
        tokenizer = _from_files(folder, written)
        if tokenizer.is_fast:
            tokenizer.backend_tokenizer.encode(_UNKNOWN)
    except Exception as error:  # tokenizers raises plain Exceptions; each means that the files cannot be read
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded ({reason(error)}); name one as bertfast.model.tokenizer") from None
    check_as_written(tokenizer, written, folder)
    drop_segments(tokenizer, folder)
    if (tokens := max(len(tokenizer), written.highest + 1)) > bert.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokens:,} tokens, but the model has {bert.vocab_size:,} word embeddings; "
            "they do not belong together: name the checkpoint's own as bertfast.model.tokenizer"
        )
    for name in ("cls_token", "sep_token", "pad_token"):
        if getattr(tokenizer, f"{name}_id") is None:
            raise CheckpointError(f"{folder}: the tokenizer has no {name}; name one of BERT's, which has [CLS], [SEP] and [PAD]")
    if belongs_to is not None and belongs_to.resolve() != folder.resolve() and _has_tokenizer(belongs_to):
        own = load_tokenizer(belongs_to, bert).get_vocab()
        if strays := [token for token, index in tokenizer.get_vocab().items() if own.get(token, index) != index]:
            raise CheckpointError(
                f"{folder}: its token {strays[0]!r} is number {tokenizer.get_vocab()[strays[0]]}, but {own[strays[0]]} in {belongs_to}: "
                f"{len(strays):,} tokens would get another word's embedding; leave out bertfast.model.tokenizer"
            )
    return tokenizer


def _from_files(folder: Path, written: Written) -> Any:
    from transformers import AutoTokenizer, BertTokenizer

    keeps_capitals = written.keeps_capitals()
    if written.words and not any((folder / name).is_file() for name in ("config.json", "tokenizer_config.json")):  # Google's folders
        return BertTokenizer(str(folder / "vocab.txt"), do_lower_case=not keeps_capitals)
    if keeps_capitals:
        warnings.warn(
            f"{folder}: nothing says whether text is put in lower case, and vocab.txt has words with capitals, so it is not; transformers "
            'would; write "do_lower_case" into tokenizer_config.json to have it either way',
            stacklevel=3,
        )
        return AutoTokenizer.from_pretrained(folder, do_lower_case=False)
    return AutoTokenizer.from_pretrained(folder)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _VOCABULARY_FILES)


def task_of_model(task: Task, bert: BertConfig, folder: Path) -> Task:
    """`task`, its classes taken from the config of the fine-tuned model in `folder` where they are not known.

    Raises:
        CheckpointError: a model with another number of classes than the task, with others, or with the same in another order.
    """
    if not task.is_complete:
        return task.with_labels(None if bert.num_labels == 1 else classes_of(bert))
    if task.num_labels != bert.num_labels:
        raise CheckpointError(
            f"{folder}: the model has {bert.num_labels} labels, but task {task.name} has {task.num_labels}; "
            "was it fine-tuned on another task?"
        )
    if not task.is_regression:
        check_classes(bert, task.class_names, str(folder), f"those of task {task.name}")
    return task


def check_classes(bert: BertConfig, class_names: Sequence[str], source: str, whose: str) -> None:
    """Hold the classes of a trained model against as many others, of a task say (`whose` in words); capitals are as good as small letters.

    Raises:
        CheckpointError: every answer would get the name of a class that it does not mean. Classes that have but numbers fit any.
    """
    names = classes_of(bert)
    ours, theirs = ([name.casefold() for name in order] for order in (class_names, names))
    if ours == theirs or _are_numbers(ours) or _are_numbers(theirs):
        return
    if sorted(ours) == sorted(theirs):
        raise CheckpointError(
            f"{source}: the model's classes are in the order {', '.join(names)}, {whose} in the order "
            f"{', '.join(class_names)}; give a task block of your own, with label_names in the model's order"
        )
    raise CheckpointError(
        f"{source}: the model's classes are {', '.join(names)}, {whose} are {', '.join(class_names)}; was it fine-tuned on another task? "
        "If they mean the same, write the task's into id2label of its config.json"
    )


def _are_numbers(names: list[str]) -> bool:
    """Whether classes are called by their place alone, as transformers calls them where nobody says more."""
    return all(name in (str(index), f"label_{index}") for index, name in enumerate(names))


def classes_of(bert: BertConfig) -> tuple[str, ...]:
    """What a model's config calls its classes, in order."""
    names = {int(index): str(name) for index, name in (bert.id2label or {}).items()}
    return tuple(names[index] for index in range(len(names)))
