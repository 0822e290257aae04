"""Files of measured reflections, of whatever kind: ``read_measured`` reads those that READERS names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np

from .cif import spacegroup_of_cif
from .config import atomic_path
from .crystals import CrystalError, checked_cell, in_asymmetric_unit
from .reflections import Measured, ReflectionError, squared
from .shelx import (
    MOST_UNITS,
    ShelxError,
    as_text,
    file_content,
    parse_instructions,
    parse_shelx_records,
    read_instructions,
    read_shelx_records,
)

EXTENDED = r"EXTENDED: (\d+) measured"  # a remark of the .ins beside a .hkl in which predicted reflections follow
MOST_INTENSITY = 1e30
MOST_INDEX, LEAST_D = 9999, 0.2  # Å; half a wavelength is the least d
POWER = {3: 1, 4: 2}  # of F in the values of a SHELX file, by its HKLF
# columns of reflection CIFs: value, its uncertainty, and whether the value is F² (2) or F (1)
CIF_COLUMNS = {"_refln_": (("F_squared_meas", "F_squared_sigma", 2), ("F_squared_meas", "F_squared_meas_su", 2),
                           ("intensity_meas", "intensity_sigma", 2), ("intensity_meas", "intensity_meas_su", 2),
                           ("F_meas", "F_sigma", 1), ("F_meas", "F_meas_su", 1), ("F_meas", "F_meas_sigma", 1)),
               "_diffrn_refln.": (("intensity_net", "intensity_sigma", 2),),
               "_refln.": (("intensity_meas", "intensity_sigma", 2), ("F_meas_au", "F_meas_sigma_au", 1)),
               "_diffrn_refln_": (("intensity_net", "intensity_sigma", 2), ("intensity_net", "intensity_u", 2),
                                  ("intensity_net", "intensity_net_su", 2))}


@dataclass(frozen=True)
class About:
    """What a file says of the crystal; None or empty where it says nothing. hklf: 3 or 4, how its .hkl is read, or 0;
    header : as in ``shelx.Instructions``; n_measured : records of the .hkl before predicted ones, 0 where there are none."""

    cell: gemmi.UnitCell | None = None
    spacegroup: gemmi.SpaceGroup | None = None
    elements: dict[str, float] = field(default_factory=dict)
    wavelength: float = 0.0
    hklf: int = 0
    header: dict[str, tuple[str, ...]] = field(default_factory=dict)
    n_measured: int = 0


class Found(NamedTuple):
    """What a reader of reflections finds in a file.

    hkl : (n, 3) int; value, sigma : (n,) float, nan where unknown
    power : 2 where the values are F², 1 for F, 0 where the file does not say
    kind : where in the file they stood, in words
    """

    hkl: np.ndarray
    value: np.ndarray
    sigma: np.ndarray
    power: int
    kind: str
    about: About = About()


def look_like_amplitudes(value, d) -> bool:
    """Whether values (n,) measured at d (n,) Å are F rather than F², by their second moment ⟨x²⟩ / ⟨x⟩² in shells.

    It is 2 (acentric) or 3 (centric) for F², 1.27 or 1.57 for F (Wilson, Acta Cryst. 2 (1949) 318), and never below 1.74
    for F² of 122 real molecules. Values below zero tell F² that background was subtracted from.
    """
    if (value < 0).mean() > 0.005:
        return False
    value, n = np.asarray(value, float)[np.argsort(-d)], max(1, len(d) // 60)
    first = np.arange(n) * len(d) // n
    total, squares = (np.add.reduceat(x, first) for x in (value, value**2))
    moment = (squares * np.diff(first, append=len(d)))[total > 0] / total[total > 0] ** 2
    return bool(np.median(moment if len(moment) else 2) < 1.74)


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
    found = _reader(path)(path)
    own, files = found.about, [path]
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
        own = About(*(getattr(own, name) or getattr(other, name) for name in names), other.hklf, own.header or other.header,
                    other.n_measured)
    if not own.cell.is_compatible_with_spacegroup(own.spacegroup, 0.1):
        raise ReflectionError(f"{files[-1]}: the cell {own.cell.parameters} does not have the symmetry of "
                              f"{own.spacegroup.xhm()}")
    notes = _not_honoured(own.header)
    known = np.isfinite(found.value) & np.isfinite(found.sigma) & (found.hkl != 0).any(axis=1)
    if 0 < own.n_measured < len(known):
        notes += (f"{len(known) - own.n_measured} predicted reflections of the file are left out",)
        known[own.n_measured:] = False
    if not known.any():
        raise ReflectionError(f"{path} holds no reflection with a value and its uncertainty")
    hkl, value, sigma, power, kind = found.hkl[known], found.value[known], found.sigma[known], found.power, found.kind
    _check_indices(path, hkl, own.cell)
    if (largest := max(np.abs(value).max(), np.abs(sigma).max())) > MOST_INTENSITY:
        raise ReflectionError(f"{path} holds a number of {largest:.3g}, which no detector counts: it is damaged")
    if not power:
        by_shape = 1 if look_like_amplitudes(value, own.cell.calculate_d_array(hkl.astype(np.int32))) else 2
        power = POWER.get(own.hklf, by_shape)
        kind += f", {'F' if power == 1 else 'F²'} " + (f"by HKLF {own.hklf}" if own.hklf else "by their distribution")
    good = sigma > 0
    if 2 * good.sum() < len(good):
        worst = int(np.flatnonzero(~good)[0])
        raise ReflectionError(f"{path}: {(~good).sum()} of {len(good)} reflections have no uncertainty above zero, as "
                              f"{tuple(hkl[worst].tolist())} with sigma {sigma[worst]:g}: give them positive ones")
    if not good.all():
        notes += (f"{(~good).sum()} of {len(good)} reflections have no uncertainty above zero and are left out",)
        hkl, value, sigma = hkl[good], value[good], sigma[good]
    if not (value > 0).any():
        raise ReflectionError(f"{path}: no reflection is above zero: there is nothing to solve a structure from")
    return Measured(hkl, *(squared(value, sigma) if power == 1 else (value, sigma)), own.cell, own.spacegroup, own.elements,
                    own.wavelength, tuple(files), kind, own.header, notes)


def _check_indices(path, hkl, cell):
    """ReflectionError if there are indices that nobody can have measured in this cell."""
    largest = hkl[np.abs(hkl).max(axis=1).argmax()].tolist()
    if max(map(abs, largest)) <= MOST_INDEX:
        d = cell.calculate_d_array(hkl.astype(np.int32))
        largest, beyond = hkl[d.argmin()].tolist(), d.min() < LEAST_D
    else:
        beyond = True
    if beyond:
        raise ReflectionError(f"{path}: no X-rays are short enough for reflection {tuple(largest)} of this cell: its indices "
                              "or the cell are wrong")


def _not_honoured(header):
    """A sentence on what a header asks for and no search here knows of."""
    names = [name for name in ("TWIN", "BASF", "OMIT", "NEUT") if name in header]
    return (f"{' and '.join(names)} of the file: passed on to what is written, but not honoured here, where one crystal, "
            "X-rays and all reflections are assumed",) if names else ()


def _reader(path):
    """The reader of a file, by what it holds where that tells, else by its suffix, else that of SHELX files."""
    content = file_content(path)
    if not content.startswith(b"MTZ "):
        content = as_text(content).encode()
    held = content.lower()  # the word alone is found a hundred times sooner than the line that begins with it
    told = (suffix for suffix, signature in SIGNATURES.items() if (suffix == ".mtz" or b"data_" in held)
            and re.search(signature, content))
    return READERS.get(next(told, path.suffix.lower()), _read_shelx)


def _read_about(path):
    if path.suffix.lower() in (".ins", ".res"):
        found = read_instructions(path)
        extended = re.search(EXTENDED, " ".join(found.remarks))
        return About(found.cell, found.spacegroup, found.elements, found.wavelength, found.hklf, found.header,
                     int(extended[1]) if extended else 0)
    # a file of several structures: the first with a cell
    return next((about for block in _cif_blocks(path) if (about := _about_block(block, path)).cell), About())


def _cif_blocks(path):
    return _parse_cif(as_text(file_content(path)), path)


def _parse_cif(text, path):
    try:
        return gemmi.cif.read_string(text, check_level=0)  # an item that stands there twice does not hide the others
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ReflectionError(f"{path} is not a CIF file that can be read: {reason}") from None


def _about_block(block, path):
    """What a CIF block says of the crystal; cell and space group only where it states both."""
    def number(tag):
        value = gemmi.cif.as_number(block.find_value(tag) or "?")
        return value if np.isfinite(value) else 0.0

    wavelength = number("_diffrn_radiation_wavelength")
    if not block.find_value("_cell_length_a"):
        return About(wavelength=wavelength)
    try:
        small = gemmi.make_small_structure_from_block(block)
    except RuntimeError as error:  # a cell angle of zero
        raise ReflectionError(f"{path} has no usable unit cell: {error}") from None
    stated = small.symops or small.spacegroup_hall or small.spacegroup_hm or small.spacegroup_number
    if not stated or small.cell.parameters == gemmi.UnitCell().parameters:  # as of a block in which it is "?"
        return About(wavelength=wavelength)
    _usable_cell(small.cell, path)
    spacegroup = spacegroup_of_cif(small, path)[0]
    formula = gemmi.cif.as_string(block.find_value("_chemical_formula_sum") or "?")
    units = number("_cell_formula_units_Z")
    units = units if 0 < units < MOST_UNITS else len(spacegroup.operations())
    contents = [(symbol, float(n or 1) * units) for symbol, n in re.findall(r"([A-Z][a-z]?)(\d*\.?\d*)", formula)
                if gemmi.Element(symbol).atomic_number]
    elements = in_asymmetric_unit(contents, spacegroup)
    cell, header = _header(block, small.cell, path)
    return About(cell, spacegroup, elements, wavelength, header=header)


def _header(block, cell, path):
    """The cell, and the instructions of the .res in a CIF block, which gives it with more digits; without one those that the
    items of the block are the same as."""
    if res := block.find_value("_shelx_res_file") or block.find_value("_iucr_refine_instructions_details"):
        try:
            found = parse_instructions(gemmi.cif.as_string(res), path)
            if found.cell.approx(cell, 0.02):
                return found.cell, found.header
        except ShelxError:  # a text for readers, or of an HKLF that does not concern the list of reflections
            pass
    items = [block.find_value(f"_cell_{name}") for name in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta",
                                                            "angle_gamma")]
    wavelength, z, kelvin = (gemmi.cif.as_number(block.find_value(tag) or "?") for tag in (
        "_diffrn_radiation_wavelength", "_cell_formula_units_Z", "_diffrn_ambient_temperature"))
    header = {}
    if 0 < wavelength < 100 and 0 < z < MOST_UNITS and all(items):
        header = {"CELL": (f"CELL {wavelength:g} " + " ".join(item.split("(")[0] for item in items),),
                  "ZERR": (f"ZERR {z:g} " + " ".join(map(_uncertainty, items)),)}
    if kelvin > 0:
        header["TEMP"] = (f"TEMP {kelvin - 273.15:.2f}",)
    return cell, header


def _usable_cell(cell, path):
    try:
        return checked_cell(cell.parameters, path)
    except CrystalError as error:
        raise ReflectionError(str(error)) from None


def _uncertainty(number):
    """0.0012 of 3.9148(12), 0 of a number without."""
    value, _, digits = number.rstrip(")").partition("(")
    return f"{float('1e-%d' % len(value.partition('.')[2])) * int(digits):g}" if digits.isdigit() else "0"


def _read_shelx(path):
    return Found(*read_shelx_records(path), 0, "SHELX")


def _read_cif(path):
    """The first list of reflections."""
    blocks = _cif_blocks(path)
    lists = [(block, found) for block in blocks for found in [_listed(block, path), *_embedded(block, path)] if found]
    lists.sort(key=lambda one: isinstance(one[1], ReflectionError))  # what cannot be read comes last
    if not lists:
        raise ReflectionError(f"{path} holds no measured reflections: no list of F², intensities or F with their "
                              "uncertainties, and no SHELX file as text")
    block, found = lists[0]
    if isinstance(found, ReflectionError):
        raise found
    about = _about_block(block, path)
    if about.cell is None:  # a list of its own, after the block of the structure
        about = next((a for other in blocks if (a := _about_block(other, path)).cell), about)
    several = f" (the first of {len(lists)} lists, in block {block.name})" if len(lists) > 1 else ""
    return found._replace(about=about, kind=found.kind + several)


def _listed(block, path):
    for prefix, names in CIF_COLUMNS.items():
        for value, sigma, power in names:
            table = block.find(prefix, ["index_h", "index_k", "index_l", value, sigma, "?observed_status"])
            if len(table):
                good = [row for row in table if not row.has(5) or row.str(5) != "x"]
                numbers = np.array([[gemmi.cif.as_number(row[i]) for i in range(5)] for row in good]).reshape(-1, 5)
                numbers = numbers[np.isfinite(numbers).all(axis=1)]
                return Found(_whole(numbers[:, :3], path), numbers[:, 3], numbers[:, 4], power, prefix + value)
    return None


def _whole(hkl, path):
    """Indices (n, 3) int of numbers, ReflectionError if they are none."""
    hkl = np.asarray(hkl, float)
    if not (np.abs(hkl) < 2**31).all() or (hkl != np.round(hkl)).any():
        raise ReflectionError(f"{path} holds indices that are no whole numbers: it is damaged")
    return hkl.astype(np.int64)


def _embedded(block, path):
    """What is found in the SHELX and CIF files that stand as texts in a block: Found, or the ReflectionError it is."""
    found, where = [], f"{path}, the reflections in it"
    tags = ("_shelx_hkl_file", "_iucr_refine_reflections_details", "_shelx_fcf_file", "_iucr_refine_fcf_details")
    texts = [(tag, gemmi.cif.as_string(item.pair[1])) for tag in tags for item in block
             if item.pair and item.pair[0].lower() == tag and len(item.pair[1]) > 40]
    hklf = 4
    if res := block.find_value("_shelx_res_file") or block.find_value("_iucr_refine_instructions_details"):
        stated = re.search(r"^HKLF +(\d)", gemmi.cif.as_string(res), re.MULTILINE | re.IGNORECASE)
        hklf = int(stated[1]) if stated else 4
    for tag, text in texts:
        try:
            if re.search(SIGNATURES[".cif"].decode(), text):  # an .fcf
                found += [listed._replace(kind=f"{listed.kind} in {tag}") for inner in _parse_cif(text, where)
                          if (listed := _listed(inner, where))]
            elif hklf not in POWER:
                raise ReflectionError(f"{path} holds reflections of HKLF {hklf}, which is not supported: "
                                      "4 (F squared) or 3 (F) is")
            else:
                rows = parse_shelx_records(text.strip("\r\n").splitlines(), where)
                found.append(Found(*rows, POWER[hklf], f"SHELX, HKLF {hklf}, in the CIF"))
        except ReflectionError as error:
            found.append(error)
    return found


def _read_mtz(path):
    try:
        mtz = gemmi.read_mtz_file(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise ReflectionError(f"{path} is not an MTZ file that can be read: {str(error).splitlines()[0]}") from None
    for types, power in (("JQ", 2), ("KM", 2), ("FQ", 1), ("GL", 1)):  # noqa: B007, it is the last one that counts
        pairs = [(a, b) for a, b in zip(mtz.columns, mtz.columns[1:]) if a.type + b.type == types]
        if pairs:
            break
    else:
        raise ReflectionError(f"{path} holds neither intensities nor amplitudes with their uncertainties beside them")
    hkl, parts = _whole(np.stack([column.array for column in mtz.columns[:3]], axis=1), path), []
    # (+) and (-) stand in columns of their own; of others the first pair counts
    for sign, (value, sigma) in zip((1, -1), pairs[:2 if types in ("KM", "GL") else 1]):
        value, sigma = value.array.astype(float), sigma.array.astype(float)
        there = (sign > 0) | (sigma > 0)
        parts.append((sign * hkl[there], value[there], sigma[there]))
    rows = (np.concatenate(part) for part in zip(*parts))
    wavelength = next((x.wavelength for x in mtz.datasets if 0 < x.wavelength < 100), 0.0)
    unknown = mtz.cell.parameters == gemmi.UnitCell().parameters  # of one of zeros, too
    about = About(None if unknown else _usable_cell(mtz.cell, path), mtz.spacegroup, {}, wavelength)
    return Found(*rows, power, f"MTZ, {pairs[0][0].label}", about)


# A format more is a function path -> Found above, and its suffix here.
READERS = {".hkl": _read_shelx, ".cif": _read_cif, ".fcf": _read_cif, ".mtz": _read_mtz}
# what tells a file whatever its name; the COD names reflection CIFs .hkl
SIGNATURES = {".mtz": rb"\AMTZ ", ".cif": rb"(?i)(?:\A|[\r\n])[ \t]*data_"}


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
