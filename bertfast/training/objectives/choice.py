"""Which form of learning a config asks for."""

from __future__ import annotations

from bertfast.config import Config
from bertfast.engine import Ranks
from bertfast.training.objectives.classification import Classification
from bertfast.training.objectives.masked_words import MaskedWords
from bertfast.training.objectives.objective import Objective
from bertfast.training.objectives.several_tasks import SeveralTasks

FORMS: tuple[type[Objective], ...] = (MaskedWords, SeveralTasks, Classification)


def objective_of(config: Config, ranks: Ranks, pretrains: bool = False) -> Objective:
    """The objective of a config, whose `pretrain` block counts with `pretrains` alone: one config may serve both steps.

    Raises:
        ConfigError: `pretrains`, and there is no such block; or a task that is not known.
    """
    if pretrains:
        return MaskedWords(config, ranks)
    config = config.without_pretraining()
    return next(form for form in FORMS if form.fits(config.bertfast))(config, ranks)
