"""Floor 6: what a trained energy is good for: telling outliers, classifying, making draws like the data."""

from energyflow.evaluation.attacks import Robustness, pgd, robustness
from energyflow.evaluation.classifiers import (
    Classification,
    Reliability,
    batch_logits,
    classification,
    classify,
    linear_probe,
)
from energyflow.evaluation.ood import Interval, OodReport, ood_report, ood_table
from energyflow.evaluation.quality import frechet_distance, maximum_mean_discrepancy, memorisation, precision_recall
from energyflow.evaluation.scores import (
    class_logits,
    class_probability_score,
    energy_score,
    gradient_norm_score,
    likelihood_ratio,
    mutated,
)

__all__ = [
    "Classification",
    "Interval",
    "OodReport",
    "Reliability",
    "Robustness",
    "batch_logits",
    "class_logits",
    "class_probability_score",
    "classification",
    "classify",
    "energy_score",
    "frechet_distance",
    "gradient_norm_score",
    "likelihood_ratio",
    "linear_probe",
    "maximum_mean_discrepancy",
    "memorisation",
    "mutated",
    "ood_report",
    "ood_table",
    "pgd",
    "precision_recall",
    "robustness",
]
