"""What phasing returns, whichever engine found it, and the error that it ends with."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np

from ..config import UserError
from ..crystals import Crystal
from . import verdict
from .verdict import Evidence


class PhasingError(UserError):
    """Phasing cannot start, or ended without a structure, and why."""


@dataclass(frozen=True)
class Solution:
    """What phasing returns, whichever engine found it.

    fract : (n, 3), heights : (n,) of the peaks in sigmas of the map (nan where the engine tells none)
    elements : (n,) symbols, u_iso : (n,) Å², occ : (n,) crystallographic occupancy as in Crystal
    rho : (nx, ny, nz) density over the cell in electrons per Å³, without F000; None where the engine gives no map
    r1 : Σ |F - |Fcalc|| / Σ F of these atoms against the amplitudes given
    figure_of_merit : agreement of the P1 phases with the space group, 1 is perfect, about 0 random; nan if unknown
    trials : random starts used; seconds : wall time; engine : its name
    orientation : how the axes of `cell` came from those of the data, "as input" when they are the same
    groups : (SpaceGroup, agreement) of each in which the structure was looked for
    evidence : what speaks for these atoms (``verdict.weigh``); None where they were not held against data
    hand : ``absolute_structure.Hand``, what Friedel pairs say; None where there is a centre or it was not asked for
    others : the next best solutions, each another structure than those before it or in another space group, with evidence
    """

    fract: np.ndarray
    heights: np.ndarray
    elements: tuple[str, ...]
    u_iso: np.ndarray
    occ: np.ndarray
    rho: np.ndarray | None
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    r1: float
    figure_of_merit: float
    trials: int
    seconds: float
    engine: str
    orientation: str = "as input"
    groups: tuple[tuple[gemmi.SpaceGroup, float], ...] = ()
    evidence: Evidence | None = None
    hand: object = None
    others: tuple[Solution, ...] = ()

    @property
    def probability(self) -> float:
        """That this is the structure: at least 80 % of its non-H atoms within 0.5 Å. nan where that is unknown."""
        return self.evidence.probability if self.evidence else float("nan")

    @property
    def verdict(self) -> str:
        """"solved", "uncertain" or "not solved"."""
        return verdict.word(self.probability)

    @property
    def accepted(self) -> bool:
        return self.verdict == "solved"

    def as_crystal(self, name="solution") -> Crystal:
        """The atoms found, as a Crystal that can be written or of which amplitudes can be calculated."""
        return Crystal(name, self.cell, self.spacegroup, tuple(self.elements), self.fract, self.u_iso, self.occ,
                       source=self.engine)
