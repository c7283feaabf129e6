"""A BERT of two layers with a vocabulary of a few words, as transformers saves one: small enough for a test to make, load and train."""

from pathlib import Path

WORDS = (
    "a",
    "the",
    "film",
    "is",
    "was",
    "good",
    "great",
    "fine",
    "bad",
    "dull",
    "and",
    "not",
    "very",
    "he",
    "she",
    "runs",
    "sleeps",
    "dog",
    "cat",
)


def write_tiny_bert(folder: Path, num_labels: int | None = None, id2label: dict[int, str] | None = None, **config) -> Path:
    """Write model and tokenizer; with num_labels, a fine-tuned classifier, otherwise a bare encoder."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 128}
    settings = {"vocab_size": len(vocabulary), **sizes, **config}
    torch.manual_seed(0)
    if num_labels is None:
        BertModel(BertConfig(**settings)).save_pretrained(folder)
    else:
        labels = {"id2label": id2label} if id2label else {}
        BertForSequenceClassification(BertConfig(num_labels=num_labels, **labels, **settings)).save_pretrained(folder)
    return folder
