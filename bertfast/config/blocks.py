"""The blocks of the config's `bertfast` block, key by key; `schema` puts them together."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Variant = Literal["portable", "optimized", "fp16", "int8", "packed_cpu", "openvino"]  # of an exported classifier
# What is written where nobody says: OpenVINO is an install of its own.
VARIANTS: tuple[Variant, ...] = tuple(name for name in get_args(Variant) if name != "openvino")
OPENVINO_VARIANTS = ("openvino", "openvino-bf16", "openvino-int8", "openvino-int8-bf16")  # how a bundle's files for OpenVINO may be run
HEAD_KEY = "bertfast_head"  # of config.json, where the head is not transformers' own


class Block(BaseModel):
    """A block of the config: frozen, with no other keys than its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class TaskConfig(Block):
    """A task of the user's own: which columns hold the text and the label."""

    name: str = "custom"
    text_columns: tuple[str, ...] = Field(min_length=1, max_length=2)  # one sentence, or a pair
    label_column: str = "label"
    labels: Literal["one", "several"] | None = None  # a text's; left out: one, or several where the data hold lists, or a key below says so
    label_columns: tuple[str, ...] | None = Field(
        default=None, min_length=2
    )  # of several labels: a column of 0 and 1 for each, in class order
    label_separator: str | None = Field(
        default=None, min_length=1
    )  # of several labels in a field; left out: "|", ";" or ",", as the data have it
    label_names: tuple[str, ...] | None = None  # in class order; left out, they are read from the training data
    kind: Literal["classification", "regression"] | None = None  # what labels are; left out: label_names, metric, or how they look, tells
    metric: str | None = None  # chooses the best checkpoint; left out: accuracy, pearson for regression, micro_f1 for several labels

    @property
    def is_multilabel(self) -> bool:
        """Whether it says that a text has several labels; the data may say so too."""
        return self.labels == "several" or self.label_columns is not None or self.label_separator is not None


def check_one_source(part: Block) -> None:
    """Raise ValueError where an input names more than one source of examples."""
    named = [name for name in ("data_dir", "data_file", "input_fn") if getattr(part, name) is not None]
    if len(named) > 1:
        raise ValueError(f"give one of data_dir, data_file and input_fn, not {' and '.join(named)}")


class HeadConfig(Block):
    """What is made of the encoder's outputs: layers -> tokens pooled -> layers combined -> pieces combined -> hidden layers -> logits.

    The default, the last layer's [CLS] through the NSP pooler, is transformers' own head.
    """

    dropout: float | None = Field(default=None, ge=0, lt=1)  # left out: classifier_dropout of the checkpoint, else hidden_dropout_prob
    layers: tuple[int, ...] | None = Field(default=None, min_length=1)  # encoder layers, from 0 or, from the top, -1; left out: the last
    layer_pooling: Literal["concat", "mean", "max"] = "concat"  # how several layers become one vector
    pooling: Literal["cls", "mean", "max", "mean_max", "attention"] = "cls"  # how a layer's tokens become one vector
    pooler: bool | None = None  # whether vectors go through the NSP pooler; left out: yes for [CLS] with `layers` left out, no for the rest
    hidden_sizes: tuple[int, ...] = ()  # of hidden layers between features and logits, each with an activation and dropout
    activation: Literal["tanh", "gelu", "relu"] = "tanh"  # of the hidden layers
    pieces: Literal["mean", "max", "attention"] = "mean"  # how the pieces of a document are combined, with truncation "hierarchical"

    @model_validator(mode="after")
    def _whole_numbers(self) -> HeadConfig:
        if any(size < 1 for size in self.hidden_sizes):
            raise ValueError("hidden_sizes must be 1 or more each")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether transformers' BertForSequenceClassification is the same head: one layer's [CLS], through the pooler, to the logits."""
        one, pooler = self.layers is None or len(self.layers) == 1, self.layers is None if self.pooler is None else self.pooler
        return one and pooler and self.pooling == "cls" and not self.hidden_sizes and self.pieces == "mean"

    def describe(self) -> str:
        """The head in words; its layers must be named."""
        assert self.layers is not None, "described once they are known"
        tokens = {"cls": "[CLS]", "mean_max": "the mean and the maximum of the tokens", "attention": "an attention over the tokens"}
        words = f"{tokens.get(self.pooling, f'the {self.pooling} of the tokens')} of encoder layer"
        words += f" {self.layers[0]}" if len(self.layers) == 1 else f"s {', '.join(map(str, self.layers))} ({self.layer_pooling})"
        words += ", counted from 0" + (", through the NSP pooler" if self.pooler else "")
        if self.hidden_sizes:
            words += f", and hidden layers of {', '.join(map(str, self.hidden_sizes))} ({self.activation})"
        return words + (f"; the pieces of a long document are combined by {self.pieces}" if self.pieces != "mean" else "")


class TruncationConfig(Block):
    """Which tokens of a text with more than max_sequence_length are read, in training, evaluation and prediction alike."""

    strategy: Literal["head", "tail", "head_tail", "hierarchical"] = "head"  # hierarchical: all of them, in pieces that are combined
    head_tokens: int | None = Field(default=None, ge=1)  # for head_tail: how many are of the text's beginning; left out: half
    overlap: int = Field(default=0, ge=0)  # for hierarchical: tokens that a piece has in common with the one before it
    max_pieces: int | None = Field(default=None, ge=1)  # for hierarchical: how many of the first are read; left out: all

    @model_validator(mode="after")
    def _keys_of_the_strategy(self) -> TruncationConfig:
        for key, strategy in (("head_tokens", "head_tail"), ("overlap", "hierarchical"), ("max_pieces", "hierarchical")):
            if getattr(self, key) and self.strategy != strategy:
                raise ValueError(f"{key} is for strategy {strategy!r}, and the strategy is {self.strategy!r}")
        return self

    @property
    def is_hierarchical(self) -> bool:
        return self.strategy == "hierarchical"


class OptimizationConfig(Block):
    """Rates by layer, what is trained when, and the schedule."""

    schedule: Literal["linear", "cosine", "constant", "slanted_triangular"] = "linear"  # with run.warmup_steps (or warmup_ratio) of rise
    layer_learning_rate: tuple[float, ...] | None = Field(
        default=None, min_length=1
    )  # the top layer's, or one for each; left out: the optimizer's
    layer_learning_rate_decay: float | None = Field(default=None, gt=0, le=1)  # a layer's rate over that of the one above it; left out: 1
    frozen_layers: Annotated[int, Field(ge=0)] | Literal["all"] | None = (
        None  # not trained: the embeddings and so many of the lowest layers
    )
    unfreeze_epochs: float | None = Field(
        default=None, gt=0
    )  # the head is trained first, and a layer more each so many epochs, from the top

    @model_validator(mode="after")
    def _rates(self) -> OptimizationConfig:
        if any(rate < 0 for rate in self.layer_learning_rate or ()):
            raise ValueError("layer_learning_rate must be 0 or more")
        if len(self.layer_learning_rate or ()) > 1 and self.layer_learning_rate_decay is not None:
            raise ValueError("layer_learning_rate_decay is for one layer_learning_rate, and there are several; leave it out")
        return self

    @property
    def is_by_layer(self) -> bool:
        """Whether parts of the model differ in their rates."""
        return any(value is not None for value in (self.layer_learning_rate, self.layer_learning_rate_decay, self.unfreeze_epochs))


class LossConfig(Block):
    """What is minimised, where it is not plain cross entropy or squared error."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)  # share of the label that is spread over all classes (Szegedy et al. 2016)
    # of each class, in order or by name (those left out have 1); balanced: by its share of the training data
    class_weights: tuple[float, ...] | dict[str, float] | Literal["balanced"] | None = None
    # of several labels a text, what a label counts where it holds: one number, or as class_weights; balanced: texts without it over those with it
    pos_weight: float | tuple[float, ...] | dict[str, float] | Literal["balanced"] | None = None
    focal_gamma: float = Field(
        default=0.0, ge=0
    )  # focal loss: examples count (1 - p)^gamma, p being the label's probability (Lin et al. 2017)
    r_drop: float = Field(default=0.0, ge=0)  # weight of the divergence between two passes with other dropout (Liang et al. 2021)

    @model_validator(mode="after")
    def _one_of_two(self) -> LossConfig:
        if self.label_smoothing and self.focal_gamma:
            raise ValueError("label_smoothing and focal_gamma contradict each other: one doubts the label, the other trusts it; choose one")
        for name in ("class_weights", "pos_weight"):
            given = getattr(self, name)
            numbers = given.values() if isinstance(given, dict) else [given] if isinstance(given, float) else given
            if not isinstance(numbers, str) and min(numbers or (0,)) < 0:
                raise ValueError(f"{name} must be 0 or more")
        return self


class TextInput(Block):
    """The training text of a known task: its folder, a file of its columns, or neither for the hub."""

    task: str
    data_dir: str | None = None
    data_file: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TextInput:
        if self.data_dir is not None and self.data_file is not None:
            raise ValueError("give one of data_dir and data_file, not both")
        return self


class PretrainConfig(Block):
    """Further pre-training: the text, and what is asked of it. The text is that of text_files, or else the task's own; and that of inputs."""

    text_files: tuple[str, ...] = ()  # UTF-8, lines of sentences or paragraphs, blank lines between documents
    eval_text_files: tuple[str, ...] = ()  # held out, of the same form
    inputs: tuple[TextInput, ...] = ()  # the training text of known tasks too, after that of the files or of `task`
    next_sentence: bool = True  # False: masked language modelling alone
    masked_lm_prob: float = Field(default=0.15, gt=0, lt=1)  # share of an example's tokens that are to be predicted
    max_predictions_per_seq: int | None = Field(default=None, ge=1)  # of an example; left out: no limit
    whole_word_mask: bool = False
    dupe_factor: int | None = Field(
        default=None, ge=1
    )  # so many copies with masks of their own, once for all; left out: new masks each epoch
    short_seq_prob: float = Field(
        default=0.1, ge=0, le=1
    )  # share of examples that are made shorter than max_sequence_length, with next_sentence


WHOLE_HEAD = TruncationConfig()  # what every BERT tokenizer does


class ModelConfig(Block):
    """Where the weights come from, and how strictly."""

    checkpoint: str  # a local folder, or the name of a model on the hub
    tokenizer: str | None = None  # left out: the checkpoint's own
    strict: bool = True  # False: missing, unexpected and misshapen encoder weights are reported and passed over
    is_pretrained_checkpoint: bool = False  # True: a classification head in the checkpoint is left aside and a new one made
    load_checkpoint_states: Literal["model"] | None = None  # "model": from a training checkpoint, take the weights and nothing else
    hidden_dropout_prob: float | None = Field(default=None, ge=0, lt=1)
    attention_probs_dropout_prob: float | None = Field(default=None, ge=0, lt=1)
    # "selective": outputs of GELU and LayerNorm, and dropout's masks, are computed again in the backward: 5/16 less activations to keep
    gradient_checkpointing: Literal[False, "selective"] = False

    @property
    def dropout(self) -> dict[str, float | None]:
        """The encoder's dropout by BertConfig's names; None keeps the checkpoint's."""
        return {name: getattr(self, name) for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")}


class InputConfig(Block):
    """One input: where its examples come from, and how they are cut into batches. Exactly one source, or none for the hub."""

    data_dir: str | None = None  # the folder of a known task
    data_file: str | None = None  # a CSV, TSV, JSONL or Parquet file
    input_fn: str | None = None  # "package.module:function", called as function(params), which yields feature dictionaries
    max_sequence_length: int = Field(default=128, ge=2)  # tokens, [CLS] and [SEP] included; left out of eval_input: as in train_input
    batch_size: int = Field(default=32, ge=1)  # examples in a global batch, over all ranks and micro-steps
    planner: Literal["examples", "tokens"] = "examples"
    tokens_per_batch: int | None = Field(default=None, ge=2)  # the token budget of one micro-batch, for planner "tokens"
    max_examples: int | None = Field(default=None, ge=1)  # a random subset of this size, by run.seed; an input_fn is told of it
    shuffle: bool = True
    cache_dir: str | None = None  # left out: $BERTFAST_CACHE, or ~/.cache/bertfast
    num_workers: int | None = Field(default=None, ge=1)  # tokenising threads; left out: as run.threads

    @model_validator(mode="after")
    def _one_source(self) -> InputConfig:
        check_one_source(self)
        if self.planner == "tokens" and self.tokens_per_batch is None:
            raise ValueError("planner 'tokens' needs tokens_per_batch, the token budget of one micro-batch")
        if self.tokens_per_batch is not None and self.tokens_per_batch < self.max_sequence_length:
            raise ValueError(
                f"tokens_per_batch is {self.tokens_per_batch}, less than max_sequence_length {self.max_sequence_length}: "
                "the longest example would fit in no micro-batch"
            )
        return self


class RunConfig(Block):
    """How long, how often, and where to."""

    model_dir: str = "runs/model"
    epochs: float = Field(default=3.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)  # optimizer steps; overrides epochs
    seed: int = Field(default=42, ge=0, lt=2**32)
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)  # share of all steps
    warmup_steps: int | None = Field(default=None, ge=0)  # optimizer steps; overrides warmup_ratio
    eval_steps: int | None = Field(default=None, ge=1)  # optimizer steps between evaluations; left out: each epoch
    save_steps: int | None = Field(default=None, ge=1)  # optimizer steps between checkpoints, beside the one at each evaluation
    logging_steps: int = Field(default=10, ge=1)  # optimizer steps between log records
    keep_checkpoints: int = Field(default=2, ge=1)
    early_stopping_patience: int | None = Field(default=None, ge=1)  # evaluations without a better metric
    packing_invariant_dropout: bool | None = None  # left out: on for a GPU, off on a CPU, where it is slower
    # Steps as CUDA graphs, on batches padded to few sizes. "auto": whole steps, on one GPU in 16 bits, wherever the rest of the config allows it; the run's
    # log says where it does not. true: an error where it cannot be; beside DeepSpeed's own step (several ranks, float32) forward and backward are then recorded.
    cuda_graphs: Literal["auto"] | bool = "auto"
    threads: int | None = Field(default=None, ge=1)  # CPU threads per rank; left out: OMP_NUM_THREADS, or else a rank's part of the cores


class ExportConfig(Block):
    """What `bertfast train` exports once it has trained; an empty block means all the defaults. Needs the packages of bertfast[export]."""

    output: str | None = None  # the bundle's folder; left out: run.model_dir/onnx
    variants: tuple[Variant, ...] = Field(VARIANTS, min_length=1)  # "openvino" needs the packages of bertfast[openvino]
    opset: int = Field(default=20, ge=18, le=23)
    integers: Literal["int64", "int32"] = "int64"  # of the inputs
    layout: Literal["flat", "triton"] = "flat"
