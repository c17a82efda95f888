"""Floor 8: what verdicts mean, in a sentence and in a colour."""

GRADES = {
    "bracketed": "good",
    "healthy": "good",
    "finished": "good",
    "early": "good",
    "approximate": "note",
    "wide": "caution",
    "one-sided": "caution",
    "interrupted": "caution",
    "terminated": "caution",
    "unusable": "bad",
    "inconsistent": "bad",
    "non-finite draws": "bad",
    "frozen chains": "bad",
    "frozen dimensions": "bad",
    "runaway chains": "bad",
    "drifting chains": "bad",
    "energy drifts": "bad",
    "chains disagree": "bad",
    "low ESS": "caution",
    "low acceptance": "caution",
    "divergences": "bad",
    "diverged": "bad",
}
"""Colour class of a verdict; what is not listed deserves caution."""

LOG_Z = {
    "bracketed": "log Z is held between two bounds that agree; the numbers below can be relied on.",
    "approximate": "Both sides of log Z agree, but the upper one starts at long chains rather than exact draws, so it "
    "is an estimate and no bound; a mode that no chain has found would not show.",
    "wide": "The two sides of log Z are more than 1 nat apart: read the conservative side only, or anneal longer.",
    "one-sided": "log Z was estimated from one direction only, so the density is not certified from above.",
    "inconsistent": "The lower side of log Z lies above the upper: the two directions contradict each other, and no "
    "number below can be relied on.",
    "unusable": "A handful of chains carries all the weight: log Z is not known, and no likelihood below can be relied "
    "on.",
}

PROVENANCE = {
    "exact": "The reverse chains started at exact draws of the model: both sides are stochastic bounds, each given at "
    "4 standard errors.",
    "approximate": "The reverse chains started at long adjusted chains, not at exact draws: the upper side of log Z, "
    "and with it the lower side of the log-likelihood, is approximate.",
    "none": "Only one direction was annealed: there is no second side to hold log Z from above.",
}

STOPPED = {
    "finished": "Training ran to its last step.",
    "early": "Training stopped early because the validation log-likelihood no longer improved.",
    "interrupted": "Training was interrupted and can be resumed.",
    "terminated": "Training was told to stop and can be resumed.",
}


NUMBERS = {
    "objective": "objective of training",
    "kernel": "kernel of training",
    "negatives": "negatives of training",
    "chains": "chains of training",
    "temperature": "temperature of training",
    "adjusted": "accept step in training",
    "acceptance_rate": "acceptance rate of the chains below",
    "step_size": "step size of the chains below",
    "r_hat": "largest R-hat",
    "nested_r_hat": "largest nested R-hat",
    "ess": "smallest bulk ESS",
    "divergent": "share of divergent transitions",
    "ess_per_gradient": "ESS per energy gradient",
}
"""How a report calls the numbers of a sampler and of its check; others keep their names."""


def grade(verdict: str) -> str:
    """Return good, note, caution or bad for a verdict ("diverged: reason" counts as "diverged")."""
    return GRADES.get(verdict.split(":")[0].strip(), "caution")
