"""Further pre-training: masked language modelling, with next-sentence prediction or alone.

The loss is BertForPreTraining's over the global batch: the mean over its masked tokens, plus the mean over its examples for the sentences.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from bertfast.config import BertfastConfig, Config, InputConfig
from bertfast.data import PRETRAINING, PretrainingSet, load_pretraining_set
from bertfast.engine import DTYPES, Ranks, join_ranks
from bertfast.errors import CheckpointError, ConfigError
from bertfast.model import BertPretrainer
from bertfast.packing import MaskedBatch, PackedBatch, plan_sequential, prefetched
from bertfast.tasks import Task, get_task
from bertfast.training.loader import Loader
from bertfast.training.objectives.objective import Forward, MicroLoss, Objective, Totals
from bertfast.weights import model_folder, read_config, resolve_folder

# M masked tokens of a micro-batch, V vocabulary, B examples, C = 2: the next sentence, or a random one


class MaskedWords(Objective[PretrainingSet]):
    """What a config's `pretrain` block says: text in the place of a task's examples, and a model with the pre-training heads."""

    def __init__(self, config: Config, ranks: Ranks):
        super().__init__(config, ranks)
        if self.settings.pretrain is None:
            raise ConfigError(
                "there is no bertfast.pretrain block; it names the text to pre-train on (it may be empty: {} takes the task's)"
            )
        self._pretrain, self._source_task, self._next_sentence_fault = self.settings.pretrain, get_task(self.settings.task), ""

    @classmethod
    def fits(cls, settings: BertfastConfig) -> bool:
        return settings.pretrain is not None

    @property
    def task(self) -> Task:
        return PRETRAINING

    def training_set(self, tokenizer: Any) -> PretrainingSet:
        return self._load(self.training_source, self._source_task.train_splits[0], tokenizer)

    def evaluation_sets(self, tokenizer: Any) -> dict[str, PretrainingSet]:
        """The held-out text, or the task's splits."""
        source = self.evaluation_source
        if self._pretrain.eval_text_files:
            if self.settings.eval_input is None:
                source = source.model_copy(update={"max_examples": None})  # that of train_input is not meant for held-out text
            return {"dev": self._load(source, "dev", tokenizer)}
        if self.settings.eval_input is None or self._pretrain.text_files:
            return {}
        return {split: self._load(source, split, tokenizer) for split in self._source_task.eval_splits}

    def model(self, checkpoint: str | None = None) -> BertPretrainer:
        settings = self.settings.model
        folder = model_folder(checkpoint or settings.checkpoint)
        return BertPretrainer.from_pretrained(folder, self._pretrain.next_sentence, settings.strict, settings.dropout)

    def trained(self, folder: str, precision: str) -> tuple[BertPretrainer, Any]:
        """See Objective.

        Raises:
            CheckpointError: the folder holds no head for masked words or, where the config asks for them, for next sentences.
        """
        if self.ranks.world_size > 1:
            join_ranks(self.ranks)
        tokenizer = Loader(self.config, self.ranks).tokenizer(folder, folder)
        model = self.model(folder)
        missing = [name for name in model.loaded.missing if not name.startswith(("layers.", "embedding"))]
        if missing:
            raise CheckpointError(
                f"{folder}: has not all heads that the pre-training of this config has ({missing[0]} is missing); pre-train it first, "
                "or set pretrain.next_sentence to false where it is that one which is missing"
            )
        return model.to(self.ranks.device, DTYPES[precision]).eval(), tokenizer

    def begin(self, train_set: PretrainingSet, steps_per_epoch: int, total_steps: int) -> None:
        self._next_sentence_fault = train_set.next_sentence_fault

    def totals(self, batches: list[MaskedBatch], examples: int) -> Totals:
        n_masked = sum(len(_masked_rows(batch)) for batch in batches)
        masked = torch.full((), n_masked, dtype=torch.float32, device=self.ranks.device)
        return Totals(examples, self.ranks.sum(masked).clamp(min=1))

    def loss(self, forward: Forward, batch: MaskedBatch, totals: Totals) -> MicroLoss:
        assert totals.masked_words is not None  # see `totals`
        logits_MV, nsp_BC = forward(batch)
        share, losses_M = pretraining_loss(logits_MV, nsp_BC, batch, totals.masked_words, totals.examples)
        owners = torch.searchsorted(batch.cu_seqlens.long(), _masked_rows(batch), right=True) - 1
        of_example_B1 = losses_M.detach().new_zeros(batch.num_sequences).index_add(0, owners, losses_M.detach())[:, None]
        return MicroLoss(share, of_example_B1, batch.example_ids)

    def metrics(self, model: Any, dataset: PretrainingSet) -> dict[str, float]:
        """mlm_loss and mlm_accuracy over the masked tokens, perplexity, and with next sentences nsp_loss and nsp_accuracy."""
        source = self.evaluation_source
        plan = plan_sequential(
            dataset.lengths, source.batch_size, tokens_per_batch=source.tokens_per_batch, world_size=self.ranks.world_size
        )
        model.eval()
        sums = torch.zeros(6, dtype=torch.float64, device=self.ranks.device)

        def pack(step: int) -> list[PackedBatch]:
            return [dataset.batch(part) for part in plan.micro_batches(step, self.ranks.rank)]

        with torch.inference_mode():
            for batches in prefetched(pack, range(len(plan)), self.ranks.device):
                for batch in batches:
                    assert isinstance(batch, MaskedBatch)
                    sums += _sums(batch, *model(batch))
        masked, mlm, right, examples, nsp, told = self.ranks.sum(sums).tolist()
        loss = mlm / max(masked, 1)
        metrics = {"mlm_loss": loss, "mlm_accuracy": right / max(masked, 1), "perplexity": math.exp(min(loss, 700.0))}
        if self._pretrain.next_sentence:
            metrics |= {"nsp_loss": nsp / max(examples, 1), "nsp_accuracy": told / max(examples, 1)}
        return metrics

    def lines(self) -> list[str]:
        return [f"warning: {self._next_sentence_fault}"] if self._next_sentence_fault else []

    def _load(self, source: InputConfig, split: str, tokenizer: Any) -> PretrainingSet:
        """The first rank builds the cache, the others then find it there."""
        vocab_size = read_config(resolve_folder(model_folder(self.settings.model.checkpoint))).vocab_size
        with self.ranks.first_then_others():
            return load_pretraining_set(self._source_task, source, split, self._pretrain, tokenizer, vocab_size, self.settings.run.seed)


def pretraining_loss(
    logits_MV: torch.Tensor, nsp_BC: torch.Tensor | None, batch: MaskedBatch, n_masked: torch.Tensor | int, n_examples: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A micro-batch's share of the loss of a global batch of so many masked tokens and examples; and the loss of each masked token, [M]."""
    losses_M = F.cross_entropy(logits_MV.float(), _masked_labels(batch), reduction="none")
    loss = losses_M.sum() / n_masked
    return (loss if nsp_BC is None else loss + _nsp_loss(nsp_BC, _nsp_labels(batch)) / n_examples), losses_M


def _nsp_loss(nsp_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(nsp_BC.float(), labels_B.long(), reduction="sum")  # fillers have the label -100


def _sums(batch: MaskedBatch, logits_MV: torch.Tensor, nsp_BC: torch.Tensor | None) -> torch.Tensor:
    """Masked tokens, their loss, how many are right; examples, their loss, how many are right: float64 [6]."""
    words_M, sentences_B = _masked_labels(batch), _nsp_labels(batch)
    mlm = F.cross_entropy(logits_MV.float(), words_M, reduction="sum")
    right = (logits_MV.argmax(-1) == words_M).sum()
    examples = (batch.example_ids >= 0).sum()
    zero = mlm.new_zeros(())
    nsp = zero if nsp_BC is None else _nsp_loss(nsp_BC, sentences_B)
    told = zero if nsp_BC is None else (nsp_BC.argmax(-1) == sentences_B).sum()
    return torch.stack([value.double() for value in (words_M.new_tensor(len(words_M)), mlm, right, examples, nsp, told)])


# What every batch of a PretrainingSet has (see MaskedBatch.of), and a PackedBatch need not have.


def _masked_rows(batch: MaskedBatch) -> torch.Tensor:
    assert batch.masked_rows is not None
    return batch.masked_rows


def _masked_labels(batch: MaskedBatch) -> torch.Tensor:
    assert batch.masked_labels is not None
    return batch.masked_labels


def _nsp_labels(batch: MaskedBatch) -> torch.Tensor:
    assert batch.labels is not None
    return batch.labels
