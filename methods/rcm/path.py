"""The noising path of RCM: its grid of noise levels, the curriculum of grid sizes, the decay of the EMA target.

Lei et al. 2025, arXiv 2501.13094, and its official code; grid: Karras et al. 2022 (arXiv 2206.00364), eq. 5. Levels t
are in network units, where images are in [-1, 1]: t = 2 sigma.
"""

import math

T_MAX, T_MIN, RHO = 80.0, 0.002, 7
FIRST, LAST = 20, 80  # grid intervals in the first step and at the end of the curriculum


def level(i: int, n: int) -> float:
    """Noise level of point `i` of a grid of `n` points; 0 is the noisiest, n - 1 the cleanest."""
    high, low = T_MAX ** (1 / RHO), T_MIN ** (1 / RHO)
    return (high + i / (n - 1) * (low - high)) ** RHO


def snap(t: float, n: int) -> float:
    """The level of the grid of `n` points that is nearest to `t`: the only ones that the network has seen."""
    return min((level(i, n) for i in range(n)), key=lambda known: abs(known - t))


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
