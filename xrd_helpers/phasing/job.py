"""One data set from its reflections to a structure: what ``xrd solve`` and the notebooks do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np

from ..config import UserError
from ..reflections import Measured, Reflections
from . import shelxt
from .charge_flipping import Solution
from .extension import phase
from .spacegroups import candidates, laue_group

SEARCH_TRIALS = 12  # random starts for each space group in a search


class Solved(NamedTuple):
    """solution : None where no start gave any atoms; tried : space groups in which it was looked for."""

    solution: Solution | None
    tried: list[gemmi.SpaceGroup]


def in_group(measured: Measured, spacegroup) -> Measured:
    """The same data in another space group of their Laue class; what is in the cell stays the same."""
    if isinstance(spacegroup, str):
        found = gemmi.find_spacegroup_by_name(spacegroup, measured.cell.alpha, measured.cell.gamma)
        if found is None:
            raise UserError(f"{spacegroup!r} is no space group: write it as in 'P 1 21/c 1'")
        spacegroup = found
    if laue_group(spacegroup) != laue_group(measured.spacegroup):
        raise UserError(f"{spacegroup.xhm()} is not of the Laue class of {measured.spacegroup.xhm()}, in which the data are: "
                        "correct it, or the cell and symmetry of the data")
    ratio = len(measured.spacegroup.operations()) / len(spacegroup.operations())
    return replace(measured, spacegroup=spacegroup, elements={symbol: n * ratio for symbol, n in measured.elements.items()})


def solve(measured: Measured, extra: Reflections | None = None, search=False, trials=48, seed=0) -> Solved:
    """Charge flipping in the space group of the data, or in those that their absences allow.

    Parameters
    ----------
    measured : unmerged reflections, cell, space group, elements
    extra : predicted reflections on the scale of the merged ones, to be used beside them
    search : whether the space group is to be found (``spacegroups.candidates``); of groups with the same absences the one
        whose atoms explain the data best for their number of parameters is taken
    """
    if not search:
        return Solved(_phase(measured, extra, trials, seed), [measured.spacegroup])
    best, tried = None, []
    for groups in candidates(measured):
        for group in groups:
            tried.append(group)
            found = _phase(in_group(measured, group), extra, min(trials, SEARCH_TRIALS), seed)
            best = min(filter(None, (best, found)), key=_rank, default=None)
        if best and best.accepted:
            break
    return Solved(best, tried)


def _rank(solution):
    """Accepted ones first, then R1, which may be 0.03 worse in a group with twice the operators: half the parameters."""
    return not solution.accepted, solution.r1 - 0.03 * np.log2(len(solution.spacegroup.operations()))


def _phase(measured, extra, trials, seed):
    return phase(_together(measured, extra), measured.elements, trials, seed)


def solve_with_shelxt(measured: Measured, folder, program, extra=None, timeout=600.0, watch=None) -> Solved:
    """The same by SHELXT, which finds the space group by itself; see ``shelxt.run_shelxt`` for what it raises."""
    elements = measured.elements or ["C", "H", "N", "O"]
    solution = shelxt.run_shelxt(_together(measured, extra), elements, Path(folder), timeout, program, watch=watch)
    return Solved(solution, [solution.spacegroup])


def _together(measured, extra):
    merged = measured.merge()
    if extra is None:
        return merged
    columns = (np.concatenate([getattr(part, name) for part in (merged, extra)]) for name in ("hkl", "F", "sigF"))
    return Reflections(*columns, merged.cell, merged.spacegroup)
