"""Rigid molecules packed without clashes under the full symmetry of a space group.

Molecules start at random places in a cell of the right volume and push each other apart until no two atoms are nearer
than their contact distance; the cell changes its shape, not its volume, as it is pushed. Space groups are those whose
rotations are diagonal on the axes (triclinic, monoclinic with unique axis b, orthorhombic): then a rotation acts on
Cartesian coordinates as it does on fractional ones, as three signs. The loops over pairs of atoms are compiled by numba:
as array operations over many crystals at once they took ten times as long, since each crystal has other neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import gemmi
import numba
import numpy as np

from ..crystals import all_operators

# Å, contact radii: those of Bondi (J. Phys. Chem. 1964, 68, 441); what is not listed is taken as 1.9
RADII = {"H": 1.10, "C": 1.70, "N": 1.55, "O": 1.52, "F": 1.47, "Cl": 1.75, "Br": 1.85, "I": 1.98, "S": 1.80, "P": 1.80,
         "Si": 2.10, "B": 1.85, "Na": 1.25, "K": 1.60}
POLAR = ("N", "O", "F")
CLOSEST = 0.42       # Å below the sum of the radii: no two atoms of different molecules come nearer
AIM = 0.22           # Å below it: from where they push
BOND = 1.70          # Å, H of an N-H or O-H to an acceptor, the nearest
BOND_HEAVY = 2.60    # Å, donor to acceptor, the nearest
SKIN = 0.9           # Å, how much farther the list of pairs reaches
FARTHEST = 2 * 1.98 - AIM + SKIN  # Å, the longest distance of a listed pair
LIST_STEPS = (0, 5, 12, 20, 30, 42, 55, 70, 90)  # when the list is made anew: atoms move less and less
HOPELESS = 0.7, 30   # Å and step: a crystal with a worse clash then is given up


@dataclass
class Contents:
    """What goes into a cell: molecules of the asymmetric unit and the volume that they need.

    ``fixed`` holds, for each molecule, None or the fractional coordinates (3,) of the inversion centre that it sits on.
    """

    spacegroup: gemmi.SpaceGroup
    volume: float     # Å³, of the cell
    elements: list    # of each molecule, a list of symbols
    xyz: list         # of each molecule, (n, 3) Å
    parents: list     # of each molecule, (n,) the atom that an H sits on, -1 for other atoms
    fixed: list
    occ: np.ndarray   # (n,) of all atoms, crystallographic occupancy

    def __post_init__(self):
        """The same as flat arrays, atom after atom: what the compiled part reads."""
        self.body = np.vstack([_on_own_axes(xyz, place is not None) for xyz, place in zip(self.xyz, self.fixed)])
        self.start = np.cumsum([0, *(len(elements) for elements in self.elements)])
        self.radius = np.array([RADII.get(e, 1.9) for elements in self.elements for e in elements])
        self.kind = np.array([_kind(elements, parents, i) for elements, parents in zip(self.elements, self.parents)
                              for i in range(len(elements))])
        self.rotation, self.translation = _signs(self.spacegroup.xhm())
        # which off-diagonal strains (xy, xz, yz) leave the cell one of its system
        system = self.spacegroup.crystal_system_str()
        self.shear = np.array({"triclinic": (1, 1, 1), "monoclinic": (0, 1, 0)}.get(system, (0, 0, 0)), float)


def pack(contents: Contents, rng):
    """One attempt from a random start.

    Returns
    -------
    cell : gemmi.UnitCell and fract (n, 3), of all atoms; or (None, None) if clashes remain
    """
    n = len(contents.fixed)
    orth = _start_cell(rng, contents.shear)
    turn = np.array([_random_rotation(rng) for _ in range(n)])
    centre = rng.random((n, 3))
    for m, place in enumerate(contents.fixed):
        if place is not None:
            centre[m] = place
    fixed = np.array([place is not None for place in contents.fixed])
    if not _relax(contents.body, contents.start, contents.radius, contents.kind, contents.rotation, contents.translation,
                  contents.shear, contents.volume, fixed, orth, turn, centre):
        return None, None
    a, b, c = orth.T
    cell = gemmi.UnitCell(*(np.linalg.norm(v) for v in (a, b, c)), *(_angle(*pair) for pair in ((b, c), (a, c), (a, b))))
    mol = np.repeat(np.arange(n), np.diff(contents.start))
    x = np.einsum("nij,nj->ni", turn[mol], contents.body)
    return cell, x @ np.linalg.inv(orth).T + centre[mol]


@numba.njit(cache=True)
def _relax(body, start, radius, kind, rotation, translation, shear, volume, fixed, orth, turn, centre):
    """Push molecules apart until no clash is left (True), in place in orth, turn and centre; False if some remain.

    Each molecule moves and turns by the mean of what its contacts ask for, and the cell strains likewise.
    """
    n_mol = len(centre)
    _set_volume(orth, volume)
    low, high, reach = np.empty((n_mol, 3)), np.empty((n_mol, 3)), np.empty(n_mol)
    for m in range(n_mol):
        atoms = body[start[m]:start[m + 1]]
        reach[m] = np.sqrt((atoms * atoms).sum(axis=1).max())
        for k in range(3):
            low[m, k], high[m, k] = atoms[:, k].min(), atoms[:, k].max()
    X, x = np.empty((n_mol, 3)), np.empty((len(body), 3))
    velocity, strain = np.zeros((n_mol, 6)), np.zeros((3, 3))
    for step in range(LIST_STEPS[-1] + 1):
        _place(body, start, orth, turn, centre, X, x)
        if step in LIST_STEPS:
            pair, image_mol, image_op, image_shift, aim = _list_pairs(
                body, start, radius, kind, rotation, translation, fixed, orth, turn, centre, X, x, low, high, reach)
        worst = 0.0
        total, weight = np.zeros((n_mol, 6)), np.zeros((n_mol, 2))
        stress, stress_weight = np.zeros((3, 3)), 30.0
        T = image_shift @ orth.T
        v, apart = np.empty(3), np.empty(3)
        for p in range(len(pair)):
            i, j, k = pair[p]
            a, c, op = image_mol[k, 0], image_mol[k, 1], image_op[k]
            squared = 0.0
            for q in range(3):
                v[q] = X[a, q] + x[i, q] - rotation[op, q] * (X[c, q] + x[j, q]) - T[k, q]
                squared += v[q] * v[q]
            if squared >= aim[p] * aim[p]:
                continue
            distance = np.sqrt(squared)
            worst = max(worst, aim[p] - distance)
            lever = 0.0
            for q in range(3):
                v[q] *= (aim[p] - distance) / max(distance, 1e-6)
                total[a, q] += v[q]
                lever += x[i, q] ** 2
                apart[q] = X[a, q] - rotation[op, q] * X[c, q] - T[k, q]
                stress_weight += apart[q] ** 2
            for q in range(3):
                total[a, 3 + q] += x[i, (q + 1) % 3] * v[(q + 2) % 3] - x[i, (q + 2) % 3] * v[(q + 1) % 3]
                for r in range(q, 3):
                    stress[q, r] += v[q] * apart[r]
            weight[a, 0] += 1
            weight[a, 1] += lever
        worst -= CLOSEST - AIM
        if step in LIST_STEPS:  # the list is exact now
            if worst <= 0:
                return True
            if step >= HOPELESS[1] and worst > HOPELESS[0]:
                return False
        trace = (stress[0, 0] + stress[1, 1] + stress[2, 2]) / 3
        for q in range(3):
            stress[q, q] -= trace
        stress[0, 1] *= shear[0]
        stress[0, 2] *= shear[1]
        stress[1, 2] *= shear[2]
        strain = np.minimum(np.maximum(0.6 * strain + 2.0 * stress / stress_weight, -0.03), 0.03)
        for m in range(n_mol):
            velocity[m, :3] = 0.6 * velocity[m, :3] + 1.5 * total[m, :3] / (weight[m, 0] + 2)
            velocity[m, 3:] = 0.6 * velocity[m, 3:] + 2.0 * total[m, 3:] / (weight[m, 1] + 3)
            for first, most in ((0, 0.6), (3, 0.25)):  # Å, radians
                length = np.sqrt((velocity[m, first:first + 3] ** 2).sum())
                if length > most:
                    velocity[m, first:first + 3] *= most / length
            if not fixed[m]:
                centre[m] += np.linalg.solve(orth, velocity[m, :3])
            turn[m] = _rotation(velocity[m, 3:]) @ turn[m]
        orth += strain @ orth
        _set_volume(orth, volume)
    return False


@numba.njit(cache=True)
def _list_pairs(body, start, radius, kind, rotation, translation, fixed, orth, turn, centre, X, x, low, high, reach):
    """Pairs (atom, atom, image) that may touch, an image being molecule c under an operator and a lattice translation.

    Returns pair (p, 3), image_mol (k, 2) with the molecules a and c, image_op (k,), image_shift (k, 3) fractional,
    aim (p,) Å.
    """
    frac = np.linalg.inv(orth)
    pair, aim, image_mol, image_op, image_shift = [(0, 0, 0)][:0], [0.0][:0], [(0, 0)][:0], [0][:0], [(0.0, 0.0, 0.0)][:0]
    near, away, seen, n = np.empty(3), np.empty(3), np.empty(3), np.empty(3, np.int64)
    for a in range(len(centre)):
        toward = np.ascontiguousarray(turn[a].T)  # to the frame of a, where a lies in a narrow box
        for c in range(len(centre)):
            for k in range(3):  # 1 / a* is the distance of the lattice planes
                n[k] = int((reach[a] + reach[c] + FARTHEST) * np.sqrt((frac[k] ** 2).sum()) + 0.5)
            for op in range(len(rotation)):
                base = rotation[op] * centre[c] + translation[op]
                near = base - centre[a]
                whole = np.round(near)
                for n0 in range(-n[0], n[0] + 1):
                    for n1 in range(-n[1], n[1] + 1):
                        for n2 in range(-n[2], n[2] + 1):
                            u0, u1, u2 = near[0] - whole[0] + n0, near[1] - whole[1] + n1, near[2] - whole[2] + n2
                            squared = 0.0
                            for k in range(3):
                                away[k] = orth[k, 0] * u0 + orth[k, 1] * u1 + orth[k, 2] * u2
                                squared += away[k] ** 2
                            itself = a == c and squared < 1e-4 and (op == 0 or fixed[a])  # or its other half
                            if itself or squared > (reach[a] + reach[c] + FARTHEST) ** 2:
                                continue
                            outside = False
                            for k in range(3):
                                seen[k] = toward[k, 0] * away[0] + toward[k, 1] * away[1] + toward[k, 2] * away[2]
                                margin = reach[c] + FARTHEST
                                outside |= seen[k] > high[a, k] + margin or seen[k] < low[a, k] - margin
                            if outside:
                                continue
                            image = len(image_op)
                            used = False
                            for j in range(start[c], start[c + 1]):
                                outside = False
                                for k in range(3):
                                    seen[k] = 0.0
                                    for q in range(3):
                                        seen[k] += toward[k, q] * (away[q] + rotation[op, q] * x[j, q])
                                    outside |= seen[k] > high[a, k] + FARTHEST or seen[k] < low[a, k] - FARTHEST
                                if outside:
                                    continue
                                for i in range(start[a], start[a + 1]):
                                    squared = 0.0
                                    for k in range(3):
                                        squared += (body[i, k] - seen[k]) ** 2
                                    if squared < (radius[i] + radius[j] + SKIN - AIM) ** 2:
                                        pair.append((i, j, image))
                                        aim.append(_aim(radius[i] + radius[j], kind[i], kind[j]))
                                        used = True
                            if used:
                                image_mol.append((a, c))
                                image_op.append(op)
                                image_shift.append((translation[op, 0] + n0 - whole[0], translation[op, 1] + n1 - whole[1],
                                                    translation[op, 2] + n2 - whole[2]))
    if not len(pair):  # numba makes no array of an empty list
        return np.empty((0, 3), np.int64), np.empty((0, 2), np.int64), np.empty(0, np.int64), np.empty((0, 3)), np.empty(0)
    return (np.array(pair).reshape(-1, 3), np.array(image_mol).reshape(-1, 2), np.array(image_op),
            np.array(image_shift).reshape(-1, 3), np.array(aim))


@numba.njit(cache=True)
def _aim(radii, kind_i, kind_j):
    """Å, the distance at which two atoms begin to push: a hydrogen bond lets its atoms come nearer."""
    closest = radii - CLOSEST
    if (kind_i == 1 and kind_j >= 2) or (kind_j == 1 and kind_i >= 2):
        closest = min(closest, BOND)
    elif kind_i >= 2 and kind_j >= 2 and (kind_i == 3 or kind_j == 3):
        closest = min(closest, BOND_HEAVY)
    return closest + CLOSEST - AIM


@numba.njit(cache=True)
def _place(body, start, orth, turn, centre, X, x):
    """Cartesian centres X (m, 3) and atoms relative to their centre x (n, 3), in place."""
    for m in range(len(centre)):
        for k in range(3):
            X[m, k] = orth[k, 0] * centre[m, 0] + orth[k, 1] * centre[m, 1] + orth[k, 2] * centre[m, 2]
            for i in range(start[m], start[m + 1]):
                x[i, k] = turn[m, k, 0] * body[i, 0] + turn[m, k, 1] * body[i, 1] + turn[m, k, 2] * body[i, 2]


@numba.njit(cache=True)
def _set_volume(orth, volume):
    orth *= (volume / (orth[0, 0] * orth[1, 1] * orth[2, 2])) ** (1 / 3)


@numba.njit(cache=True)
def _rotation(w):
    """(3, 3) rotation by the small vector w (3,), by Cayley's formula: exactly a rotation."""
    x, y, z = w / 2
    s = 2 / (1 + x * x + y * y + z * z)
    return np.array([[1 - s * (y * y + z * z), s * (x * y - z), s * (x * z + y)],
                     [s * (x * y + z), 1 - s * (x * x + z * z), s * (y * z - x)],
                     [s * (x * z - y), s * (y * z + x), 1 - s * (x * x + y * y)]])


@cache
def _signs(symbol):
    """Operators of a space group with diagonal rotations: their diagonals (g, 3) and translations (g, 3)."""
    rot, tran = all_operators(gemmi.SpaceGroup(symbol))
    return np.array([np.diag(r) for r in rot], float), np.ascontiguousarray(tran)


def _on_own_axes(xyz, centric):
    """Coordinates on the axes of inertia, so that a box along them is narrow; from the middle, or the inversion centre."""
    xyz = xyz if centric else xyz - xyz.mean(axis=0)
    return xyz @ np.linalg.svd(xyz, full_matrices=False)[2].T if len(xyz) > 2 else xyz


def _kind(elements, parents, i):
    """0: other atoms, 1: H that can make a hydrogen bond, 2: acceptor, 3: acceptor that has such an H."""
    if elements[i] == "H":
        return int(parents[i] >= 0 and elements[parents[i]] in ("N", "O"))
    if elements[i] not in POLAR:
        return 0
    return 3 if any(p == i for p in parents) else 2


def _start_cell(rng, shear):
    """(3, 3) orthogonalisation matrix of a random cell, a along x and b in the xy plane; the volume is set later."""
    edges = np.exp(rng.normal(0, 0.58, 3))
    angles = np.full(3, 90.0)
    if shear.all():
        angles = np.clip(rng.normal(92, 10, 3), 65, 118)
    elif shear.any():
        angles[1] = np.clip(rng.normal(95.5, 8), 90, 120)
    return np.array(gemmi.UnitCell(*edges, *angles).orth.mat.tolist())


def _random_rotation(rng):
    """(3, 3) uniformly random rotation, from a random quaternion."""
    w, x, y, z = q = rng.normal(size=4)
    w, x, y, z = q / np.sqrt(w * w + x * x + y * y + z * z)
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                     [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                     [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])


def _angle(u, v):
    """Degrees between two vectors."""
    return float(np.degrees(np.arccos(u @ v / np.sqrt((u @ u) * (v @ v)))))
