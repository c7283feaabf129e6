"""What is exported, and how: the fine-tuned classifier of a folder, and the options of an export."""

from __future__ import annotations

from typing import Literal

from transformers import BertConfig

from bertfast.config import BertfastConfig, TaskConfig, load_config
from bertfast.errors import CheckpointError, ConfigError
from bertfast.model import BertClassifier, check_trained, head_of
from bertfast.reporting import MODEL_CONFIG_FILE
from bertfast.storage import named
from bertfast.tasks import Task, get_task
from bertfast.weights import MULTILABEL, classes_of, load_tokenizer, model_folder, read_config, resolve_folder, task_of_model
from bertfast.wording import counted
from bertfast_export.bundle.planned import refuse_head, refuse_truncation
from bertfast_export.contract import TOKENIZER_FILE, Options, skipped_variants


class Candidate:
    """The fine-tuned classifier to export: its model, tokenizer and task, and the data that its config names."""

    def __init__(self, folder_or_name: str, options: Options, block: BertfastConfig | None = None, is_pair: bool = False):
        self.folder = named(resolve_folder(model_folder(folder_or_name)))
        self.name = self.folder.parent.name if self.folder.name == "model" else self.folder.name
        bert = self.bert = read_config(self.folder)
        self.head = head_of(bert)
        refuse_head(self.head, f"{self.folder}: bertfast_head")
        self.skipped = skipped_variants((*options.variants, *(["packed"] if options.packed else [])), not self.head.is_plain)
        self.model = BertClassifier.from_pretrained(str(self.folder), config=bert).eval()
        check_trained(self.model.loaded, bert)
        self.tokenizer = load_tokenizer(self.folder, bert)
        own = self.folder / MODEL_CONFIG_FILE
        self.block = block or (load_config(own).bertfast if own.is_file() else None)
        if self.block:
            refuse_truncation(self.block.truncation, f"{self.folder}: bertfast.truncation")
        task = get_task(self.block.task) if self.block else _task_of_labels(bert, is_pair)
        self.task = task_of_model(task, bert, self.folder)
        inputs = (self.block.eval_input, self.block.train_input) if self.block else ()
        configured = next((part.max_sequence_length for part in inputs if part is not None), None)
        positions = bert.max_position_embeddings
        self.max_sequence_length = options.max_sequence_length or min(configured or positions, positions)
        if self.max_sequence_length > positions:
            raise ConfigError(f"max_sequence_length = {self.max_sequence_length}, but the model has {positions} positions")
        self._refuse_tokenizer()

    def labels(self) -> list[str]:
        """The classes' names in order; of a regression, none."""
        return [] if self.task.is_regression else list(self.task.class_names)

    def _refuse_tokenizer(self) -> None:
        """Raise for a tokenizer that the clients of a bundle cannot have, or whose tokens the model cannot take."""
        tokenizer, is_pair = self.tokenizer, self.task.is_pair
        if not tokenizer.is_fast:
            raise CheckpointError(
                f"{self.folder}: its tokenizer ({type(tokenizer).__name__}) has no {TOKENIZER_FILE}, which the clients of a bundle read; it cannot be exported"
            )
        if tokenizer.split_special_tokens:
            raise CheckpointError(
                f"{self.folder}: split_special_tokens in its tokenizer_config.json: those who use a bundle read [SEP] in a text as that token, and would "
                "give other answers; take it out and train again, or do not export it"
            )
        example = ("a", "a") if is_pair else ("a",)
        tokens = tokenizer(*example, return_token_type_ids=True)
        segment, segments = max(tokens["token_type_ids"]), self.bert.type_vocab_size
        if segment >= segments:
            what = f"{'the second text of a pair' if is_pair else 'a text'} is of segment {segment} by the tokenizer"
            remedy = "export it without --pairs, for single texts" if is_pair else "name the checkpoint's own tokenizer"
            raise CheckpointError(f"{self.folder}: {what}, and the model has {counted(segments, 'segment')} (type_vocab_size); {remedy}")
        special = len(tokens["input_ids"]) - len(example)
        if self.max_sequence_length < special:
            raise ConfigError(f"max_sequence_length = {self.max_sequence_length}: the special tokens alone are {special}; give more")


def _task_of_labels(bert: BertConfig, is_pair: bool) -> Task:
    """A task for a folder that tells no more than its labels: texts in the column `text`, and of a pair in `text_pair`."""
    names = None if bert.num_labels == 1 else classes_of(bert)
    columns = ("text", "text_pair") if is_pair else ("text",)
    several: Literal["several"] | None = "several" if bert.problem_type == MULTILABEL else None
    metric = "pearson" if names is None else None
    config = TaskConfig(name="text-classification", text_columns=columns, label_names=names, labels=several, metric=metric)
    return get_task(config)
