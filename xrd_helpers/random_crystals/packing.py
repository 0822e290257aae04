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
import numpy as np

from ..compiled import compiled
from ..crystals import all_operators

# Å, contact radii: those of Bondi (J. Phys. Chem. 1964, 68, 441); what is not listed is taken as 1.9
RADII = {"H": 1.10, "C": 1.70, "N": 1.55, "O": 1.52, "F": 1.47, "Cl": 1.75, "Br": 1.85, "I": 1.98, "S": 1.80, "P": 1.80,
         "Si": 2.10, "B": 1.85, "Na": 1.25, "K": 1.60}
POLAR = ("N", "O", "F")
CLOSEST = 0.28       # Å below the sum of the radii: no two atoms of different molecules come nearer
AIM = 0.08           # Å below it: from where they push
BOND = 1.70          # Å, H of an N-H or O-H to an acceptor, the nearest
BOND_HEAVY = 2.60    # Å, donor to acceptor, the nearest
SKIN = 0.9           # Å, how much farther the list of pairs reaches
N_STEPS = 60
LIST_STEPS = (0, 5, 12, 20, 32, 45)  # when the list is made anew: atoms move less and less
HOPELESS = (20, 0.7), (30, 0.25), (42, 0.1)  # step and Å: a crystal with a worse clash then is given up


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


@compiled(fastmath=False)
def _relax(body, start, radius, kind, rotation, translation, shear, volume, fixed, orth, turn, centre):
    """Push molecules apart until no clash is left (True), in place in orth, turn and centre; False if some remain.

    Each molecule moves and turns by the mean of what its contacts ask for, and the cell strains likewise.
    """
    n_mol = len(centre)
    _set_volume(orth, volume)
    middle, half, reach = np.empty((n_mol, 3)), np.empty((n_mol, 3)), np.empty(n_mol)
    for m in range(n_mol):
        atoms = body[start[m]:start[m + 1]]
        reach[m] = np.sqrt((atoms * atoms).sum(axis=1).max())
        for k in range(3):
            middle[m, k] = (atoms[:, k].max() + atoms[:, k].min()) / 2
            half[m, k] = atoms[:, k].max() - middle[m, k]
    X, x = np.empty((n_mol, 3)), np.empty((len(body), 3))
    velocity, strain = np.zeros((n_mol, 6)), np.zeros((3, 3))
    v, apart, worst = np.empty(3), np.empty(3), np.inf
    for step in range(N_STEPS + 1):
        _place(body, start, orth, turn, centre, X, x)
        listed = step in LIST_STEPS or worst <= 0
        if listed:
            image, shift, pair, aim = _list_pairs(body, start, radius, kind, rotation, translation, fixed, orth, turn, centre,
                                                  middle, half, reach)
        worst = 0.0
        total, weight = np.zeros((n_mol, 6)), np.zeros((n_mol, 2))
        stress, stress_weight = np.zeros((3, 3)), 30.0
        for n in range(len(image)):
            a, c, op, back, first, last = image[n]
            sign = rotation[op]
            for q in range(3):
                apart[q] = X[a, q] - sign[q] * X[c, q]
                for r in range(q, 3):
                    apart[q] -= orth[q, r] * shift[n, r]
            for p in range(first, last):
                i, j = pair[p]
                squared = 0.0
                for q in range(3):
                    v[q] = apart[q] + x[i, q] - sign[q] * x[j, q]
                    squared += v[q] * v[q]
                if squared >= aim[p] * aim[p]:
                    continue
                distance = np.sqrt(squared)
                worst = max(worst, aim[p] - distance)
                for q in range(3):
                    v[q] *= (aim[p] - distance) / max(distance, 1e-6)
                    stress_weight += (1 + back) * apart[q] ** 2
                for q in range(3):
                    for r in range(q, 3):
                        stress[q, r] += (1 + back * sign[q] * sign[r]) * v[q] * apart[r]
                _push(total[a], weight[a], x[i], v)
                if back:
                    for q in range(3):
                        v[q] *= -sign[q]
                    _push(total[c], weight[c], x[j], v)
        worst -= CLOSEST - AIM
        if worst <= 0 and listed:  # the list is exact now
            return True
        for after, most in HOPELESS:
            if step == after and worst > most:
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
            for q in (2, 1, 0):  # orth is triangular: apart is the step in fractions of the axes
                apart[q] = velocity[m, q]
                for r in range(q + 1, 3):
                    apart[q] -= orth[q, r] * apart[r]
                apart[q] /= orth[q, q]
            if not fixed[m]:
                centre[m] += apart
            turn[m] = _rotation(velocity[m, 3:]) @ turn[m]
        orth += strain @ orth
        _set_volume(orth, volume)
    return False


@compiled(fastmath=False)
def _push(total, weight, arm, v):
    """Add that an atom at arm (3,) asks its molecule to move by v (3,)."""
    weight[0] += 1
    for q in range(3):
        total[q] += v[q]
        total[3 + q] += arm[(q + 1) % 3] * v[(q + 2) % 3] - arm[(q + 2) % 3] * v[(q + 1) % 3]
        weight[1] += arm[q] ** 2


@compiled(fastmath=False)
def _list_pairs(body, start, radius, kind, rotation, translation, fixed, orth, turn, centre, middle, half, reach):
    """Pairs that may touch, of an atom of molecule a and one of an image: molecule c under an operator and a lattice
    translation. Of a contact and the same one seen from its other end only one is listed.

    Returns image (k, 6) with a, c, operator, whether there is another end, its first pair and the one after its last;
    shift (k, 3) fractional; pair (p, 2), the two atoms; aim (p,) Å.
    """
    frac, margin = np.linalg.inv(orth), radius.max() - AIM + SKIN
    pair, aim, n_pairs = np.empty((1024, 2), np.int64), np.empty(1024), 0
    image, shift, n_images = np.empty((32, 6), np.int64), np.empty((32, 3)), 0
    t, away, seen, n = np.empty(3), np.empty(3), np.empty(3), np.empty(3, np.int64)
    for a in range(len(centre)):
        n_atoms = start[a + 1] - start[a]
        bx, by, bz = body[start[a]:start[a + 1]].T.copy()
        r, near = radius[start[a]:start[a + 1]], np.empty(n_atoms, np.bool_)
        for c in range(a, len(centre)):
            farthest = reach[a] + reach[c] + margin + radius.max()
            for k in range(3):  # 1 / a* is the distance of the lattice planes
                n[k] = int(farthest * np.sqrt((frac[k] ** 2).sum()) + 0.5)
            for op in range(len(rotation)):
                sign = rotation[op]
                turned = (turn[a].T * sign) @ turn[c]   # from the frame of c, where c lies in a narrow box, to that of a
                toward, size = turned @ middle[c], np.abs(turned) @ half[c] + half[a] + margin + radius.max()
                between = sign * centre[c] + translation[op] - centre[a]
                whole = np.round(between)
                for n0 in range(-n[0], n[0] + 1):
                    for n1 in range(-n[1], n[1] + 1):
                        for n2 in range(-n[2], n[2] + 1):
                            t[0], t[1], t[2] = n0 - whole[0], n1 - whole[1], n2 - whole[2]
                            back = 1 if a < c else _side(sign, translation[op], t)
                            if back < 0:
                                continue
                            squared = 0.0
                            for k in range(3):
                                seen[k] = 0.0
                                for q in range(k, 3):
                                    seen[k] += orth[k, q] * (between[q] + t[q])
                                squared += seen[k] ** 2
                            itself = a == c and squared < 1e-4 and (op == 0 or fixed[a])  # or its other half
                            apart = squared > farthest**2
                            for k in range(3):
                                away[k] = turn[a, 0, k] * seen[0] + turn[a, 1, k] * seen[1] + turn[a, 2, k] * seen[2]
                                apart |= abs(away[k] + toward[k] - middle[a, k]) > size[k]
                            if itself or apart:
                                continue
                            first = n_pairs
                            for j in range(start[c], start[c + 1]):
                                apart = False
                                for k in range(3):
                                    seen[k] = away[k]
                                    for q in range(3):
                                        seen[k] += turned[k, q] * body[j, q]
                                    apart |= abs(seen[k] - middle[a, k]) > half[a, k] + margin + radius[j]
                                if apart:
                                    continue
                                hits, sx, sy, sz, listed = 0, seen[0], seen[1], seen[2], radius[j] - AIM + SKIN
                                for i in range(n_atoms):  # apart from what follows, so that it is vectorised
                                    near[i] = (bx[i] - sx) ** 2 + (by[i] - sy) ** 2 + (bz[i] - sz) ** 2 < (r[i] + listed) ** 2
                                    hits += near[i]
                                if not hits:
                                    continue
                                if n_pairs + hits > len(aim):
                                    pair, aim = _longer(pair), _longer(aim)
                                for i in range(n_atoms):
                                    if near[i]:
                                        pair[n_pairs, 0], pair[n_pairs, 1] = start[a] + i, j
                                        aim[n_pairs] = _aim(r[i] + radius[j], kind[start[a] + i], kind[j])
                                        n_pairs += 1
                            if n_pairs > first:
                                if n_images == len(image):
                                    image, shift = _longer(image), _longer(shift)
                                image[n_images] = a, c, op, back, first, n_pairs
                                shift[n_images] = translation[op] + t
                                n_images += 1
    return image[:n_images], shift[:n_images], pair, aim


@compiled(fastmath=False)
def _longer(rows):
    """The rows of an array with room for as many more."""
    return np.concatenate((rows, np.empty_like(rows)))


@compiled(fastmath=False)
def _side(sign, translation, t):
    """Of an image of a molecule and the molecule as its image sees it: 1 the one to list, -1 the other, 0 if they are the same.

    Where the operator keeps an axis the two lie on opposite sides along it, in steps that are exact.
    """
    for k in range(3):
        if sign[k] > 0 and translation[k] + t[k] != 0:
            return 1 if translation[k] + t[k] > 0 else -1
    return 0


@compiled(fastmath=False)
def _aim(radii, kind_i, kind_j):
    """Å, the distance at which two atoms begin to push: a hydrogen bond lets its atoms come nearer."""
    closest = radii - CLOSEST
    if (kind_i == 1 and kind_j >= 2) or (kind_j == 1 and kind_i >= 2):
        closest = min(closest, BOND)
    elif kind_i >= 2 and kind_j >= 2 and (kind_i == 3 or kind_j == 3):
        closest = min(closest, BOND_HEAVY)
    return closest + CLOSEST - AIM


@compiled(fastmath=False)
def _place(body, start, orth, turn, centre, X, x):
    """Cartesian centres X (m, 3) and atoms relative to their centre x (n, 3), in place."""
    for m in range(len(centre)):
        for k in range(3):
            X[m, k] = orth[k, 0] * centre[m, 0] + orth[k, 1] * centre[m, 1] + orth[k, 2] * centre[m, 2]
            for i in range(start[m], start[m + 1]):
                x[i, k] = turn[m, k, 0] * body[i, 0] + turn[m, k, 1] * body[i, 1] + turn[m, k, 2] * body[i, 2]


@compiled(fastmath=False)
def _set_volume(orth, volume):
    orth *= (volume / (orth[0, 0] * orth[1, 1] * orth[2, 2])) ** (1 / 3)


@compiled(fastmath=False)
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
        angles[1] = np.clip(rng.normal(97.3, 8.5), 90, 120)
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
