"""What a run takes from disk or hub: its tokenizer, its encoded datasets and its model, each held against the others."""

from __future__ import annotations

from typing import Any

from bertfast.config import BertfastConfig, Config, HeadConfig, InputConfig
from bertfast.data import NO_EVALUATION, EncodedDataset, TrainingSet, describe, load_dataset_for
from bertfast.engine import DTYPES, Ranks, join_ranks
from bertfast.errors import ConfigError
from bertfast.model import BertClassifier, BertEncoder, check_trained
from bertfast.tasks import Task, get_task
from bertfast.weights import load_tokenizer, model_folder, read_config, resolve_folder, task_of_model


def head_to_train(settings: BertfastConfig) -> tuple[bool, HeadConfig | None]:
    """Whether training makes a new head, and which head it asks for: none (the checkpoint's own) where it keeps that of a fine-tuned model, and
    the config says nothing of another."""
    model = settings.model
    new_head = model.is_pretrained_checkpoint or model.load_checkpoint_states is None
    return new_head, settings.head if new_head or "head" in settings.model_fields_set else None


class Loader:
    """Loads for one config on one rank. `task` starts as the config's and is completed by what is loaded (a user's own label names, say)."""

    def __init__(self, config: Config, ranks: Ranks):
        self.settings = config.bertfast
        self.ranks = ranks
        self.task: Task = get_task(self.settings.task)

    def tokenizer(self, folder_or_name: str | None = None, checkpoint_folder: str | None = None) -> Any:
        """The tokenizer of one folder, held against the model of another; left out, both are the config's."""
        source = self.settings.model
        own = resolve_folder(model_folder(checkpoint_folder or source.checkpoint))
        given = resolve_folder(model_folder(folder_or_name or source.tokenizer or str(own)))
        return load_tokenizer(given, read_config(own), belongs_to=own)

    def dataset(self, source: InputConfig, split: str, tokenizer: Any) -> EncodedDataset:
        """A split, encoded: the first rank builds the cache, the others then find it there."""
        with self.ranks.first_then_others():
            return load_dataset_for(self.task, source, split, tokenizer, self.settings.run.seed, self.settings.truncation)

    def training_set(self, tokenizer: Any) -> EncodedDataset:
        """The examples to train on; their task becomes this loader's.

        Raises:
            ConfigError: there are none, or they have no labels.
        """
        if self.settings.train_input is None:
            raise ConfigError("bertfast.train_input is missing; it names the training data")
        dataset = self.dataset(self.settings.train_input, "train", tokenizer)
        if dataset.labels is None:
            raise ConfigError(f"{dataset.source}: has no labels to train on")
        if len(dataset) == 0:
            raise ConfigError(f"{dataset.source}: holds no examples to train on")
        self.task = dataset.task
        return dataset

    def evaluation_sets(self, tokenizer: Any) -> dict[str, EncodedDataset]:
        """The task's splits to evaluate on, by name; none without an eval_input."""
        source = self.settings.eval_input
        if source is None:
            return {}
        return {split: self.dataset(source, split, tokenizer) for split in self.task.eval_splits}

    def data_lines(self, train_set: EncodedDataset, eval_sets: dict[str, EncodedDataset]) -> list[str]:
        """What validate says of these splits, in the same words."""
        settings = self.settings
        lines = [f"train_input: train: {describe(train_set, get_task(settings.task), settings.truncation)}"]
        lines += [f"eval_input: {split}: {describe(data, self.task, settings.truncation)}" for split, data in eval_sets.items()]
        return lines if settings.eval_input is not None else [*lines, f"eval_input: {NO_EVALUATION}"]

    def model(self, folder_or_name: str, new_head: bool) -> BertClassifier:
        """The classifier in a folder, with the config's dropout and, with `new_head`, a fresh head unless the config wants to keep the old one."""
        settings = self.settings.model
        new_head, head = head_to_train(self.settings) if new_head else (False, None)  # a fine-tuned model's own is in its config.json
        return BertClassifier.from_pretrained(
            model_folder(folder_or_name),
            self.task.num_labels,
            self.task.label_names,
            strict=settings.strict,
            new_head=new_head,
            overrides={**settings.dropout, "classifier_dropout": self.settings.head.dropout},
            head=head,
            several=self.task.is_multilabel,
        )

    def trained(self, folder: str, precision: str) -> tuple[BertClassifier, Any]:
        """A fine-tuned model, ready for inference on this rank's device, and its tokenizer.

        Raises:
            CheckpointError: the folder holds no classifier, or one of another task.
        """
        if self.ranks.world_size > 1:
            join_ranks(self.ranks)
        tokenizer = self.tokenizer(folder, folder)
        place = resolve_folder(model_folder(folder))
        self.task = task_of_model(self.task, read_config(place), place)
        model = self.model(folder, new_head=False)
        check_trained(model.loaded, model.config)
        return model.to(self.ranks.device, DTYPES[precision]).eval(), tokenizer


def check_fit(dataset: TrainingSet, model: BertEncoder) -> None:
    """Hold data against a model: token ids within its vocabulary, lengths within its positions.

    Raises:
        ConfigError, DataError: naming the example or the key at fault.
    """
    positions = model.config.max_position_embeddings
    if dataset.max_sequence_length > positions:
        raise ConfigError(
            f"max_sequence_length = {dataset.max_sequence_length}, but the checkpoint has {positions} position embeddings; set it to {positions} or less"
        )
    dataset.check_vocabulary(model.config.vocab_size, model.config.type_vocab_size)
