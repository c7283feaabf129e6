"""The encoder with BERT's two pre-training heads, over a packed stream: a decoder for the masked tokens alone, and next-sentence logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from bertfast.model.bert import BertEncoder, Embeddings, initialise, pack_of
from bertfast.model.layers import Linear, Pack, RandomBits
from bertfast.model.loading import load_state, read_checkpoint
from bertfast.packing import MaskedBatch, PackedBatch
from bertfast.weights import GELU_FORMS, LoadReport, check_tied, to_transformers_names, write_weights
from bertfast_kernels import bias_gelu

if TYPE_CHECKING:
    from transformers import BertConfig

# T tokens, B sequences, M masked tokens, R rows of the last layer, D hidden, V vocabulary


class BertPretrainer(BertEncoder):
    """`model(batch)` takes a MaskedBatch and gives the logits of its masked tokens [M, V] and the next-sentence logits [B, 2], in which class
    0 is the sentence that follows and 1 a random one (None without `next_sentence`). The decoder's matrix is the word embeddings.

    What follows the last layer's attention is computed for the rows alone that are looked at: those of masked tokens and of [CLS].
    """

    def __init__(self, config: BertConfig, next_sentence: bool = True, filled: bool = True):
        super().__init__(config, _TiedEmbeddings)
        self.next_sentence = next_sentence
        self.pooler = Linear(config.hidden_size, config.hidden_size)
        self.predictions = _Predictions(config)
        self.seq_relationship = Linear(config.hidden_size, 2) if next_sentence else None
        if filled:
            initialise(self, config.initializer_range)
        if not next_sentence:
            self.pooler.requires_grad_(False)  # kept as it came, for the fine-tuning that follows

    def forward(self, batch: MaskedBatch, bits: RandomBits | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch = self.in_rows(batch)
        pack = pack_of(batch, bits, self.training)
        x_TD = self.embeddings(batch, pack, self.compute_dtype)
        for layer in self.layers[:-1]:
            x_TD = layer(x_TD, pack)
        assert batch.masked_rows is not None  # see MaskedBatch.of
        n_masked = len(batch.masked_rows)
        rows = torch.cat((batch.masked_rows, batch.cu_seqlens[:-1].long()))  # [CLS] always: a batch of fillers has nothing masked
        x_RD = self.layers[-1](x_TD, pack, rows=rows)
        logits_MV = self.embeddings(None, None, hidden_MD=self.predictions(x_RD[:n_masked]))
        if self.seq_relationship is None:
            return logits_MV, None
        return logits_MV, self.seq_relationship(torch.tanh(self.pooler(x_RD[n_masked:])))

    @classmethod
    def from_pretrained(
        cls, folder_or_name: str, next_sentence: bool = True, strict: bool = True, overrides: dict | None = None
    ) -> BertPretrainer:
        """Load an encoder, and its pre-training heads where it has them, in float32. Raises CheckpointError as BertClassifier's does."""
        config, state = read_checkpoint(folder_or_name, overrides)
        check_tied(config, str(folder_or_name))
        model = cls(config, next_sentence, filled=False)
        model.load_report = model.load_transformers_state(state, str(folder_or_name), strict)
        model.initialise_rest()
        return model

    def load_transformers_state(self, state: dict[str, torch.Tensor], source: str, strict: bool = True) -> LoadReport:
        """Copy weights under transformers' names into the model."""
        others = ("classifier.", "features.", "hidden.")  # heads of a classifier
        leave_out = others if self.next_sentence else (*others, "seq_relationship.")
        return load_state(self, state, source, strict, pretraining=True, leave_out=leave_out)

    def save_pretrained(self, folder: str, state: dict[str, torch.Tensor] | None = None) -> None:
        """Write config.json and model.safetensors as transformers' BertForPreTraining (BertForMaskedLM without next_sentence) loads them, and
        bertfast's fine-tuning too. state: see BertClassifier.save_pretrained."""
        architecture = "BertForPreTraining" if self.next_sentence else "BertForMaskedLM"
        write_weights(folder, self.config, to_transformers_names(self.state_dict() if state is None else state), architecture=architecture)


class _TiedEmbeddings(Embeddings):
    """The embeddings, which are the decoder too: in one module, because ZeRO stage 3 gathers parameters module by module."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.decoder_bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, batch: PackedBatch | None, pack: Pack | None, dtype: torch.dtype | None = None, hidden_MD: torch.Tensor | None = None
    ) -> torch.Tensor:
        if hidden_MD is None:
            assert batch is not None and pack is not None  # they are left out for the decoder alone
            return super().forward(batch, pack, dtype)
        return nn.functional.linear(hidden_MD, self.word.to(hidden_MD.dtype), self.decoder_bias.to(hidden_MD.dtype))


class _Predictions(Linear):
    """LayerNorm(gelu(x W^T + b)): [M, D] -> [M, D]."""

    def __init__(self, config: BertConfig):
        super().__init__(config.hidden_size, config.hidden_size, bias=False)
        self.dense_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.norm_weight = nn.Parameter(torch.ones(config.hidden_size))
        self.norm_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.eps, self.approximate = config.layer_norm_eps, GELU_FORMS[config.hidden_act]

    def forward(self, x_MD: torch.Tensor) -> torch.Tensor:
        dtype = x_MD.dtype
        x_MD = bias_gelu(nn.functional.linear(x_MD, self.weight.to(dtype)), self.dense_bias, self.approximate)
        return nn.functional.layer_norm(x_MD, self.norm_weight.shape, self.norm_weight.to(dtype), self.norm_bias.to(dtype), self.eps)
