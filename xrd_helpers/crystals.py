"""Crystals: read from CIF, kept in one parquet file, a row a crystal, and never unpickled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .config import UserError, atomic_path

# The row of a crystal: about half a kilobyte for 20 atoms. Structures are stored, amplitudes are computed when needed.
SCHEMA = pa.schema([
    ("name", pa.string()),
    ("source", pa.string()),
    ("spacegroup", pa.string()),            # extended Hermann-Mauguin symbol, which names the setting too
    ("cell", pa.list_(pa.float64(), 6)),    # a, b, c in Å, alpha, beta, gamma in degrees
    ("elements", pa.list_(pa.string())),
    ("fract", pa.list_(pa.float64())),      # x, y, z of atom 1, then of atom 2, ...
    ("u_iso", pa.list_(pa.float32())),      # Å²
    ("occ", pa.list_(pa.float32())),
])


MAX_U = 0.5  # Å², of half the atoms: five times the U of a soft crystal at room temperature, a low B


class CrystalError(UserError):
    """A crystal that cannot be read or used, and why."""


@dataclass(frozen=True)
class Crystal:
    """A crystal structure: cell, space group and the atoms of the asymmetric unit.

    ``fract`` is (n, 3), ``u_iso`` (n,) in Å². ``occ`` (n,) is the crystallographic occupancy: the share of the
    site that is filled, divided by the number of operators that leave the site in place, so that a sum over all
    operators of the group counts each atom once.
    """

    name: str
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    elements: tuple[str, ...]
    fract: np.ndarray
    u_iso: np.ndarray
    occ: np.ndarray
    source: str = ""

    @property
    def heavy(self) -> np.ndarray:
        """(n,) bool, True for every atom but hydrogen and deuterium."""
        return np.array([element not in ("H", "D") for element in self.elements], bool)

    @property
    def light(self) -> bool:
        """True if no atom is heavier than fluorine: the class that phasing finds hard (DESIGN.md, section 8)."""
        return all(gemmi.Element(element).atomic_number <= 9 for element in self.elements)

    def small_structure(self) -> gemmi.SmallStructure:
        """The same crystal for gemmi, with images of the cell set up and crystallographic occupancies."""
        small = gemmi.SmallStructure()
        small.name, small.cell, small.spacegroup = self.name, self.cell, self.spacegroup
        for i, element in enumerate(self.elements):
            site = gemmi.SmallStructure.Site()
            site.label, site.element = f"{element}{i + 1}", gemmi.Element(element)
            site.fract, site.u_iso, site.occ = gemmi.Fractional(*self.fract[i]), self.u_iso[i], self.occ[i]
            small.add_site(site)
        small.setup_cell_images()
        return small


def read_cif(path) -> Crystal:
    """Read the first structure of a CIF file.

    Space group and setting come from the symmetry operators of the file (P2₁/n, I2/a and other settings are
    common), and from the Hermann-Mauguin symbol where the file lists none. Anisotropic displacements are replaced
    by their equivalent isotropic value where the file gives no U_iso.

    Raises
    ------
    CrystalError
        If the file is no CIF, has no cell, no atoms, an unknown element, a disordered or an unknown space group;
        the message names the file.
    """
    path = Path(path)
    try:
        document = gemmi.cif.read(str(path))
    except OSError as error:
        raise CrystalError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RuntimeError, UnicodeDecodeError) as error:
        raise CrystalError(f"{path} is not a CIF file that can be read: {str(error).splitlines()[0]}") from None
    for block in document:
        try:
            small = gemmi.make_small_structure_from_block(block)
        except RuntimeError as error:  # a cell angle of zero
            raise CrystalError(f"{path} has no usable unit cell: {error}") from None
        if len(small.sites):
            break
    else:
        raise CrystalError(f"{path} holds no atom sites")
    spacegroup = _spacegroup(small, path)
    small.change_occupancies_to_crystallographic()
    sites = [site for site in small.sites if site.occ > 0]
    if not sites:
        raise CrystalError(f"{path}: none of its atom sites is occupied")
    cell = small.cell
    if not cell.is_crystal() or not cell.volume >= 1:  # angles that no cell can have give a volume of nan
        raise CrystalError(f"{path} has no usable unit cell")
    if not cell.is_compatible_with_spacegroup(spacegroup, 0.1):
        raise CrystalError(f"{path}: its cell {cell.parameters} does not have the symmetry of {spacegroup.xhm()}")
    for site in sites:
        if site.element.atomic_number == 0:
            raise CrystalError(f"{path}: site {site.label} is of no known element ({site.type_symbol!r})")
    fract = np.array([site.fract.tolist() for site in sites], float).reshape(-1, 3)
    if not np.isfinite(fract).all():
        bad = sites[int(np.flatnonzero(~np.isfinite(fract).all(axis=1))[0])].label
        raise CrystalError(f"{path}: site {bad} has no coordinates")
    # some files put B into the column of U, and say so in the one of the type
    gives_b = {row.str(0) for column in ("adp_type", "thermal_displace_type")
               for row in block.find("_atom_site_", ["label", column]) if row.str(1).lower() == "biso"}
    u_iso = np.array([_u_equivalent(site, cell) / (8 * np.pi**2 if site.label in gives_b else 1) for site in sites])
    if np.median(u_iso) > MAX_U:
        raise CrystalError(f"{path}: half of its atoms have U above {np.median(u_iso):.2f} Å², which no crystal has: the "
                           "file seems to give B = 8π²U in the place of U")
    return Crystal(name=path.stem, cell=cell, spacegroup=spacegroup,
                   elements=tuple(site.element.name for site in sites), fract=fract, u_iso=u_iso,
                   occ=np.array([site.occ for site in sites]), source=path.name)


def _spacegroup(small, path):
    """The space group in the setting of the file: by its operators first, by its symbol where they do not suffice."""
    by_name = gemmi.find_spacegroup_by_name(small.spacegroup_hm) if small.spacegroup_hm else None
    symops = small.symops if set(small.symops) - {"?", "."} else []
    if not symops and by_name is None:
        raise CrystalError(f"{path}: {small.spacegroup_hm or 'an empty symbol'!r} is no known space group, "
                           "and the file lists no symmetry operators")
    spacegroup = by_name
    if symops:
        try:
            listed = gemmi.GroupOps([gemmi.Op(op) for op in symops])
        except RuntimeError as error:
            raise CrystalError(f"{path}: a symmetry operator cannot be read: {error}") from None
        spacegroup = gemmi.find_spacegroup_by_ops(listed)
        if by_name:
            # some files leave out the centring translations, and what remains is often another group of the tables
            # (C 2/c without them is P 2/c): the symbol completes the list, if it holds all of it
            full = {op.triplet() for op in by_name.operations()}
            given = {op.triplet() for op in listed}
            centred = {op.translated(c).wrap().triplet() for op in listed for c in by_name.operations().cen_ops}
            if centred == full or (spacegroup is None and given <= full):
                spacegroup = by_name
        if spacegroup is None:
            raise CrystalError(f"{path}: its symmetry operators form no space group in a setting of the tables")
    small.spacegroup = spacegroup
    small.setup_cell_images()
    return spacegroup


def _u_equivalent(site, cell):
    """U_iso in Å², or a third of the trace of the anisotropic tensor in Cartesian axes (Fischer & Tillmanns, 1988)."""
    if site.u_iso > 0 or not site.aniso.nonzero():
        return site.u_iso
    aniso = np.array(site.aniso.as_mat33().tolist())
    star = np.diag([cell.reciprocal().a, cell.reciprocal().b, cell.reciprocal().c])
    orth = np.array(cell.orth.mat.tolist())
    return float(np.trace(orth @ star @ aniso @ star @ orth.T) / 3)


def read_cif_folders(folders):
    """Read every ``*.cif`` of the folders.

    Returns
    -------
    crystals : list of Crystal, in the order of folder and file name
    problems : list of str, one sentence for each file that could not be used

    Raises
    ------
    CrystalError
        If a folder does not exist or holds no CIF file; nothing has been read then.
    """
    paths = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise CrystalError(f"cif_dirs names {folder}, which is no folder: correct it in config.yaml")
        found = sorted(folder.glob("*.cif"))
        if not found:
            raise CrystalError(f"cif_dirs names {folder}, which holds no .cif file")
        paths += found
    crystals, problems = [], []
    for path in paths:
        try:
            crystals.append(read_cif(path))
        except CrystalError as error:
            problems.append(str(error))
    return crystals, problems


def rotations_and_translations(spacegroup):
    """Operators without centring: rot (g, 3, 3) int and tran (g, 3) in fractions of the cell, identity first."""
    ops = spacegroup.operations().sym_ops
    rot = np.array([op.rot for op in ops], np.int64) // gemmi.Op.DEN
    return rot, np.array([op.tran for op in ops], float) / gemmi.Op.DEN


def all_operators(spacegroup):
    """rot (g, 3, 3) int and tran (g, 3) of all operators, centring included, identity first."""
    rot, tran = rotations_and_translations(spacegroup)
    centring = np.array(spacegroup.operations().cen_ops, float) / gemmi.Op.DEN
    return np.repeat(rot, len(centring), axis=0), (tran[:, None] + centring).reshape(-1, 3)


def swap_a_and_c(crystal: Crystal) -> Crystal:
    """The same crystal on the axes a' = c, b' = -b, c' = a (unique axis b stays; the hand is kept)."""
    basis = gemmi.Op("z,-y,x")
    ops = crystal.spacegroup.operations()
    ops.change_basis_forward(basis)
    spacegroup = gemmi.find_spacegroup_by_ops(ops)
    if spacegroup is None:
        raise CrystalError(f"{crystal.name}: {crystal.spacegroup.xhm()} has no setting with a and c exchanged")
    a, b, c, alpha, beta, gamma = crystal.cell.parameters
    return replace(crystal, cell=gemmi.UnitCell(c, b, a, gamma, beta, alpha), spacegroup=spacegroup,
                   fract=crystal.fract[:, [2, 1, 0]] * [1, -1, 1])


def write_crystals(path, crystals):
    """Write crystals to a parquet file (to a temporary name first, then renamed)."""
    rows = [{"name": c.name, "source": c.source, "spacegroup": c.spacegroup.xhm(), "cell": list(c.cell.parameters),
             "elements": list(c.elements), "fract": np.ravel(c.fract).tolist(), "u_iso": list(map(float, c.u_iso)),
             "occ": list(map(float, c.occ))} for c in crystals]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)


def read_crystals(path) -> list[Crystal]:
    """Read the crystals that ``write_crystals`` wrote."""
    path = Path(path)
    if not path.exists():
        raise CrystalError(f"{path} does not exist: run notebook 01_generate_crystals first")
    try:
        rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise CrystalError(f"{path} is damaged or no crystal file: {str(error).splitlines()[0]}") from None
    for row in rows:  # a column that the file does not have is read as empty
        if empty := [column for column, value in row.items() if value is None]:
            raise CrystalError(f"{path} is no crystal file: it has no {', '.join(empty)}")
        if gemmi.find_spacegroup_by_name(row["spacegroup"]) is None:
            raise CrystalError(f"{path}: {row['spacegroup']!r} is no known space group")
    return [Crystal(name=row["name"], source=row["source"], cell=gemmi.UnitCell(*row["cell"]),
                    spacegroup=gemmi.SpaceGroup(row["spacegroup"]), elements=tuple(row["elements"]),
                    fract=np.reshape(row["fract"], (-1, 3)), u_iso=np.array(row["u_iso"], float),
                    occ=np.array(row["occ"], float)) for row in rows]
