"""Print how far each hot path is from what it must compute: `python benchmarks/run.py`.

Ratios are medians over interleaved rounds in one process; the bound is the faster of two bare forms, a scan and
straight-line code, of the same number of energy gradients (and one loss gradient and update for training steps). The
rows `loss` time a training step of each objective against one written by hand (losses.py).
"""

import argparse
import json

import blackjax
import jax
import numpy as np
from cases import CASES
from timing import interleaved, ratio


def measure(name, rounds):
    """Return the row of one case; the peer runs apart, since its threads spin on after its turn."""
    cases = CASES[name]()
    peer = cases.pop("torchebm", None)
    seconds = interleaved(cases, rounds)
    others = [other for other in seconds if other != "ours"]
    against = min(others, key=lambda other: np.median(seconds[other]))
    ours, bound = (1e3 * float(np.median(seconds[key])) for key in ("ours", against))
    row = {"row": name, "ours_ms": ours, "bound_ms": bound, "against": against, **ratio(seconds, "ours", against)}
    if peer is not None:
        seconds = interleaved({"ours": cases["ours"], "torchebm": peer}, rounds)
        row["torchebm"] = ratio(seconds, "torchebm", "ours")["median"]
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="measure only rows whose name contains this")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="three rounds: a smoke run, not a measurement")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    print(f"jax {jax.__version__}, blackjax {blackjax.__version__}, {jax.devices()[0].platform}, {rounds} rounds")
    print(f"{'row':<26} {'ours ms':>9} {'bound ms':>9} {'ratio':>6} {'range':>13}  {'against':<18} torchebm/ours")
    rows = []
    for name in CASES:
        if options.rows in name:
            row = measure(name, rounds)
            rows.append(row)
            spread = f"{row['min']:.2f}-{row['max']:.2f}"
            print(
                f"{name:<26} {row['ours_ms']:9.2f} {row['bound_ms']:9.2f} {row['median']:6.2f} {spread:>13}  "
                f"{row['against']:<18} {row.get('torchebm', float('nan')):13.2f}",
                flush=True,
            )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
