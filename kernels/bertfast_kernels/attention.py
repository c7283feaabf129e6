"""Variable-length softmax attention over packed sequences (the maths: reference_attention.py)."""

from __future__ import annotations

from bertfast_kernels.reference_attention import varlen_attention, varlen_cls_attention

__all__ = ["varlen_attention", "varlen_cls_attention"]


def variants(shape) -> list:
    """What a training step of an encoder of this shape launches: no kernel yet, attention is the twin's."""
    return []
