"""A density can find outliers likelier than its own data, and the ratio to a density of the background cannot.

Points have 50 dimensions of background and 2 of content. Outliers are 3.5 standard deviations of content away, and a
fifth narrower in every dimension of the background: narrow points are likely, and 50 dimensions outvote 2. A background
model knows the 50 as well and of the content only its range. What both models explain cancels in the difference of
their energies; log Z is not needed. The models are the exact densities, so nothing here is a failure of training.
Run: python examples/likelihood_paradox.py [--plot FILE]
"""

import argparse

import numpy as np

import energyflow as ef
from energyflow.evaluation import energy_score, likelihood_ratio, ood_report, ood_table
from energyflow.plots.style import BLUE, VERMILLION, histogram, label, legend, new_axes, shared_bins

ROWS, CONTENT, BACKGROUND = 2500, 2, 50
SHIFT, NARROW, RANGE = 2.5, 0.8, 10.0
DATA, COARSE = (
    ef.energies.gaussian(np.zeros(CONTENT + BACKGROUND), covariance=np.diag([width**2] * CONTENT + [1.0] * BACKGROUND))
    for width in (1.0, RANGE)
)


def points(seed: int) -> tuple[np.ndarray, np.ndarray]:
    inside, outside = np.random.default_rng(seed).normal(size=(2, ROWS, CONTENT + BACKGROUND))
    outside[:, :CONTENT] += SHIFT
    outside[:, CONTENT:] *= NARROW
    return inside, outside


def main(plot: str | None) -> None:
    sets = points(0)
    scores = {
        "log density": [energy_score(DATA, x) for x in sets],
        "log density of the background": [energy_score(COARSE, x) for x in sets],
        "likelihood ratio": [likelihood_ratio(DATA, COARSE, x) for x in sets],
    }
    reports = {name: ood_report(*pair) for name, pair in scores.items()}
    print(ood_table(reports))
    print(f"exact AUROC of the ratio: {1 - np.exp(-CONTENT * SHIFT**2 / 4) / 2:.3f}")
    if plot:
        figure, axes = new_axes(1, 3, 3.0)
        for ax, (name, pair) in zip(axes[0], scores.items(), strict=True):
            edges = shared_bins(pair)
            for values, colour, whose in zip(pair, (BLUE, VERMILLION), ("data", "outliers"), strict=True):
                histogram(ax, values, edges, colour, whose)
            label(ax, "score [nats]", "", f"{name}\nAUROC {reports[name].auroc}")
        legend(axes[0, 0], loc="upper left")
        figure.savefig(plot)
        print(f"picture: {plot}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="save a picture of the scores of both sets")
    main(parser.parse_args().plot)
