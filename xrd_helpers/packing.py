"""Rigid molecules packed without clashes under the full symmetry of a space group, many crystals at once.

Molecules start at random places in a cell of the right volume and push each other apart until no two atoms are nearer
than their contact distance; the cell changes its shape, not its volume, as it is pushed. Space groups are those whose
rotations are diagonal on the axes (triclinic, monoclinic with unique axis b, orthorhombic): then a rotation acts on
Cartesian coordinates as it does on fractional ones, as three signs.
"""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np

from .crystals import all_operators

# Å, contact radii: those of Bondi (J. Phys. Chem. 1964, 68, 441); what is not listed is taken as 1.9
RADII = {"H": 1.10, "C": 1.70, "N": 1.55, "O": 1.52, "F": 1.47, "Cl": 1.75, "Br": 1.85, "I": 1.98, "S": 1.80, "P": 1.80,
         "Si": 2.10, "B": 1.85, "Na": 1.25, "K": 1.60}
POLAR = ("N", "O", "F", "Cl", "Br", "I")
CLOSEST = 0.42       # Å below the sum of the radii: no two atoms of different molecules come nearer
AIM = 0.22           # Å below it: from where they push
BOND = 1.70          # Å, H of an N-H or O-H to an acceptor, the nearest
BOND_HEAVY = 2.60    # Å, donor to acceptor, the nearest
SKIN = 0.6           # Å, how much farther the list of pairs reaches
LIST_STEPS = (0, 3, 7, 12, 18, 25, 33, 42, 52, 63, 75, 88)  # when the list is made anew; atoms move less and less
N_STEPS = 60
CHECK = LIST_STEPS[6:]


@dataclass
class Contents:
    """What goes into a cell: molecules of the asymmetric unit and the volume that they need.

    ``fixed`` holds, for each molecule, None or the fractional coordinates (3,) of the inversion centre that it sits on.
    """

    spacegroup: gemmi.SpaceGroup
    volume: float               # Å³, of the cell
    elements: list              # of each molecule, a list of symbols
    xyz: list                   # of each molecule, (n, 3) Å
    parents: list               # of each molecule, (n,) the atom that an H sits on, -1 for other atoms
    fixed: list
    rng: np.random.Generator    # of this crystal alone: its packing depends on no other crystal
    occ: np.ndarray             # of all atoms, crystallographic occupancy


@dataclass
class Packing:
    """Where the molecules came to lie: cell, and fractional coordinates (n, 3) of each molecule's atoms."""

    cell: gemmi.UnitCell
    fract: list


def pack(contents) -> list[Packing | None]:
    """One attempt from a random start for each; None where clashes remain."""
    state = _State(contents)
    for step in range(N_STEPS):
        if step in LIST_STEPS:
            state.list_pairs()
            if step in CHECK and state.n_clashing == 0:
                break
        state.step(step)
    else:
        state.list_pairs()
    return [None if state.clashing[b] else state.packing(b) for b in range(len(contents))]


class _State:
    """All crystals in flat arrays: atoms and molecules one after the other, each with the number of its crystal."""

    def __init__(self, contents):
        self.contents = contents
        self.ops = [all_operators(content.spacegroup) for content in contents]
        self.sign = [np.array([np.diag(rot) for rot in ops[0]], float) for ops in self.ops]
        self.monoclinic = np.array([c.spacegroup.crystal_system_str() != "orthorhombic" for c in contents])
        self.triclinic = np.array([c.spacegroup.crystal_system_str() == "triclinic" for c in contents])
        self.volume = np.array([content.volume for content in contents])
        cells = [_start_cell(content.rng, self.monoclinic[b], self.triclinic[b]) for b, content in enumerate(contents)]
        self.orth = np.array(cells)                                              # (B, 3, 3), a along x, b in the xy plane
        self._set_volume()
        crystal_of_mol, mol_of_atom, xyz, turn, centre, fixed, radii, kind = [], [], [], [], [], [], [], []
        for b, content in enumerate(contents):
            for elements, coordinates, parents, place in zip(content.elements, content.xyz, content.parents, content.fixed):
                mol_of_atom += [len(crystal_of_mol)] * len(elements)
                crystal_of_mol.append(b)
                xyz.append(coordinates - (coordinates.mean(axis=0) if place is None else 0))
                turn.append(_random_rotation(content.rng))
                random_place = content.rng.random(3)
                centre.append(random_place if place is None else place)
                fixed.append(place is not None)
                radii += [RADII.get(e, 1.9) for e in elements]
                kind += [_kind(elements, parents, i) for i in range(len(elements))]
        self.crystal, self.mol = np.array(crystal_of_mol), np.array(mol_of_atom)
        self.body, self.turn, self.centre = np.vstack(xyz), np.array(turn), np.array(centre)   # centre: fractional
        self.fixed, self.radius, self.kind = np.array(fixed), np.array(radii), np.array(kind)
        self.start = np.searchsorted(self.mol, np.arange(len(self.crystal) + 1))               # first atom of a molecule
        self.mols = np.searchsorted(self.crystal, np.arange(len(contents) + 1))                # first molecule of a crystal
        self.reach = np.sqrt(np.maximum.reduceat((self.body**2).sum(axis=1), self.start[:-1]))
        self.velocity = np.zeros((len(self.crystal), 6))
        self.strain = np.zeros((len(contents), 3, 3))
        self.clashing = np.ones(len(contents), bool)

    @property
    def n_clashing(self):
        return int(self.clashing.sum())

    def _set_volume(self):
        self.orth *= (self.volume / (self.orth[:, 0, 0] * self.orth[:, 1, 1] * self.orth[:, 2, 2]))[:, None, None] ** (1 / 3)

    def _place(self):
        """Cartesian centres (m, 3) and atoms relative to them (n, 3)."""
        orth, turn = self.orth[self.crystal], self.turn[self.mol]
        X = orth[:, :, 0] * self.centre[:, :1] + orth[:, :, 1] * self.centre[:, 1:2] + orth[:, :, 2] * self.centre[:, 2:]
        x = turn[:, :, 0] * self.body[:, :1] + turn[:, :, 1] * self.body[:, 1:2] + turn[:, :, 2] * self.body[:, 2:]
        return X, x

    def list_pairs(self):
        """Pairs of an atom and an image of an atom, of another molecule or image of the molecule, that may touch."""
        X, x = self._place()
        x = x + X[self.mol]
        i_all, j_all, sign_all, limit_all, image_all = [], [], [], [], []
        image_mol, image_sign, image_shift = [], [], []
        n_images = 0
        for b in range(len(self.contents)):
            m0, m1 = self.mols[b], self.mols[b + 1]
            orth, sign, tran = self.orth[b], self.sign[b], self.ops[b][1]
            frac = np.linalg.inv(orth)
            reach = self.reach[m0:m1]
            far = 2 * reach.max() + 2 * 1.9 + SKIN
            n = (far * np.sqrt((frac**2).sum(axis=1)) + 0.5).astype(int)
            shifts = np.stack(np.meshgrid(*[np.arange(-k, k + 1) for k in n], indexing="ij"), axis=-1).reshape(-1, 3)
            for a in range(m0, m1):
                # images of each molecule c, brought next to a
                moved = sign[None] * self.centre[m0:m1, None] + tran                         # (c, g, 3)
                near = moved - self.centre[a]
                whole = np.round(near)
                away = ((near - whole)[:, :, None] + shifts) @ orth.T                         # (c, g, s, 3)
                squared = (away * away).sum(axis=-1)
                limit = (reach[a - m0] + reach + 3.8 + SKIN) ** 2
                c, g, s = np.nonzero(squared < limit[:, None, None])
                own = (c == a - m0) & (squared[c, g, s] < 1e-4)     # itself, or its other half
                c, g, s = c[~own], g[~own], s[~own]
                if not len(c):
                    continue
                shift = tran[g] + shifts[s] - whole[c, g]                                     # added to R x
                size = self.start[m0 + c + 1] - self.start[m0 + c]
                k = np.repeat(np.arange(len(c)), size)                                        # the image of each atom
                j = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size) + self.start[m0 + c][k]
                cloud = sign[g][k] * x[j] + (shift @ orth.T)[k]
                close = ((cloud - X[a]) ** 2).sum(axis=1) < (reach[a - m0] + 3.8 + SKIN) ** 2
                cloud, j, k = cloud[close], j[close], k[close]
                atoms = np.arange(self.start[a], self.start[a + 1])
                here = x[atoms]
                squared = (here * here).sum(axis=1)[:, None] + (cloud * cloud).sum(axis=1) - 2 * (here @ cloud.T)
                limit = self.radius[atoms][:, None] + (self.radius[j] + (SKIN - AIM))
                p, q = np.nonzero(squared < limit * limit)
                i_all.append(atoms[p])
                j_all.append(j[q])
                sign_all.append(sign[g][k[q]])
                image_all.append(k[q] + n_images)
                image_mol.append(np.stack([np.full(len(c), a), m0 + c], axis=1))
                image_sign.append(sign[g])
                image_shift.append(shift)
                n_images += len(c)
        self.i, self.j, self.image = (np.concatenate(rows) for rows in (i_all, j_all, image_all))
        self.pair_sign = np.concatenate(sign_all)
        self.image_mol, self.image_sign, self.image_shift = (np.concatenate(rows) for rows in (image_mol, image_sign, image_shift))
        aim = self.radius[self.i] + self.radius[self.j] - AIM
        closest = aim - (CLOSEST - AIM)
        kind_i, kind_j = self.kind[self.i], self.kind[self.j]
        bond = (kind_i == 1) & (kind_j == 2) | (kind_i == 2) & (kind_j == 1) | (kind_i == 1) & (kind_j == 3) | (kind_i == 3) & (kind_j == 1)
        polar = (kind_i >= 2) & (kind_j >= 2) & ((kind_i == 3) | (kind_j == 3))
        for which, distance in ((bond, BOND), (polar, BOND_HEAVY)):
            closest[which] = np.minimum(closest[which], distance)
            aim[which] = closest[which] + CLOSEST - AIM
        self.aim, self.closest = aim, closest
        distance = self._vectors()[0]
        self.clashing = np.bincount(self.crystal[self.mol[self.i]], distance < closest, len(self.contents)) > 0

    def _vectors(self):
        """Distances (P,) and vectors (P, 3) from the image atom of each pair to the atom, and what they were made of."""
        X, x = self._place()
        orth = self.orth[self.crystal[self.image_mol[:, 0]]]
        shift = self.image_shift
        T = orth[:, :, 0] * shift[:, :1] + orth[:, :, 1] * shift[:, 1:2] + orth[:, :, 2] * shift[:, 2:]
        x_abs = x + X[self.mol]
        v = x_abs[self.i] - self.pair_sign * x_abs[self.j] - T[self.image]
        return np.sqrt((v * v).sum(axis=1)), v, X, x, T

    def step(self, step):
        """One push: every molecule moves and turns by the mean of what its contacts ask for, and so does the cell."""
        distance, v, X, x, T = self._vectors()
        near = distance < self.aim
        i, image, v, distance = self.i[near], self.image[near], v[near], distance[near]
        overlap = self.aim[near] - distance
        force = v * (overlap / np.maximum(distance, 1e-6))[:, None]
        mol, arm = self.mol[i], x[i]
        n = len(self.crystal)
        count = np.bincount(mol, minlength=n) + 2.0
        torque = np.stack([arm[:, 1] * force[:, 2] - arm[:, 2] * force[:, 1], arm[:, 2] * force[:, 0] - arm[:, 0] * force[:, 2],
                           arm[:, 0] * force[:, 1] - arm[:, 1] * force[:, 0]], axis=1)
        total = np.stack([np.bincount(mol, part, n) for part in (*force.T, *torque.T)], axis=1).astype(float)
        lever = np.bincount(mol, (arm * arm).sum(axis=1), n) + 3.0
        total[:, :3] *= (1.5 / count)[:, None]
        total[:, 3:] *= (2.0 / lever)[:, None]
        self.velocity = 0.6 * self.velocity + total
        move, turn = self.velocity[:, :3], self.velocity[:, 3:]
        for part, most in ((move, 0.6), (turn, 0.25)):
            part *= np.minimum(1, most / np.maximum(np.sqrt((part * part).sum(axis=1)), 1e-9))[:, None]
        # the cell: strain from forces times the distances of centres
        a, c = self.image_mol[image].T
        apart = X[a] - self.image_sign[image] * X[c] - T[image]
        crystal = self.crystal[a]
        B = len(self.contents)
        lever = np.bincount(crystal, (apart * apart).sum(axis=1), B) + 30.0
        strain = np.zeros((B, 3, 3))
        for p, q in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
            strain[:, p, q] = np.bincount(crystal, force[:, p] * apart[:, q], B) / lever * 2.0
        strain[:, [0, 1, 2], [0, 1, 2]] -= strain[:, [0, 1, 2], [0, 1, 2]].mean(axis=1)[:, None]
        strain[:, 0, 2] *= self.monoclinic
        strain[:, 0, 1] *= self.triclinic
        strain[:, 1, 2] *= self.triclinic
        self.strain = np.clip(0.6 * self.strain + strain, -0.03, 0.03)
        orth = self.orth[self.crystal]
        self.orth = self.orth + sum(self.strain[:, :, k, None] * self.orth[:, k, None, :] for k in range(3))
        self._set_volume()
        self.centre = self.centre + np.where(self.fixed[:, None], 0, _solve_upper(orth, move))
        self.turn = _rotation(turn, self.turn)

    def packing(self, b) -> Packing:
        """The cell and the fractional coordinates of crystal b."""
        X, x = self._place()
        a, bb, c = self.orth[b].T
        cell = gemmi.UnitCell(*(np.linalg.norm(v) for v in (a, bb, c)), *(_angle(*pair) for pair in ((bb, c), (a, c), (a, bb))))
        fract = []
        for m in range(self.mols[b], self.mols[b + 1]):
            atoms = slice(self.start[m], self.start[m + 1])
            fract.append(_solve_upper(self.orth[b][None], x[atoms]) + self.centre[m])
        return Packing(cell, fract)


def _kind(elements, parents, i):
    """0: other atoms, 1: H that can make a hydrogen bond, 2: acceptor, 3: acceptor that has such an H."""
    if elements[i] == "H":
        return int(parents[i] >= 0 and elements[parents[i]] in ("N", "O"))
    if elements[i] not in POLAR:
        return 0
    return 3 if any(p == i for p in parents) else 2


def _start_cell(rng, monoclinic, triclinic):
    """(3, 3) orthogonalisation matrix of a random cell, a along x and b in the xy plane; the volume is set later."""
    edges = np.exp(rng.normal(0, 0.38, 3))
    angles = np.full(3, 90.0)
    if triclinic:
        angles = np.clip(rng.normal(92, 10, 3), 65, 118)
    elif monoclinic:
        angles[1] = np.clip(rng.normal(98, 9), 90, 125)
    return np.array(gemmi.UnitCell(*edges, *angles).orth.mat.tolist())


def _random_rotation(rng):
    """(3, 3) uniformly random rotation, from a random quaternion."""
    w, x, y, z = q = rng.normal(size=4)
    w, x, y, z = q / np.sqrt(w * w + x * x + y * y + z * z)
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                     [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                     [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])


def _rotation(w, turn):
    """turn (m, 3, 3) after a rotation by the small vectors w (m, 3), by Cayley's formula: exactly a rotation."""
    x, y, z = (w / 2).T
    s = 1 / (1 + x * x + y * y + z * z)
    R = np.empty_like(turn)
    R[:, 0, 0], R[:, 1, 1], R[:, 2, 2] = 1 - 2 * s * (y * y + z * z), 1 - 2 * s * (x * x + z * z), 1 - 2 * s * (x * x + y * y)
    R[:, 0, 1], R[:, 1, 0] = 2 * s * (x * y - z), 2 * s * (x * y + z)
    R[:, 0, 2], R[:, 2, 0] = 2 * s * (x * z + y), 2 * s * (x * z - y)
    R[:, 1, 2], R[:, 2, 1] = 2 * s * (y * z - x), 2 * s * (y * z + x)
    return sum(R[:, :, k, None] * turn[:, k, None, :] for k in range(3))


def _solve_upper(orth, v):
    """Fractional coordinates of Cartesian v (m, 3) for upper triangular orth (m, 3, 3)."""
    z = v[:, 2] / orth[:, 2, 2]
    y = (v[:, 1] - orth[:, 1, 2] * z) / orth[:, 1, 1]
    x = (v[:, 0] - orth[:, 0, 1] * y - orth[:, 0, 2] * z) / orth[:, 0, 0]
    return np.stack([x, y, z], axis=1)


def _angle(u, v):
    """Degrees between two vectors."""
    return float(np.degrees(np.arccos(u @ v / np.sqrt((u @ u) * (v @ v)))))
