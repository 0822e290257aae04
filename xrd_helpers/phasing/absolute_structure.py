"""In which of two hands a structure is, by what anomalous scattering makes of Friedel pairs.

A crystal with a share x of the other hand has I(h) = (1 - x) |F(h)|² + x |F(-h)|² (Flack, 1983, Acta Cryst. A39, 876), so that
the quotients (I(h) - I(-h)) / (I(h) + I(-h)) are 1 - 2x times those of the atoms (Parsons, Flack & Wagner, 2013, Acta Cryst.
B69, 249), whatever absorption and scale do to both members of a pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import gemmi
import numpy as np

from ..reflections import merge_friedel_apart
from ..structure_factors import ENERGIES, structure_factors
from .solution import Solution

HC = 12.398419843   # keV Å
LEAST = 20          # pairs, fewer than which tell nothing
STRONG = 6.0        # of a pair: its mean intensity over the uncertainty of that
OUTLIER = 4.0       # standard uncertainties off, beyond which a quotient is left out
CERTAIN = 3.0       # standard uncertainties between x and 0.5, from which the hand is taken for known
POOR, FAIR = 0.3, 0.1  # standard uncertainties of x, above which data tell nothing, and of good data


@dataclass(frozen=True)
class Hand:
    """Flack's x of a structure as it is written, and its standard uncertainty, from n pairs; nan where `why` says why not.

    inverted : whether the atoms were found in the other hand
    """

    x: float = math.nan
    error: float = math.nan
    n: int = 0
    inverted: bool = False
    why: str = ""

    @property
    def known(self) -> bool:
        """Whether the data tell the hand."""
        return self.error < POOR and 0.5 - self.x > CERTAIN * self.error

    def in_words(self) -> str:
        if self.why:
            return f"The hand cannot be told: {self.why}"
        found = f"Flack x is {with_error(self.x, self.error)} by {self.n} quotients of Friedel pairs"
        if self.known:
            twin = self.error < FAIR and self.x > CERTAIN * self.error
            return (f"{found}: this is the hand of {'most of the crystal, a twin by inversion' if twin else 'the crystal'}"
                    + ", and the atoms found were inverted" * self.inverted)
        if self.error < FAIR:
            return f"{found}: the crystal is a twin by inversion, or has a centre of symmetry"
        return f"{found}: the data do not tell the hand"


def with_error(value, error) -> str:
    """A number with its standard uncertainty in units of its last digits, 2 to 19 of them, as CIF has it: 0.03(4)."""
    digits = max(0, math.floor(math.log10(19.499 / error)))
    return f"{value:.{digits}f}({max(1, round(error * 10**digits))})"


def flack(crystal, measured) -> Hand:
    """Flack's x of a Crystal in the space group and on the axes of Measured; ``Hand.why`` says why there is none.

    f' and f'' are those of DISP in the header of the data, or else those of the elements at the wavelength (Cromer & Liberman).
    """
    if not measured.wavelength:
        return Hand(why="no file states the wavelength")
    if not ENERGIES[0] <= (energy := HC / measured.wavelength) <= ENERGIES[1]:
        return Hand(why=f"f'' is not known at {measured.wavelength:g} Å")
    hkl, intensity, sigma = friedel_pairs(measured)
    if len(hkl) < LEAST:
        return Hand(why=f"Friedel pairs were not measured apart ({len(hkl)} of them are in the data)", n=len(hkl))
    total = intensity.sum(1)
    strong = total > STRONG * np.sqrt((sigma**2).sum(1))
    hkl, intensity, sigma, total = hkl[strong], intensity[strong], sigma[strong], total[strong]
    if len(hkl) < LEAST:
        return Hand(why=f"{len(hkl)} Friedel pairs are strong enough", n=len(hkl))
    dispersion = dispersion_read(measured.header)
    calculated = np.abs(structure_factors(crystal, np.concatenate([hkl, -hkl]), energy, dispersion)) ** 2
    of_atoms = _quotients(calculated.reshape(2, -1).T)
    quotient = _quotients(intensity)
    error = 2 * np.sqrt(((intensity[:, ::-1] * sigma) ** 2).sum(1)) / total**2
    x, x_error, n = _fitted(quotient, error, of_atoms)
    if not np.isfinite(x_error):
        return Hand(why="the atoms, light or of one element, make no difference between Friedel mates", n=n)
    return Hand(x, x_error, n)


def friedel_pairs(measured):
    """Reflections of which the Friedel mate was measured, too, and is none of its equivalents.

    Returns
    -------
    hkl (n, 3) int; intensity, sigma (n, 2) of them and of their mates
    """
    hkl, plus, intensity, sigma = merge_friedel_apart(measured)
    rows = np.lexsort((~plus, *hkl.T))  # a reflection before its mate
    hkl, plus, intensity, sigma = hkl[rows], plus[rows], intensity[rows], sigma[rows]
    first = np.flatnonzero((hkl[1:] == hkl[:-1]).all(1) & plus[:-1] & ~plus[1:])
    return hkl[first], *(np.stack([values[first], values[first + 1]], 1) for values in (intensity, sigma))


def dispersion_read(header) -> dict[str, tuple[float, float]]:
    """{symbol: (f', f'')} of the DISP lines of a SHELX header."""
    found = {}
    for line in header.get("DISP", ()):
        words = line.replace("=", " ").split()[1:]
        try:
            found[words[0].lstrip("$").capitalize()] = float(words[1]), float(words[2])
        except (IndexError, ValueError):
            continue
    return found


def _quotients(intensity):
    return (intensity[:, 0] - intensity[:, 1]) / np.maximum(intensity.sum(1), 1e-30)


def _fitted(quotient, error, of_atoms):
    """x, its standard uncertainty, and the number of quotients used: least squares of quotient = (1 - 2x) of_atoms, without
    outliers; the uncertainty grows with the misfit where that is larger than the errors explain."""
    used, slope, misfit = np.ones(len(quotient), bool), 0.0, 1.0
    for _ in range(3):
        weight = 1 / error[used] ** 2
        signal = (weight * of_atoms[used] ** 2).sum()
        if not signal > 1e-12 * weight.sum():
            return np.nan, np.inf, int(used.sum())
        slope = (weight * of_atoms[used] * quotient[used]).sum() / signal
        off = (quotient - slope * of_atoms) / error
        misfit = max(1.0, float(np.sqrt((off[used] ** 2).sum() / (used.sum() - 1))))
        x, x_error, n = (1 - slope) / 2, misfit / np.sqrt(signal) / 2, int(used.sum())
        used = np.abs(off) < OUTLIER * misfit
    return float(x), float(x_error), n


def inverted(solution: Solution) -> Solution:
    """The other hand, where the operators are those of the same space group, or of the enantiomorphic one: P 43 of P 41."""
    group, ops = solution.spacegroup, solution.spacegroup.operations()
    ops.change_basis_forward(hand := group.change_of_hand_op())
    centre = np.array(hand.tran, float) / gemmi.Op.DEN
    rho = solution.rho
    if rho is not None:  # the map at centre - x, which need not be a point of the grid
        waves = np.fft.fftn(rho).conj()
        for axis, (n, shift) in enumerate(zip(rho.shape, centre)):
            turn = np.exp(-2j * np.pi * shift * np.fft.fftfreq(n, 1 / n))
            waves *= turn.reshape([-1 if i == axis else 1 for i in range(3)])
        rho = np.fft.ifftn(waves).real.astype(rho.dtype)
    return replace(solution, fract=(centre - solution.fract) % 1, rho=rho, spacegroup=gemmi.find_spacegroup_by_ops(ops))


def settled(solution: Solution, measured) -> Solution:
    """A solution with its ``Hand``, inverted where the data tell that the crystal is the other one; as it was where there is a
    centre of symmetry.

    measured : Measured, in the space group and on the axes of the solution
    """
    if solution.spacegroup.is_centrosymmetric():
        return solution
    hand = flack(solution.as_crystal(), measured)
    other = Hand(1 - hand.x, hand.error, hand.n, inverted=True)
    return replace(inverted(solution), hand=other) if other.known else replace(solution, hand=hand)
