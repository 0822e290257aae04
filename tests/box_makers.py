"""Boxes of random crystals, and amplitudes of Wilson statistics, for tests of scores and of what knows nothing."""

from functools import cache

import numpy as np

from xrd_helpers.gridding import BOXES, AmplitudeBoxes, select_fitting
from xrd_helpers.random_crystals import random_crystals


@cache
def recipe(name):
    """Training and test boxes of the published recipe in a space group."""
    crystals, _ = select_fitting(random_crystals(80, 21, (name,)), BOXES["monoclinic"], 0.8)
    assert len(crystals) >= 40
    boxes = AmplitudeBoxes.from_crystals(crystals[:40])
    return boxes[:20], boxes[20:]


def simulated(kind, n=30000, seed=0):
    """Intensities of Wilson statistics with mean 1 and a fall-off: d, mean intensity, intensity."""
    rng = np.random.default_rng(seed)
    d = rng.uniform(1.5**-3, 0.8**-3, n) ** (-1 / 3)  # even in reciprocal volume
    mean = 50 * np.exp(-4.0 / (2 * d**2)) * (1 + 0.5 * np.sin(4 / d**2))
    return d, mean, mean * (rng.exponential(1, n) if kind == "acentric" else rng.chisquare(1, n))
