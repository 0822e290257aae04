"""Molecules to fill random crystals with: hydrides joined at their hydrogen atoms, with textbook geometry.

Everything is a hydride: benzene, water, H-Cl, H-NO2, a metal with a hydrogen on each free site. Two of them join by
giving up a hydrogen each, so that every substituent of every group is one join. Bond lengths are sums of covalent
radii (Cordero et al., Dalton Trans. 2008, 2832) by hybridisation; H rides at the X-ray distances of SHELXL.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cache, cached_property

import gemmi
import numpy as np

from ..compiled import compiled

# Å, radii where hybridisation counts; all others are those of Cordero et al.
RADII = {"tetrahedral": {"C": 0.765}, "trigonal": {"C": 0.73, "N": 0.70, "O": 0.62, "S": 1.03},
         "linear": {"C": 0.69, "N": 0.66, "F": 0.61}}
# Å, riding H of SHELXL at low temperature: 0.1 shorter than the nuclei, because X-rays see the electron
X_H = {"C": 0.97, "N": 0.88, "O": 0.84, "B": 1.10, "S": 1.20, "P": 1.25, "Si": 1.40}
DOUBLE = {("C", "O"): 1.215, ("N", "O"): 1.22, ("S", "O"): 1.435, ("P", "O"): 1.49, ("C", "N"): 1.28, ("C", "C"): 1.33,
          ("N", "N"): 1.25, ("P", "S"): 1.95, ("C", "S"): 1.68, ("Cl", "O"): 1.43, ("B", "F"): 1.38, ("P", "F"): 1.58}
TORSIONS = 4             # tried for each new bond; the one that leaves most room is kept
FLAT = 0.8               # share of the bonds between two flat atoms that are tried flat first: they are conjugated
SWING = 0.17             # radians, spread of the torsions about 0 and 180°, or about 60, 180 and 300°
BEND = 0.04              # radians, spread of the directions of new bonds
FLAT_BONDS, TETRAHEDRAL = 1, 2  # how the bonds of an atom lie, 0 where they are neither
# Å², squared distance of atoms three bonds apart or more: O of a flat ester or nitrobenzene has 2.65 to C; any atom and H
LIMIT2 = np.array([2.6, 1.95]) ** 2
LARGE2 = 1.2**2          # of large atoms: the square of that many times the length of a bond

_T = 1 / np.sqrt(3)
DIRECTIONS = {
    "tetrahedral": np.array([[_T, _T, _T], [-_T, -_T, _T], [-_T, _T, -_T], [_T, -_T, -_T]]),
    "trigonal": np.array([[1, 0, 0], [-0.5, np.sqrt(0.75), 0], [-0.5, -np.sqrt(0.75), 0]]),
    "linear": np.array([[1.0, 0, 0], [-1, 0, 0]]),
    # a double bond takes more room: acetone has 116.6 and 121.7°, nitro groups O-N-O of 123.6°
    "acyl": np.array([[1, 0, 0], *([-np.cos(np.radians(58.3)), y * np.sin(np.radians(58.3)), 0] for y in (1, -1))]),
    "nitro": np.array([*([-np.cos(np.radians(61.8)), y * np.sin(np.radians(61.8)), 0] for y in (1, -1)), [1, 0, 0]]),
    "square": np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]]),
    "octahedral": np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, -1, 0], [0, 0, -1]]),
}


@dataclass(frozen=True)
class Hydride:
    """A group before it is joined: ``radius`` is that of an H's parent atom towards the next group, in Å."""

    elements: tuple[str, ...]
    xyz: np.ndarray       # (n, 3) Å
    parent: np.ndarray    # (n,) of an H the atom that it sits on, of any other atom -1
    radius: np.ndarray    # (n,) Å
    donor: int = -1       # the H at which it joins, where only one will do

    @cached_property
    def n_heavy(self) -> int:
        """Number of atoms other than H."""
        return int((self.parent < 0).sum())


def _radius(element, geometry):
    return RADII.get(geometry, {}).get(element, gemmi.Element(element).covalent_r)


def _centre(element, geometry, slots, donor=-1, double=True) -> Hydride:
    """An atom with neighbours in the directions of a geometry: ``slots`` names them, "H" is a place to join."""
    directions, geometry = DIRECTIONS[geometry], {"acyl": "trigonal", "nitro": "trigonal"}.get(geometry, geometry)
    elements, xyz, parent, radius = [element], [np.zeros(3)], [-1], [_radius(element, geometry)]
    for slot, direction in zip(slots, directions):
        if slot == "H":
            length = X_H.get(element, 1.0)
        else:
            pair = (element, slot)
            length = DOUBLE[pair] if double and pair in DOUBLE else _radius(element, geometry) + _radius(slot, "")
        elements.append(slot)
        xyz.append(length * direction)
        parent.append(0 if slot == "H" else -1)
        radius.append(_radius(slot, ""))
    return Hydride(tuple(elements), np.array(xyz), np.array(parent), np.array(radius), donor)


def _ring(atoms, flat=True, donor=-1) -> Hydride:
    """A ring: planar with the corners on a circle, or a chair; an atom is "C", "CH", "CHH" or "C=O"."""
    symbols = _symbols(atoms)
    kind = "trigonal" if flat else "tetrahedral"
    sides = np.array([_radius(a, kind) + _radius(b, kind) for a, b in zip(symbols, symbols[1:] + symbols[:1])])
    if flat:  # aromatic bonds are shorter than single ones between the same atoms
        sides = sides - [0 if "O" in pair else 0.07 for pair in zip(symbols, symbols[1:] + symbols[:1])]
    rise = 0.0 if flat or len(atoms) % 2 else 0.25
    chords = np.sqrt(sides**2 - (2 * rise) ** 2)
    low, high = chords.max() / 2, chords.sum()
    for _ in range(60):  # the circle on which these chords close
        middle = (low + high) / 2
        low, high = (middle, high) if 2 * np.arcsin(np.minimum(chords / 2 / middle, 1)).sum() > 2 * np.pi else (low, middle)
    angles = np.concatenate([[0], np.cumsum(2 * np.arcsin(np.minimum(chords / 2 / high, 1)))[:-1]])
    xyz = np.stack([high * np.cos(angles), high * np.sin(angles), rise * (-1.0) ** np.arange(len(atoms))], axis=1)
    if not flat and len(atoms) % 2:  # an envelope: one atom out of the plane
        xyz[:, 2] = [0.35] + [0] * (len(atoms) - 1)
    bonds = [(i, (i + 1) % len(atoms)) for i in range(len(atoms))]
    return _with_hydrogens(atoms, xyz, bonds, kind, donor)


def _symbols(atoms):
    return [atom.split("=")[0].rstrip("H") for atom in atoms]


def _with_hydrogens(atoms, xyz, bonds, kind, donor=-1) -> Hydride:
    """A skeleton with H on the atoms that end in "H" ("HH": two), O on those in "=O", placed opposite to their bonds."""
    symbols = _symbols(atoms)
    elements, places, parent = list(symbols), list(xyz), [-1] * len(atoms)
    for i, (atom, symbol) in enumerate(zip(atoms, symbols)):
        n_h = len(atom) - len(atom.rstrip("H"))
        if not n_h and "=" not in atom:
            continue
        to = np.array([xyz[b if a == i else a] - xyz[i] for a, b in bonds if i in (a, b)])
        to /= np.linalg.norm(to, axis=1, keepdims=True)
        away = -to.sum(axis=0)
        away /= np.linalg.norm(away)
        across = np.cross(to[0], to[1])
        across /= np.linalg.norm(across)
        if "=" in atom:
            elements.append("O")
            places.append(xyz[i] + DOUBLE[symbol, "O"] * away)
            parent.append(-1)
            continue
        sides = [_T * away + sign * np.sqrt(1 - _T**2) * across for sign in (1, -1)]
        if n_h == 1 and (kind == "trigonal" or len(to) == 3):
            sides = [away]
        for side in sides[:n_h]:
            elements.append("H")
            places.append(xyz[i] + (X_H[symbol] - (0.02 if kind == "trigonal" and symbol == "C" else 0)) * side)
            parent.append(i)
    radius = [_radius(e, kind) for e in elements]
    return Hydride(tuple(elements), np.array(places), np.array(parent), np.array(radius), donor)


def _fused(first, second, donor=-1) -> Hydride:
    """Two flat rings that share their first side; the two atoms of that side stand in ``first`` alone."""
    a, b = _ring(first), _ring(("C", "C", *second))
    n, m = len(first), len(second) + 2
    xyz_a, xyz_b = a.xyz[:n], b.xyz[:m]
    mirrored = xyz_b * [1, -1, 1]
    turn_a, turn_b = xyz_a[1] - xyz_a[0], mirrored[1] - mirrored[0]
    angle = np.arctan2(turn_a[1], turn_a[0]) - np.arctan2(turn_b[1], turn_b[0])
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    moved = (mirrored - mirrored[:2].mean(axis=0)) @ rotation.T + xyz_a[:2].mean(axis=0)
    xyz = np.vstack([xyz_a, moved[2:]])
    where = [0, 1, *range(n, n + m - 2)]
    bonds = [(i, (i + 1) % n) for i in range(n)] + [(where[i], where[(i + 1) % m]) for i in range(1, m)]
    # the atoms of the shared side have three bonds and no H
    return _with_hydrogens([*first, *second], xyz, bonds, "trigonal", donor)


def _honeycomb(centres, flat=True) -> Hydride:
    """Six-rings of carbon fused as in graphite, or as puckered chairs; centres of the rings in steps of the lattice."""
    edge, rise = (1.39, 0.0) if flat else (np.sqrt(1.53**2 - 0.5**2), 0.25)
    middles = np.array(centres) @ np.array([[np.sqrt(3), 0], [np.sqrt(0.75), 1.5]]) * edge
    angles = np.radians(np.arange(30, 390, 60))
    corners = (middles[:, None] + edge * np.stack([np.cos(angles), np.sin(angles)], axis=1)).reshape(-1, 2)
    up = np.tile([1, -1], len(corners) // 2)
    _, first = np.unique(np.round(corners, 3) + 0.0, axis=0, return_index=True)
    xyz = np.column_stack([corners[first], rise * up[first]])
    apart = np.linalg.norm(xyz[:, None] - xyz[None], axis=2)
    bonds = [(i, j) for i, j in zip(*np.nonzero(apart < 1.7)) if i < j]
    n_bonds = (apart < 1.7).sum(axis=1) - 1
    atoms = ["C" + "H" * int((3 if flat else 4) - n) for n in n_bonds]
    return _with_hydrogens(atoms, xyz, bonds, "trigonal" if flat else "tetrahedral")


def _linked(one: Hydride, i: int, other: Hydride, j: int, bond: float) -> Hydride:
    """Two hydrides joined at H number i of the one and j of the other, planar where both are."""
    p, q = one.parent[i], other.parent[j]
    frame, local = _frame(one.xyz[i] - one.xyz[p]), (other.xyz - other.xyz[q]) @ _frame(other.xyz[q] - other.xyz[j]).T
    xyz = np.vstack([one.xyz, one.xyz[p] + bond * frame[0] + local @ frame])
    parent = np.concatenate([one.parent, np.where(other.parent < 0, -1, other.parent + len(one.parent))])
    keep = np.ones(len(xyz), bool)
    keep[[i, len(one.parent) + j]] = False
    parent = np.where(parent < 0, -1, (np.cumsum(keep) - 1)[parent])
    elements = tuple(e for e, k in zip(one.elements + other.elements, keep) if k)
    return Hydride(elements, xyz[keep], parent[keep], np.concatenate([one.radius, other.radius])[keep])


def _frame(direction):
    """(3, 3) right-handed unit vectors as rows, the first along a direction; the third is z if that is across it."""
    x, y, z = (direction / np.sqrt(direction @ direction)).tolist()
    length = np.hypot(x, y)
    if length < 1e-3:
        return np.array([[x, y, z], [0, z, -y], [-1, 0, x / z]])
    return np.array([[x, y, z], [-y / length, x / length, 0], [-z * x / length, -z * y / length, length]])


@cache
def groups() -> dict[str, tuple[Hydride, float]]:
    """The organic groups by name, each with the weight at which it is drawn."""
    methane, water = _centre("C", "tetrahedral", "HHHH"), _centre("O", "tetrahedral", "HH")
    amine, flat_amine = _centre("N", "tetrahedral", "HHH"), _centre("N", "trigonal", "HHH")
    carbonyl, flat_water = _centre("C", "acyl", "OHH"), _centre("O", "trigonal", "HH")
    vinyl, imine = _centre("C", "trigonal", "HHH"), _centre("N", "trigonal", "HH")
    ring = _ring
    return {
        "benzene": (ring(["CH"] * 6), 17), "pyridine": (ring(["N"] + ["CH"] * 5), 2.6),
        "pyrimidine": (ring(["N", "CH", "N", "CH", "CH", "CH"]), 0.5),
        "pyrazole": (ring(["NH", "N", "CH", "CH", "CH"]), 0.7),
        "imidazole": (ring(["NH", "CH", "N", "CH", "CH"]), 0.7), "triazole": (ring(["NH", "N", "N", "CH", "CH"]), 0.3),
        "oxadiazole": (ring(["O", "CH", "N", "N", "CH"]), 0.2), "thiophene": (ring(["S", "CH", "CH", "CH", "CH"]), 0.9),
        "thiazole": (ring(["S", "CH", "N", "CH", "CH"]), 0.4), "furan": (ring(["O", "CH", "CH", "CH", "CH"]), 0.8),
        "pyrrole": (ring(["NH", "CH", "CH", "CH", "CH"]), 0.5), "naphthalene": (_honeycomb([(0, 0), (1, 0)]), 1.2),
        "anthracene": (_honeycomb([(0, 0), (1, 0), (2, 0)]), 0.3),
        "phenanthrene": (_honeycomb([(0, 0), (1, 0), (1, 1)]), 0.25),
        "pyrene": (_honeycomb([(0, 0), (1, 0), (0, 1), (1, -1)]), 0.15),
        "quinoline": (_fused(["C", "C", "N", "CH", "CH", "CH"], ["CH"] * 4), 0.8),
        "indole": (_fused(["C", "C"] + ["CH"] * 4, ["NH", "CH", "CH"]), 1.0),
        "benzofuran": (_fused(["C", "C"] + ["CH"] * 4, ["O", "CH", "CH"]), 0.5),
        "benzimidazole": (_fused(["C", "C"] + ["CH"] * 4, ["NH", "CH", "N"]), 0.5),
        "benzothiazole": (_fused(["C", "C"] + ["CH"] * 4, ["S", "CH", "N"]), 0.3),
        "indene": (_fused(["C", "C"] + ["CH"] * 4, ["CH", "CH", "CHH"]), 1.0),
        "purine": (_fused(["C", "C", "N", "CH", "N", "CH"], ["NH", "CH", "N"]), 0.3),
        "coumarin": (_fused(["C", "C"] + ["CH"] * 4, ["CH", "CH", "C=O", "O"]), 0.8),
        "chromone": (_fused(["C", "C"] + ["CH"] * 4, ["C=O", "CH", "CH", "O"]), 0.7),
        "quinolone": (_fused(["C", "C"] + ["CH"] * 4, ["C=O", "CH", "CH", "NH"]), 0.7),
        "phthalimide": (_fused(["C", "C"] + ["CH"] * 4, ["C=O", "NH", "C=O"]), 1.0),
        "isatin": (_fused(["C", "C"] + ["CH"] * 4, ["C=O", "C=O", "NH"]), 0.6),
        "naphthoquinone": (_fused(["C", "C"] + ["CH"] * 4, ["C=O", "CH", "CH", "C=O"]), 0.6),
        "quinone": (ring(["C=O", "CH", "CH"] * 2), 0.7), "uracil": (ring(["NH", "C=O", "NH", "C=O", "CH", "CH"]), 1.4),
        "pyridone": (ring(["NH", "C=O"] + ["CH"] * 4), 1.1), "maleimide": (ring(["NH", "C=O", "CH", "CH", "C=O"]), 0.9),
        "pyrazolone": (ring(["NH", "NH", "C=O", "CH", "CH"]), 0.7),
        "hydantoin": (ring(["NH", "C=O", "NH", "C=O", "CHH"]), 0.6), "piperazinedione": (ring(["NH", "C=O", "CHH"] * 2), 0.4),
        "barbituric acid": (ring(["NH", "C=O", "NH", "C=O", "CHH", "C=O"]), 0.4),
        "butenolide": (ring(["O", "C=O", "CH", "CH", "CHH"]), 0.5),
        "thiazolone": (ring(["S", "C=O", "NH", "CH", "CH"]), 0.3), "pyranone": (ring(["O", "C=O"] + ["CH"] * 4), 0.5),
        "cyclohexane": (_honeycomb([(0, 0)], flat=False), 1.5), "decalin": (_honeycomb([(0, 0), (1, 0)], flat=False), 0.8),
        "perhydrophenanthrene": (_honeycomb([(0, 0), (1, 0), (1, 1)], flat=False), 0.4),
        "piperidine": (ring(["NH"] + ["CHH"] * 5, flat=False), 0.8),
        "morpholine": (ring(["NH", "CHH", "CHH", "O", "CHH", "CHH"], flat=False), 0.6),
        "oxane": (ring(["O"] + ["CHH"] * 5, flat=False), 0.8),
        "piperazine": (ring(["NH", "CHH", "CHH"] * 2, flat=False), 0.4),
        "cyclopentane": (ring(["CHH"] * 5, flat=False), 1.0),
        "oxolane": (ring(["O"] + ["CHH"] * 4, flat=False), 1.0),
        "pyrrolidine": (ring(["NH"] + ["CHH"] * 4, flat=False), 0.5),
        "methane": (methane, 9), "water": (water, 4.8), "amine": (amine, 1.1), "flat amine": (flat_amine, 1.2),
        "carbonyl": (carbonyl, 4.6), "carboxylic acid": (_linked(carbonyl, 2, flat_water, 1, 1.32), 3.0),
        "amide": (_linked(carbonyl, 2, flat_amine, 1, 1.33), 3.4), "ethene": (_linked(vinyl, 1, vinyl, 1, 1.34), 0.8),
        "imine": (_linked(vinyl, 1, imine, 1, 1.28), 0.8), "azo": (_linked(imine, 1, imine, 1, 1.25), 0.15),
        "ethyne": (_linked(_centre("C", "linear", "HH"), 1, _centre("C", "linear", "HH"), 1, 1.19), 0.3),
        "nitrile": (_linked(_centre("C", "linear", "HH"), 1, _centre("N", "linear", "H"), 1, 1.145), 0.8),
        "nitro": (_centre("N", "nitro", "OOH"), 1.7), "sulfonyl": (_centre("S", "tetrahedral", "OOHH"), 0.8),
        "trifluoromethyl": (_centre("C", "tetrahedral", "FFFH", double=False), 0.6),
        "sulfane": (_centre("S", "tetrahedral", "HH"), 0.8),
        "phosphane": (_centre("P", "tetrahedral", "HHH"), 0.2),
        "phosphane oxide": (_centre("P", "tetrahedral", "OHHH"), 0.15),
        "silane": (_centre("Si", "tetrahedral", "HHHH"), 0.15), "borane": (_centre("B", "trigonal", "HHH"), 0.15),
        "fluoride": (_centre("F", "linear", "H"), 1.2), "chloride": (_centre("Cl", "linear", "H"), 1.2),
        "bromide": (_centre("Br", "linear", "H"), 0.4), "iodide": (_centre("I", "linear", "H"), 0.15),
    }


@cache
def ligands() -> dict[str, tuple[Hydride, float]]:
    """What sits on a metal, by name, with weights; the H at which it joins is the place of the lone pair."""
    cyanide = _linked(_centre("C", "linear", "HH"), 1, _centre("N", "linear", "HH"), 1, 1.14)
    acid = _linked(_centre("C", "trigonal", "OHH"), 2, _centre("O", "trigonal", "HH"), 1, 1.27)
    return {
        "water": (_centre("O", "tetrahedral", "HHH", 1), 3), "ammonia": (_centre("N", "tetrahedral", "HHHH", 1), 2),
        "chloride": (_centre("Cl", "linear", "H", 1), 2.5), "bromide": (_centre("Br", "linear", "H", 1), 0.4),
        "iodide": (_centre("I", "linear", "H", 1), 0.4), "carbon monoxide": (_centre("C", "linear", "OH", 2), 1.0),
        "pyridine": (_ring(["NH"] + ["CH"] * 5, donor=6), 3),
        "imidazole": (_ring(["NH", "CH", "NH", "CH", "CH"], donor=5), 1.5),
        "nitrile": (_with_donor(cyanide, "N"), 0.8), "carboxylate": (_with_donor(acid, "O"), 2.5),
        "thiolate": (_centre("S", "tetrahedral", "HH", 1), 1.0), "alkoxide": (_centre("O", "tetrahedral", "HH", 1), 1.5),
        "amide": (_centre("N", "tetrahedral", "HHH", 1), 1.5), "phosphane": (_centre("P", "tetrahedral", "HHHH", 1), 0.7),
        "alkyl": (_centre("C", "tetrahedral", "HHHH", 1), 0.6),
    }


@cache
def ions() -> dict[str, Hydride]:
    """Small ions and solvents that stand beside a molecule, by name."""
    methane, water = _centre("C", "tetrahedral", "HHHH"), _centre("O", "tetrahedral", "HH")
    nitrile = groups()["nitrile"][0]
    return {
        "water": water, "chloride": _lone("Cl"), "bromide": _lone("Br"), "sodium": _lone("Na"), "potassium": _lone("K"),
        "perchlorate": _centre("Cl", "tetrahedral", "OOOO"), "tetrafluoroborate": _centre("B", "tetrahedral", "FFFF"),
        "hexafluorophosphate": _centre("P", "octahedral", "FFFFFF"), "nitrate": _centre("N", "trigonal", "OOO"),
        "ammonium": _centre("N", "tetrahedral", "HHHH"), "methanol": _linked(methane, 1, water, 1, 1.42),
        "dichloromethane": _centre("C", "tetrahedral", ["Cl", "Cl", "H", "H"]),
        "chloroform": _centre("C", "tetrahedral", ["Cl", "Cl", "Cl", "H"]),
        "acetonitrile": _linked(nitrile, 1, methane, 1, 1.45),
    }


def _with_donor(hydride, element):
    """The hydride that joins at the (last) H on that element."""
    donor = max(i for i, p in enumerate(hydride.parent) if p >= 0 and hydride.elements[p] == element)
    return Hydride(hydride.elements, hydride.xyz, hydride.parent, hydride.radius, donor)


def _lone(element):
    return Hydride((element,), np.zeros((1, 3)), np.array([-1]), np.array([_radius(element, "")]))


METALS = {"Cu": 11, "Ni": 9, "Co": 8, "Zn": 5, "Fe": 5, "Pd": 4, "Pt": 3, "Cd": 3, "Mo": 3, "W": 3, "Mn": 3, "Ru": 3,
          "Zr": 2, "Sn": 2, "Ag": 2, "Hg": 1, "Cr": 1, "Ge": 2, "Rh": 1, "V": 1, "Al": 1}
FOURFOLD = {"Pd": "square", "Pt": "square", "Zn": "tetrahedral", "Hg": "tetrahedral", "Ge": "tetrahedral",
            "Sn": "tetrahedral", "Ag": "tetrahedral", "Al": "tetrahedral"}
SANDWICHES = {"Fe", "Co", "Ni", "Mo", "W", "Mn", "Ru", "Zr", "Cr", "Rh", "V"}
CHELATES = (["N", "CH", "CH", "N"], ["O", "CH", "CH", "CH", "O"], ["O", "CH", "CH", "CH", "N"], ["N", "CH", "CH", "O"],
            ["NHH", "CHH", "CHH", "NHH"], ["S", "CH", "CH", "S"], ["O", "C=O", "C=O", "O"], ["NH", "CH", "CH", "CH", "O"])
# how gladly the H of an atom is replaced: Si-H, P-H, S-H and aldehydes are rare in real crystals
EAGER = {"Si": 30.0, "P": 30.0, "S": 15.0, "B": 15.0, "N": 1.3}
TASTE = np.array([0.6, 0.6, 0.8, 0.8, 0.5])  # spread of the logarithm of the weight of a trait from molecule to molecule
NONE_OF = np.array([0.25, 0.13, 0.25])       # share of molecules without N, without O, without F and heavier elements
# groups with an inversion centre
CENTRIC = ("benzene", "naphthalene", "piperazine", "cyclohexane", "ethyne", "azo", "ethene")
NOT_BONDED = {"N", "O", "F", "Cl", "Br", "I"}  # no bond between any two of these is made by joining


@dataclass(frozen=True)
class _Part:
    """A hydride about to be joined: without the H that it gives up, seen along the new bond from the atom that keeps it."""

    elements: tuple[str, ...]
    local: np.ndarray      # (n, 3) Å; the first atom is at the origin, the new bond comes from -x
    parent: tuple[int, ...]
    radius: tuple[float, ...]
    is_h: np.ndarray       # (n,) 1 for H, else 0
    n_heavy: int
    bonds: int             # of the first atom: FLAT_BONDS, TETRAHEDRAL or 0
    azimuth: float         # about x, of the first atom bonded to it, from y


@cache
def _parts(palette):
    """[[_Part for each H at which it may join] for each hydride of the palette], by size, and their (sizes, weights)."""
    rows = _by_size(palette)
    parts = [[_part(hydride, j) for j in ([hydride.donor] if hydride.donor >= 0 else np.flatnonzero(hydride.parent >= 0))]
             for _, hydride, _ in rows]
    return parts, [hydride.n_heavy for _, hydride, _ in rows], np.array([weight for _, _, weight in rows])


@cache
def _by_size(palette):
    """[(name, hydride, weight)] of a palette, the smallest first."""
    return sorted(((name, *row) for name, row in palette().items()), key=lambda row: row[1].n_heavy)


@cache
def _traits():
    """(groups, 5) 0 or 1: has N, has O, has an element beyond F or F itself, is saturated, is a ring; in order of size."""
    rows = []
    for _, hydride, _ in _by_size(groups):
        elements = set(hydride.elements)
        saturated = hydride.elements.count("H") > 1.5 * hydride.n_heavy
        heavier = bool(elements - {"C", "H", "N", "O"})
        rows.append(["N" in elements, "O" in elements, heavier, saturated, hydride.n_heavy >= 5])
    return np.array(rows, float)


def draw_taste(rng, n_heavy) -> np.ndarray:
    """Weights of the groups for one molecule: one is full of N and the next has none, and the large ones are less flat."""
    taste = rng.normal(0, TASTE)
    none_of = rng.random(3) < NONE_OF
    none_of[1] &= not none_of[0]  # hydrocarbons are rare
    taste[3] += 0.6 * np.log(n_heavy / 15)
    taste[:3] -= 8 * none_of
    taste[3] += 1.2 * none_of[0]  # natural products: no N, many rings and chains that are saturated
    return _parts(groups)[2] * np.exp(_traits() @ taste)


def _part(hydride, j):
    q = hydride.parent[j]
    order = [q, *(k for k in range(len(hydride.parent)) if k not in (q, j))]
    local = (hydride.xyz[order] - hydride.xyz[q]) @ _frame(hydride.xyz[q] - hydride.xyz[j]).T
    parent = tuple(-1 if hydride.parent[k] < 0 else order.index(hydride.parent[k]) for k in order)
    is_h = np.array([int(p >= 0) for p in parent])
    frame, bonds = _site(np.vstack([local, [[-1.0, 0, 0]]]), np.append(is_h, 1), len(local), 0, hydride.radius[q])
    return _Part(tuple(hydride.elements[k] for k in order), local, parent, tuple(hydride.radius[order].tolist()), is_h,
                 hydride.n_heavy, bonds, float(np.arctan2(frame[1, 2], frame[1, 1])))


class Molecule:
    """A molecule that grows from a core by joining hydrides.

    With ``inversion`` the molecule is symmetric about the origin, and what is kept is one half of it; an atom at the
    origin belongs to both halves.
    """

    def __init__(self, core: Hydride, taste=None, inversion=False):
        self.weights = (_parts(groups)[2] if taste is None else taste).cumsum().tolist()
        xyz, keep = core.xyz, np.arange(len(core.parent))
        if inversion:
            xyz = xyz - xyz[core.parent < 0].mean(axis=0)
            mate = np.linalg.norm(xyz[:, None] + xyz[None], axis=2).argmin(axis=1)
            keep = keep[keep <= mate]  # of an H pair the first, which sits on the first of its parents
        number = {int(old): new for new, old in enumerate(keep)}
        self.inversion = inversion
        self.elements = [core.elements[k] for k in keep]
        self.parent = [-1 if core.parent[k] < 0 else number[int(core.parent[k])] for k in keep]
        self.radius = core.radius[keep].tolist()
        self.is_h = np.array([int(p >= 0) for p in self.parent])
        self.xyz = xyz[keep]
        self.n_heavy = len(keep) - int(self.is_h.sum())

    @property
    def occupancies(self) -> np.ndarray:
        """(n,) 1, and 1/2 for an atom on the inversion centre."""
        return np.where(self.inversion & (np.abs(self.xyz).max(axis=1) < 1e-6), 0.5, 1.0)

    def grow(self, rng, n_heavy) -> bool:
        """Join groups drawn at random until there are n_heavy atoms besides H; False if it finds no place for them."""
        failures = 0
        while True:
            sites = [i for i, p in enumerate(self.parent) if p >= 0]
            bare = [i for i in sites if self.elements[self.parent[i]] in METALS]
            room = n_heavy - self.n_heavy
            if room <= 0:
                return not bare
            draws = rng.random(6 + 2 * TORSIONS).tolist()
            if bare:  # a metal first, and a place is left for each of its other ligands
                i, (parts, sizes, weights) = bare[int(draws[0] * len(bare))], _parts(ligands)
                weights = weights.cumsum()
                room -= len(bare) - 1
            else:
                parts, sizes, _ = _parts(groups)
                weights, cumulative = self.weights, []
                for k in sites:
                    cumulative.append(EAGER.get(self.elements[self.parent[k]], 1.0) + (cumulative[-1] if cumulative else 0))
                if not sites:
                    return False
                i = sites[min(bisect_right(cumulative, draws[0] * cumulative[-1]), len(sites) - 1)]
            n = bisect_right(sizes, room)
            if not n:
                return False
            choices = parts[min(bisect_right(weights, draws[1] * weights[n - 1]), n - 1)]
            part = choices[int(draws[2] * len(choices))]
            forbidden = part.elements[0] in NOT_BONDED and self.elements[self.parent[i]] in NOT_BONDED
            if forbidden or not self._join(i, part, draws[3:]):
                failures += 1
                if failures > 40:
                    return False

    def _join(self, i, part, draws):
        """Join a part in the place of H number i, at the torsion that leaves most room, if any leaves enough.

        Torsions are drawn about those that the two atoms prefer: most are flat where both are, and staggered where both are
        tetrahedral. Where these leave no room, any is tried.
        """
        p, draws = self.parent[i], np.array(draws)
        frame, bonds = _site(self.xyz, self.is_h, i, p, self.radius[p])
        frame = _bent(frame, BEND * np.sqrt(12) * (draws[:2] - 0.5))
        torsions, swing = draws[3:3 + TORSIONS], np.sqrt(12) * (draws[3 + TORSIONS:] - 0.5)  # of deviation 1
        fold = {FLAT_BONDS: 2 if draws[2] < FLAT else 0, TETRAHEDRAL: 3}.get(bonds if bonds == part.bonds else 0, 0)
        tried = [2 * np.pi * torsions]
        if fold:
            tried = [2 * np.pi * (np.floor(fold * torsions) + (fold == 3) / 2) / fold + SWING * swing, *tried]
        for angles in tried:
            placed, room = _placed(part.local, part.is_h, np.array(part.radius), frame, angles - part.azimuth,
                                   self.xyz, self.is_h, np.array(self.radius), i, p, self.inversion)
            if room >= 1:
                break
        else:
            return False
        first = len(self.parent)  # the first atom of the part goes where the H was
        self.xyz = np.concatenate([self.xyz, placed[1:]])
        self.xyz[i] = placed[0]
        self.is_h = np.concatenate([self.is_h, part.is_h[1:]])
        self.is_h[i] = 0
        self.elements[i], self.parent[i], self.radius[i] = part.elements[0], -1, part.radius[0]
        self.elements += part.elements[1:]
        self.radius += part.radius[1:]
        self.parent += [-1 if parent < 0 else i if parent == 0 else first + parent - 1 for parent in part.parent[1:]]
        self.n_heavy += part.n_heavy
        return True


@compiled(fastmath=False)
def _site(xyz, is_h, i, p, radius):
    """Where a part joins atom p in the place of H number i: unit vectors (3, 3) as rows, along the bond, towards an atom bonded
    to p, and across; and how the bonds of p lie."""
    frame, bonded, n = np.zeros((3, 3)), np.empty((3, 3)), 0
    frame[0] = _unit(xyz[i] - xyz[p])
    for m in range(len(xyz)):
        if m != i and m != p and _squared(xyz[m], 1, xyz[p]) < (radius + (0.31 if is_h[m] else 0.9) + 0.3) ** 2:
            if n < 3:
                bonded[n] = _unit(xyz[m] - xyz[p])
            n += 1
    bent = n > 0 and abs((frame[0] * bonded[0]).sum()) < 0.97
    if bent:
        frame[1] = bonded[0]
    else:
        frame[1, np.abs(frame[0]).argmin()] = 1
    frame[1] = _unit(frame[1] - (frame[1] * frame[0]).sum() * frame[0])
    frame[2] = np.cross(frame[0], frame[1])
    if not bent or n > 3:
        return frame, 0
    return frame, FLAT_BONDS if n == 1 or n == 2 and abs((bonded[1] * frame[2]).sum()) < 0.2 else TETRAHEDRAL


@compiled(fastmath=False)
def _bent(frame, by):
    """Unit vectors (3, 3) whose first is turned by small angles (2,) towards the two others."""
    new = np.empty((3, 3))
    new[0] = _unit(frame[0] + by[0] * frame[1] + by[1] * frame[2])
    new[1] = _unit(frame[1] - (frame[1] * new[0]).sum() * new[0])
    new[2] = np.cross(new[0], new[1])
    return new


@compiled(fastmath=False)
def _unit(v):
    return v / np.sqrt((v * v).sum())


@compiled(fastmath=False)
def _placed(local, new_is_h, new_radius, frame, angles, xyz, is_h, radius, i, p, inversion):
    """A part (n, 3) joined to atom p of a molecule in the place of its H number i, at the torsion that leaves most room, and
    that room: the smallest squared distance over its limit. Below 1 it says no more than that."""
    best, best_room, bond = np.zeros_like(local), -1.0, radius[p] + new_radius[0]
    for angle in angles:
        across = np.cos(angle) * frame[1] + np.sin(angle) * frame[2]
        up = np.cos(angle) * frame[2] - np.sin(angle) * frame[1]
        placed, room = np.empty_like(local), np.inf
        for k in range(len(local)):
            for q in range(3):
                placed[k, q] = xyz[p, q] + bond * frame[0, q] + local[k, 0] * frame[0, q] + local[k, 1] * across[q] \
                    + local[k, 2] * up[q]
        for side in range(1, -2 if inversion else 0, -2):  # the molecule, and its inverse
            for m in range(len(xyz)):
                # distances of the two atoms of the new bond to each other's neighbours follow from the geometry: the first
                # atom of the part may be near to what is bonded to its partner
                if m == i or m == p:
                    continue
                bonded = (radius[p] + (0.31 if is_h[m] else 0.9) + 0.3) ** 2
                for k in range(0 if _squared(xyz[p], side, xyz[m]) > bonded else 1, len(placed)):
                    limit = max(LIMIT2[new_is_h[k] | is_h[m]], LARGE2 * (new_radius[k] + radius[m]) ** 2)
                    room = min(room, _squared(placed[k], side, xyz[m]) / limit)
            if side < 0:
                for k in range(len(placed)):
                    for m in range(len(placed)):
                        room = min(room, _squared(placed[k], side, placed[m]) / LIMIT2[new_is_h[k] | new_is_h[m]])
            if room < max(1, best_room):
                break
        if room > best_room:
            best, best_room = placed, room
    return best, best_room


@compiled(fastmath=False)
def _squared(one, side, other):
    return (one[0] - side * other[0]) ** 2 + (one[1] - side * other[1]) ** 2 + (one[2] - side * other[2]) ** 2


def organic_core(rng, n_heavy, taste, inversion=False) -> Hydride:
    """A group of at most n_heavy atoms besides H to begin a molecule with; one with an inversion centre, if wanted."""
    rows = _by_size(groups)
    fits = [row[1].n_heavy <= (2 if inversion else 1) * n_heavy and (row[0] in CENTRIC or not inversion) for row in rows]
    weights = np.cumsum(taste * fits * [row[1].n_heavy for row in rows])  # most molecules are built about a ring
    return rows[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))][1]


def metal_core(rng, n_heavy, inversion=False):
    """(hydride, whether it is kept centric): a metal with free sites, chelate rings or cyclopentadienyl."""
    metals = list(METALS)
    weights = np.cumsum(list(METALS.values()))
    metal = metals[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]
    kind, half = rng.random(), 2 if inversion else 1
    if kind < 0.45 and n_heavy * half >= 11:
        ring = CHELATES[rng.integers(len(CHELATES))]
        core = _chelate(metal, ring, rng.random() < 0.6, inversion or rng.random() < 0.6)
        if core.n_heavy <= n_heavy * half:
            return core, inversion
    elif kind < 0.65 and metal in SANDWICHES and n_heavy >= 10 and not inversion:
        return _sandwich(metal, rng.random() < 0.35), False
    other = "square" if metal in ("Cu", "Ni") else "tetrahedral"
    geometry = FOURFOLD.get(metal, "octahedral" if rng.random() < 0.5 else other)
    return _centre(metal, geometry, "H" * len(DIRECTIONS[geometry])), inversion and geometry != "tetrahedral"


def _chelate(metal, ring, axial, planar) -> Hydride:
    """A metal in two rings, in one plane (and then perhaps with two more sites) or across each other."""
    one = _ring([metal, *ring])
    n = len(ring) + 1
    xyz = one.xyz - one.xyz[0]
    middle = xyz[1:n].mean(axis=0)
    angle = np.arctan2(middle[1], middle[0])
    cos, sin = np.cos(angle), np.sin(angle)
    xyz = xyz @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])  # the ring now lies along +x
    other = -xyz if planar else np.column_stack([-xyz[:, 0], xyz[:, 2], xyz[:, 1]])
    m = len(xyz) - 1
    sites = np.array([[0, 0, 1.0], [0, 0, -1]]) if planar and axial else np.empty((0, 3))
    parent = np.concatenate([one.parent, np.where(one.parent[1:] < 0, -1, one.parent[1:] + m), [0] * len(sites)])
    return Hydride((*one.elements, *one.elements[1:], *"HH"[:len(sites)]), np.vstack([xyz, other[1:], sites]), parent,
                   np.concatenate([one.radius, one.radius[1:], [0.3] * len(sites)]))


def _sandwich(metal, two) -> Hydride:
    """A metal below cyclopentadienyl, with a second one or with three free sites on its other side."""
    ring = _ring(["CH"] * 5)
    height = np.sqrt((_radius(metal, "") + 0.73) ** 2 - (ring.xyz[0] ** 2).sum())
    up = ring.xyz + [0, 0, height]
    angles = np.radians([0, 120, 240])
    low = -up if two else np.column_stack([0.82 * np.cos(angles), 0.82 * np.sin(angles), np.full(3, -0.57)])
    parent = np.concatenate([[-1], np.where(ring.parent < 0, -1, ring.parent + 1)])
    low_parent = np.where(ring.parent < 0, -1, ring.parent + 1 + len(up)) if two else [0, 0, 0]
    return Hydride((metal, *ring.elements, *(ring.elements if two else "HHH")), np.vstack([np.zeros(3), up, low]),
                   np.concatenate([parent, low_parent]),
                   np.concatenate([[_radius(metal, "")], ring.radius, ring.radius if two else [0.3] * 3]))
