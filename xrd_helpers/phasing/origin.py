"""The same structure from another origin or in the other hand: find the shift before comparing atoms or phases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import gemmi
import numpy as np
from scipy.fft import next_fast_len
from scipy.optimize import linear_sum_assignment

from ..crystals import all_operators, rotations_and_translations
from .fourier import FourierSum

STEPS = gemmi.Op.DEN  # all discrete origin shifts of the tables are multiples of 1/24 of an axis
MOST_SHIFTS = 200  # shifts along polar directions that are tried; the right one is shared by most pairs of atoms


@dataclass(frozen=True)
class AtomMatch:
    """How well found atoms lie on true ones.

    n_matched : true atoms that have a found atom of their own within the tolerance, of n_true
    rms : of the distances of the matched ones, Å (nan when there are none)
    inverted : the found atoms were inverted first, x -> hand(x)
    shift : (3,) added to them afterwards, fractions of the cell
    pairs : (n_matched, 2) int, row of the found and of the true atom
    fract : (m, 3) the found atoms moved by hand, shift and operators of the group onto the true ones, for drawing
    """

    n_matched: int
    n_true: int
    rms: float
    inverted: bool
    shift: np.ndarray
    pairs: np.ndarray
    fract: np.ndarray


@dataclass(frozen=True)
class PhaseAgreement:
    """How well two sets of phases agree at the best allowed origin and hand.

    mean_error : Σ F |Δφ| / Σ F, degrees: 0 is perfect, 90 is no information
    map_cc : Σ F² cos Δφ / Σ F², the correlation of the two maps
    inverted, shift : what was done to the first set; its structure was inverted, then moved by shift (3,)
    """

    mean_error: float
    map_cc: float
    inverted: bool
    shift: np.ndarray


def allowed_origins(spacegroup):
    """Origin shifts that leave all operators of a space group as they are.

    A shift t is allowed if (R - I) t is a lattice vector, centring included, for every operator; along the polar
    directions, the null space of all R - I, any amount is allowed. Compare International Tables for
    Crystallography, Vol. B, table 2.2.3.2-2.2.3.4 and Vol. A, Euclidean normalisers.

    Returns
    -------
    shifts : (n, 3) float in [0, 1), one of each class modulo lattice, centring and polar directions, 0 first
    polar : (k, 3) int, lattice vectors that span the polar directions; k = 0 when there is none
    """
    shifts, polar = _allowed_origins(spacegroup.xhm())
    return shifts.copy(), polar.copy()


@cache
def _allowed_origins(name):
    spacegroup = gemmi.SpaceGroup(name)
    rot, _ = rotations_and_translations(spacegroup)
    moved = rot - np.eye(3, dtype=np.int64)                                   # (g, 3, 3), R - I
    polar = []
    # the shortest lattice vectors first, so that the basis is that of the axes where it can be
    for p in sorted(product((0, 1, -1), repeat=3), key=lambda p: (np.abs(p).sum(), np.negative(p).tolist())):
        if not (moved @ p).any() and np.linalg.matrix_rank([*polar, p]) > len(polar):
            polar.append(p)
    centring = np.array(spacegroup.operations().cen_ops, np.int64) % STEPS    # (c, 3), in 1/24
    grid = np.stack(np.meshgrid(*[np.arange(STEPS)] * 3, indexing="ij"), -1).reshape(-1, 3)
    change = np.einsum("gij,nj->ngi", moved, grid) % STEPS                    # (n, g, 3)
    fits = (change[:, :, None] == centring).all(-1).any(-1).all(-1)           # (n,)
    shifts, seen = [], set()
    along = np.array([np.array(c, np.int64) @ np.array(polar, np.int64).reshape(-1, 3)
                      for c in product(range(STEPS), repeat=len(polar))]).reshape(-1, 3)
    same = np.unique((along[:, None] + centring).reshape(-1, 3) % STEPS, axis=0)
    for t in grid[fits]:
        if tuple(t) not in seen:
            shifts.append(t / STEPS)
            seen.update(map(tuple, (t + same) % STEPS))
    return np.array(shifts), np.array(polar, np.int64).reshape(-1, 3)


def hands(spacegroup):
    """The hands in which data without anomalous scattering leave a structure: [(inverted, centre (3,)), ...].

    Inversion is x -> centre - x. It is left out for centrosymmetric groups, where it changes nothing, and for the
    enantiomorphic ones (P31 ...), where it would change the group.
    """
    if spacegroup.is_centrosymmetric() or spacegroup.is_enantiomorphic():
        return [(False, np.zeros(3))]
    op = spacegroup.change_of_hand_op()
    return [(False, np.zeros(3)), (True, np.array(op.tran, float) / gemmi.Op.DEN)]


def match_atoms(found_fract, true_fract, cell, spacegroup, tolerance=0.5) -> AtomMatch:
    """Lay found atoms over true ones, at the allowed origin and in the hand in which most of them fit.

    Every true atom takes at most one found atom and every found atom serves once.

    Parameters
    ----------
    found_fract : (m, 3), true_fract : (n, 3), fractions of the same cell, one asymmetric unit each
    tolerance : float, Å
    """
    found = np.asarray(found_fract, float).reshape(-1, 3)
    true = np.asarray(true_fract, float).reshape(-1, 3)
    best = AtomMatch(0, len(true), float("nan"), False, np.zeros(3), np.zeros((0, 2), int), found)
    if not len(found) or not len(true):
        return best
    shifts, polar = allowed_origins(spacegroup)
    target = _Target(true, cell, spacegroup, polar, tolerance)
    for inverted, centre in hands(spacegroup):
        turned = centre - found if inverted else found
        for shift in shifts:
            for along in target.shifts_along_polar(turned + shift):
                match = target.match(turned, shift + along, best.n_matched)
                if match and (match.n_matched > best.n_matched or match.rms < best.rms):
                    best = replace(match, inverted=inverted)
    return best


class _Target:
    """The true atoms with all their images, ready to be compared with many placements of the found ones."""

    def __init__(self, fract, cell, spacegroup, polar, tolerance):
        self.rot, self.tran = all_operators(spacegroup)                       # (g, 3, 3), (g, 3)
        self.images = np.einsum("gij,nj->ngi", self.rot, fract) + self.tran   # (n, g, 3)
        self.orth = np.array(cell.orth.mat.tolist())
        self.polar, self.tolerance = polar, tolerance

    def shifts_along_polar(self, found):
        """Shifts along the polar directions that bring a found atom onto an image of a true one: list of (3,)."""
        if not len(self.polar):
            return [np.zeros(3)]
        vectors = _nearest(self.images.reshape(1, -1, 3) - found[:, None]).reshape(-1, 3)
        coefficients = self._along(vectors)                                   # (pairs, k)
        rest = _nearest(vectors - coefficients @ self.polar)
        coefficients = coefficients[np.linalg.norm(rest @ self.orth.T, axis=1) < self.tolerance] % 1
        # shifts that many pairs share come first, and neighbours are tried once: `match` refines them
        step = self.tolerance / 2 / np.linalg.norm(self.orth @ self.polar.T, axis=0)
        bins, count = np.unique(np.round(coefficients / step).astype(np.int64), axis=0, return_counts=True)
        order = np.argsort(-count, kind="stable")[:MOST_SHIFTS]
        return [(bins[i] * step) @ self.polar for i in order]

    def match(self, found, shift, at_least):
        """The AtomMatch at one shift, refined along the polar directions; None if fewer than `at_least` match."""
        # a candidate shift is only near the best one: a wider net first, then twice the refined shift
        for reach in [self.tolerance] if not len(self.polar) else [1.5 * self.tolerance] * 2 + [self.tolerance]:
            vectors = _nearest(self.images - (found + shift)[:, None, None])  # (m, n, g, 3)
            squared = ((vectors @ self.orth.T) ** 2).sum(-1)                  # (m, n, g)
            image = squared.argmin(-1)                                        # (m, n)
            distance = np.sqrt(squared.min(-1))                               # (m, n)
            if (distance.min(axis=0) < reach).sum() < max(at_least, 1):
                return None
            # beyond reach all pairs cost the same, so that the number of pairs within it decides
            i, j = linear_sum_assignment(np.where(distance < reach, distance, 10 * reach * len(self.images)))
            close = distance[i, j] < reach
            i, j = i[close], j[close]
            if len(i) < max(at_least, 1):
                return None
            if reach > self.tolerance:
                shift = shift + self._along(vectors[i, j, image[i, j]].mean(0)[None])[0] @ self.polar
        partner = distance.argmin(1)  # atoms without a partner go near some true atom, so that a drawing holds together
        partner[i] = j
        rows = np.arange(len(found))
        g = image[rows, partner]
        # found + vector is the image R x + t of the true atom up to a lattice vector: undo R and t
        placed = self.images[partner, g] - vectors[rows, partner, g] - self.tran[g]
        placed = np.linalg.solve(self.rot[g].astype(float), placed[..., None])[..., 0]
        rms = float(np.sqrt((distance[i, j] ** 2).mean()))
        return AtomMatch(len(i), len(self.images), rms, False, shift % 1, np.stack([i, j], 1), placed)

    def _along(self, vectors):
        """Coefficients (k) of vectors (p, 3) along the polar directions, by least squares in Å -> (p, k)."""
        return np.linalg.lstsq(self.orth @ self.polar.T, self.orth @ vectors.T, rcond=None)[0].T


def _nearest(difference):
    """The shortest of equivalent vectors; exact for vectors shorter than half the smallest spacing of the lattice."""
    return difference - np.round(difference)


def phase_error(phi_a, phi_b, hkl, F, spacegroup) -> PhaseAgreement:
    """Compare two sets of phases at the allowed origin and in the hand in which they agree best.

    Parameters
    ----------
    phi_a, phi_b : (n,) degrees
    hkl : (n, 3) int, the asymmetric unit
    F : (n,) amplitudes, the weights

    Returns
    -------
    PhaseAgreement, with what was done to set a
    """
    hkl, F = np.asarray(hkl, np.int64), np.asarray(F, float)
    phi_a, phi_b = np.radians(np.asarray(phi_a, float)), np.radians(np.asarray(phi_b, float))
    if not F.sum() > 0:
        raise ValueError("phases are weighted by amplitudes, and all amplitudes are zero")
    shifts, polar = allowed_origins(spacegroup)
    best = None
    for inverted, centre in hands(spacegroup):
        # x -> c - x turns F(h) into conj F(h) exp(2πi h·c); x -> x + t turns it into F(h) exp(2πi h·t)
        turned = -phi_a + 2 * np.pi * hkl @ centre if inverted else phi_a
        for shift in shifts:
            difference = turned + 2 * np.pi * hkl @ shift - phi_b
            along = _best_polar_shift(difference, F**2, hkl @ polar.T) @ polar if len(polar) else np.zeros(3)
            difference = difference + 2 * np.pi * hkl @ along
            cc = float((F**2 * np.cos(difference)).sum() / (F**2).sum())
            if best is None or cc > best.map_cc:
                wrapped = np.abs((difference + np.pi) % (2 * np.pi) - np.pi)
                best = PhaseAgreement(float(np.degrees((F * wrapped).sum() / F.sum())), cc, inverted,
                                      (shift + along) % 1)
    return best


def _best_polar_shift(difference, weight, k):
    """Where Σ weight cos(difference + 2π k·s) is highest, s (p,) with k (n, p) int."""
    size = [next_fast_len(int(4 * np.abs(column).max() + 4)) for column in k.T]
    return FourierSum(k, size).maximum(weight * np.exp(-1j * difference), gain=0)[0]


def solved(found, crystal, share=0.8, tolerance=0.5) -> bool:
    """Whether phasing found the crystal: `share` of its non-H atoms within `tolerance` Å (DESIGN.md, section 7).

    Parameters
    ----------
    found : Solution, or (m, 3) fractional coordinates in the setting of the crystal
    crystal : Crystal
    """
    match = match_solution(found, crystal, tolerance)
    return match is not None and match.n_matched >= share * match.n_true


def match_solution(found, crystal, tolerance=0.5):
    """``match_atoms`` of a Solution (or coordinates, or None) and the non-H atoms of a crystal; None for None.

    A Solution on other axes of the same lattice, or in another space group than the crystal's, is compared by all
    atoms of the cell in P1, on the axes of the crystal; the counts and ``pairs`` are then of those. None, too, if
    the lattices differ.
    """
    if found is None:
        return None
    true = crystal.fract[np.array([element not in ("H", "D") for element in crystal.elements])]
    if not hasattr(found, "spacegroup") or (found.cell.approx(crystal.cell, 0.01)
                                            and found.spacegroup.xhm() == crystal.spacegroup.xhm()):
        return match_atoms(getattr(found, "fract", found), true, crystal.cell, crystal.spacegroup, tolerance)
    true, atoms = _whole_cell(true, crystal), _whole_cell(found.fract, found)
    matches = [match_atoms(atoms @ np.linalg.inv(basis), true, crystal.cell, gemmi.SpaceGroup("P 1"), tolerance)
               for basis in same_lattice_bases(found.cell, crystal.cell)]
    return max(matches, key=lambda match: match.n_matched, default=None)


def _whole_cell(fract, structure):
    """All atoms of the cell (m, 3): images of the asymmetric unit, those that coincide once."""
    target = _Target(np.asarray(fract, float), structure.cell, structure.spacegroup, np.zeros((0, 3)), 0)
    images = target.images.reshape(-1, 3) % 1
    kept = np.zeros((0, 3))
    for x in images:
        if not len(kept) or (((_nearest(kept - x)) @ target.orth.T) ** 2).sum(1).min() > 0.1**2:
            kept = np.concatenate([kept, x[None]])
    return kept


def same_lattice_bases(cell_a, cell_b, tolerance=0.02):
    """Integer matrices (3, 3) of determinant 1 whose rows are the axes of cell_b in those of cell_a.

    Lengths and the products of axes agree within `tolerance` of the product of the lengths; entries are -2..2, which
    covers the settings of the tables. Coordinates go over by x_b = x_a @ inverse(matrix).
    """
    rows = np.array(list(product(range(-2, 3), repeat=3)))
    orth_a, orth_b = (np.array(cell.orth.mat.tolist()).T for cell in (cell_a, cell_b))
    vectors = rows @ orth_a                                                   # (125, 3) Å
    length_b = np.linalg.norm(orth_b, axis=1)
    metric_b = orth_b @ orth_b.T
    close = [np.flatnonzero(np.abs(np.linalg.norm(vectors, axis=1) / length - 1) < tolerance) for length in length_b]
    found = []
    for i, j, k in product(*close):
        axes = vectors[[i, j, k]]
        if np.linalg.det(rows[[i, j, k]]) > 0.5 and (np.abs(axes @ axes.T - metric_b)
                                                     < tolerance * np.outer(length_b, length_b)).all():
            found.append(rows[[i, j, k]].astype(float))
    return [basis for basis in found if round(np.linalg.det(basis)) == round(cell_b.volume / cell_a.volume)]
