"""The same training step in torchebm, where it is installed: `pip install torchebm==0.8.9`, in the same environment.

The networks have the layers and sizes of ours, the persistent buffer one row a chain, the loss no regulariser. torchebm
has no MALA, so those rows have no peer.
"""

import numpy as np

try:
    import torch
    from torch import nn
    from torchebm.core import BaseModel
    from torchebm.losses import ContrastiveDivergence
    from torchebm.samplers import HamiltonianMonteCarlo, LangevinDynamics
except ImportError:
    torch = None


def torch_step(net, phase, points):
    """Return {"torchebm": one PCD step and its Adam update}, or {} where there is none to compare with."""
    if torch is None or phase == "mala":
        return {}
    energy = _energy(net)
    sampler = {
        "ula": lambda: LangevinDynamics(energy, step_size=1e-4),
        "sgld": lambda: LangevinDynamics(energy, step_size=1e-4, noise_scale=0.5),
        "hmc": lambda: HamiltonianMonteCarlo(energy, step_size=1e-2, n_leapfrog_steps=5),
    }[phase]()
    loss = ContrastiveDivergence(
        energy,
        sampler,
        k_steps=4 if phase == "hmc" else 20,
        persistent=True,
        buffer_size=points.shape[0],
        init_steps=0,
        new_sample_ratio=0.0,
        energy_reg_weight=0.0,
    )
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-4)
    x = torch.from_numpy(np.array(points)).flatten(1)  # its HMC moves vectors only

    def run():
        optimizer.zero_grad()
        value, _ = loss(x)
        value.backward()
        optimizer.step()
        return value.item()

    return {"torchebm": run}


def _energy(net):
    class Block(nn.Module):
        def __init__(self, m, n):
            super().__init__()
            self.down, self.conv = nn.Conv2d(m, n, 3, 2, 1), nn.Conv2d(n, n, 3, 1, 1)
            self.norm = nn.GroupNorm(8, n)

        def forward(self, x):
            h = nn.functional.silu(self.down(x))
            return h + nn.functional.silu(self.norm(self.conv(h)))

    if net == "mlp":
        layers = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1))
    else:
        blocks = Block(1, 32), Block(32, 64), Block(64, 64)
        layers = nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *blocks, nn.Flatten(), nn.Linear(4 * 4 * 64, 1))

    class Energy(BaseModel):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return self.layers(x).squeeze(-1) + 0.05 * x.square().sum(1)

    return Energy()
