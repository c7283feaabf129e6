"""What a model's folder tells beside its weights: its tokenizer, and the classes that it was trained to tell apart."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast.errors import CheckpointError
from bertfast.tasks import Task, task_of_classes
from bertfast.weights.config_keys import MULTILABEL
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
    """`task`, its classes taken from the config of the fine-tuned model in `folder` where they are not known; see `task_of_classes`."""
    several = None if bert.problem_type is None else bert.problem_type == MULTILABEL
    return task_of_classes(task, None if bert.num_labels == 1 else classes_of(bert), str(folder), several)


def classes_of(bert: BertConfig) -> tuple[str, ...]:
    """What a model's config calls its classes, in order."""
    names = {int(index): str(name) for index, name in (bert.id2label or {}).items()}
    return tuple(names[index] for index in range(len(names)))
