from .audit import CheckpointWeights, KeptWeights
from .cases import Case, make_cases
from .evidence import KeptEvidence, eager_logits, write_evidence
from .packed_trial import NOT_RUN, judge_packed
from .reference import Answers, checkpoint_hashes
from .trial import agree, batches_of, judge, run_cases
from .verdict import BUDGETS, Evidence, Verdict

__all__ = [
    "BUDGETS",
    "NOT_RUN",
    "Answers",
    "Case",
    "CheckpointWeights",
    "Evidence",
    "KeptEvidence",
    "KeptWeights",
    "Verdict",
    "agree",
    "batches_of",
    "checkpoint_hashes",
    "eager_logits",
    "judge",
    "judge_packed",
    "make_cases",
    "run_cases",
    "write_evidence",
]
