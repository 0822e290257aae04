"""Crystals read from CIF files, one file or whole folders."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np

from .crystals import Crystal, CrystalError

MAX_U = 0.5  # Å², of half the atoms: five times the U of a soft crystal at room temperature, a low B


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
    u_aniso = np.array([site.aniso.elements_pdb() for site in sites])
    return Crystal(name=path.stem, cell=cell, spacegroup=spacegroup,
                   elements=tuple(site.element.name for site in sites), fract=fract, u_iso=u_iso,
                   occ=np.array([site.occ for site in sites]), source=path.name,
                   u_aniso=u_aniso if u_aniso.any() else None)


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
