"""Boxes and crystals of an eighth of the published size, to train on."""

from dataclasses import replace

import gemmi

from xrd_helpers.gridding import Box, select_fitting
from xrd_helpers.random_crystals import random_crystals

TINY = Box("tiny", (-6, 0, 0), (6, 8, 10), "P 1 2/m 1")  # for crystals to 1.8 Å
LIMITS = dict(box=TINY, d_input=3.0, d_target=1.8)


def tiny_crystals(n=12, seed=0):
    """Those of n random crystals that fit TINY."""
    return select_fitting(random_crystals(n, seed=seed), TINY, 1.8)[0]


def large(crystal):
    """The same with a cell that no box holds."""
    return replace(crystal, name="large", cell=gemmi.UnitCell(90, 90, 90, 90, 95, 90))
