"""Know-nothing rows: what anybody can say of a crystal's amplitudes without having looked at it. Every table shows them."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np

from .config import UserError
from .gridding import BOXES, AmplitudeBoxes, Box, select_fitting
from .random_crystals import mixture, random_crystals
from .wilson import N_SHELLS, ShellMean, shells

CURVE_SEED = 20_000_000  # no crystals to train or validate on are drawn with it

KNOW_NOTHING = {
    "shell mean": lambda mean, seed: mean.predict,
    "shell permuted": lambda mean, seed: partial(shell_permuted, seed=seed),
    "zero fill": lambda mean, seed: zero_fill,
}
"""Name in tables -> the row of a ShellMean and a seed, a function of AmplitudeBoxes that gives (B, *box.shape) amplitudes."""


def know_nothing(mean: ShellMean, seed=0) -> dict:
    """The rows of every table that know nothing about the crystal: {name: function of AmplitudeBoxes}."""
    return {name: row(mean, seed) for name, row in KNOW_NOTHING.items()}


def zero_fill(boxes: AmplitudeBoxes) -> np.ndarray:
    """The measured amplitudes, and nothing beyond."""
    return boxes.F_in.double().numpy()


def shell_permuted(boxes: AmplitudeBoxes, seed=0) -> np.ndarray:
    """The true amplitudes, shuffled inside resolution shells: right statistics, no information."""
    rng, F = np.random.default_rng(seed), boxes.F.double().numpy().copy()
    for i in range(len(boxes)):
        extension = boxes.extension[i].numpy()
        values, shell = F[i][extension], shells(boxes.d[i].numpy()[extension])
        for number in range(N_SHELLS):
            inside = np.flatnonzero(shell == number)
            values[inside] = values[rng.permutation(inside)]
        F[i][extension] = values
    return F


@lru_cache(maxsize=8)
def shell_mean(n=200, seed=CURVE_SEED, box: Box = BOXES["monoclinic"], d_input=1.5, d_target=0.8) -> ShellMean:
    """The fall-off of n random crystals of recipe ``molecules`` that fit the box: what anybody knows beforehand."""
    groups = box.groups(mixture("molecules"))
    fitting, first = [], 0
    while len(fitting) < n:
        drawn = random_crystals(n, seed, groups, first=first, recipe="molecules")
        fitting += select_fitting(drawn, box, d_target)[0]
        first += n
        if first >= 50 * n:
            raise UserError(f"too few random crystals fit the {box.name} box to {d_target} Å to take a mean from")
    return ShellMean.fit(AmplitudeBoxes.from_crystals(fitting[:n], box, d_input, d_target))
