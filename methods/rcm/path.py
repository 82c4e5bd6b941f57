"""The noising path of RCM: its grid of noise levels, the curriculum of grid sizes, the decay of the EMA target.

Lei et al. 2025, arXiv 2501.13094, and its official code; grid: Karras et al. 2022 (arXiv 2206.00364), eq. 5. Levels t
are in network units, where images are in [-1, 1]: t = 2 sigma.
"""

import math

from drbench.diffusion.consistency import nearest
from drbench.diffusion.schedules import karras_grid

T_MAX, T_MIN = 80.0, 0.002
FIRST, LAST = 20, 80  # grid intervals in the first step and at the end of the curriculum


def grid(points: int) -> list[float]:
    """Noise levels, from the noisiest to the cleanest."""
    return karras_grid(points, T_MIN, T_MAX)


def snap(t: float, points: int) -> float:
    """The level of the grid that is nearest to `t`: the only ones that the network has seen."""
    return nearest(t, grid(points))


def grid_size(step: int, steps: int) -> int:
    """Grid points in step `step` of `steps`: 21 in step 0, then 41, then 81."""
    doublings = math.log2(math.ceil(LAST / FIRST) + 1)
    stage = math.ceil(step / math.ceil(steps / doublings))
    return min(FIRST * 2**stage, LAST) + 1


def ema_decay(step: int, steps: int, first: float, last: float, sharpness: float) -> float:
    """Decay of the EMA target after `step` of `steps` steps: a sigmoid ramp from `first` towards `last`."""
    if first == last:
        return first
    share = min(step / steps, 1.0)
    a = math.sqrt(share * (last**2 - first**2) + first**2)
    c = 2 / (1 + math.exp(-sharpness * (a - first) / (last - first))) - 1
    return c * last + (1 - c) * first
