"""Who is near whom, and bonded to whom, across symmetry and cell borders; whole molecules out of an asymmetric unit."""

from __future__ import annotations

from typing import NamedTuple

import gemmi
import numpy as np
from scipy.spatial import cKDTree

from .crystals import all_operators

SLACK = 0.3  # Å, atoms are bonded up to the sum of their covalent radii and this
SAME = 0.3   # Å, two images nearer than this are one atom on a special position


class Molecule(NamedTuple):
    """Atoms that bonds hold together.

    atom : (m,) int, row of the asymmetric unit that each is an image of
    xyz : (m, 3) Å
    bonds : (k, 2) int, rows of xyz
    own : (m,) bool, True for one image of each row of the asymmetric unit
    """

    atom: np.ndarray
    xyz: np.ndarray
    bonds: np.ndarray
    own: np.ndarray


class Neighbours(NamedTuple):
    """Pairs of an atom of the asymmetric unit and an image of one, by the row of the first, then of the second, then length.

    i, j : (m,) int, rows of the asymmetric unit
    op : (m,) int, row of ``crystals.all_operators`` that makes the image of j
    step : (m, 3) from i to that image, fractions of the cell; length : (m,) Å
    """

    i: np.ndarray
    j: np.ndarray
    op: np.ndarray
    step: np.ndarray
    length: np.ndarray


def covalent_radii(elements) -> np.ndarray:
    """(n,) Å, of symbols (n,): Cordero et al., Dalton Trans. (2008) 2832, as gemmi holds them."""
    return np.array([gemmi.Element(element).covalent_r for element in elements])


def neighbours(fract, cell, spacegroup, reach) -> Neighbours:
    """All atoms and images nearer than `reach` Å to atoms (n, 3) of an asymmetric unit, each image once.

    Images of an atom nearer than SAME to each other are one, and those as near to the atom itself are no neighbours of it.
    """
    fract = np.asarray(fract, float).reshape(-1, 3)
    orth = np.array(cell.orth.mat.tolist())
    rot, tran = all_operators(spacegroup)
    images = np.einsum("gij,nj->ngi", rot, fract) + tran                           # (n, g, 3)
    apart = images[:, :, None] - images[:, None]
    coincide = np.linalg.norm((apart - np.round(apart)) @ orth.T, axis=-1) < SAME  # (n, g, g)
    atom, op = np.nonzero(~np.tril(coincide, -1).any(2))
    # as many lattice translations as the sphere is wide, in an oblique cell too
    n = np.ceil(reach * np.linalg.norm(np.linalg.inv(orth), axis=1)).astype(int)
    shifts = np.stack(np.meshgrid(*[np.arange(-k, k + 1) for k in n], indexing="ij"), axis=-1).reshape(-1, 3)
    inside = fract - np.floor(fract)
    cloud = images[atom, op] - np.floor(images[atom, op])
    cloud = (cloud[:, None] + shifts).reshape(-1, 3)
    atom, op = np.repeat(atom, len(shifts)), np.repeat(op, len(shifts))
    xyz, here = cloud @ orth.T, inside @ orth.T
    near = ((xyz > here.min(axis=0) - reach) & (xyz < here.max(axis=0) + reach)).all(axis=1)
    cloud, xyz, atom, op = cloud[near], xyz[near], atom[near], op[near]
    pairs = cKDTree(here).sparse_distance_matrix(cKDTree(xyz), reach, output_type="coo_matrix")
    i, at, length = pairs.row, pairs.col, pairs.data
    order = np.lexsort((op[at], length.round(6), atom[at], i))
    order = order[(i != atom[at])[order] | (length >= SAME)[order]]
    i, at = i[order], at[order]
    return Neighbours(i, atom[at], op[at], cloud[at] - inside[i], length[order])


def whole_molecules(fract, elements, cell, spacegroup) -> list[Molecule]:
    """The molecules that atoms (n, 3) of an asymmetric unit belong to, each once and in one piece, the largest first.

    A molecule grows from an atom along its bonds over all images of the others, so that one on an inversion centre, an
    axis or a mirror is completed. A chain without end is cut where it repeats: no two of its atoms differ by a lattice
    translation. Two hydrogen atoms are never bonded.
    """
    fract = np.asarray(fract, float).reshape(-1, 3)
    orth = np.array(cell.orth.mat.tolist())
    rot, _ = all_operators(spacegroup)
    radius, hydrogen = covalent_radii(elements), np.isin(elements, ["H", "D"])
    pairs = neighbours(fract, cell, spacegroup, 2 * radius.max() + SLACK)
    bond = (pairs.length > 2 * SAME) & (pairs.length < radius[pairs.i] + radius[pairs.j] + SLACK)
    bond &= ~(hydrogen[pairs.i] & hydrogen[pairs.j])
    bonded_to = [np.flatnonzero(bond & (pairs.i == i)) for i in range(len(fract))]
    found, seen = [], np.zeros(len(fract), bool)
    for start in range(len(fract)):
        if seen[start]:
            continue
        atom, place, turn, own, bonds, i = [start], [fract[start]], [np.eye(3)], [True], set(), 0
        while i < len(atom):
            for p in bonded_to[atom[i]]:
                n, x = pairs.j[p], place[i] + turn[i] @ pairs.step[p]
                same = [j for j in range(len(atom)) if atom[j] == n and _length(x - place[j], orth, True) < SAME]
                if not same:
                    own.append(not seen[n] and n not in atom)
                    atom.append(n)
                    place.append(x)
                    turn.append(turn[i] @ rot[pairs.op[p]])
                    same = [len(atom) - 1]
                if _length(x - place[same[0]], orth) < SAME:  # else it is that atom in another cell
                    bonds.add((min(i, same[0]), max(i, same[0])))
            i += 1
        seen[atom] = True
        bonds = np.array(sorted(bonds), int).reshape(-1, 2)
        found.append(Molecule(np.array(atom), np.array(place) @ orth.T, bonds, np.array(own)))
    return sorted(found, key=lambda molecule: -len(molecule.atom))


def assembled(fract, elements, cell, spacegroup):
    """The atoms of an asymmetric unit at those of their images where molecules are in one piece and beside each other.

    The largest molecule has its centre in the cell; each other one is the image with an atom nearest to those before it.

    Returns
    -------
    order : (n,) int, rows of fract, one molecule after the other, in each as they were, but hydrogen after the atom that it
        is bonded to; fract : (n, 3) in that order
    """
    orth = np.array(cell.orth.mat.tolist())
    rot, tran = all_operators(spacegroup)
    around = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    order, placed, hydrogen = [], [], np.isin(elements, ["H", "D"])
    for molecule in whole_molecules(fract, elements, cell, spacegroup):
        parent = molecule.atom.copy()
        for i, j in [*molecule.bonds, *molecule.bonds[:, ::-1]]:
            if hydrogen[molecule.atom[i]] and not hydrogen[molecule.atom[j]]:
                parent[i] = molecule.atom[j]
        own = np.flatnonzero(molecule.own)
        own = own[np.lexsort((molecule.atom[own], hydrogen[molecule.atom[own]], parent[own]))]
        x = np.linalg.solve(orth, molecule.xyz[own].T).T
        if not placed:
            x = x - np.floor(x.mean(0))
        else:
            images = np.einsum("gij,nj->gni", rot, x) + tran[:, None]                        # (g, n, 3)
            step = images.mean(1) - placed[0].mean(0)
            images = images[:, None] - np.round(step)[:, None, None] + around[:, None]       # (g, 27, n, 3)
            images = images.reshape(-1, *x.shape)
            nearest, _ = cKDTree(np.concatenate(placed) @ orth.T).query(images @ orth.T)
            away = np.linalg.norm((images.mean(1) - placed[0].mean(0)) @ orth.T, axis=1)
            x = images[np.lexsort((away, nearest.min(1).round(2)))[0]]
        order.append(molecule.atom[own])
        placed.append(x)
    return np.concatenate(order), np.concatenate(placed)


def coordination(fract, elements, cell, spacegroup) -> np.ndarray:
    """(n,) int, how many atoms and images that are not hydrogen each atom is bonded to."""
    radius, hydrogen = covalent_radii(elements), np.isin(elements, ["H", "D"])
    pairs = neighbours(fract, cell, spacegroup, 2 * radius.max() + SLACK)
    bond = (pairs.length > 2 * SAME) & (pairs.length < radius[pairs.i] + radius[pairs.j] + SLACK) & ~hydrogen[pairs.j]
    return np.bincount(pairs.i[bond], minlength=len(elements))


def _length(step, orth, of_lattice=False):
    """Å, of a vector (3,) in fractions of the cell, or of what is left of it when lattice translations are taken off."""
    return float(np.linalg.norm(orth @ (step - np.round(step) if of_lattice else step)))
