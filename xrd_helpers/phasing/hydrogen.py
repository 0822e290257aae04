"""Riding hydrogen: where the geometry of the other atoms leaves room for it and the data see it.

Distances and angles are those of the riding model of SHELXL at low temperature (Sheldrick (2015), Acta Cryst. C71, 3). How
many hydrogen atoms an atom has, and their torsion, is not read from bond lengths, which mean little at 1.5 Å: each arrangement
that the bonds allow is held against the difference of amplitudes, to first order, and taken where it explains enough of it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..bonds import covalent_radii, neighbours
from .refine import Model
from .restraints import RestrainedRefiner

# Å, with one, two and three hydrogen atoms, and of a flat or linear one
LENGTHS = {"C": {1: 1.00, 2: 0.99, 3: 0.98, "flat": 0.95}, "N": {1: 0.91, 2: 0.91, 3: 0.91, "flat": 0.88}, "O": {1: 0.84}}
TETRAHEDRAL, TRIGONAL = np.radians(109.5), np.radians(120)
CH2_ANGLE = np.radians(108)  # H-C-H between two bonds
BENT = 0.5                   # length of the sum of the directions of two or three bonds, below which there is no room
SLACK = 0.2                  # Å by which a bond may be longer than the sum of the covalent radii
U_RATIO = 1.2                # U of hydrogen beside that of its parent
TORSIONS = 12                # tried in one period
WORTH = 4.0                  # variances of a reflection that an arrangement must explain
ROUNDS, CYCLES = 3, 3        # of placing hydrogen anew, and of least squares after it


def arrangements(element, directions) -> list[np.ndarray]:
    """Where hydrogen may be, (k, 3) Å from an atom of C, N or O, given unit vectors (m, 3) to the atoms it is bonded to."""
    if element not in LENGTHS or not 1 <= len(directions) <= 3:
        return []
    length, away = LENGTHS[element], -directions.sum(0)
    if len(directions) > 1:
        if element == "O" or np.linalg.norm(away) < BENT:
            return []
        away /= np.linalg.norm(away)
        if len(directions) == 3:
            return [length[1] * away[None]]
        up = np.cross(*directions)
        up /= max(np.linalg.norm(up), 1e-9)
        pair = np.array([np.cos(CH2_ANGLE / 2) * away + side * np.sin(CH2_ANGLE / 2) * up for side in (1, -1)])
        return [length["flat"] * away[None], length[2] * pair]
    kinds = [(1, TETRAHEDRAL, length[1])] if element == "O" else [(3, TETRAHEDRAL, length[3]), (2, TRIGONAL, length["flat"])]
    across = np.linalg.svd(directions)[2][1:]                                         # (2, 3), at right angles to the bond
    found = [length["flat"] * away[None]] if element == "C" else []
    for n, angle, distance in kinds:
        for start in 2 * np.pi / n * np.arange(TORSIONS) / TORSIONS:
            turn = start + 2 * np.pi / n * np.arange(n)
            round_it = np.cos(turn)[:, None] * across[0] + np.sin(turn)[:, None] * across[1]
            found.append(distance * (np.cos(angle) * directions[0] + np.sin(angle) * round_it))
    return found


def place_hydrogen(refiner, model, most=np.inf) -> Model:
    """Hydrogen atoms (elements, places, U) on a Model without them, `most` of them at most, as a Model of their own.

    Atoms on special positions are left as they are.
    """
    # what the other atoms, moving a little, explain of hydrogen they have explained already
    J, sf = refiner.derivatives(model.fract, refiner.kinds(model.elements), model.u_iso, model.occ)
    amplitude = np.abs(sf)
    taken = np.linalg.qr(J / np.maximum(np.linalg.norm(J, axis=0), 1e-9))[0] if len(J) > J.shape[1] else np.zeros((len(J), 0))
    residual = refiner.reflections.F - model.scale * amplitude
    residual = residual - taken @ (taken.T @ residual)
    unit = sf.conj() / np.maximum(amplitude, 1e-9) * model.scale
    variance = residual @ residual / max(len(J) - taken.shape[1], 1)
    found = []
    for i, places in _places(refiner, model):
        for xyz in places:
            hydrogen = _model(refiner, model, [i] * len(xyz), xyz)
            change = (unit * refiner.structure_factors(hydrogen)).real
            found.append((i, hydrogen, change - taken @ (taken.T @ change)))
    chosen = []
    while found:
        gains = [2 * residual @ change - change @ change for *_, change in found]
        best = int(np.argmax(gains))
        if gains[best] < WORTH * variance:
            break
        parent, hydrogen, change = found[best]
        if sum(len(one.fract) for one in chosen) + len(hydrogen.fract) <= most + 0.5:
            chosen.append(hydrogen)
            residual = residual - change
            found = [row for row in found if row[0] != parent]
        else:
            found.pop(best)
    return _joined(chosen) if chosen else _model(refiner, model, [], np.zeros((0, 3)))


def with_hydrogen(refiner: RestrainedRefiner, model: Model, most=np.inf) -> Model:
    """A Model refined with riding hydrogen, which comes after its other atoms; as it was where that does not lower R1."""
    heavy = best = model
    for _ in range(ROUNDS):
        hydrogen = place_hydrogen(refiner, heavy, most)
        if not len(hydrogen.fract):
            break
        fract, u_iso, scale, r1, _ = refiner.fit(heavy.fract, refiner.kinds(heavy.elements), heavy.u_iso, heavy.occ, CYCLES,
                                                 extra=refiner.structure_factors(hydrogen).astype(np.complex64))
        heavy = replace(heavy, fract=fract, u_iso=u_iso, scale=scale, r1=r1)
        if r1 < best.r1:
            best = replace(_joined([heavy, hydrogen]), r1=r1, scale=scale)
    return best


def _places(refiner, model):
    """(row, arrangements) of each atom in a general position."""
    radius, cell = covalent_radii(model.elements), refiner.reflections.cell
    near = neighbours(model.fract, cell, refiner.reflections.spacegroup, 2 * radius.max() + SLACK)
    bond = near.length < radius[near.i] + radius[near.j] + SLACK
    for i, (element, occ) in enumerate(zip(model.elements, model.occ)):
        step = near.step[bond & (near.i == i)] @ refiner.orth.T
        if occ > 0.99 and len(step):
            yield i, arrangements(element, step / np.linalg.norm(step, axis=1, keepdims=True))


def _model(refiner, model, parents, xyz):
    """Hydrogen atoms at xyz (n, 3) Å from their parents."""
    parents = np.asarray(parents, int)
    fract = model.fract[parents] + xyz @ np.linalg.inv(refiner.orth).T
    n = len(parents)
    return Model(fract, ("H",) * n, U_RATIO * model.u_iso[parents], np.ones(n), np.zeros(n), model.r1, model.scale)


def _joined(models):
    parts = {name: np.concatenate([getattr(m, name) for m in models]) for name in ("fract", "u_iso", "occ", "heights")}
    return replace(models[0], elements=sum((tuple(m.elements) for m in models), ()), **parts)
