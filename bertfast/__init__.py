"""bertfast: fine-tune BERT classifiers on packed sequences, and ship them."""

__version__ = "0.1.0"
