"""A trained model and texts in memory: the same answers, by the same names, as `OnnxClassifier` gives from an exported bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from bertfast.calibration import read_calibration
from bertfast.config import Config, InputConfig, load_config
from bertfast.data import encode
from bertfast.engine import Ranks, start_ranks
from bertfast.errors import ConfigError, DataError
from bertfast.model import BertClassifier
from bertfast.readers import RawSplit, texts_and_pairs
from bertfast.reporting import MODEL_CONFIG_FILE
from bertfast.tasks import Calibration, Prediction, Task, predictions_of
from bertfast.training import Loader, compute_logits
from bertfast.weights import model_folder, read_config, resolve_folder

_BATCH_SIZE = 256
_BATCH_TOKENS = 8192  # of a batch at most: beyond, a larger one is no faster


class Classifier:
    """A fine-tuned classifier for texts in memory. May be called from several threads, one call at a time.

    labels: what the classes are called, in the order of `predict_proba`; none of a regression. task: what is asked of a text.
    """

    def __init__(
        self, model: BertClassifier, tokenizer: Any, config: Config, task: Task, ranks: Ranks, calibration: Calibration, is_open: bool
    ):
        """is_open: nothing says whether the model is for single texts or for pairs, so each call does."""
        self._model, self._tokenizer, self._block, self._ranks, self._is_open = model, tokenizer, config.bertfast, ranks, is_open
        self.task, self.calibration = task, calibration
        self.labels: tuple[str, ...] = () if task.is_regression else task.class_names

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | None = None,
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        threads: int | None = None,
        max_sequence_length: int | None = None,
    ) -> Classifier:
        """The classifier in a folder: that of a run or a training checkpoint, or any BERT classifier of transformers.

        Args:
            device: "cpu", "gpu", or None for a GPU where there is one.
            precision: what is computed in; "bf16" is faster on a CPU with the instructions, and on a GPU; "fp16" is for GPUs.
            threads: of the CPU; left out, those that torch uses already, or all of the process.
            max_sequence_length: tokens that a text is cut to; left out, as in training, or else the model's positions.

        Raises:
            CheckpointError: there is no classifier of texts, or it cannot be read.
            ConfigError: the device is not there, or the precision is none that it has.
        """
        if device not in (None, "cpu", "gpu"):
            raise ConfigError(f"device = {device!r}: give 'cpu', 'gpu', or None for a GPU where there is one")
        place = resolve_folder(model_folder(str(folder)))
        bert = read_config(place)
        length = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        file = place / MODEL_CONFIG_FILE
        if file.is_file():
            config = load_config(file)
        else:
            task = {"name": "text-classification", "text_columns": ["text"]}
            whole = {"max_sequence_length": bert.max_position_embeddings}
            config = load_config({"bertfast": {"task": task, "model": {"checkpoint": str(place)}, "eval_input": whole}})
        source = (config.bertfast.eval_input or config.bertfast.train_input or InputConfig()).model_copy(update=length)
        if source.max_sequence_length > bert.max_position_embeddings:
            raise ConfigError(
                f"max_sequence_length = {source.max_sequence_length}, but the model has {bert.max_position_embeddings} positions"
            )
        config = Config(config.deepspeed, config.bertfast.model_copy(update={"eval_input": source}), config.path)
        ranks = replace(start_ranks(device, threads), rank=0, world_size=1)  # a launcher's other processes have classifiers of their own
        if precision not in ("fp32", "bf16", "fp16") or (precision == "fp16" and ranks.device.type == "cpu"):
            raise ConfigError(
                f"precision = {precision!r}: give 'fp32' or 'bf16'" + (", or 'fp16' on a GPU" if precision != "fp16" else " on a CPU")
            )
        loader = Loader(config, ranks)
        model, tokenizer = loader.trained(str(place), precision)
        return cls(model, tokenizer, config, loader.task, ranks, read_calibration(place, loader.task), is_open=not file.is_file())

    def predict(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None) -> list[Prediction]:
        """One answer a text (or pair of texts), in order.

        Raises:
            DataError: texts and text_pairs are not of one length, or are no lists of strings; or pairs for a model of single texts, or single texts for
                one of pairs.
        """
        return predictions_of(self.task, self.logits(texts, text_pairs), self.calibration)

    def predict_proba(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None) -> np.ndarray:
        """The probabilities [n, C], float64, in the order of `labels`; of several labels a text each is that of its label alone. Raises as `predict` does, and

        ConfigError: of a regression, which has none.
        """
        if self.task.is_regression:
            raise ConfigError("a regression has no probabilities; its numbers are logits[:, 0], or the scores of predict")
        return self.calibration.probabilities(self.task, self.logits(texts, text_pairs))

    def logits(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None) -> np.ndarray:
        """Logits [n, C], float32, in the order of the texts, by packed batches. Raises as `predict` does."""
        texts, text_pairs = texts_and_pairs(texts, text_pairs)
        task = self._task_of(text_pairs is not None)
        if not texts:
            return np.zeros((0, task.num_labels), dtype=np.float32)
        rows, source = RawSplit.from_texts(task, texts, text_pairs, source="texts"), self._block.eval_input
        assert source is not None, "from_pretrained sets it"
        with TemporaryDirectory(prefix="bertfast-") as scratch:
            data = encode(rows, self._tokenizer, source.max_sequence_length, scratch, truncation=self._block.truncation)
            budget = {"batch_size": _BATCH_SIZE, "tokens_per_batch": max(_BATCH_TOKENS, int(data.lengths.max()))}
            return compute_logits(self._model, data, source.model_copy(update=budget), task.num_labels, self._ranks)

    def _task_of(self, is_pair: bool) -> Task:
        if self.task.is_pair == is_pair:
            return self.task
        if self._is_open:
            return replace(self.task, text_columns=("text", "text_pair") if is_pair else ("text",))
        if is_pair:
            raise DataError("this model was trained on single texts, and text_pairs were given; leave them out")
        raise DataError("this model was trained on pairs of texts: give the second ones too, as text_pairs")
