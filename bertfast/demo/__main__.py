"""`make demo`: fine-tune a small BERT on sentences that the project writes itself, from nothing to answers, with no download.

It writes a natural-language-inference set (see `language`), makes a WordPiece tokenizer for it and a BERT with random weights,
starts `deepspeed launch.py` as a user would, and shows what came out. All files lie in one folder: runs/demo, or what --output says.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import shlex
import shutil
import socket
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bertfast.demo.language import DEV_TEMPLATES, LABEL_NAMES, TRAIN_TEMPLATES, Pair, frames, generate
from bertfast.errors import BertfastError
from bertfast.storage import replacing
from bertfast.weights import DEMO

CONFIG = "ds_demo.json"
TRAIN_ROWS = 45_000
DEV_ROWS = 1_500
_DEV_SEED_OFFSET = 1_000_003  # the dev set's random numbers are other ones than the training set's
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Written by hand, in sentences of the dev set's templates.
EXAMPLES = (
    Pair("the picture shows that a dog is running in the park", "they say that there is an animal moving outdoors", "entailment"),
    Pair("it was the woman that we saw sleeping in the office", "we can say that the woman was swimming", "contradiction"),
    Pair("they say that there is a person resting at noon", "the picture shows that a child is sleeping at noon", "neutral"),
    Pair("at midnight it was a small black cat that was seen sitting", "after dark , they say , the cat is sitting", "entailment"),
    Pair("there can be seen in the kitchen a man , sitting", "we say that outdoors there was a man sitting", "contradiction"),
)


class Folders(NamedTuple):
    """Where the demo keeps what it makes."""

    root: Path

    @property
    def train_file(self) -> Path:
        return self.root / "data" / "train.tsv"

    @property
    def dev_file(self) -> Path:
        return self.root / "data" / "dev.tsv"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def training(self) -> Path:
        return self.root / "training"

    @property
    def model(self) -> Path:
        return self.training / "model"

    @property
    def bundle(self) -> Path:
        return self.training / "onnx"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    arguments = _parse(argv)
    try:
        return _run(arguments, Folders(arguments.output))
    except BertfastError as error:
        print(f"bertfast.demo: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bertfast.demo: interrupted", file=sys.stderr)
        return 130


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bertfast.demo", description="Fine-tune a small BERT on a generated inference set.")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="the folder for all that the demo makes")
    parser.add_argument("--seed", type=int, default=42, help="chooses the sentences, the first weights and the order of training")
    parser.add_argument("--rows", type=int, default=TRAIN_ROWS, help="training rows")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help=f"replace a value of {CONFIG}; see bertfast train --help"
    )
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace, folders: Folders) -> int:
    train, dev = write_data(folders, arguments.rows, DEV_ROWS, arguments.seed)
    print(
        f"{folders.train_file}: {len(train):,} pairs of sentences from {len(TRAIN_TEMPLATES)} templates\n"
        f"{folders.dev_file}: {len(dev):,} pairs from {len(DEV_TEMPLATES)} others, which training never sees",
        flush=True,
    )
    write_checkpoint(folders.checkpoint, train, arguments.seed)
    shutil.rmtree(folders.training, ignore_errors=True)
    command = training_command(folders, arguments.seed, arguments.set)
    print(f"\n$ deepspeed {shlex.join(command[2:])}\n", flush=True)
    code = subprocess.run(command).returncode
    if code != 0:
        print(f"bertfast.demo: training ended with exit code {code}; its messages stand above", file=sys.stderr)
        return code
    show(folders, majority_share(train, dev))
    return 0


def write_data(folders: Folders, train_rows: int, dev_rows: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Generate both sets and write them as TSV files with a header.

    Raises:
        BertfastError: a dev template that is one of the training templates too.
    """
    shared = frames(TRAIN_TEMPLATES) & frames(DEV_TEMPLATES)
    if shared:
        raise BertfastError(f"the dev templates must be new to the model, but training has these too: {sorted(shared)}")
    train = generate(train_rows, TRAIN_TEMPLATES, seed)
    dev = generate(dev_rows, DEV_TEMPLATES, seed + _DEV_SEED_OFFSET)
    for path, pairs in ((folders.train_file, train), (folders.dev_file, dev)):
        with replacing(path) as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE)
            writer.writerow(Pair._fields)
            writer.writerows(pairs)
    return train, dev


def write_checkpoint(folder: Path, pairs: Sequence[Pair], seed: int) -> None:
    """Write a checkpoint to fine-tune: a WordPiece tokenizer for the words of `pairs`, and a BERT of 2 layers with random weights."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    vocabulary = _wordpiece_vocabulary(pairs)
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(vocabulary), pad_token_id=vocabulary["[PAD]"], **DEMO)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab=vocabulary, model_max_length=config.max_position_embeddings).save_pretrained(folder)


def _wordpiece_vocabulary(pairs: Sequence[Pair]) -> dict[str, int]:
    """Token -> id: the special tokens, single characters, from which any other word can be spelt, and every word of `pairs`.

    Not learned with `tokenizers`: its trainer breaks ties at random (0.23), so that a seed would not give the same ids twice.
    """
    words = {word for pair in pairs for sentence in (pair.premise, pair.hypothesis) for word in sentence.split()}
    characters = sorted({*string.ascii_lowercase, *string.digits, *string.punctuation})
    tokens = (*_SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters), *sorted(words - set(characters)))
    return {token: index for index, token in enumerate(tokens)}


def training_command(folders: Folders, seed: int, overrides: Sequence[str] = ()) -> list[str]:
    """`deepspeed launch.py --config ds_demo.json ...`, by this Python; where bertfast is installed without launch.py, as a module."""
    launch = Path(__file__).resolve().parents[2] / "launch.py"
    settings = {
        "bertfast.model.checkpoint": folders.checkpoint,
        "bertfast.train_input.data_file": folders.train_file,
        "bertfast.eval_input.data_file": folders.dev_file,
        "bertfast.train_input.cache_dir": folders.root / "cache",
        "bertfast.eval_input.cache_dir": folders.root / "cache",
        "bertfast.run.model_dir": folders.training,
        "bertfast.run.seed": seed,
    }
    exports = ["bertfast.export={}"] if can_export() else []
    assignments = [*(f"{key}={json.dumps(value, default=str)}" for key, value in settings.items()), *exports, *overrides]
    return [
        sys.executable,
        str(Path(sys.executable).with_name("deepspeed")),
        *("--num_gpus", "1", "--master_port", str(_free_port()), "--log_level", "warning"),
        *([str(launch)] if launch.is_file() else ["--module", "bertfast"]),
        *("--config", CONFIG),
        *(word for assignment in assignments for word in ("--set", assignment)),
    ]


def can_export() -> bool:
    """Whether the packages that an export needs are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "bertfast_export"))


def _free_port() -> int:
    """A port of this machine that nothing listens on, so that two demos can run at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def majority_share(train: Sequence[Pair], dev: Sequence[Pair]) -> float:
    """The dev accuracy of whoever always answers the training set's most frequent label."""
    label, _ = Counter(pair.label for pair in train).most_common(1)[0]
    return sum(pair.label == label for pair in dev) / len(dev)


def show(folders: Folders, majority: float) -> None:
    """Print the results of the run, and the examples as the saved model classifies them."""
    from rich.console import Console
    from rich.table import Table

    results = json.loads((folders.training / "results.json").read_text(encoding="utf-8"))
    training = results["training"]
    summary = Table("measure", "value", title="The demo's results")
    summary.add_row("dev accuracy, on templates that training never saw", f"{results['metrics']['dev']['accuracy']:.1%}")
    summary.add_row("the same, always answering the most frequent label", f"{majority:.1%}")
    summary.add_row("training", f"{training['samples_per_second']:,.0f} samples/s")
    summary.add_row("share of real tokens in a batch", f"{training['real_token_share']:.1%}")
    summary.add_row("the same, padded to the longest of the batch", f"{training['real_token_share_if_padded']:.1%}")
    for row in exported(folders.bundle):
        summary.add_row(*row)

    answers = Table("premise", "hypothesis", *LABEL_NAMES, "should be", title=f"Five pairs classified by {folders.model}")
    for pair, probabilities in zip(EXAMPLES, classify(folders.model, EXAMPLES), strict=True):
        best = max(probabilities)
        cells = (f"[bold]{p:.0%}[/bold]" if p == best else f"{p:.0%}" for p in probabilities)
        answers.add_row(pair.premise, pair.hypothesis, *cells, pair.label)

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(summary, answers, sep="\n")


def exported(bundle: Path) -> list[tuple[str, str]]:
    """Rows of what was exported: each verified file, and how many of its answers on the dev set are the trained model's."""
    record = bundle / "verification.json"
    if not record.is_file():
        return [("exported to ONNX", "no: pip install 'bertfast[export]'")]
    verdicts = json.loads(record.read_text(encoding="utf-8"))["verdicts"]
    return [
        (f"{name} in {bundle.name}: the same answers on dev", f"{verdict['data']['dev']['agreement']:.2%}")
        for name, verdict in verdicts.items()
    ]


def classify(folder: Path, pairs: Sequence[Pair]) -> list[list[float]]:
    """The probability of each of LABEL_NAMES for each pair, by a fine-tuned model's folder."""
    import torch
    from transformers import AutoTokenizer

    from bertfast.model import BertClassifier
    from bertfast.packing import PackedBatch

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertClassifier.from_pretrained(str(folder)).eval()
    features = tokenizer([pair.premise for pair in pairs], [pair.hypothesis for pair in pairs], padding=True, return_tensors="np")
    with torch.inference_mode():
        probabilities_BC = model(PackedBatch.from_features(features)).softmax(dim=-1)
    numbers = model.config.label2id
    assert numbers is not None, "a classifier's config counts its classes"
    order = [int(numbers[name]) for name in LABEL_NAMES]
    return probabilities_BC[:, order].tolist()


if __name__ == "__main__":
    sys.exit(main())
