"""Phase first, then extend: amplitudes that were not measured, calculated from the atoms that those measured gave.

A network has to guess amplitudes from amplitudes. But data to 1.5 Å, which direct methods give up, still hold many a
structure for charge flipping with its atoms refined; and atoms give every amplitude at once. Where no structure is
found, something else has to stand in: PattersonNet, or the mean amplitude at that resolution.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..crystals import Crystal, count_elements
from ..gridding import AmplitudeBoxes
from ..metrics import UNKNOWN_R
from ..reflections import Reflections
from ..structure_factors import structure_factors
from . import charge_flipping
from .charge_flipping import ATOM_VOLUME, PhasingError, Solution
from .peaks import without_hydrogen

TRIALS = 96
R_PER_R1 = 2.5  # r_ext over R1, of 59 accepted structures of real molecules; their correlation is 0.86


class Extension(NamedTuple):
    """F (n,) on the scale of the data; r_ext to be expected of them; the Solution they come from."""

    F: np.ndarray
    r_ext: float
    solution: Solution


def phase(reflections: Reflections, elements=(), trials=TRIALS, seed=0, groups=None, predicted=None, effort="normal",
          minutes=None) -> Solution | None:
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
        return charge_flipping.solve(reflections, elements, groups=groups, predicted=predicted, trials=trials, seed=seed,
                                     effort=effort, minutes=minutes)
    except PhasingError:
        return None


def phase_first(reflections: Reflections, hkl, elements, trials=TRIALS, seed=0) -> Extension | None:
    """Amplitudes at hkl (n, 3), none of them measured, of the atoms found; None if the engine accepts none.

    Parameters
    ----------
    reflections : what was measured
    elements : as for ``charge_flipping.solve``; empty where they are not known
    """
    return extend_from(phase(reflections, elements, trials, seed), reflections, hkl)


def extend_from(solution: Solution | None, reflections: Reflections, hkl) -> Extension | None:
    """Amplitudes at hkl (n, 3) of the atoms of a solution of these reflections; None if the engine does not accept it."""
    if solution is None or not solution.accepted:
        return None
    atoms = Crystal("found", solution.cell, solution.spacegroup, tuple(solution.elements), solution.fract, solution.u_iso,
                    solution.occ)
    known, new = (np.abs(structure_factors(atoms, indices)) for indices in (reflections.hkl, hkl))
    scale = float(reflections.F @ known / (known @ known))
    return Extension(scale * new, min(UNKNOWN_R, R_PER_R1 * solution.r1), solution)


def phase_first_boxes(boxes: AmplitudeBoxes, otherwise, trials=TRIALS, seed=0, solutions=None) -> np.ndarray:
    """``phase_first`` of each crystal of boxes that say what is known of it -> (B, *box.shape) scaled amplitudes.

    ``otherwise``, a function of the boxes with the same result, stands in for crystals without a structure. ``solutions``
    are those of what was measured, a Solution or None a crystal, where they are known already.
    """
    F, hkl = np.array(otherwise(boxes), float), boxes.box.hkl.astype(np.int32)
    same = boxes.box.index(boxes.box.hkl)  # where the equivalent stands that counts
    for i, sample in enumerate(boxes.samples):
        present = (boxes.target[i] & ~boxes.absent[i] & ~boxes.redundant).numpy().ravel()
        measured, one = boxes.measured[i].numpy().ravel(), boxes.F_in[i].double().numpy().ravel()
        known, wanted = (np.flatnonzero(present & rows) for rows in (measured, ~measured))
        reflections = Reflections.of_good_data(hkl[known], one[known], sample.cell, sample.spacegroup)
        solution = solutions[i] if solutions is not None else phase(reflections, sample.contents, trials, seed)
        if found := extend_from(solution, reflections, hkl[wanted]):
            one[wanted] = found.F
            F[i] = np.where(measured, one, one[same]).reshape(boxes.box.shape)
    return F
