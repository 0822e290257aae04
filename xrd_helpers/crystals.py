"""Crystals: cell, space group and the atoms of the asymmetric unit, and what symmetry does to them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import gemmi
import numpy as np

from .config import UserError

EDGES, ANGLES = (1.5, 1000.0), (5.0, 175.0)  # Å and degrees, between which those of any cell lie
FLAT = 0.01                                  # volume over the product of the edges, below which angles make no cell
FAR, LARGEST_U, FULLEST = 100, 10.0, 4.0     # cells from the origin, Å² and occupancy, beyond which no atom is


class CrystalError(UserError):
    """A crystal that cannot be read or used, and why."""


def checked_cell(parameters, where) -> gemmi.UnitCell:
    """The cell of three edges (Å) and three angles (degrees); CrystalError, which begins with `where`, if they make none."""
    numbers = [float(x) for x in parameters]
    shown = " ".join(f"{x:.6g}" for x in numbers)
    if len(numbers) != 6 or not all(map(math.isfinite, numbers)):
        raise CrystalError(f"{where} has no usable unit cell: it takes three edges (Å) and three angles (degrees), not {shown}")
    if not all(EDGES[0] <= x <= EDGES[1] for x in numbers[:3]):
        raise CrystalError(f"{where} has no usable unit cell: edges are {EDGES[0]:g} to {EDGES[1]:g} Å long, not as in {shown}")
    a, b, c = (math.cos(math.radians(x)) for x in numbers[3:])
    if not all(ANGLES[0] <= x <= ANGLES[1] for x in numbers[3:]) or 1 - a * a - b * b - c * c + 2 * a * b * c < FLAT**2:
        raise CrystalError(f"{where} has no usable unit cell: no cell has the angles of {shown}")
    return gemmi.UnitCell(*numbers)


def wrong_atoms(elements, fract, u_iso, occ, u_aniso=None) -> str:
    """Why these can be no atoms of a crystal, in words; "" if they can. Arguments are those of ``Crystal``; elements may be a
    set. Every file of crystals is read through this and ``checked_cell``."""
    if not len(elements):
        return "it has no atoms"
    for symbol in set(elements):
        if not symbol.isalpha() or not (element := gemmi.Element(symbol)).atomic_number or element.it92 is None:
            return f"{symbol[:20]!r} is no known element"
    for what, values, low, high in (("coordinate", fract, -FAR, FAR), ("displacement", u_iso, 0, LARGEST_U),
                                    ("occupancy", occ, 0, FULLEST), ("displacement", u_aniso, -LARGEST_U, LARGEST_U)):
        if values is not None and not (good := (np.asarray(values) >= low) & (np.asarray(values) <= high)).all():
            return f"no atom has a {what} of {np.asarray(values)[~good][0]:.4g}"
    return "" if (np.asarray(occ) > 0).all() else "an atom has an occupancy of 0"


def wrong_symmetry(cell, spacegroup) -> str:
    """Why a cell is none of a space group, in words; "" if it is."""
    if cell.is_compatible_with_spacegroup(spacegroup, 0.1):
        return ""
    return f"its cell {' '.join(f'{x:.6g}' for x in cell.parameters)} does not have the symmetry of {spacegroup.xhm()}"


def count_elements(elements, amounts=None) -> dict[str, float]:
    """{symbol: number of atoms}, the heaviest element first.

    Parameters
    ----------
    elements : sequence of symbols, or already such a dict
    amounts : how much each of a sequence counts, by default 1
    """
    amounts = itertools.repeat(1) if amounts is None else amounts
    pairs = elements.items() if hasattr(elements, "items") else zip(elements, amounts)
    numbers = {}
    for symbol, amount in sorted(pairs, key=lambda pair: -gemmi.Element(pair[0]).atomic_number):
        numbers[symbol] = numbers.get(symbol, 0) + float(amount)
    return numbers


def in_asymmetric_unit(contents, spacegroup) -> dict[str, float]:
    """{symbol: atoms in the asymmetric unit} from pairs (symbol, atoms in the cell); at least one atom in the cell."""
    n_ops = len(spacegroup.operations())
    return count_elements({symbol: max(1, number) / n_ops for symbol, number in contents})


@dataclass(frozen=True)
class Crystal:
    """A crystal structure: cell, space group and the atoms of the asymmetric unit.

    ``fract`` is (n, 3), ``u_iso`` (n,) in Å², of an anisotropic atom the equivalent one. ``u_aniso`` (n, 6) is U11,
    U22, U33, U12, U13, U23 in Å² on the axes a*, b*, c* as CIF gives them, a row of zeros for an isotropic atom, or
    None if all are isotropic. ``occ`` (n,) is the crystallographic occupancy: the share of the
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
    u_aniso: np.ndarray | None = None

    @property
    def heavy(self) -> np.ndarray:
        """(n,) bool, True for every atom but hydrogen and deuterium."""
        return np.array([element not in ("H", "D") for element in self.elements], bool)

    @property
    def contents(self) -> dict[str, float]:
        """{symbol: atoms in the asymmetric unit}, as ``count_elements``: an atom on an inversion centre is half a one."""
        return count_elements(self.elements, self.occ)

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
            if self.u_aniso is not None:
                site.aniso = gemmi.SMat33d(*self.u_aniso[i])
            small.add_site(site)
        small.setup_cell_images()
        return small


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


def without_inversion(spacegroup):
    """Operators without centring, of each pair that an inversion at the origin links only the proper one.

    The sum of a structure factor over the others is the complex conjugate.

    Returns
    -------
    rot : (g, 3, 3) int, tran : (g, 3) in fractions of the cell, identity first; inversion : bool, whether there is one
    """
    rot, tran = rotations_and_translations(spacegroup)
    centring = np.array(spacegroup.operations().cen_ops)                      # (c, 3), in 1/24
    # an inversion at a centring translation is one at the origin, too
    steps = np.round(tran * gemmi.Op.DEN).astype(int) % gemmi.Op.DEN
    at_origin = (steps[:, None] == centring % gemmi.Op.DEN).all(2).any(1)
    inversion = bool(((rot == -np.eye(3, dtype=int)).all((1, 2)) & at_origin).any())
    keep = np.linalg.det(rot) > 0 if inversion else slice(None)
    return rot[keep], tran[keep], inversion


def swap_a_and_c(crystal: Crystal) -> Crystal:
    """The same crystal on the axes a' = c, b' = -b, c' = a (unique axis b stays; the hand is kept)."""
    basis = gemmi.Op("z,-y,x")
    ops = crystal.spacegroup.operations()
    ops.change_basis_forward(basis)
    spacegroup = gemmi.find_spacegroup_by_ops(ops)
    if spacegroup is None:
        raise CrystalError(f"{crystal.name}: {crystal.spacegroup.xhm()} has no setting with a and c exchanged")
    a, b, c, alpha, beta, gamma = crystal.cell.parameters
    # U33, U22, U11, -U23, U13, -U12
    u_aniso = None if crystal.u_aniso is None else crystal.u_aniso[:, [2, 1, 0, 5, 4, 3]] * [1, 1, 1, -1, 1, -1]
    return replace(crystal, cell=gemmi.UnitCell(c, b, a, gamma, beta, alpha), spacegroup=spacegroup,
                   fract=crystal.fract[:, [2, 1, 0]] * [1, -1, 1], u_aniso=u_aniso)
