"""Activations made anew in the backward where that is cheap (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer
Models"): the outputs of GELU and LayerNorm and the masks of dropout. The results of matrix products are kept.

A layer keeps 7D + F numbers a token in place of 8D + 2F (D hidden, F feed-forward): with F = 4D 5 of 16 less, for one more pass of GELU and LayerNorm.
(The other LayerNorm's output is the next layer's input, from which everything else is made.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from bertfast.model.layers import Pack, RandomBits

# T tokens, D hidden

_KEPT = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


def selectively(function: Callable[[Tensor, Tensor, Pack], Tensor], a_TD: Tensor, b_TD: Tensor, pack: Pack) -> Tensor:
    """function(a, b, pack), of which only a, b and the results of matrix products are kept for the backward; the rest is computed again there.

    Dropout by key repeats itself. A stream is taken up again where it stood.
    """
    stream = None if pack.bits is None else pack.bits.stream
    stood = None if stream is None else stream.bit_generator.state
    calls = iter(range(2))

    def call(a_TD: Tensor, b_TD: Tensor) -> Tensor:
        if next(calls) == 0 or stream is None or stood is None:
            return function(a_TD, b_TD, pack)
        again = np.random.Generator(type(stream.bit_generator)())
        again.bit_generator.state = stood
        return function(a_TD, b_TD, pack._replace(bits=RandomBits(stream=again)))

    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(call, a_TD, b_TD, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _policy(context: Any, op: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
