"""The section of a report on a classifier: what its classes and its probabilities are worth."""

import numpy as np

from energyflow import plots
from energyflow.report.folder import Run, get
from energyflow.report.markup import number, paragraph, picture, table

CAPTION = (
    "Left: how often the class is right where the classifier is how sure; on the line it is as sure as it should be, "
    "below the line too sure. Right: how many rows are in each bin."
)


def classes(run: Run) -> str:
    """Accuracy, likelihood and calibration of p(y|x) on the test rows."""
    found = get(run.summary, "classifier")
    if not found:
        return paragraph("No test row has a label, so the classes were not judged.", "absent")
    linear = found.get("linear_accuracy")
    rows = [
        ("accuracy", number(found.get("accuracy"), 3), f"a linear classifier of the same rows has {number(linear, 3)}"),
        ("cross entropy (nats)", number(found.get("nll"), 3), "minus the mean of log p(y|x)"),
        ("Brier score", number(found.get("brier"), 3), "squared distance of the probabilities from the class, 0 to 2"),
        (
            "calibration error",
            number(found.get("calibration_error"), 3),
            f"{number(found.get('calibration_floor'), 3)} if every probability were true",
        ),
    ]
    text = f"Of {number(found.get('num_rows'))} labelled test rows, which training never saw."
    parts = [table(("", "value", ""), rows), paragraph(text, "quiet")]
    bins = {name: np.array(values, float) for name, values in (found.get("reliability") or {}).items()}
    if bins:
        parts.append(picture(lambda: plots.reliability_plot(**bins), "Accuracy by confidence", CAPTION))
    return "".join(parts)
