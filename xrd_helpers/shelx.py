"""SHELX files, read and written: instructions and atoms (.ins, .res), reflections (.hkl), symmetry as LATT and SYMM.

The formats are those of the SHELXL manual (Sheldrick, Acta Cryst. C71 (2015) 3).
"""

from __future__ import annotations

import codecs
import math
import re
import textwrap
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np

from .config import atomic_path, refuse_devices
from .crystals import CrystalError, checked_cell, count_elements, in_asymmetric_unit, without_inversion
from .reflections import ReflectionError

SHELX_LATT = {"P": 1, "I": 2, "R": 3, "F": 4, "A": 5, "B": 6, "C": 7}
SHELX_LARGEST = 9999.0  # the largest intensity that fits F8.2 with room for the sign
SHELX_MOST = 99999.99   # the largest number that fits F8.2
U_EQUIVALENT = 0.05     # Å² for atoms whose U a .res file gives as a multiple of another one
COLUMNS = 0, 4, 8, 12, 20, 28  # of h, k, l, value, sigma, and their end
DIGITS = list(b"0123456789.")
MOST_UNITS = 10_000     # formula units in a cell
MOST_LETTERS = 10_000   # of a line
LARGEST_FILE = 2**30    # bytes: thirty million reflections
# what a file that is written takes over from the one that was read, besides its symmetry and elements
PASSED_ON = ("TEMP", "SIZE", "TWIN", "BASF", "OMIT", "MERG")
INSTRUCTIONS = set("""ABIN ACTA AFIX ANIS ANSC ANSR BASF BIND BLOC BOND BUMP CELL CGLS CHIV CONF CONN DAMP DANG DEFS DELU
DFIX DISP EADP END EQIV EXTI EXYZ FEND FLAT FMAP FRAG FREE FVAR GRID HFIX HKLF HTAB INIT ISOR LATT LAUE LIST L.S. MERG
MORE MOVE MPLA NCSY NEUT OMIT PART PLAN PRIG REM RESI RIGU RTAB SADI SAME SFAC SHEL SIMU SIZE SPEC STIR SUMP SWAT SYMM
TEMP TITL TWIN TWST UNIT WGHT WIGL WPDB XNPD ZERR""".split())


class ShelxError(ReflectionError):
    """A SHELX file that cannot be read or written, and why."""


# --- symmetry ---


def shelx_symmetry(spacegroup):
    """LATT number and SYMM operators of a space group, as SHELX wants them.

    LATT is negative when there is no inversion. SYMM lists what is left without the identity, the centring
    translations and one of each pair that the inversion links: SHELXT stops at a redundant operator.

    Raises
    ------
    ShelxError
        If the inversion is not at the origin, or the centring is none of P, I, R (obverse), F, A, B, C.
    """
    centring = spacegroup.operations().find_centering()
    if centring not in SHELX_LATT:
        raise ShelxError(f"SHELX has no LATT number for the centring of {spacegroup.xhm()}: transform the cell")
    rot, tran, inversion = without_inversion(spacegroup)
    if spacegroup.is_centrosymmetric() and not inversion:
        raise ShelxError(f"SHELX needs the inversion at the origin, which {spacegroup.xhm()} has not: use origin choice 2")
    return SHELX_LATT[centring] * (1 if inversion else -1), [_shelx_operator(r, t) for r, t in zip(rot[1:], tran[1:])]


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


def spacegroup_of_shelx(latt, symm):
    """The space group of a LATT number and the texts of its SYMM lines, None if the tables have no setting with them.

    ValueError or RuntimeError if LATT is no lattice or a SYMM no operator.
    """
    centring = {number: letter for letter, number in SHELX_LATT.items()}.get(abs(latt))
    if centring is None:
        raise ValueError(f"LATT {latt} is no lattice")
    ops = [gemmi.Op("x,y,z")] + [gemmi.Op("".join(text.lower().split())) for text in symm]
    ops += [gemmi.Op("-x,-y,-z").combine(op).wrap() for op in ops] if latt > 0 else []
    ops = [op.translated(list(c)).wrap() for op in ops for c in gemmi.symops_from_hall(f"{centring} 1").cen_ops]
    ops = {op.triplet(): op for op in ops}  # each once
    return gemmi.find_spacegroup_by_ops(gemmi.GroupOps(list(ops.values())))


# --- .ins and .res ---


class Atoms(NamedTuple):
    """elements (n,) symbols; fract (n, 3); occ (n,), crystallographic as in Crystal; u_iso (n,) Å²; heights (n,) of the
    peaks, nan where the file states none."""

    elements: tuple[str, ...]
    fract: np.ndarray
    occ: np.ndarray
    u_iso: np.ndarray
    heights: np.ndarray


@dataclass(frozen=True)
class Instructions:
    """What a .ins or .res file says of the crystal; ``read_instructions`` gives it.

    elements : {symbol: atoms in the asymmetric unit} by SFAC and UNIT
    hklf : 3 or 4, how the .hkl beside it is read, or 0 where it does not say
    symbols : those of SFAC in their order; remarks : REM lines; atom_lines : of the others those that are no instruction
    header : {name: the lines of that instruction as they stand in the file, with those that continue them}
    """

    path: Path
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    wavelength: float
    elements: dict[str, float]
    hklf: int
    symbols: tuple[str, ...]
    remarks: tuple[str, ...]
    atom_lines: tuple[str, ...]
    header: dict[str, tuple[str, ...]]

    def atoms(self) -> Atoms:
        """The atoms, Q peaks left out; ShelxError names a line that cannot be read.

        A site occupancy of 10 + x is x, held fixed; free variables (20 and more) count as full sites. SHELX occupancies
        are crystallographic already.
        """
        rows = []
        for line in self.atom_lines:
            try:
                rows.append(_atom(line.split(), self.symbols))
            except (ValueError, IndexError):
                raise ShelxError(f"{self.path} has a line that cannot be read: {line.strip()!r}") from None
        elements, *columns = zip(*rows) if rows else ((),) * 5
        fract, occ, u_iso, heights = (np.array(column, float) for column in columns)
        return Atoms(tuple(elements), fract.reshape(-1, 3), occ, u_iso, heights)


def read_instructions(path) -> Instructions:
    """Read a .ins or .res file, as far as HKLF or END.

    Raises
    ------
    ShelxError
        If the file is absent, has no CELL, LATT and SYMM that can be read or form a space group of the tables, or an
        HKLF other than 3 or 4 on the axes of CELL.
    """
    return parse_instructions(_read_text(path), path)


def parse_instructions(text, path) -> Instructions:
    """``read_instructions`` of the text of a file; errors name it by `path`."""
    path, found, remarks, atoms, header = Path(path), {}, [], [], {}
    for line, as_read in _instruction_lines(text):
        words = line.split()
        key = words[0].upper()[:4]
        if key == "REM":
            remarks.append(line)
        elif key in INSTRUCTIONS:
            found.setdefault(key, []).append(words[1:])
            header.setdefault(key, []).append(as_read)
        elif not line[0].isspace() and not re.match(r"Q\d", words[0].upper()):
            atoms.append(line)
        if key in ("HKLF", "END"):
            break
    unreadable = f"{path} has no CELL, LATT and SYMM that can be read"
    try:
        wavelength, *cell = [float(x) for x in found["CELL"][0][:7]]
        latt = int(found.get("LATT", [["1"]])[0][0])
        spacegroup = spacegroup_of_shelx(latt, [" ".join(words) for words in found.get("SYMM", [])])
        hklf = found.get("HKLF", [["0"]])[0] or ["4"]
        hklf, matrix = int(hklf[0]), [float(x) for x in hklf[2:11]]
    except KeyError:
        raise ShelxError(f"{unreadable}: there is no CELL in it") from None
    except (ValueError, IndexError, RuntimeError) as error:
        raise ShelxError(f"{unreadable}: {' '.join(str(error).split())[:80]}") from None
    if len(cell) < 6 or not 0 < wavelength < 100:
        raise ShelxError(f"{unreadable}: CELL is a wavelength, three edges and three angles")
    try:
        cell = checked_cell(cell, path)
    except CrystalError as error:
        raise ShelxError(str(error)) from None
    if spacegroup is None:
        raise ShelxError(f"{path}: LATT {latt} and its SYMM lines form no space group in a setting of the tables")
    if hklf not in (0, 3, 4) or matrix not in ([], [1, 0, 0, 0, 1, 0, 0, 0, 1]):
        raise ShelxError(f"{path}: HKLF {hklf}{' with a matrix' if matrix else ''} is not supported: write the "
                         "reflections as HKLF 4 (F squared) or 3 (F) on the axes of CELL")
    symbols = tuple(symbol for words in found.get("SFAC", []) for symbol in _symbols_of_sfac(words, path))
    units = [_count_of_unit(word, path) for words in found.get("UNIT", []) for word in words]
    if len(units) != len(symbols):  # nobody knows whose numbers are missing
        units = [1.0] * len(symbols)
    return Instructions(path, cell, spacegroup, wavelength, in_asymmetric_unit(zip(symbols, units), spacegroup), hklf,
                        symbols, tuple(remarks), tuple(atoms), {key: tuple(lines) for key, lines in header.items()})


def _instruction_lines(text):
    """(instruction, as it stands in the text): those that an equals sign continues in one, without comments and empty lines."""
    lines = deque(text.splitlines())
    while lines:
        line = lines.popleft()
        as_read = [line.rstrip()]
        if re.match(r"REM|TITL", line, re.IGNORECASE):  # an equals sign is part of what these say, unless more is indented
            while as_read[-1].endswith("=") and lines and lines[0][:1].isspace():
                as_read.append(lines.popleft().rstrip())
        else:
            line = line.split("!")[0]
            while "=" in line:
                as_read.append(lines.popleft().rstrip() if lines else "")
                line = line.split("=")[0] + " " + as_read[-1].split("!")[0]
        if line.strip():
            yield line, "\n".join(as_read)


def _symbols_of_sfac(words, path):
    """The symbols of an SFAC line: several, or one that scattering factors follow."""
    symbols = []
    for word in words:
        if letters := re.match(r"\$?([A-Za-z]+)", word):
            symbol = letters[1].capitalize()
            if not gemmi.Element(symbol).atomic_number:
                raise ShelxError(f"{path}: SFAC names {word[:20]!r}, which is no element")
            symbols.append(symbol)
    return symbols


def _count_of_unit(word, path):
    try:
        number = float(word)
    except ValueError:
        number = -1.0
    if not 0 <= number < np.inf:
        raise ShelxError(f"{path} has a UNIT line that cannot be read: {word[:20]!r} is no number of atoms")
    return number


def _atom(words, symbols):
    """(element, fract, occ, u_iso, height) of the words of an atom line: name sfac x y z occ U [... height]."""
    number = int(words[1])
    if number < 1:
        raise ValueError(words[1])
    # 10 + x: the parameter is held at x
    values = [float(word) - 10 if 5 < abs(float(word)) < 15 else float(word) for word in words[2:7]]
    *fract, occ, u_iso = (values + [1.0, U_EQUIVALENT])[:5] if len(values) < 5 else values
    height = float(words[7]) if len(words) == 8 else float("nan")
    return symbols[number - 1], fract, occ if 0 < occ <= 1 else 1.0, u_iso if u_iso > 0 else U_EQUIVALENT, height


def shelx_header(cell, spacegroup, elements, title, wavelength=0.71073, header=None) -> list[str]:
    """The lines of a SHELX file from TITL to what stands after UNIT; see ``write_shelx`` for the arguments.

    header : {name: lines} as ``Instructions`` has it. They stand as they were read, CELL, LATT, SYMM, SFAC and UNIT as far as
    they say what the other arguments do; no uncertainty of the cell is stated (ZERR of zeros) that was not read.
    """
    numbers, header = count_elements(elements), header or {}
    if not numbers:
        raise ShelxError("SHELX needs the elements of the crystal, and none was given")
    if "D" in numbers:
        numbers["H"] = numbers.get("H", 0) + numbers["D"]
    n_ops, symbols = len(spacegroup.operations()), shelx_elements(elements, header)
    given = len(_symbols_read(header))
    lines = [*header.get("TITL", [f"TITL {title}"[:80]])]
    if _same_cell(header, cell, wavelength):
        lines += [*header["CELL"], *header.get("ZERR", [f"ZERR {n_ops} 0 0 0 0 0 0"])]
    else:
        edges, angles = cell.parameters[:3], cell.parameters[3:]
        lines += [f"CELL {wavelength:.5f} " + " ".join([f"{x:.4f}" for x in edges] + [f"{x:.3f}" for x in angles]),
                  f"ZERR {formula_units(header) or n_ops:g} 0 0 0 0 0 0"]
    symmetry = [*header.get("LATT", []), *header.get("SYMM", [])]
    if not header.get("LATT") or _symmetry_read(header) != spacegroup.xhm():
        latt, symm = shelx_symmetry(spacegroup)
        symmetry = [f"LATT {latt}", *(f"SYMM {op}" for op in symm)]
    lines += symmetry + [*header.get("SFAC", [])] * bool(given)
    if symbols[given:]:
        lines.append("SFAC " + " ".join(symbols[given:]))
    lines += header.get("DISP", [])
    units = header.get("UNIT", []) if given else []
    if not units or symbols[given:]:
        units = ["UNIT " + " ".join(str(max(1, round(numbers.get(s, 0) * n_ops))) for s in symbols)]
    return lines + [*units, *(line for name in PASSED_ON for line in header.get(name, []))]


def shelx_elements(elements, header=None) -> list[str]:
    """The order of SFAC: that of a header; then carbon and hydrogen first, and by the alphabet, as formulas are written
    (Hill, 1900)."""
    read = _symbols_read(header or {})
    return read + sorted({"H" if symbol == "D" else symbol for symbol in elements} - set(read),
                         key=lambda symbol: (symbol != "C", symbol != "H", symbol))


def formula_units(header) -> float:
    """Formula units in the cell, by the ZERR line of a header; 0 where none states them."""
    try:
        z = float(_words_read(header, "ZERR")[0][0])
    except (ValueError, IndexError):
        return 0.0
    return z if 0 < z < MOST_UNITS else 0.0


def _words_read(header, name):
    """Words of each instruction of that name in a header, without comments, with what continues them."""
    return [line.split()[1:] for line, _ in _instruction_lines("\n".join(header.get(name, [])))]


def _symbols_read(header):
    """Symbols of the SFAC lines of a header."""
    return [symbol for words in _words_read(header, "SFAC") for symbol in _symbols_of_sfac(words, "the header")]


def _same_cell(header, cell, wavelength):
    """Whether the CELL line of a header is that of this cell, to the digits in which files give them."""
    words = next(iter(_words_read(header, "CELL")), [])[:7]
    return len(words) == 7 and np.allclose([float(x) for x in words], [wavelength, *cell.parameters], atol=6e-4, rtol=0)


def _symmetry_read(header):
    """Symbol of the space group of a header's LATT and SYMM."""
    found = spacegroup_of_shelx(int(_words_read(header, "LATT")[0][0]), [" ".join(x) for x in _words_read(header, "SYMM")])
    return found and found.xhm()


def write_shelx_res(path, crystal, labels, elements, wavelength, scale, remarks=(), header=None, extra=(), afix=None):
    """Write a ``.res`` with atoms for SHELXL: occupancies held fixed (10 + occ), isotropic U free, of hydrogen that rides a
    multiple of that of its atom.

    Parameters
    ----------
    crystal : Crystal
    labels : (n,) names of its atoms, at most four letters
    elements : as in ``write_shelx``, all of the crystal's among them
    wavelength : float, Å
    scale : float, of measured to calculated amplitudes, for FVAR
    remarks : sentences for REM lines
    header : as for ``shelx_header``
    extra : lines of SHELXL that are to stand before the atoms, as DFIX
    afix : (n,) int, mn of the AFIX of each hydrogen atom that follows the one on which it rides, 0 of all others
    """
    path = Path(path)
    number = {symbol: i for i, symbol in enumerate(shelx_elements(elements, header), 1)}
    atoms, before = [], 0
    for i, (label, element, xyz) in enumerate(zip(labels, crystal.elements, crystal.fract)):
        mn = 0 if afix is None else afix[i]
        if mn != before:
            atoms.append(f"AFIX {mn}")
        u = crystal.u_iso[i] if not mn else -1.5 if mn in (137, 147) else -1.2
        atoms.append(f"{label:<4} {number[element]:2d} " + " ".join(f"{x:9.5f}" for x in xyz)
                     + f" {10 + crystal.occ[i]:9.5f} {u:8.5f}")
        before = mn
    atoms += ["AFIX 0"] * bool(before)
    lines = [*shelx_header(crystal.cell, crystal.spacegroup, elements, path.stem, wavelength, header), *_remarks(remarks),
             "L.S. 10", "BOND", "FMAP 2", "PLAN 20", "WGHT 0.1", *extra, f"FVAR {scale:.5f}", *atoms, "HKLF 4", "END"]
    _write_text(path, "\n".join(lines) + "\n")


def _remarks(sentences):
    """REM lines of at most 80 characters."""
    return [f"REM {line}" for sentence in sentences for line in textwrap.wrap(sentence, 76)]


# --- .hkl ---


def read_shelx_records(path):
    """Read a SHELX reflection file as it stands: FORMAT(3I4,2F8.2,I4), ended by a record of zeros or an empty line.

    Numbers in other columns are read, too, where spaces part them on every line and columns would cut them (free format).

    Returns
    -------
    hkl : (n, 3) int; value, sigma : (n,) float, F² (HKLF 4) or F (HKLF 3), the file does not say which

    Raises
    ------
    ShelxError
        If the file is absent, holds no reflection, or a line of it does not follow the format.
    """
    return parse_shelx_records(_read_text(path).splitlines(), path)


def parse_shelx_records(lines, path):
    """``read_shelx_records`` of the lines of a file; errors name it by `path`."""
    table = _in_columns(lines)
    if table is None:
        end = next((i for i, line in enumerate(lines) if not line[:12].strip(" \t0")), len(lines))
        table = _line_by_line(lines[:end], path) if end else ()
    if not len(table):
        raise ShelxError(f"{path} holds no reflections")
    return table[:, :3].astype(np.int64), table[:, 3], table[:, 4]


def _in_columns(lines):
    """(n, 5) of lines that follow the columns beyond doubt, all at once; None if some do not, or have to be looked at."""
    try:
        lines = np.array(lines, f"S{COLUMNS[-1] + 1}")
    except UnicodeEncodeError:
        return None
    letters = lines.view(np.uint8).reshape(len(lines), COLUMNS[-1] + 1)
    letters[letters == 0] = ord(" ")
    ends = np.isin(letters[:, :12], list(b" \t0")).all(axis=1)
    letters = letters[:ends.argmax()] if ends.any() else letters
    for column in COLUMNS[1:]:
        if ((letters[:, column - 1] != ord(" ")) & np.isin(letters[:, column], DIGITS)).any():
            return None  # a number ends where another begins, or is cut
    fields = [np.ascontiguousarray(letters[:, i:j]).view(f"S{j - i}").ravel() for i, j in zip(COLUMNS, COLUMNS[1:])]
    if any((np.char.find(field, b".") < 0).any() for field in fields[3:]):
        return None
    try:
        table = np.stack([field.astype(np.int64 if i < 3 else float) for i, field in enumerate(fields)], axis=1)
    except ValueError:
        return None
    return table if np.isfinite(table).all() else None


def _line_by_line(lines, path):
    """(n, 5), by columns, or free where these do not fit."""
    in_columns, free, cut = [], [], False
    for line in lines:
        words = [line[i:j].strip() for i, j in zip(COLUMNS, COLUMNS[1:])]
        in_columns.append(_record(words, "fortran"))
        words_free = line[:MOST_LETTERS].replace(",", " ").split()[:5]
        free.append(_record(words_free))
        if free[-1] and free[-1][:3] == [0, 0, 0]:
            in_columns.pop(), free.pop()
            break
        # the number after the last one may touch it in columns
        cut = cut or bool(free[-1]) and (words[:4] != words_free[:4] or not words_free[4].startswith(words[4]))
    wrong = next((i for i, row in enumerate(in_columns) if row is None), None)
    if None not in free and (cut or wrong is not None):
        return np.array(free, float)
    if wrong is not None:
        raise ShelxError(f"{path}, line {wrong + 1}: {lines[wrong][:32]!r} is not h k l value sigma in the columns 3I4,2F8.2, "
                         "nor are they parted by spaces on every line: correct or remove it")
    return np.array(in_columns, float)


def _record(words, style=""):
    """[h, k, l, value, sigma], or None if the words are not these. As Fortran reads F8.2, the last two digits of a number
    without a decimal point are decimals."""
    try:
        hkl, values = [int(word) for word in words[:3]], [float(word) for word in words[3:5]]
    except ValueError:
        return None
    if style:
        values = [x if "." in word or "e" in word.lower() else x / 100 for x, word in zip(values, words[3:])]
    return [*hkl, *values] if len(values) == 2 and all(map(math.isfinite, values)) and max(map(abs, hkl)) < 2**31 else None


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
    intensity, sigma = reflections.intensities()
    if not intensity.max() > 0:
        raise ShelxError("all amplitudes are zero: there is nothing to write")
    scale = SHELX_LARGEST / intensity.max()
    # an uncertainty of zero would be a weight of infinity: 2 % of the intensity where none was given
    sigma = np.where(reflections.sigF > 0, sigma, 0.02 * intensity) * scale
    write_shelx_files(path_stem, reflections.hkl, intensity * scale, sigma, 1, reflections.cell, reflections.spacegroup,
                      elements, title, wavelength)


def write_shelx_files(path_stem, hkl, intensity, sigma, batch, cell, spacegroup, elements, title=None, wavelength=0.71073,
                      remarks=(), header=None):
    """Write ``.ins`` and ``.hkl`` (HKLF 4) from intensities as they are: merged or not, negative ones too.

    hkl (n, 3); intensity and sigma (n,) within F8.2, -9999.99 to 99999.99; batch, a number or (n,) of them. See
    ``write_shelx`` and ``write_shelx_res`` for the others.
    """
    path_stem = Path(path_stem)
    lines = [*shelx_header(cell, spacegroup, elements, title or path_stem.name, wavelength, header), *_remarks(remarks),
             "HKLF 4", "END"]
    rows = zip(np.asarray(hkl).tolist(), intensity, np.clip(sigma, 0.01, SHELX_MOST), np.broadcast_to(batch, len(hkl)))
    records = ["%4d%4d%4d%8.2f%8.2f%4d\n" % (*h, I, s, b) for h, I, s, b in rows]
    records.append("%4d%4d%4d%8.2f%8.2f%4d\n" % (0, 0, 0, 0, 0, 0))
    _write_text(path_stem.with_name(path_stem.name + ".ins"), "\n".join(lines) + "\n")
    _write_text(path_stem.with_name(path_stem.name + ".hkl"), "".join(records))


def shelx_scale(intensity, sigma) -> float:
    """By what intensities and their sigma have to be multiplied to fit F8.2 with digits that say something; 1 if they do."""
    highest = np.abs(intensity).max()
    largest = max(highest, np.max(sigma))
    fits = highest >= 100 and largest <= SHELX_MOST and np.min(intensity) > -SHELX_LARGEST
    return 1.0 if fits else SHELX_LARGEST / largest


def file_content(path) -> bytes:
    """What a file holds; ShelxError in a sentence if it is none, or nothing that somebody measured."""
    refuse_devices(path, ShelxError, LARGEST_FILE)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ShelxError(f"{path} cannot be read: {error.strerror}") from None
    if content[:2] == b"\x1f\x8b":
        raise ShelxError(f"{path} is compressed: unpack it first")
    return content


def as_text(content) -> str:
    """Text of UTF-8 or UTF-16, with a byte-order mark or without, or else of Latin-1, in which any byte is a letter; with the
    ends of lines and of the text as Unix has them."""
    encoding = "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\x1a")


def _read_text(path):
    text = as_text(file_content(path))
    long = np.fromiter(map(len, text.splitlines()), int) > MOST_LETTERS
    if long.any():
        raise ShelxError(f"{path}, line {long.argmax() + 1} has more than {MOST_LETTERS} letters: it is no file of SHELX")
    return text


def _write_text(path, text):
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
