"""The factor by which a loss is multiplied so that its gradients are not lost in fp16 (Micikevicius et al. 2018, section 3.2)."""

from __future__ import annotations

from typing import NamedTuple


class LossScale(NamedTuple):
    """How the factor moves. It is divided by 2 after an overflow, and multiplied by 2 after `window` steps on end without one.

    first: at the start. adapts: False keeps it as it is. hysteresis: the so-manieth overflow divides it, those before only use this up; renews: each
    step without an overflow gives it back, not only a multiplication. least: it is not divided further. As in torch's GradScaler, with
    the hysteresis of DeepSpeed's.
    """

    first: float = 2.0**16
    adapts: bool = True
    window: int = 1000
    hysteresis: int = 2
    renews: bool = False
    least: float = 1.0
