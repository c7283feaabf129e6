"""The errors that bertfast raises on purpose; each message names what is wrong, where, and what to do.

The command line prints the message alone (no traceback) and exits with `exit_code`.
"""

from __future__ import annotations


class BertfastError(Exception):
    """A fault in what bertfast was given; its message is meant for the user."""

    exit_code = 2


class ConfigError(BertfastError):
    """A config, a flag or an override that cannot be used."""


class DataError(BertfastError):
    """A data file, or a row of it, that cannot be used."""


class CheckpointError(BertfastError):
    """A model or tokenizer folder, or a training checkpoint, that cannot be used."""


class OutOfMemoryError(BertfastError):
    """Memory ran out, a GPU's or the machine's; the message names the keys that make a run need less."""


class NonFiniteLossError(BertfastError):
    """The loss became NaN or infinite; the message names the step and the examples."""

    exit_code = 3


class Terminated(BertfastError):
    """SIGTERM arrived; the training state was saved before leaving."""

    exit_code = 143


class Interrupted(Terminated):
    """The same for SIGINT, which is Ctrl-C."""

    exit_code = 130


class ExportError(BertfastError):
    """A graph, a bundle or an ONNX Runtime that cannot be used."""


class VerificationError(BertfastError):
    """An exported model does not behave like the model it was made from; the message names the failing case."""

    exit_code = 4
