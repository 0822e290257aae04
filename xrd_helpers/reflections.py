"""Reflections: a merged table of amplitudes, its expansion to P1, and the SHELX files that hold it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np

from .config import UserError, atomic_path
from .crystals import rotations_and_translations

SHELX_LATT = {"P": 1, "I": 2, "R": 3, "F": 4, "A": 5, "B": 6, "C": 7}
SHELX_LARGEST = 9999.0  # the largest intensity that fits F8.2 with room for the sign


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

    def __len__(self):
        return len(self.hkl)

    @property
    def d(self) -> np.ndarray:
        """Spacing of the lattice planes (n,) in Å."""
        return self.cell.calculate_d_array(self.hkl.astype(np.int32))

    @property
    def d_min(self) -> float:
        """Resolution in Å."""
        return float(self.d.min())

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

    d_min in Å. The asymmetric unit is gemmi's, which is that of CCP4.
    """
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
        raise ReflectionError(f"reflection {tuple(np.asarray(hkl)[row])} has sigma {sigma[row]:g}: give it a positive one")
    data = gemmi.Intensities()
    data.set_data(cell, spacegroup, np.asarray(hkl, np.int32), np.asarray(intensity, float), sigma)
    data.remove_systematic_absences()
    data.merge_in_place(gemmi.DataType.Mean)
    keep = (data.miller_array != 0).any(axis=1)
    mean, sigma = data.value_array[keep].clip(min=0), data.sigma_array[keep]
    F = np.sqrt(mean)
    return Reflections(data.miller_array[keep], F, np.sqrt(mean + sigma) - F, cell, spacegroup)


def read_shelx_records(path):
    """Read a SHELX reflection file as it stands: FORMAT(3I4,2F8.2,I4), ended by a record of zeros or an empty line.

    Returns
    -------
    hkl : (n, 3) int; value, sigma : (n,) float, F² (HKLF 4) or F (HKLF 3), the file does not say which

    Raises
    ------
    ReflectionError
        If the file is absent, holds no reflection, or a line of it does not follow the format.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError as error:
        raise ReflectionError(f"{path} cannot be read: {error.strerror}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            break
        try:
            row = [*(int(line[i:i + 4]) for i in (0, 4, 8)), *(_fortran_f8_2(line[i:i + 8]) for i in (12, 20))]
        except ValueError:
            raise ReflectionError(f"{path}, line {number}: {line[:32]!r} is not h k l value sigma in the columns "
                                  "3I4,2F8.2: correct or remove it") from None
        if row[:3] == [0, 0, 0]:
            break
        rows.append(row)
    if not rows:
        raise ReflectionError(f"{path} holds no reflections")
    table = np.array(rows, float)
    return table[:, :3].astype(np.int64), table[:, 3], table[:, 4]


def read_shelx_hkl(path, cell, spacegroup, hklf=4) -> Reflections:
    """Read and merge a SHELX reflection file; hklf is 4 for F² and 3 for F, as in the HKLF line of the .ins file."""
    if hklf not in (3, 4):
        raise ReflectionError(f"HKLF {hklf} is not supported: write {path} as HKLF 4 (F squared) or 3 (F)")
    hkl, value, sigma = read_shelx_records(path)
    if hklf == 3:
        # sigma(F²) = 2 F sigma(F), and sigma(F)² where F is zero and the linear term vanishes
        value, sigma = value * np.abs(value), np.maximum(2 * np.abs(value) * sigma, sigma**2)
    return merge(hkl, value, sigma, cell, spacegroup)


def write_shelx(path_stem, reflections, elements, title=None, wavelength=0.71073):
    """Write ``.ins`` and ``.hkl`` (HKLF 4) for SHELXT.

    Parameters
    ----------
    path_stem : str or Path
        Path of both files without the suffix.
    reflections : Reflections
    elements : sequence of str
        Symbols of the atoms in the asymmetric unit, or of the elements expected. SHELXT uses the set alone.
    title : str, by default the name of the file
    wavelength : float, Å, Mo Kα by default
    """
    path_stem = Path(path_stem)
    counts = Counter("H" if symbol == "D" else symbol for symbol in elements)
    if not counts:
        raise ReflectionError("SHELX needs the elements of the crystal, and none was given")
    # carbon and hydrogen first, then by the alphabet, as formulas are written (Hill, 1900)
    symbols = sorted(counts, key=lambda symbol: (symbol != "C", symbol != "H", symbol))
    latt, symm = shelx_symmetry(reflections.spacegroup)
    n_ops = len(reflections.spacegroup.operations())
    cell = reflections.cell.parameters
    esds = [0.001] * 3 + [0.0 if angle in (90.0, 120.0) else 0.01 for angle in cell[3:]]
    lines = [f"TITL {title or path_stem.name}"[:80],
             f"CELL {wavelength:.5f} " + " ".join(f"{x:.4f}" for x in cell[:3]) + " "
             + " ".join(f"{x:.3f}" for x in cell[3:]),
             f"ZERR {n_ops} " + " ".join(f"{x:.3f}" for x in esds),
             f"LATT {latt}", *(f"SYMM {op}" for op in symm),
             "SFAC " + " ".join(symbols), "UNIT " + " ".join(str(counts[s] * n_ops) for s in symbols), "HKLF 4", "END"]
    intensity, sigma = reflections.F**2, 2 * reflections.F * reflections.sigF
    if not intensity.max() > 0:
        raise ReflectionError("all amplitudes are zero: there is nothing to write")
    scale = SHELX_LARGEST / intensity.max()
    intensity = intensity * scale
    # an uncertainty of zero would be a weight of infinity: 2 % of the intensity where none was given
    sigma = np.where(reflections.sigF > 0, sigma * scale, 0.02 * intensity).clip(0.01, SHELX_LARGEST)
    records = ["%4d%4d%4d%8.2f%8.2f%4d\n" % (*hkl, I, s, 1)
               for hkl, I, s in zip(reflections.hkl.tolist(), intensity, sigma)]
    records.append("%4d%4d%4d%8.2f%8.2f%4d\n" % (0, 0, 0, 0, 0, 0))
    for suffix, text in ((".ins", "\n".join(lines) + "\n"), (".hkl", "".join(records))):
        with atomic_path(path_stem.with_name(path_stem.name + suffix)) as temporary:
            temporary.write_text(text, encoding="ascii", errors="replace")


def shelx_symmetry(spacegroup):
    """LATT number and SYMM operators of a space group, as SHELX wants them.

    LATT is negative when there is no inversion. SYMM lists what is left without the identity, the centring
    translations and one of each pair that the inversion links: SHELXT stops at a redundant operator.

    Raises
    ------
    ReflectionError
        If the inversion is not at the origin, or the centring is none of P, I, R (obverse), F, A, B, C.
    """
    group = spacegroup.operations()
    centring = group.find_centering()
    if centring not in SHELX_LATT:
        raise ReflectionError(f"SHELX has no LATT number for the centring of {spacegroup.xhm()}: transform the cell")
    rot, tran = rotations_and_translations(spacegroup)
    keep = np.ones(len(rot), bool)
    if spacegroup.is_centrosymmetric():
        inversion = int(np.flatnonzero((rot == -np.eye(3, dtype=int)).all(axis=(1, 2)))[0])
        lattice = np.array(group.cen_ops, float) / gemmi.Op.DEN
        if not (np.abs((tran[inversion] - lattice + 0.5) % 1 - 0.5).max(axis=1) < 1e-6).any():
            raise ReflectionError(f"SHELX needs the inversion at the origin, which {spacegroup.xhm()} has not: "
                                  "use origin choice 2")
        for i in range(len(rot)):
            partner = (rot == -rot[i]).all(axis=(1, 2)) & (np.arange(len(rot)) > i)
            keep[partner] = keep[partner] & ~keep[i]
    keep[0] = False  # the identity
    latt = SHELX_LATT[centring] * (1 if spacegroup.is_centrosymmetric() else -1)
    return latt, [_shelx_operator(r, t) for r, t in zip(rot[keep], tran[keep])]


def _shelx_operator(rot, tran):
    """An operator in the letters of SHELX: ``-X, 0.5+Y, 0.5-Z``."""
    parts = []
    for row, t in zip(rot, tran % 1):
        twelfths = round(t * gemmi.Op.DEN)
        # thirds and sixths have no finite decimal
        number = f"{t:g}" if gemmi.Op.DEN / 8 * round(t * 8) == twelfths else f"{round(t * 6)}/6"
        terms = "".join(("+" if r > 0 else "-") + axis for r, axis in zip(row, "XYZ") if r)
        parts.append(number + terms if twelfths else terms.removeprefix("+"))
    return ", ".join(parts)


def _fortran_f8_2(field):
    """A number as Fortran reads F8.2: without a decimal point the last two digits are decimals."""
    value = float(field)
    if not np.isfinite(value):
        raise ValueError(field)
    return value if "." in field or "e" in field.lower() else value / 100
