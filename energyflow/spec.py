"""Floor 0: what a training run is, as plain data. Imports nothing heavy, so that `energyflow --help` is instant."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import tyro

Sampler = Literal[
    "mala",
    "hmc",
    "nuts",
    "barker",
    "ghmc",
    "dynamic-hmc",
    "adjusted-mclmc",
    "rmh",
    "elliptical-slice",
    "slice",
    "ula",
    "sgld",
    "mclmc",
]
Phase = Literal["pcd", "cd", "replay", "short-run", "jarzynski"]
Loss = Literal[
    "contrastive",
    "jem",
    "sm",
    "ssm",
    "fd-ssm",
    "dsm",
    "nce",
    "ranking-nce",
    "conditional-nce",
    "flow-nce",
    "dual-sm",
    "levels",
    "improved-cd",
    "dcd",
    "drl",
    "cdrl",
    "da",
    "em",
    "eqm",
    "eqm-dot",
]
Activation = Literal["silu", "gelu", "softplus", "tanh", "relu"]


@dataclass(frozen=True)
class Spec:
    """Settings of a run; spec.json holds exactly these, and a resumed run uses them again."""

    data: tyro.conf.Positional[str] = "digits"
    """"digits", or a .npy/.npz file of rows."""
    seed: int = 0
    """Seeds the split, the weights, the batches and every chain."""
    objective: Loss = "contrastive"
    """What is minimised: likelihood by contrast with a sampler, or a loss without one."""
    sampler: Sampler = "mala"
    """Kernel of the negative phase."""
    negatives: Phase = "pcd"
    """Negative phase: persistent chains, chains from the data, replay buffer, fresh noise, or weighted walkers."""
    steps: int = 3000
    """Optimiser steps at most."""
    batch_size: int = 256
    """Data rows a step."""
    chains: int = 1024
    """Negative chains (capacity of the buffer for replay)."""
    moves: int = 0
    """Transitions a step; 0 takes about ten gradients' worth for the sampler."""
    step_size: float = 0.0
    """First step size; 0 takes the sampler's default. Adjusted kernels tune it while they train."""
    target_acceptance: float = 0.0
    """Mean acceptance the step size is tuned to; 0 takes the sampler's default."""
    sigma: float = 0.1
    """Noise of denoising objectives, the smallest of those with many levels, in whitened coordinates."""
    horizon: float = 0.0
    """Time that draws of a potential or a landscape are moved for, and moves a level of a ladder; 0: the default."""
    noise: Literal["mixture", "gaussian"] = "mixture"
    """What noise-contrastive objectives tell from the data: a fitted mixture of ten Gaussians, or the base."""
    num_noise: int = 0
    """Draws of noise a row; 0 takes the objective's default."""
    classes: int = 0
    """Classes of the labels that jem trains on; 0 counts them."""
    generative: float = 1.0
    """Weight of the density beside the classes in jem; at 1 the sum is the likelihood of rows and labels together."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the tilt's hidden layers."""
    activation: Activation = "silu"
    """Activation of the tilt."""
    learning_rate: float = 1e-3
    """Adam's, decayed to 0 along a cosine."""
    weight_decay: float | None = None
    """AdamW's decoupled weight decay; by default min(1, 20 dimensions / rows) for densities, else 0."""
    ema_decay: float = 0.999
    """Of the averaged weights, which are the ones evaluated and kept."""
    l2: float = 0.0
    """Weight of the squared energies in the loss."""
    whiten: Literal["auto", "full", "diagonal", "none"] = "auto"
    """How data are whitened: by a full covariance, by standard deviations, not at all, or full where rows suffice."""
    evaluate_every: int = 300
    """Steps between estimates of the validation log-likelihood; the best averaged weights are kept."""
    patience: int = 4
    """Evaluations without a better one before training stops early; 0 never stops."""
    checkpoint_every: int = 100
    """Steps between checkpoints: what kill -9 can lose."""
    temperatures: int = 5000
    """Annealing moves per direction of the final bracket."""
    annealing_chains: int = 512
    """Chains per direction of the final bracket."""
    draws: int = 400
    """Draws per chain kept from the final model, from 64 chains started half at the base and half at training rows."""
    thin: int = 100
    """Transitions per kept draw; a quarter as many again are discarded first."""

    def validate(self) -> None:
        """Raise ValueError naming the first setting that is out of its range."""
        from_1 = "steps batch_size chains evaluate_every checkpoint_every temperatures draws thin".split()
        from_0 = "seed moves num_noise patience step_size learning_rate l2 horizon classes generative".split()
        smallest = dict.fromkeys(from_1, 1) | dict.fromkeys(from_0, 0) | {"annealing_chains": 2}
        for name, bound in smallest.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"{name} must be at least {bound}; got {getattr(self, name)}")
        if self.weight_decay is not None and not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0; got {self.weight_decay}")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive; got {self.sigma}")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"the widths of hidden layers must be at least 1; got {self.hidden}")
        for name in ("ema_decay", "target_acceptance"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1); got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return dataclasses.asdict(self) | {"hidden": list(self.hidden)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Spec":
        """Undo `to_dict`. Raises ValueError naming a setting this version does not know."""
        known = {f.name for f in dataclasses.fields(Spec)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"the spec has settings this version does not know: {', '.join(unknown)}")
        settings: dict[str, Any] = values | {"hidden": tuple(values.get("hidden", Spec.hidden))}
        return Spec(**settings)
