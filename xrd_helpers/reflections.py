"""Reflections: the measured ones, the merged table of amplitudes, and its expansion to P1."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np

from .config import UserError
from .crystals import rotations_and_translations

MOST_POSSIBLE = 2e7  # reflections in the sphere, those of a large protein at atomic resolution


class ReflectionError(UserError):
    """Reflections that cannot be read, written or used, and why."""


@dataclass(frozen=True)
class Reflections:
    """Merged reflections of one crystal.

    ``hkl`` (n, 3) int lies in the asymmetric unit and holds every reflection once, (0, 0, 0) never; ``F`` (n,) is
    the amplitude and ``sigF`` (n,) its standard uncertainty, in the same unit. A reflection that was not measured
    is not in the table; a systematically absent one is left out or zero.
    """

    hkl: np.ndarray
    F: np.ndarray
    sigF: np.ndarray
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup

    def __post_init__(self):
        hkl = np.asarray(self.hkl)
        if hkl.ndim != 2 or hkl.shape[1:] != (3,) or not len(hkl):
            raise ReflectionError(f"hkl must be an (n, 3) table with at least one row, and is {hkl.shape}")
        for name in ("F", "sigF"):
            value = np.asarray(getattr(self, name), float)
            if value.shape != (len(hkl),) or not np.isfinite(value).all() or (value < 0).any():
                raise ReflectionError(f"{name} must hold {len(hkl)} finite numbers, none negative: merge the data first")
            object.__setattr__(self, name, value)
        hkl = hkl.astype(np.int64)
        if (hkl == 0).all(axis=1).any():
            raise ReflectionError("the table holds (0, 0, 0), which cannot be measured: leave that row out")
        if len(np.unique(_code(hkl))) < len(hkl):
            raise ReflectionError("the table holds a reflection twice: merge the data first")
        object.__setattr__(self, "hkl", hkl)

    @classmethod
    def of_good_data(cls, hkl, F, cell, spacegroup) -> Reflections:
        """Amplitudes that were calculated, with the uncertainty of good data: 4 % of a strong intensity, and a floor."""
        return cls(hkl, F, 0.02 * F + 0.01 * F.mean(), cell, spacegroup)

    def __len__(self):
        return len(self.hkl)

    @cached_property
    def p1(self) -> P1Expansion:
        """All their mates, by ``expand_to_p1``."""
        return expand_to_p1(self.hkl, self.spacegroup)

    @property
    def d(self) -> np.ndarray:
        """Spacing of the lattice planes (n,) in Å."""
        return self.cell.calculate_d_array(self.hkl.astype(np.int32))

    @property
    def d_min(self) -> float:
        """Resolution in Å."""
        return float(self.d.min())

    def intensities(self):
        """F² and its uncertainty, (n,) each: what ``merge`` took the root of, where it was not below zero."""
        return self.F**2, 2 * self.F * self.sigF + self.sigF**2

    def select(self, keep) -> Reflections:
        """The reflections that `keep` (bool mask or indices) names."""
        return Reflections(self.hkl[keep], self.F[keep], self.sigF[keep], self.cell, self.spacegroup)


@dataclass(frozen=True)
class P1Expansion:
    """Every symmetry mate and Friedel mate of some reflections, each once; what ``expand_to_p1`` returns.

    hkl : (m, 3) int
    index : (m,) int, the row of the asymmetric unit from which each comes
    shift : (m,) float, radians, to be added to the phase of that row ...
    friedel : (m,) bool, ... before the sign of the phase is changed where this is True
    """

    hkl: np.ndarray
    index: np.ndarray
    shift: np.ndarray
    friedel: np.ndarray

    def structure_factors(self, sf) -> np.ndarray:
        """Complex structure factors (m,) of the whole sphere from those of the asymmetric unit (n,)."""
        out = np.asarray(sf)[self.index] * np.exp(1j * self.shift)
        return np.where(self.friedel, out.conj(), out)


def unique_hkl(cell, spacegroup, d_min) -> np.ndarray:
    """Reflections of the asymmetric unit with d >= d_min, without F000 and systematic absences -> (n, 3) int64.

    d_min in Å. The asymmetric unit is gemmi's, which is that of CCP4. ReflectionError if there are more than any crystal of
    molecules has (MOST_POSSIBLE in the sphere): millions would take minutes and gigabytes to list.
    """
    sphere = 4 / 3 * np.pi * cell.volume / d_min**3
    if not sphere < MOST_POSSIBLE:
        raise ReflectionError(f"a cell of {cell.volume:.0f} Å³ has {sphere:.2g} reflections to {d_min:.2g} Å, more than can be "
                              "treated here: correct the cell or the indices, or cut the data")
    return gemmi.make_miller_array(cell, spacegroup, d_min).astype(np.int64)


def expand_to_p1(hkl, spacegroup) -> P1Expansion:
    """Find all symmetry mates of reflections, Friedel mates included.

    x' = Rx + t leaves the density in place, so F(hR) = F(h) exp(-2πi h·t), with h a row vector (International
    Tables for Crystallography, Vol. B, section 1.4.2). Centring operators change no index and are left out.

    Parameters
    ----------
    hkl : (n, 3) int array, no two of them equivalent by symmetry
    spacegroup : gemmi.SpaceGroup

    Returns
    -------
    P1Expansion, each reflection of the sphere once
    """
    hkl = np.asarray(hkl, np.int64)
    rot, tran = rotations_and_translations(spacegroup)
    mates = np.einsum("ni,gij->gnj", hkl, rot)                                # (g, n, 3), hR
    shift = -2 * np.pi * np.einsum("ni,gi->gn", hkl, tran)                    # (g, n)
    mates = np.stack([mates, -mates]).reshape(-1, 3)                          # (2 g n, 3)
    _, first = np.unique(_code(mates), return_index=True)                     # direct mates come before Friedel mates
    first.sort()
    half = mates.shape[0] // 2
    return P1Expansion(mates[first], first % len(hkl), shift.ravel()[first % half], first >= half)


def _code(hkl):
    """One integer for each reflection; indices up to a million."""
    base = 2_000_003
    return (hkl[:, 0] * base + hkl[:, 1]) * base + hkl[:, 2]


def merge(hkl, intensity, sigma, cell, spacegroup) -> Reflections:
    """Merge measured intensities to the asymmetric unit, Friedel mates together, and take the root.

    Equivalents are averaged with weights 1/sigma²; sigma of the mean is (Σ 1/sigma²)^-1/2. A negative mean gives
    F = 0. sigF = (I + sigma)^1/2 - F, which is sigma / 2F where I >> sigma and stays finite where I is zero.

    Parameters
    ----------
    hkl : (n, 3) int; intensity, sigma : (n,) on one scale, sigma > 0
    """
    sigma = np.asarray(sigma, float)
    if (sigma <= 0).any():
        row = int(np.flatnonzero(sigma <= 0)[0])
        indices = tuple(np.asarray(hkl)[row].tolist())
        raise ReflectionError(f"reflection {indices} has sigma {sigma[row]:g}: give it a positive one")
    data = _without_absences(hkl, intensity, sigma, cell, spacegroup)
    if not len(data):
        raise ReflectionError(f"all reflections are absent in {spacegroup.xhm()}: the space group is another one")
    data.merge_in_place(gemmi.DataType.Mean)
    keep = (data.miller_array != 0).any(axis=1)
    mean, sigma = data.value_array[keep].clip(min=0), data.sigma_array[keep]
    F = np.sqrt(mean)
    return Reflections(data.miller_array[keep], F, np.sqrt(mean + sigma) - F, cell, spacegroup)


def _without_absences(hkl, intensity, sigma, cell, spacegroup):
    """gemmi.Intensities of them, not merged."""
    data = gemmi.Intensities()
    data.set_data(cell, spacegroup, np.asarray(hkl, np.int32), np.asarray(intensity, float), np.asarray(sigma, float))
    data.remove_systematic_absences()
    return data


def merge_friedel_apart(measured):
    """Equivalents averaged as by ``merge``, but a reflection and its Friedel mate each by itself.

    Returns
    -------
    hkl (n, 3) int of the asymmetric unit, plus (n,) bool, False where it stands for -hkl; intensity, sigma (n,)
    """
    data = _without_absences(measured.hkl, measured.intensity, measured.sigma, measured.cell, measured.spacegroup)
    data.merge_in_place(gemmi.DataType.Anomalous)
    return data.miller_array.astype(np.int64), np.asarray(data.isign_array) > 0, data.value_array, data.sigma_array


def squared(F, sigma):
    """F² and its uncertainty: 2 F sigma(F), and sigma(F)² where F is zero and the linear term vanishes."""
    return F * np.abs(F), np.maximum(2 * np.abs(F) * sigma, sigma**2)


@dataclass(frozen=True)
class Measured:
    """Measured intensities as a file holds them, not merged, with what it and the file beside it say of the crystal.

    hkl : (n, 3) int; intensity, sigma : (n,) on the file's scale
    elements : {symbol: atoms in the asymmetric unit}, empty where no file states them
    wavelength : Å, 0 where no file states it
    files : paths of what was read
    kind : where in the file the reflections stood, in words
    header : {name: lines} of SHELX instructions as a file states them, for those that are written (``shelx.shelx_header``)
    notes : sentences on what was left out or cannot be honoured
    """

    hkl: np.ndarray
    intensity: np.ndarray
    sigma: np.ndarray
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    elements: dict[str, float]
    wavelength: float
    files: tuple[Path, ...]
    kind: str
    header: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def quality(self, merged: Reflections) -> Quality:
        """How complete the data are, and how well equivalent measurements agree."""
        data = _without_absences(self.hkl, self.intensity, self.sigma, self.cell, self.spacegroup)
        data.prepare_for_merging(gemmi.DataType.Mean)  # Friedel mates together
        r_int = data.calculate_merging_stats(None, use_weights="U")[0].r_merge()  # plain means, as SHELXL and CIF have it
        return Quality(len(self.hkl), len(merged), merged.d_min, len(merged) / len(self._possible(merged)),
                       r_int if np.isfinite(r_int) else None, float((self.intensity / self.sigma).mean()))

    def _possible(self, merged):
        """hkl (n, 3) that could have been measured; ReflectionError with the file if they are too many."""
        try:
            return unique_hkl(merged.cell, merged.spacegroup, merged.d_min - 1e-6)
        except ReflectionError as error:
            raise ReflectionError(f"{self.files[0]}: {error}") from None

    def shells(self, merged: Reflections, n=10) -> list[Shell]:
        """What was measured in shells of equal volume of reciprocal space, the one of lowest resolution first."""
        possible = self._possible(merged)
        n = max(1, min(n, len(possible) // 20))
        edges = np.linspace(0, (merged.d_min - 1e-6) ** -3, n + 1)[1:-1]
        data = _without_absences(self.hkl, self.intensity, self.sigma, self.cell, self.spacegroup)
        data.prepare_for_merging(gemmi.DataType.Mean)
        _, row, times = np.unique(_code(data.miller_array.astype(np.int64)), return_inverse=True, return_counts=True)
        off = np.abs(data.value_array - (np.bincount(row, data.value_array) / times)[row]) * (times[row] > 1)
        total = data.value_array * (times[row] > 1)
        intensity, sigma = merged.intensities()
        d_all, d_possible = (self.cell.calculate_d_array(hkl.astype(np.int32)) for hkl in (data.miller_array, possible))
        found = []
        for i in range(n):
            of, unique, all_ = (np.digitize(d**-3.0, edges) == i for d in (d_possible, merged.d, d_all))
            if not of.any():
                continue
            r_int = off[all_].sum() / total[all_].sum() if total[all_].sum() > 0 else None
            strength = float((intensity / sigma)[unique].mean()) if unique.any() else float("nan")
            found.append(Shell(d_possible[of].max(), d_possible[of].min(), int(of.sum()), int(unique.sum()), int(all_.sum()),
                               strength, r_int))
        return found

    def merge(self) -> Reflections:
        """``merge`` of them, which is done once; ReflectionError names the file if one has no uncertainty above zero."""
        return self._merged

    @cached_property
    def _merged(self):
        try:
            return merge(self.hkl, self.intensity, self.sigma, self.cell, self.spacegroup)
        except ReflectionError as error:
            raise ReflectionError(f"{self.files[0]}: {error}") from None


class Shell(NamedTuple):
    """d of its first and last possible reflection, Å; reflections possible, measured, and measurements of them; mean of
    I / sigma after merging; r_int as in Quality."""

    d_max: float
    d_min: float
    n_possible: int
    n_unique: int
    n_measured: int
    i_over_sigma: float
    r_int: float | None


class Quality(NamedTuple):
    """d_min in Å; completeness, the measured share of the reflections to d_min; r_int = Σ |I - ⟨I⟩| / Σ I over those
    measured more than once, None where none was; i_over_sigma, the mean of I / sigma before merging."""

    n_measured: int
    n_unique: int
    d_min: float
    completeness: float
    r_int: float | None
    i_over_sigma: float
