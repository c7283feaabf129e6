"""The whole network on one page: embeddings, encoder, pooler and head over a packed stream of tokens (Devlin et al. 2019).

Each module owns the parameters that its own forward reads, because ZeRO stage 3 gathers parameters module by module. It reads them in the dtype of
its input, which `compute_dtype` sets for all of them: float32 parameters can be trained in bfloat16 products.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from bertfast.config import HeadConfig
from bertfast.errors import CheckpointError
from bertfast.model.heads import ACTIVATIONS, Features, check_head_is_kept, head_of, layers_of, set_head
from bertfast.model.layers import Linear, Pack, RandomBits
from bertfast.model.loading import load_state, read_checkpoint
from bertfast.model.recompute import selectively
from bertfast.packing import AnyBatch, PackedBatch, in_common_rows
from bertfast.tasks import check_same_classes
from bertfast.weights import (
    GELU_FORMS,
    MULTILABEL,
    OWN_ARCHITECTURE,
    LoadReport,
    check_config,
    classes_of,
    head_of_another,
    to_transformers_names,
    without_layers,
    write_weights,
)
from bertfast_kernels import (
    bias_gelu,
    dropout_add_layer_norm,
    embedding_layer_norm,
    query_and_keys,
    varlen_attention,
    varlen_cls_attention,
)

if TYPE_CHECKING:
    from transformers import BertConfig, BertForSequenceClassification

# T tokens, B sequences, N heads, H head size, D hidden, F feed-forward (or features), C classes, V vocabulary, P positions, S segments

_OF_HEADS = ("classifier.", "head.")  # how the names of a head's tensors begin, in a checkpoint


class BertEncoder(nn.Module):
    """Embeddings and encoder layers: what every model of ours begins with.

    `config` is a transformers BertConfig. `compute_dtype` is the dtype of everything between the embeddings and the logits; None takes that of
    the parameters. `load_report` is None until weights are loaded.
    """

    def __init__(self, config: BertConfig, embeddings: type[Embeddings]):
        super().__init__()
        check_config(config)
        self.config = config
        self.embeddings = embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.compute_dtype: torch.dtype | None = None
        self.load_report: LoadReport | None = None

    @property
    def loaded(self) -> LoadReport:
        """What became of the checkpoint's weights, of a model that was loaded from one."""
        assert self.load_report is not None
        return self.load_report

    def initialise_rest(self) -> None:
        """Fill what the checkpoint that was loaded has left out."""
        initialise(self, self.config.initializer_range, set(self.state_dict()).difference(self.loaded.loaded))

    def in_rows(self, batch: AnyBatch) -> AnyBatch:
        """The batch as the layers are to have it: in 16 bits on a CPU with padding tokens behind it, so that its number of rows is a common one.

        oneDNN compiles each product for its number of rows, in 2 to 5 ms, and rows vary from step to step: 43 % of a step of MiniLM on SST-2.
        """
        dtype = self.compute_dtype or self.embeddings.word.dtype
        return in_common_rows(batch) if batch.input_ids.device.type == "cpu" and dtype.itemsize == 2 else batch

    def set_recomputing(self, recomputes: bool) -> None:
        """Whether every layer makes anew in the backward what is cheap to compute; see EncoderLayer."""
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            layer.recomputes = recomputes


class Reader(BertEncoder):
    """A BERT encoder and what a head reads of it (see HeadConfig): everything below the hidden layers and the logits."""

    def __init__(self, config: BertConfig):
        super().__init__(config, Embeddings)
        self.head = head_of(config)
        self.pooler = Linear(config.hidden_size, config.hidden_size) if self.head.pooler else None
        self.features = Features(config, self.head)
        self.classifier_dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout

    def read(self, batch: PackedBatch, bits: RandomBits | None) -> tuple[torch.Tensor, Pack]:
        """Features [B, F] of each example, after dropout, and the pack of these rows."""
        n_tokens, batch = batch.num_tokens, self.in_rows(batch)
        pack = pack_of(batch, bits, self.training)
        x_XD, chosen = self.embeddings(batch, pack, self.compute_dtype), []
        wanted = layers_of(self.head)
        for index, layer in enumerate(self.layers):
            cls_only = index == len(self.layers) - 1 and self.head.pooling == "cls"
            x_XD = layer(x_XD, pack, cls_only)
            if index in wanted:
                chosen.append(x_XD if cls_only else x_XD[:n_tokens])
        rows = pack.cls_rows()
        if batch.cu_pieces is not None:
            rows = rows.rows(batch.cu_pieces[:-1].long())
        return rows.drop(self.features(chosen, pack, batch.cu_pieces, self.pooler), self.classifier_dropout, self._site), rows

    def hidden_layers(self) -> nn.ModuleList:
        """New hidden layers of one head."""
        sizes = (self.features.size, *self.head.hidden_sizes)
        return nn.ModuleList(Linear(size, wide) for size, wide in zip(sizes, sizes[1:], strict=False))

    def classifier_of(self, num_labels: int) -> Linear:
        """A new last layer of one head."""
        return Linear((self.features.size, *self.head.hidden_sizes)[-1], num_labels)

    def logits(self, x_BF: torch.Tensor, rows: Pack, hidden: nn.ModuleList, classifier: Linear) -> torch.Tensor:
        """Features [B, F] of the examples of `rows` through one head: [B, C]."""
        for number, layer in enumerate(hidden, 1):
            x_BF = rows.drop(ACTIVATIONS[self.head.activation](layer(x_BF)), self.classifier_dropout, self._site + number)
        return classifier(x_BF)

    @property
    def _site(self) -> int:
        """Where the head's dropout begins to count its sites."""
        return 3 * len(self.layers) + 1


class BertClassifier(Reader):
    """A BERT encoder with a head (see HeadConfig). `model(batch)` takes a PackedBatch and gives logits [B, C].

    `config.num_labels` is C (1 means regression); see BertEncoder for the rest. Not `filled`, its matrices hold nothing yet.
    """

    def __init__(self, config: BertConfig, filled: bool = True):
        super().__init__(config)
        assert config.num_labels is not None  # a BertConfig that is told nothing of labels has two
        self.num_labels = config.num_labels
        self.hidden = self.hidden_layers()
        self.classifier = self.classifier_of(self.num_labels)
        if filled:
            initialise(self, config.initializer_range)

    def forward(self, batch: PackedBatch, bits: RandomBits | None = None) -> torch.Tensor:
        """Logits [B, C]. In training mode `bits` feeds dropout; left out, torch's generator seeds it."""
        x_BF, rows = self.read(batch, bits)
        return self.logits(x_BF, rows, self.hidden, self.classifier)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_name: str,
        num_labels: int | None = None,
        label_names: tuple[str, ...] | None = None,
        *,
        strict: bool = True,
        new_head: bool = False,
        overrides: dict | None = None,
        head: HeadConfig | None = None,
        config: BertConfig | None = None,
        several: bool | None = None,
    ) -> BertClassifier:
        """Load a checkpoint of a BERT encoder, transformers' or TensorFlow's, with or without a classification head, in float32.

        Args:
            folder_or_name: a local folder, or a model's name on the hub.
            num_labels: C; left out, the checkpoint's own. A head of another C does not fit, unless with `new_head`.
            label_names: what the classes are called, in order; written to id2label when the model is saved.
            strict: False reports missing and misshapen weights, and leaves them as initialised, in place of an error.
            new_head: make the classification head anew even where the checkpoint has one that fits. One that answers something else than a
                text's class or score (BertForTokenClassification's, say) is never taken.
            overrides: config values to replace, for example {"hidden_dropout_prob": 0.0}.
            head: what to make of the encoder's outputs; left out, what the checkpoint's config.json says. Encoder layers above the highest
                that the head reads are left out, and so is a pooler that it does not use.
            config: the folder's, where it is read already.
            several: whether any number of the labels may hold of a text (sigmoid), or one does (softmax); left out, what the checkpoint says.

        Raises:
            CheckpointError: naming the folder and the tensors that do not fit; or the head is kept, and its classes are not label_names, or not of
                their kind.
            ConfigError: the head names a layer that the encoder has not, or is not the one that the checkpoint has trained and is to keep.
        """
        config, state = read_checkpoint(folder_or_name, overrides, config)
        keeps_head = not new_head and head_of_another(config) is None and any(name.startswith(_OF_HEADS) for name in state)
        if keeps_head and label_names is not None and config.num_labels == len(label_names):
            check_same_classes(classes_of(config), label_names, str(folder_or_name), "those of the task")
        if several is not None:
            _set_kind(config, several, keeps_head, str(folder_or_name))
        if num_labels is not None:
            config.num_labels = num_labels
        if label_names is not None:
            config.id2label = dict(enumerate(label_names))
            config.label2id = {name: index for index, name in enumerate(label_names)}
        if not keeps_head:
            state = {name: tensor for name, tensor in state.items() if not name.startswith(_OF_HEADS)}
        n_layers = config.num_hidden_layers
        if head is not None and keeps_head:
            check_head_is_kept(config, head, str(folder_or_name))
        if head is not None:
            set_head(config, head)
        model = cls(config, filled=False)
        state = without_layers(state, range(config.num_hidden_layers, n_layers), pooler=model.pooler is not None)
        model.load_report = model.load_transformers_state(state, source=str(folder_or_name), strict=strict)
        model.initialise_rest()
        return model

    @classmethod
    def from_transformers(cls, model: BertForSequenceClassification) -> BertClassifier:
        """The same network as a transformers BertForSequenceClassification, with copies of its weights."""
        ours = cls(model.config, filled=False)
        ours.load_report = ours.load_transformers_state(model.state_dict(), source=type(model).__name__, strict=True)
        ours.initialise_rest()
        return ours

    def load_transformers_state(self, state: dict[str, torch.Tensor], source: str, strict: bool = True) -> LoadReport:
        """Copy weights under transformers' names into the model; see `from_pretrained` for `strict`."""
        return load_state(self, state, source, strict)

    def save_pretrained(self, folder: str, state: dict[str, torch.Tensor] | None = None) -> None:
        """Write config.json and model.safetensors, which transformers' AutoModelForSequenceClassification loads unchanged where it has such a
        head; with any other, config.json names no class of transformers, and `from_pretrained` reads the head from it.

        state: the parameters by our names, where the model itself does not hold them whole (ZeRO stage 3).
        """
        write_classifier(folder, self.config, self.state_dict() if state is None else state)


def _set_kind(config: BertConfig, several: bool, keeps_head: bool, source: str) -> None:
    """Have `config` say whether a text has several labels; a head that is kept answers as it was trained to."""
    if keeps_head and config.problem_type is not None and several != (config.problem_type == MULTILABEL):
        raise CheckpointError(
            f"{source}: its head was trained for {config.problem_type}, and the task is of {'several labels' if several else 'one label'} a text; "
            "have a new one made (model.is_pretrained_checkpoint)"
        )
    config.problem_type = "multi_label_classification" if several else None


def write_classifier(folder: str, config: BertConfig, state: dict[str, torch.Tensor]) -> None:
    """Write a classifier by its config and its parameters, by our names; see BertClassifier.save_pretrained."""
    plain = head_of(config).is_plain
    architecture = "BertForSequenceClassification" if plain else OWN_ARCHITECTURE
    write_weights(folder, config, to_transformers_names(state, plain), architecture)


def pack_of(batch: PackedBatch, bits: RandomBits | None, training: bool) -> Pack:
    """What the layers need to know of a batch; in training mode with the bits for dropout, torch's where there are none."""
    if not training:
        return Pack(batch.cu_seqlens, batch.max_seqlen, None, batch.position_ids, None)
    bits = bits or RandomBits.from_torch(batch.input_ids.device)
    example_ids_T = None
    if bits.key is not None:
        ids = batch.example_ids if batch.piece_ids is None else batch.piece_ids
        padding = (0, 1)  # tokens that belong to no sequence are those of a filler
        lengths = F.pad(batch.cu_seqlens, padding, value=batch.num_tokens).diff()
        example_ids_T = F.pad(ids, padding, value=-1).repeat_interleave(lengths, output_size=batch.num_tokens)
    return Pack(batch.cu_seqlens, batch.max_seqlen, example_ids_T, batch.position_ids, bits)


def initialise(model: nn.Module, std: float, names: Collection[str] | None = None) -> None:
    """BERT's initialisation of a model's matrices and of the biases beside them. names: of these parameters alone."""
    for prefix, module in model.named_modules():
        matrices = ("weight",) if isinstance(module, Linear) else ("word", "position", "segment") if isinstance(module, Embeddings) else ()
        for name, parameter in module.named_parameters(recurse=False):
            if names is not None and f"{prefix}.{name}".removeprefix(".") not in names:
                continue
            if name in matrices:
                nn.init.normal_(parameter, std=std)
            elif name == "bias" and isinstance(module, Linear):
                nn.init.zeros_(parameter)


class Embeddings(nn.Module):
    """Word, segment and position embeddings, LayerNorm, dropout: ids [T] -> [T, D] of `dtype`, or of that of the parameters.

    sparse_gradient: that of the words may hold the rows alone that were read; whoever takes the step must know of it.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.segment = nn.Parameter(torch.empty(config.type_vocab_size, config.hidden_size))
        self.position = nn.Parameter(torch.empty(config.max_position_embeddings, config.hidden_size))
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.eps = config.layer_norm_eps
        self.p = config.hidden_dropout_prob
        self.sparse_gradient = False

    def forward(self, batch: PackedBatch, pack: Pack, dtype: torch.dtype | None = None) -> torch.Tensor:
        ids = (batch.input_ids, batch.token_type_ids, batch.position_ids)
        tables = (self.word, self.segment, self.position)
        return embedding_layer_norm(*ids, *tables, self.weight, self.bias, self.eps, pack.dropout(self.p, 0), dtype, self.sparse_gradient)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with dropout, residual and LayerNorm: [T, D] -> [T, D].

    With cls_only, the queries and all that follows them are computed for the [CLS] rows alone: [B, D]. With rows, int64 [R], all that follows
    the attention is computed for those: [R, D]. With `recomputes`, what is cheap to compute is not kept for the backward (see recompute.py).
    """

    def __init__(self, config: BertConfig, index: int):
        super().__init__()
        size, wide = config.hidden_size, config.intermediate_size
        self.qkv = QkvProjection(size, config.num_attention_heads)
        self.attention_out = Linear(size, size, bias=False)
        self.attention_norm = DropoutAddLayerNorm(config, site=3 * index + 2)
        self.ffn_up = Linear(size, wide, bias=False)
        self.gelu = BiasGelu(wide, GELU_FORMS[config.hidden_act])
        self.ffn_down = Linear(wide, size, bias=False)
        self.ffn_norm = DropoutAddLayerNorm(config, site=3 * index + 3)
        self.attention_p, self.attention_site = config.attention_probs_dropout_prob, 3 * index + 1
        self.recomputes = False

    def forward(self, x_TD: torch.Tensor, pack: Pack, cls_only: bool = False, rows: torch.Tensor | None = None) -> torch.Tensor:
        dropout = pack.dropout(self.attention_p, self.attention_site)
        if cls_only:
            cls = pack.first_rows()
            q_BNH, kv_T2NH = self.qkv(x_TD, cls)
            heads_TD = varlen_cls_attention(q_BNH, kv_T2NH, pack.cu_seqlens, pack.max_seqlen, dropout)
            x_TD, pack = x_TD[cls], pack.cls_rows()
        else:
            heads_TD = varlen_attention(self.qkv(x_TD), pack.cu_seqlens, pack.max_seqlen, dropout)
        if rows is not None:
            heads_TD, x_TD, pack = heads_TD.index_select(0, rows), x_TD.index_select(0, rows), pack.rows(rows)
        if self.recomputes and not cls_only and torch.is_grad_enabled():
            return selectively(self._after_attention, heads_TD, x_TD, pack)
        return self._after_attention(heads_TD, x_TD, pack)

    def _after_attention(self, heads_TD: torch.Tensor, x_TD: torch.Tensor, pack: Pack) -> torch.Tensor:
        x_TD = self.attention_norm(self.attention_out(heads_TD), x_TD, pack)
        return self.ffn_norm(self.ffn_down(self.gelu(self.ffn_up(x_TD))), x_TD, pack)


class QkvProjection(Linear):
    """Queries, keys and values in one product: [T, D] -> [T, 3, N, H]; with rows [B], q [B, N, H] of those rows and kv [T, 2, N, H] of all."""

    def __init__(self, hidden_size: int, n_heads: int):
        super().__init__(hidden_size, 3 * hidden_size)
        self.heads = (n_heads, hidden_size // n_heads)

    def forward(self, x_TD: torch.Tensor, query_rows: torch.Tensor | None = None):
        if query_rows is None:
            return super().forward(x_TD).unflatten(1, (3, *self.heads))
        q_BD, kv_T2D = query_and_keys(x_TD, query_rows, self.weight, self.bias, self.in_features)
        return q_BD.unflatten(1, self.heads), kv_T2D.unflatten(1, (2, *self.heads))


class DropoutAddLayerNorm(nn.Module):
    """LayerNorm(residual + dropout(x + x_bias)); x_bias is the bias of the product that made x."""

    def __init__(self, config: BertConfig, site: int):
        super().__init__()
        self.x_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.eps, self.p, self.site = config.layer_norm_eps, config.hidden_dropout_prob, site

    def forward(self, x_TD: torch.Tensor, residual_TD: torch.Tensor, pack: Pack) -> torch.Tensor:
        parameters = (self.x_bias, residual_TD, self.weight, self.bias)
        return dropout_add_layer_norm(x_TD, *parameters, self.eps, pack.dropout(self.p, self.site))


class BiasGelu(nn.Module):
    """gelu(x + bias); bias is that of the product that made x."""

    def __init__(self, size: int, approximate: str):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))
        self.approximate = approximate

    def forward(self, x_TF: torch.Tensor) -> torch.Tensor:
        return bias_gelu(x_TF, self.bias, self.approximate)
