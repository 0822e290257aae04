"""Which space groups a data set allows: those of its Laue class whose absent reflections are absent.

International Tables for Crystallography, Vol. A, chapter 1.6 (reflection conditions).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import gemmi
import numpy as np

from ..crystals import rotations_and_translations
from ..reflections import Measured

ABSENT = 0.08   # mean intensity of absent reflections, of that of all at their resolution, at most
SIGMAS = 3.0    # or so many standard uncertainties of their mean


def laue_group(spacegroup):
    """The rotations of a space group and the inversion, as a set of triplets: the same for all groups of a Laue class
    in one setting of the axes."""
    rot, _ = rotations_and_translations(spacegroup)
    return frozenset(tuple(r.ravel()) for r in np.concatenate([rot, -rot]))


def without_absences(spacegroup):
    """The group of the same rotations and centring, without glide planes and screw axes: P 1 2/m 1 of P 1 21/c 1."""
    return gemmi.find_spacegroup_by_ops(spacegroup.operations().derive_symmorphic())


def moved_to(measured: Measured, spacegroup) -> Measured:
    """The same data in another space group, themselves in their own; what is in the cell stays the same."""
    if spacegroup.xhm() == measured.spacegroup.xhm():
        return measured
    ratio = len(measured.spacegroup.operations()) / len(spacegroup.operations())
    return replace(measured, spacegroup=spacegroup, elements={symbol: n * ratio for symbol, n in measured.elements.items()})


class Absences(NamedTuple):
    """What the data say of space groups with the same absences: how many measured reflections are absent in them, the mean
    intensity of these over that expected at their resolution, its uncertainty, and whether the groups are possible."""

    groups: list[gemmi.SpaceGroup]
    n: int
    mean: float
    error: float

    @property
    def allowed(self) -> bool:
        return not self.n or self.mean <= ABSENT or self.mean <= SIGMAS * self.error


def absences(measured: Measured) -> list[Absences]:
    """Of all space groups of the Laue class and lattice of the data, in their setting; those with most absences come first.

    Groups with the same absences stand together, those with most operators first: the phases have to tell them apart. The
    lattice centring is that of the data.
    """
    laue = laue_group(measured.spacegroup)
    centring = measured.spacegroup.operations().find_centering()
    # what the lattice forbids tells nothing about the other operators
    lattice = gemmi.GroupOps([gemmi.Op().translated(list(shift)) for shift in measured.spacegroup.operations().cen_ops])
    present = ~np.array(lattice.systematic_absences(measured.hkl.astype(np.int32)), bool)
    hkl, intensity, sigma = (x[present] for x in (measured.hkl.astype(np.int32), measured.intensity, measured.sigma))
    d = measured.cell.calculate_d_array(hkl)
    order = np.argsort(d)
    expected = np.empty(len(d))
    for part in np.array_split(order, max(1, len(d) // 100)):
        expected[part] = max(intensity[part].mean(), 1e-9)
    ratio, sigma = intensity / expected, sigma / expected
    found = {}
    for group in gemmi.spacegroup_table():
        if group.ext == "1" or laue_group(group) != laue or group.operations().find_centering() != centring:
            continue
        absent = np.array(group.operations().systematic_absences(hkl), bool)
        n = int(absent.sum())
        mean, error = (ratio[absent].mean(), np.sqrt((sigma[absent] ** 2).sum()) / n) if n else (0.0, 0.0)
        alike = found.setdefault(absent.tobytes(), Absences([], n, float(mean), float(error))).groups
        # the same group on another origin, as C 1 21 1 is C 1 2 1; P m 2 m is P m m 2 on other axes, and another one here
        if _kind(group) not in map(_kind, alike):
            alike.append(group)
    for entry in found.values():
        entry.groups.sort(key=lambda group: -len(group.operations()))
    return sorted(found.values(), key=lambda entry: -entry.n)


def candidates(measured: Measured) -> list[gemmi.SpaceGroup]:
    """Space groups that the data allow, in the order of ``absences``."""
    return [group for entry in absences(measured) if entry.allowed for group in entry.groups]


def _kind(group):
    return group.number, frozenset(tuple(r.ravel()) for r in rotations_and_translations(group)[0])
