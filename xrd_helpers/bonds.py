"""Whole molecules out of the atoms of an asymmetric unit: who is bonded to whom, across symmetry and cell borders."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import gemmi
import numpy as np

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


def covalent_radii(elements) -> np.ndarray:
    """(n,) Å, of symbols (n,): Cordero et al., Dalton Trans. (2008) 2832, as gemmi holds them."""
    return np.array([gemmi.Element(element).covalent_r for element in elements])


def whole_molecules(fract, elements, cell, spacegroup) -> list[Molecule]:
    """The molecules that atoms (n, 3) of an asymmetric unit belong to, each once and in one piece, the largest first.

    A molecule grows from an atom along its bonds over all images of the others, so that one on an inversion centre, an
    axis or a mirror is completed. A chain without end is cut where it repeats: no two of its atoms differ by a lattice
    translation. Two hydrogen atoms are never bonded.
    """
    fract = np.asarray(fract, float).reshape(-1, 3)
    orth = np.array(cell.orth.mat.tolist())
    rot, tran = all_operators(spacegroup)
    images = np.einsum("gij,nj->ngi", rot, fract) + tran                           # (n, g, 3)
    around = np.array(list(product((-1, 0, 1), repeat=3))) # one of them is nearest, in an oblique cell too
    radius, hydrogen = covalent_radii(elements), np.isin(elements, ["H", "D"])
    found, seen = [], np.zeros(len(fract), bool)
    for start in range(len(fract)):
        if seen[start]:
            continue
        atom, place, own, bonds, i = [start], [fract[start]], [True], set(), 0
        while i < len(atom):
            step = images - place[i]
            step = (step - np.round(step))[:, :, None] + around                    # (n, g, 27, 3)
            length = np.linalg.norm(step @ orth.T, axis=-1)
            near = (length > 2 * SAME) & (length < (radius + radius[atom[i]] + SLACK)[:, None, None])
            near[hydrogen & hydrogen[atom[i]]] = False
            for n, g, t in zip(*np.nonzero(near)):
                x = place[i] + step[n, g, t]
                same = [j for j in range(len(atom)) if atom[j] == n and _length(x - place[j], orth, True) < SAME]
                if not same:
                    own.append(not seen[n] and n not in atom)
                    atom.append(n)
                    place.append(x)
                    same = [len(atom) - 1]
                if _length(x - place[same[0]], orth) < SAME:  # else it is that atom in another cell
                    bonds.add((min(i, same[0]), max(i, same[0])))
            i += 1
        seen[atom] = True
        bonds = np.array(sorted(bonds), int).reshape(-1, 2)
        found.append(Molecule(np.array(atom), np.array(place) @ orth.T, bonds, np.array(own)))
    return sorted(found, key=lambda molecule: -len(molecule.atom))


def _length(step, orth, of_lattice=False):
    """Å, of a vector (3,) in fractions of the cell, or of what is left of it when lattice translations are taken off."""
    return float(np.linalg.norm(orth @ (step - np.round(step) if of_lattice else step)))
