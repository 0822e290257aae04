"""Reflections: files of measured ones, the merged table of amplitudes, its expansion to P1, and files for SHELX."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np

from .cif import spacegroup_of_cif
from .config import UserError, atomic_path
from .crystals import count_elements, rotations_and_translations

SHELX_LATT = {"P": 1, "I": 2, "R": 3, "F": 4, "A": 5, "B": 6, "C": 7}
SHELX_LARGEST = 9999.0  # the largest intensity that fits F8.2 with room for the sign
SHELX_MOST = 99999.99   # the largest number that fits F8.2
# columns of reflection CIFs: value, its uncertainty, and whether the value is F² (2) or F (1)
CIF_COLUMNS = {"_refln_": (("F_squared_meas", "F_squared_sigma", 2), ("F_squared_meas", "F_squared_meas_su", 2),
                           ("intensity_meas", "intensity_sigma", 2), ("intensity_meas", "intensity_meas_su", 2),
                           ("F_meas", "F_sigma", 1), ("F_meas", "F_meas_su", 1), ("F_meas", "F_meas_sigma", 1)),
               "_refln.": (("intensity_meas", "intensity_sigma", 2), ("F_meas_au", "F_meas_sigma_au", 1)),
               "_diffrn_refln_": (("intensity_net", "intensity_sigma", 2), ("intensity_net", "intensity_u", 2),
                                  ("intensity_net", "intensity_net_su", 2))}


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
        indices = tuple(np.asarray(hkl)[row].tolist())
        raise ReflectionError(f"reflection {indices} has sigma {sigma[row]:g}: give it a positive one")
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
    return _parse_shelx_records(lines, path)


def _parse_shelx_records(lines, path):
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
    return merge(hkl, *(_squared(value, sigma) if hklf == 3 else (value, sigma)), cell, spacegroup)


def _squared(F, sigma):
    """F² and its uncertainty: 2 F sigma(F), and sigma(F)² where F is zero and the linear term vanishes."""
    return F * np.abs(F), np.maximum(2 * np.abs(F) * sigma, sigma**2)


def write_shelx(path_stem, reflections, elements, title=None, wavelength=0.71073):
    """Write ``.ins`` and ``.hkl`` (HKLF 4) for SHELXT.

    Parameters
    ----------
    path_stem : str or Path
        Path of both files without the suffix.
    reflections : Reflections
    elements : {symbol: atoms in the asymmetric unit}, or a sequence of symbols. SHELXT uses the set alone.
    title : str, by default the name of the file
    wavelength : float, Å, Mo Kα by default
    """
    intensity, sigma = reflections.F**2, 2 * reflections.F * reflections.sigF + reflections.sigF**2  # undoes `merge`
    if not intensity.max() > 0:
        raise ReflectionError("all amplitudes are zero: there is nothing to write")
    scale = SHELX_LARGEST / intensity.max()
    # an uncertainty of zero would be a weight of infinity: 2 % of the intensity where none was given
    sigma = np.where(reflections.sigF > 0, sigma, 0.02 * intensity) * scale
    write_shelx_files(path_stem, reflections.hkl, intensity * scale, sigma, 1, reflections.cell, reflections.spacegroup,
                      elements, title, wavelength)


def shelx_scale(intensity, sigma) -> float:
    """By what intensities and their sigma have to be multiplied to fit F8.2 with digits that say something; 1 if they do."""
    highest = np.abs(intensity).max()
    largest = max(highest, np.max(sigma))
    fits = highest >= 100 and largest <= SHELX_MOST and np.min(intensity) > -SHELX_LARGEST
    return 1.0 if fits else SHELX_LARGEST / largest


def write_mtz(path, hkl, columns, cell, spacegroup, wavelength, dataset):
    """Write an MTZ file of one dataset; columns {label: (type, values (n,))}, types as F, Q, P or I."""
    file = gemmi.Mtz(with_base=True)
    file.cell, file.spacegroup = cell, spacegroup
    file.add_dataset(dataset).wavelength = wavelength
    for label, (kind, _) in columns.items():
        file.add_column(label, kind)
    file.set_data(np.column_stack([hkl, *(values for _, values in columns.values())]).astype(np.float32))
    with atomic_path(path) as temporary:
        file.write_to_file(str(temporary))


def write_shelx_files(path_stem, hkl, intensity, sigma, batch, cell, spacegroup, elements, title=None, wavelength=0.71073):
    """Write ``.ins`` and ``.hkl`` (HKLF 4) from intensities as they are: merged or not, negative ones too.

    hkl (n, 3); intensity and sigma (n,) within F8.2, -9999.99 to 99999.99; batch, a number or (n,) of them. See
    ``write_shelx`` for the others.
    """
    path_stem = Path(path_stem)
    lines = [*shelx_header(cell, spacegroup, elements, title or path_stem.name, wavelength), "HKLF 4", "END"]
    rows = zip(np.asarray(hkl).tolist(), intensity, np.clip(sigma, 0.01, SHELX_MOST), np.broadcast_to(batch, len(hkl)))
    records = ["%4d%4d%4d%8.2f%8.2f%4d\n" % (*h, I, s, b) for h, I, s, b in rows]
    records.append("%4d%4d%4d%8.2f%8.2f%4d\n" % (0, 0, 0, 0, 0, 0))
    for suffix, text in ((".ins", "\n".join(lines) + "\n"), (".hkl", "".join(records))):
        with atomic_path(path_stem.with_name(path_stem.name + suffix)) as temporary:
            temporary.write_text(text, encoding="ascii", errors="replace")


def shelx_header(cell, spacegroup, elements, title, wavelength=0.71073) -> list[str]:
    """The lines of a SHELX file from TITL to UNIT; see ``write_shelx`` for the arguments."""
    numbers = count_elements(elements)
    if not numbers:
        raise ReflectionError("SHELX needs the elements of the crystal, and none was given")
    latt, symm = shelx_symmetry(spacegroup)
    n_ops, symbols = len(spacegroup.operations()), shelx_elements(elements)
    if "D" in numbers:
        numbers["H"] = numbers.get("H", 0) + numbers["D"]
    edges, angles = cell.parameters[:3], cell.parameters[3:]
    esds = [0.001] * 3 + [0.0 if angle in (90.0, 120.0) else 0.01 for angle in angles]
    return [f"TITL {title}"[:80],
            f"CELL {wavelength:.5f} " + " ".join([f"{x:.4f}" for x in edges] + [f"{x:.3f}" for x in angles]),
            f"ZERR {n_ops} " + " ".join(f"{x:.3f}" for x in esds), f"LATT {latt}", *(f"SYMM {op}" for op in symm),
            "SFAC " + " ".join(symbols), "UNIT " + " ".join(str(max(1, round(numbers[s] * n_ops))) for s in symbols)]


def shelx_elements(elements) -> list[str]:
    """The order of SFAC: carbon and hydrogen first, then by the alphabet, as formulas are written (Hill, 1900)."""
    return sorted({"H" if symbol == "D" else symbol for symbol in elements},
                  key=lambda symbol: (symbol != "C", symbol != "H", symbol))


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


# --- files of measured reflections ---


@dataclass(frozen=True)
class Measured:
    """Measured intensities as a file holds them, not merged, with what it and the file beside it say of the crystal.

    hkl : (n, 3) int; intensity, sigma : (n,) on the file's scale
    elements : {symbol: atoms in the asymmetric unit}, empty where no file states them
    wavelength : Å, 0 where no file states it
    files : paths of what was read
    kind : where in the file the reflections stood, in words
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

    def quality(self, merged: Reflections) -> Quality:
        """How complete the data are, and how well equivalent measurements agree."""
        asu, ops = gemmi.ReciprocalAsu(self.spacegroup), self.spacegroup.operations()
        rows = {tuple(h): i for i, h in enumerate(merged.hkl.tolist())}
        row = np.array([rows.get(tuple(asu.to_asu(h, ops)[0]), -1) for h in self.hkl.tolist()])
        intensity, row = self.intensity[row >= 0], row[row >= 0]  # systematic absences are not merged
        times = np.bincount(row, minlength=len(merged))
        mean, again = np.bincount(row, intensity) / times, times[row] > 1
        total = np.abs(intensity[again]).sum()
        r_int = np.abs(intensity - mean[row])[again].sum() / total if total > 0 else None
        possible = len(unique_hkl(merged.cell, merged.spacegroup, merged.d_min - 1e-6))
        return Quality(len(self.hkl), len(merged), merged.d_min, len(merged) / possible, r_int,
                       float((self.intensity / self.sigma).mean()))

    def merge(self) -> Reflections:
        """``merge`` of them, which is done once; ReflectionError names the file if one has no uncertainty above zero."""
        return self._merged

    @cached_property
    def _merged(self):
        try:
            return merge(self.hkl, self.intensity, self.sigma, self.cell, self.spacegroup)
        except ReflectionError as error:
            raise ReflectionError(f"{self.files[0]}: {error}") from None


class Quality(NamedTuple):
    """d_min in Å; completeness, the measured share of the reflections to d_min; r_int = Σ |I - ⟨I⟩| / Σ |I| over those
    measured more than once, None where none was; i_over_sigma, the mean of I / sigma before merging."""

    n_measured: int
    n_unique: int
    d_min: float
    completeness: float
    r_int: float | None
    i_over_sigma: float


@dataclass(frozen=True)
class _About:
    """What a file says of the crystal; None or empty where it says nothing. hklf: 3 or 4, how its .hkl is read, or 0."""

    cell: gemmi.UnitCell | None = None
    spacegroup: gemmi.SpaceGroup | None = None
    elements: dict[str, float] = field(default_factory=dict)
    wavelength: float = 0.0
    hklf: int = 0


def look_like_amplitudes(value, d) -> bool:
    """Whether values (n,) measured at d (n,) Å are F rather than F², by their second moment ⟨x²⟩ / ⟨x⟩² in shells.

    It is 2 (acentric) or 3 (centric) for F², 1.27 or 1.57 for F (Wilson, Acta Cryst. 2 (1949) 318), and never below 1.74
    for F² of 122 real molecules. Values below zero tell F² that background was subtracted from.
    """
    if (value < 0).mean() > 0.005:
        return False
    shells = np.array_split(np.asarray(value)[np.argsort(-d)], max(1, len(d) // 60))
    return bool(np.median([(x**2).mean() / x.mean() ** 2 for x in shells if x.mean() > 0] or [2]) < 1.74)


def read_measured(path, about=None) -> Measured:
    """Read measured reflections of any of these kinds, told by what the file holds rather than by its name.

    - SHELX ``.hkl``; F² or F as the HKLF line of the .ins or .res says (``look_like_amplitudes`` without).
      The ``.ins`` or ``.res`` may be named instead.
    - CIF and ``.fcf`` with a list of F², intensities or F with their uncertainties (``_refln_``, ``_diffrn_refln_``), or
      a CIF with the text of a SHELX file in it (``_shelx_hkl_file``). Reflections flagged as unreliable (x) are left out.
    - MTZ: the first intensities with their uncertainties, else the first amplitudes.

    Parameters
    ----------
    path : str or Path
    about : str or Path, optional
        The ``.ins``, ``.res`` or ``.cif`` with cell, symmetry and elements, for a file that does not hold them; by
        default the one of the same name beside it.

    Raises
    ------
    ReflectionError
        In a sentence that names the file, for whatever is the matter with it.
    """
    path = Path(path)
    if path.suffix.lower() in (".ins", ".res"):
        about, path = about or path, path.with_suffix(".hkl")
    try:
        start = path.open("rb").read(4)
        text = "" if start == b"MTZ " else path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ReflectionError(f"{path} cannot be read: {error.strerror}") from None
    if start == b"MTZ ":
        rows, own, kind = _read_mtz(path)
    elif path.suffix.lower() in (".cif", ".fcf") or re.search(r"^\s*data_", text, re.MULTILINE | re.IGNORECASE):
        rows, own, kind = _read_reflection_cif(path)
    else:
        rows, own, kind = None, _About(), "SHELX"
    files = [path]
    lacking = own.cell is None or own.spacegroup is None
    if about is None and (lacking or not own.elements):
        beside = [path.with_suffix(suffix) for suffix in (".ins", ".res", ".cif")]
        about = next((p for p in beside if p.is_file() and p != path), None)
    if lacking and about is None:
        raise ReflectionError(f"{path} holds no cell or no symmetry: put the .ins or .cif of that name beside it, "
                              "or name one")
    if about is not None:
        other = _read_about(Path(about))
        files.append(Path(about))
        if lacking and (other.cell is None or other.spacegroup is None):
            raise ReflectionError(f"{about} states no cell or no symmetry, and {path} does not either")
        names = ("cell", "spacegroup", "elements", "wavelength")
        own = _About(*(getattr(own, name) or getattr(other, name) for name in names), hklf=other.hklf)
    if not own.cell.is_crystal() or not own.cell.is_compatible_with_spacegroup(own.spacegroup, 0.1):
        raise ReflectionError(f"{files[-1]}: the cell {own.cell.parameters} does not have the symmetry of "
                              f"{own.spacegroup.xhm()}")
    if rows is None:
        hkl, value, sigma = read_shelx_records(path)
        amplitudes = own.hklf == 3 if own.hklf else look_like_amplitudes(value, own.cell.calculate_d_array(hkl.astype("i4")))
        rows = (hkl, *(_squared(value, sigma) if amplitudes else (value, sigma)))
        kind = f"SHELX, {'F' if amplitudes else 'F²'} " + (f"by HKLF {own.hklf}" if own.hklf else "by their distribution")
    hkl, intensity, sigma = rows
    known = np.isfinite(intensity) & np.isfinite(sigma) & (hkl != 0).any(axis=1)
    if not known.any():
        raise ReflectionError(f"{path} holds no reflection with a value and its uncertainty")
    return Measured(hkl[known], intensity[known], sigma[known], own.cell, own.spacegroup, own.elements, own.wavelength,
                    tuple(files), kind)


def _read_about(path):
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ReflectionError(f"{path} cannot be read: {error.strerror}") from None
    if path.suffix.lower() in (".ins", ".res"):
        return _parse_ins(text, path)
    # a file of several structures: the first with a cell
    return next((about for block in _cif_blocks(path) if (about := _about_block(block, path)).cell), _About())


def _parse_ins(text, path):
    """Cell, symmetry and elements out of the text of a .ins or .res file."""
    found = {}
    for line in re.sub(r"=[^\n]*\n", " ", text).splitlines():  # an equals sign goes on on the next line
        word, _, rest = line.partition(" ")
        found.setdefault(word.upper(), []).append(rest.split("!")[0])
        if word.upper() in ("HKLF", "END"):
            break
    try:
        cell = [float(x) for x in found["CELL"][0].split()[:7]]
        latt = int(found.get("LATT", ["1"])[0].split()[0])
        centring = {number: letter for letter, number in SHELX_LATT.items()}[abs(latt)]
        ops = [gemmi.Op("x,y,z")] + [gemmi.Op(re.sub(r"\s", "", op).lower()) for op in found.get("SYMM", [])]
        ops += [gemmi.Op("-x,-y,-z").combine(op).wrap() for op in ops] if latt > 0 else []
        ops = [op.translated(list(c)).wrap() for op in ops for c in gemmi.symops_from_hall(f"{centring} 1").cen_ops]
        ops = {op.triplet(): op for op in ops}  # each once
        spacegroup = gemmi.find_spacegroup_by_ops(gemmi.GroupOps(list(ops.values())))
        hklf = found.get("HKLF", ["0"])[0].split() or ["4"]
        hklf, matrix = int(hklf[0]), [float(x) for x in hklf[2:11]]
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ReflectionError(f"{path} has no CELL, LATT and SYMM that can be read: {reason}") from None
    if spacegroup is None:
        raise ReflectionError(f"{path}: LATT {latt} and its SYMM lines form no space group in a setting of the tables")
    if hklf not in (0, 3, 4) or matrix not in ([], [1, 0, 0, 0, 1, 0, 0, 0, 1]):
        raise ReflectionError(f"{path}: HKLF {hklf}{' with a matrix' if matrix else ''} is not supported: write the "
                              "reflections as HKLF 4 (F squared) or 3 (F) on the axes of CELL")
    symbols = [word for line in found.get("SFAC", []) for word in _elements_of_sfac(line)]
    units = [float(x) for x in " ".join(found.get("UNIT", [])).split()]
    return _About(gemmi.UnitCell(*cell[1:]), spacegroup, _asymmetric_unit(zip(symbols, units), spacegroup), cell[0], hklf)


def _elements_of_sfac(line):
    """The symbols of an SFAC line: several, or one that scattering factors follow."""
    words = [word.lstrip("$").capitalize() for word in line.split()]
    return [word for word in words if gemmi.Element(word).atomic_number]


def _asymmetric_unit(contents, spacegroup):
    """{symbol: atoms in the asymmetric unit} from pairs (symbol, atoms in the cell); at least one atom in the cell."""
    n_ops = len(spacegroup.operations())
    return count_elements({symbol: max(1, number) / n_ops for symbol, number in contents})


def _cif_blocks(path):
    try:
        return gemmi.cif.read(str(path))
    except (OSError, ValueError, RuntimeError) as error:
        raise ReflectionError(f"{path} is not a CIF file that can be read: {str(error).splitlines()[0]}") from None


def _about_block(block, path):
    """What a CIF block says of the crystal; cell and space group only where it states both."""
    def number(tag):
        value = gemmi.cif.as_number(block.find_value(tag) or "?")
        return value if np.isfinite(value) else 0.0

    wavelength = number("_diffrn_radiation_wavelength")
    if not block.find_value("_cell_length_a"):
        return _About(wavelength=wavelength)
    try:
        small = gemmi.make_small_structure_from_block(block)
    except RuntimeError as error:  # a cell angle of zero
        raise ReflectionError(f"{path} has no usable unit cell: {error}") from None
    stated = small.symops or small.spacegroup_hall or small.spacegroup_hm or small.spacegroup_number
    if not stated or not small.cell.is_crystal() or not small.cell.volume >= 1:
        return _About(wavelength=wavelength)
    spacegroup = spacegroup_of_cif(small, path)[0]
    formula = gemmi.cif.as_string(block.find_value("_chemical_formula_sum") or "?")
    units = number("_cell_formula_units_Z") or len(spacegroup.operations())
    contents = [(symbol, float(n or 1) * units) for symbol, n in re.findall(r"([A-Z][a-z]?)(\d*\.?\d*)", formula)
                if gemmi.Element(symbol).atomic_number]
    return _About(small.cell, spacegroup, _asymmetric_unit(contents, spacegroup), wavelength)


def _read_reflection_cif(path):
    """((hkl, intensity, sigma), _About, kind) of the first block with reflections."""
    blocks = _cif_blocks(path)
    for block in blocks:
        rows, kind = _listed(block)
        if rows is None:
            rows, kind = _embedded(block, path)
        if rows is None:
            continue
        about = _about_block(block, path)
        if about.cell is None:  # a list of its own, after the block of the structure
            about = next((a for other in blocks if (a := _about_block(other, path)).cell), about)
        return rows, about, kind
    raise ReflectionError(f"{path} holds no measured reflections: no list of F², intensities or F with their uncertainties, "
                          "and no SHELX file as text")


def _listed(block):
    for prefix, names in CIF_COLUMNS.items():
        for value, sigma, power in names:
            table = block.find(prefix, ["index_h", "index_k", "index_l", value, sigma, "?observed_status"])
            if len(table):
                good = [row for row in table if not row.has(5) or row.str(5) != "x"]
                numbers = np.array([[gemmi.cif.as_number(row[i]) for i in range(5)] for row in good]).reshape(-1, 5)
                numbers = numbers[np.isfinite(numbers).all(axis=1)]
                values = numbers[:, 3], numbers[:, 4]
                return (numbers[:, :3].astype(np.int64), *(_squared(*values) if power == 1 else values)), prefix + value
    return None, ""


def _embedded(block, path):
    text = next((gemmi.cif.as_string(value) for tag in ("_shelx_hkl_file", "_iucr_refine_reflections_details")
                 if (value := block.find_value(tag)) and len(value) > 40), None)
    if text is None:
        return None, ""
    hklf = 4
    if res := block.find_value("_shelx_res_file") or block.find_value("_iucr_refine_instructions_details"):
        found = re.search(r"^HKLF +(\d)", gemmi.cif.as_string(res), re.MULTILINE | re.IGNORECASE)
        hklf = int(found[1]) if found else 4
        if hklf not in (3, 4):
            raise ReflectionError(f"{path} holds reflections of HKLF {hklf}, which is not supported: "
                                  "4 (F squared) or 3 (F) is")
    hkl, value, sigma = _parse_shelx_records(text.strip("\r\n").splitlines(), f"{path}, the SHELX reflections in it")
    return (hkl, *(_squared(value, sigma) if hklf == 3 else (value, sigma))), f"SHELX, HKLF {hklf}, in the CIF"


def _read_mtz(path):
    try:
        mtz = gemmi.read_mtz_file(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise ReflectionError(f"{path} is not an MTZ file that can be read: {str(error).splitlines()[0]}") from None
    for types, power in (("JQ", 2), ("KM", 2), ("FQ", 1), ("GL", 1)):
        pairs = [(a, b) for a, b in zip(mtz.columns, mtz.columns[1:]) if a.type + b.type == types]
        if pairs:
            break
    else:
        raise ReflectionError(f"{path} holds neither intensities nor amplitudes with their uncertainties beside them")
    hkl, parts = mtz.make_miller_array().astype(np.int64), []
    # (+) and (-) stand in columns of their own; of others the first pair counts
    for sign, (value, sigma) in zip((1, -1), pairs[:2 if types in ("KM", "GL") else 1]):
        value, sigma = value.array.astype(float), sigma.array.astype(float)
        known = np.isfinite(value) & np.isfinite(sigma) & ((sign > 0) | (sigma > 0))
        parts.append((sign * hkl[known], *(x[known] for x in (_squared(value, sigma) if power == 1 else (value, sigma)))))
    rows = tuple(np.concatenate(part) for part in zip(*parts))
    wavelength = next((x.wavelength for x in mtz.datasets if x.wavelength > 0), 0.0)
    about = _About(mtz.cell if mtz.cell.is_crystal() else None, mtz.spacegroup, {}, wavelength)
    return rows, about, f"MTZ, {pairs[0][0].label}"
