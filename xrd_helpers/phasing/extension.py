"""Phasing that goes on: what a crystal holds is filled up where no formula is known, and one that cannot be phased is None."""

from __future__ import annotations

from ..crystals import count_elements
from ..reflections import Reflections
from . import charge_flipping
from .charge_flipping import ATOM_VOLUME, PhasingError, Solution
from .peaks import without_hydrogen

TRIALS = 32


def phase(reflections: Reflections, elements=(), trials=TRIALS, seed=0, groups=None, predicted=None) -> Solution | None:
    """``charge_flipping.solve``, or None where it cannot start: one crystal does not end the others.

    Where each of `elements` is there once, and they are too few for the cell, they are kinds rather than a formula: carbon
    fills them up, and how much hydrogen there is stays open. So it does where there are none.
    """
    volume = reflections.cell.volume / len(reflections.spacegroup.operations())
    contents, n = count_elements(elements), round(volume / ATOM_VOLUME)
    known = sum(without_hydrogen(contents).values())
    if set(contents.values()) <= {1.0} and known < 0.6 * n:
        contents["C"] = contents.get("C", 0) + n - known
        contents.pop("H", None)  # one H in all would make a right structure look wrong
    elements = count_elements(contents)
    try:
        return charge_flipping.solve(reflections, elements, groups=groups, predicted=predicted, trials=trials, seed=seed)
    except PhasingError:
        return None
