"""Floor 4: negative phases. Each is a `Negatives(init, draw)` whose state (chains, buffer, step size) is explicit.

No gradient flows through any chain.
"""

from energyflow.negatives.buffers import Buffer, pcd, replay
from energyflow.negatives.fresh import cd, short_run
from energyflow.negatives.moves import Moves, move, start_tuner
from energyflow.negatives.starts import (
    Start,
    from_base,
    from_data,
    from_either,
    from_normal,
    from_sampler,
    from_source,
    from_uniform,
)

__all__ = [
    "Buffer",
    "Moves",
    "Start",
    "cd",
    "from_base",
    "from_data",
    "from_either",
    "from_normal",
    "from_sampler",
    "from_source",
    "from_uniform",
    "move",
    "pcd",
    "replay",
    "short_run",
    "start_tuner",
]
