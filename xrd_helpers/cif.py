"""Crystals read from one CIF file, with a reason for each that cannot be used; see cif_folders.py for thousands."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np

from .config import UserError, refuse_devices
from .crystals import Crystal, CrystalError, checked_cell, wrong_atoms, wrong_symmetry

LARGEST_FILE = 2**28  # bytes, of a CIF file
MAX_U = 0.5  # Å², of half the atoms: five times the U of a soft crystal at room temperature, a low B
DEFAULT_U = 0.05  # Å², of a site for which the file states none: a light atom of a molecular crystal at room temperature
REASONS = ("does not parse", "stopped the reader", "no cell", "no coordinates", "unknown element", "symmetry",
           "displacements", "disorder", "not of the box", "too big for the box", "duplicate")


class CifError(CrystalError):
    """A CIF file, or a structure in one, that cannot be used; ``reason`` is one of ``REASONS``."""

    def __init__(self, message, reason):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class CifEntry:
    """What a structure in a CIF file came to: a crystal, or None with a reason (one of ``REASONS``) and a sentence.

    ``without_u`` is the number of sites that got DEFAULT_U; ``other_symbol`` is True if the file's own symbol or
    number names another space group than the one that was taken.
    """

    path: str
    name: str
    crystal: Crystal | None
    reason: str = ""
    message: str = ""
    without_u: int = 0
    other_symbol: bool = False


def read_cif(path) -> Crystal:
    """Read the first structure of a CIF file, disordered or not: occupancies are those of the file.

    Space group and setting come from the symmetry operators of the file (P2₁/n, I2/a and other settings are common);
    where it lists none, from the Hall symbol, the Hermann-Mauguin symbol or the number (reference setting), in this
    order. Anisotropic displacements are replaced by their equivalent isotropic value where the file gives no U_iso; a
    site with no U above zero gets DEFAULT_U = 0.05 Å². Dummy sites (calc_flag ``dum``) are no atoms.

    Raises
    ------
    CifError
        If the file is no CIF, has no cell, no atoms, an unknown element, displacements that no crystal has, or an
        unknown space group; the message names the file.
    """
    first = read_cif_file(path, keep_disordered=True)[0]
    if first.crystal is None:
        raise CifError(first.message, first.reason)
    return replace(first.crystal, name=Path(path).stem)


def read_cif_file(path, keep_disordered=False) -> list[CifEntry]:
    """Every structure of a CIF file, read as ``read_cif`` says; never raises for what is in the file.

    A crystal is disordered if a site is filled in part or more than once (an occupancy below 0.99 or above 1.01), or if
    filled sites are in two disorder groups, or in a negative one (disorder about a symmetry element). Hydrogen and
    solvent count as every other site does: half a water is missing or added in every structure factor. Such a crystal
    is set aside unless `keep_disordered`.

    Returns
    -------
    entries : list of CifEntry
        One for each data block with atom sites, named as the file, with ``_block`` added if there are several; a
        single one that says why if there is none.
    """
    path = Path(path)
    try:
        blocks = _blocks_with_atoms(path)
    except CifError as error:
        return [CifEntry(str(path), path.stem, None, error.reason, str(error))]
    entries = []
    for block in blocks:
        name = path.stem if len(blocks) == 1 else f"{path.stem}_{block.name}"
        try:
            entries.append(_read_block(block, path, name, keep_disordered))
        except CifError as error:
            entries.append(CifEntry(str(path), name, None, error.reason, str(error)))
        except Exception as error:  # nothing that a file holds may stop the reading of thousands
            message = f"{path} cannot be read: {type(error).__name__}: {' '.join(str(error).split())}"
            entries.append(CifEntry(str(path), name, None, "does not parse", message))
    return entries


def _blocks_with_atoms(path):
    try:
        refuse_devices(path, largest=LARGEST_FILE)
        document = gemmi.cif.read_string(path.read_bytes().decode("utf-8-sig"))
    except UserError as error:
        raise CifError(str(error), "does not parse") from None
    except OSError as error:
        raise CifError(f"{path} cannot be read: {error.strerror or error}", "does not parse") from None
    except (ValueError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        raise CifError(f"{path} is not a CIF file that can be read: {first_line}", "does not parse") from None
    blocks = [block for block in document if len(block.find_values("_atom_site_fract_x"))]
    if not blocks:
        raise CifError(f"{path} holds no atom sites", "no coordinates")
    return blocks


def _read_block(block, path, name, keep_disordered):
    """The CifEntry of one data block, or CifError."""
    try:
        small = gemmi.make_small_structure_from_block(block)
    except RuntimeError as error:  # a cell angle of zero
        raise CifError(f"{path} has no usable unit cell: {error}", "no cell") from None
    cell = small.cell
    spacegroup, other_symbol = spacegroup_of_cif(small, path)
    occupancy = np.array([site.occ for site in small.sites])
    stated = [value for value in block.find_values("_atom_site_occupancy") if value not in ("?", ".")]
    if strange := [value for value in stated if not np.isfinite(gemmi.cif.as_number(value))]:
        raise CifError(f"{path}: a site has an occupancy of {strange[0][:20]}, which is no number", "disorder")
    small.change_occupancies_to_crystallographic()
    rows = block.find("_atom_site_", ["label", "?calc_flag", "?disorder_group"])
    flags = [[row.str(i) if row.has(i) else "" for i in (1, 2)] for row in rows]
    kept = [i for i, site in enumerate(small.sites) if site.occ > 0 and flags[i][0].lower() != "dum"]
    if not kept:
        raise CifError(f"{path}: none of its atom sites is occupied", "no coordinates")
    try:
        checked_cell(cell.parameters, path)
    except CrystalError as error:
        raise CifError(str(error), "no cell") from None
    if wrong := wrong_symmetry(cell, spacegroup):
        raise CifError(f"{path}: {wrong}", "symmetry")
    sites, groups, occupancy = [small.sites[i] for i in kept], {flags[i][1] for i in kept} - {""}, occupancy[kept]
    for site in sites:
        if site.element.atomic_number == 0 or site.element.it92 is None:
            raise CifError(f"{path}: site {site.label} is of no known element ({site.type_symbol!r})", "unknown element")
    fract = np.array([site.fract.tolist() for site in sites], float).reshape(-1, 3)
    if not np.isfinite(fract).all():
        bad = sites[int(np.flatnonzero(~np.isfinite(fract).all(axis=1))[0])].label
        raise CifError(f"{path}: site {bad} has no coordinates", "no coordinates")
    order = np.round(occupancy / [site.occ for site in sites])  # operators that leave the site in place
    elements = tuple(site.element.name for site in sites)
    occupancy = _undivided(occupancy, order, elements, block.find_value("_chemical_formula_sum"))
    if not keep_disordered:
        _refuse_disorder(sites, occupancy, groups, path)
    u_iso, u_aniso, stated = _displacements(block, sites, cell, path)
    if wrong := wrong_atoms(elements, fract, u_iso, occupancy / order, u_aniso):
        reasons = {"coordinate": "no coordinates", "displacement": "displacements"}
        raise CifError(f"{path}: {wrong}", next((reasons[word] for word in reasons if word in wrong), "disorder"))
    crystal = Crystal(name=name, cell=cell, spacegroup=spacegroup, elements=elements, fract=fract, u_iso=u_iso,
                      occ=occupancy / order, source=Path(path).name, u_aniso=u_aniso if u_aniso.any() else None)
    return CifEntry(str(path), name, crystal, without_u=int((~stated).sum()), other_symbol=other_symbol)


def spacegroup_of_cif(small, path):
    """The space group in the setting of the file, and whether a symbol or number of the file names another one.

    By the operators first, completed by the symbols where they do not suffice.
    """
    named = [group for group in (_by_hall(small.spacegroup_hall), _by_symbol(small), _by_number(small.spacegroup_number))
             if group is not None]
    symops = small.symops if set(small.symops) - {"?", "."} else []
    if not symops and not named:
        raise CifError(f"{path}: {small.spacegroup_hm or 'an empty symbol'!r} is no known space group, "
                       "and the file lists no symmetry operators", "symmetry")
    if symops:
        try:
            listed = gemmi.GroupOps([gemmi.Op(op) for op in symops])
        except RuntimeError as error:
            raise CifError(f"{path}: a symmetry operator cannot be read: {error}", "symmetry") from None
        spacegroup = gemmi.find_spacegroup_by_ops(listed)
        for by_name in named:
            # some files leave out the centring translations, and what remains is often another group of the tables
            # (C 2/c without them is P 2/c): the symbol completes the list, if it holds all of it
            full = {op.triplet() for op in by_name.operations()}
            given = {op.triplet() for op in listed}
            centred = {op.translated(c).wrap().triplet() for op in listed for c in by_name.operations().cen_ops}
            if centred == full or (spacegroup is None and given <= full):
                spacegroup = by_name
                break
        if spacegroup is None:
            raise CifError(f"{path}: its symmetry operators form no space group in a setting of the tables", "symmetry")
    else:
        spacegroup = named[0]
    small.spacegroup = spacegroup
    small.setup_cell_images()
    return spacegroup, any(group.number != spacegroup.number for group in named)


def _by_hall(symbol):
    try:
        return gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(symbol.replace("_", " ")))
    except RuntimeError:
        return None


def _by_symbol(small):
    """By the Hermann-Mauguin symbol; the cell decides between the hexagonal and rhombohedral axes of R groups."""
    hm = small.spacegroup_hm
    return gemmi.find_spacegroup_by_name(hm, small.cell.alpha, small.cell.gamma) if hm else None


def _by_number(number):
    return gemmi.get_spacegroup_reference_setting(number) if 1 <= number <= 230 else None


def _undivided(occupancy, order, elements, formula):
    """Occupancies (n,) with those of special positions taken as full where the file has divided them by the order.

    CIF does not divide, SHELX and some old files do. Half a water on a twofold axis looks the same: the formula decides.
    """
    divided = (order > 1) & (np.abs(occupancy * order - 1) < 0.02)
    formula = {element: float(n or 1) for element, n in re.findall(r"([A-Z][a-z]?)(\d*\.?\d*)", formula or "")
               if element not in ("H", "D")}

    def agrees(occ):
        content = Counter()
        for element, share in zip(elements, occ / order):
            content[element] += share
        ratios = [content[element] / n for element, n in formula.items() if n]
        return ratios and max(ratios) <= 1.02 * min(ratios)

    full = np.where(divided, 1, occupancy)
    return full if divided.any() and not agrees(occupancy) and agrees(full) else occupancy


def _refuse_disorder(sites, occupancy, groups, path):
    """Raise CifError if a site is not filled once, or the sites belong to several disorder groups."""
    for site, occ in zip(sites, occupancy):
        if abs(occ - 1) > 0.01:
            raise CifError(f"{path}: site {site.label} has an occupancy of {occ:.4g}", "disorder")
    groups = groups - {"?", ".", "0"}
    if len(groups) > 1 or any(group.startswith("-") for group in groups):
        raise CifError(f"{path}: its sites are in the disorder groups {', '.join(sorted(groups))}", "disorder")


def _displacements(block, sites, cell, path):
    """u_iso (n,) and u_aniso (n, 6) in Å², and stated (n,) bool: False where the file gives no U above zero."""
    # some files put B into the column of U, and say so in the one of the type
    gives_b = {row.str(0) for column in ("adp_type", "thermal_displace_type")
               for row in block.find("_atom_site_", ["label", column]) if row.str(1).lower() == "biso"}
    # the equivalent is a third of the trace of the tensor in Cartesian axes (Fischer & Tillmanns, 1988)
    axes = np.array(cell.orth.mat.tolist()) @ np.diag([cell.reciprocal().a, cell.reciprocal().b, cell.reciprocal().c])
    equivalent = np.array([np.trace(axes @ np.array(site.aniso.as_mat33().tolist()) @ axes.T) / 3 for site in sites])
    given = np.array([site.u_iso / (8 * np.pi**2 if site.label in gives_b else 1) for site in sites])
    u_iso = np.where(given > 0, given, equivalent)
    stated = u_iso > 0
    if stated.any() and (median := np.median(u_iso[stated])) > MAX_U:
        raise CifError(f"{path}: half of its atoms have U above {median:.2f} Å², which no crystal has: the "
                       "file seems to give B = 8π²U in the place of U", "displacements")
    u_aniso = np.array([site.aniso.elements_pdb() for site in sites]) * stated[:, None]
    both = (given > 0) & u_aniso.any(axis=1)
    # COD 2000642 gives tensors 10⁴ times too large beside sensible equivalents, which are believed
    if both.any() and not 1 / 3 < np.median(equivalent[both] / given[both]) < 3:
        u_aniso[:] = 0
    return np.where(stated, u_iso, DEFAULT_U), u_aniso, stated
