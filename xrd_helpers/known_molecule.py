"""A molecule that is known by its bonds: what a chemist draws, as conformers with torsions, ready to be placed in a cell.

Conformers come from RDKit: ETKDG (Riniker & Landrum, 2015, J. Chem. Inf. Model. 55, 2562) and MMFF94 (Halgren, 1996,
J. Comput. Chem. 17, 490). RDKit is imported only where a molecule is read.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import lcm
from pathlib import Path

import gemmi
import numpy as np

from .bonds import SLACK, covalent_radii, whole_molecules
from .config import UserError, refuse_devices

FAR, LEAST_APART = 1000, 0.5  # Å, from the origin, and of two atoms
LARGEST_FILE, MOST_LETTERS, MOST_ATOMS = 10**7, 4000, 500  # bytes; letters of a SMILES; RDKit crashes on far more
FILES = (".mol", ".sdf", ".mol2", ".xyz", ".cif")
MOST_CONFORMERS = 60
EMBED_SECONDS = 20  # for all conformers; stereo centres that no ring allows would be tried for ever
FIELD_STEPS = 60  # of the force field, as many as bond lengths and angles need
MOST_PERMUTATIONS = 64
# Å³ of an atom in organic crystals: Hofmann (2002), Acta Cryst. B58, 489; others, metals mostly, have about OTHER_VOLUME
VOLUMES = {"H": 5.1, "B": 13.2, "C": 13.9, "N": 11.8, "O": 11.4, "F": 11.2, "Si": 37.0, "P": 29.5, "S": 25.2, "Cl": 25.8,
           "Se": 30.3, "Br": 32.7, "I": 46.2}
OTHER_VOLUME = 35.0
DOUBLE = 0.895    # of the sum of covalent radii: C=C is 0.88 of it, C=N 0.87, the C-N of an amide 0.905, biphenyl 0.98
OFF_AXIS = 0.3    # Å, atoms nearer to the axis of a torsion are not turned by it
SPACING = 0.95    # Å between hydrogen and its parent as X-rays see it (C-H; SHELXL's AFIX 43 has 0.95, AFIX 13 1.00)


# what an atom alone is: hydrogen of water and ammonium may be missing
IONS = {"O": ("O", 0), "N": ("[NH4+]", 1), **{e: (f"[{e}-]", -1) for e in ("F", "Cl", "Br", "I")},
        **{e: (f"[{e}+]", 1) for e in ("Li", "Na", "K", "Rb", "Cs")}}
CHARGED = {("N", 1), ("P", 1), ("O", -1), ("S", -1), ("N", -1), ("B", -1), ("C", -1)}  # as they are drawn


class MoleculeError(UserError):
    """A molecule that cannot be read, and why."""


@dataclass(frozen=True)
class Torsion:
    """A bond a-b that the atoms `side`, all on the side of b, can be turned around."""

    a: int
    b: int
    side: np.ndarray


@dataclass(frozen=True)
class KnownMolecule:
    """A molecule by its bonds.

    name : what it was read from
    elements : (n,) symbols, hydrogen left out, in the order in which the molecule was written
    conformers : (k, n, 3) Å
    bonds : (m, 2) int
    torsions : bonds that can be turned
    parents : (h,) int, the atom that each hydrogen atom is bonded to; hydrogen : (k, h, 3) Å
    symmetry : (s, n) int, permutations that leave elements and bonds as they are, the identity first
    charge : in electrons
    source : the RDKit Mol whose conformers were made; None where a geometry was given
    """

    name: str
    elements: tuple[str, ...]
    conformers: np.ndarray
    bonds: np.ndarray
    torsions: tuple[Torsion, ...]
    parents: np.ndarray
    hydrogen: np.ndarray
    symmetry: np.ndarray
    charge: int = 0
    source: object = field(default=None, repr=False, compare=False)

    def __len__(self):
        return len(self.elements)

    @property
    def formula(self) -> str:
        """As formulas are written (Hill, 1900): C8H9NO2."""
        numbers = Counter(self.elements)
        numbers["H"] += len(self.parents)
        order = sorted(numbers, key=lambda s: (("C" in numbers and s != "C"), ("C" in numbers and s != "H"), s))
        return "".join(s + (str(numbers[s]) if numbers[s] > 1 else "") for s in order if numbers[s])

    @property
    def n_hydrogen(self) -> np.ndarray:
        """(n,) hydrogen atoms on each atom."""
        return np.bincount(self.parents, minlength=len(self))

    @property
    def volume(self) -> float:
        """Å³ that it takes in a crystal, about."""
        return sum(VOLUMES.get(e, OTHER_VOLUME) for e in self.elements) + VOLUMES["H"] * len(self.parents)

    @property
    def labels(self) -> list[str]:
        """C1, C2, O1 ...: each element numbered in the order of the molecule."""
        return [f"{e}{self.elements[:i].count(e) + 1}" for i, e in enumerate(self.elements)]

    def rigid(self) -> np.ndarray:
        """(n, n) bool, True for pairs of atoms whose distance no torsion changes."""
        fixed = np.ones((len(self), len(self)), bool)
        for torsion in self.torsions:
            turned = np.zeros(len(self), bool)
            turned[torsion.side] = True
            still = ~turned
            still[[torsion.a, torsion.b]] = False
            fixed &= ~(np.outer(turned, still) | np.outer(still, turned))
        return fixed


def read_molecules(texts) -> list[tuple[KnownMolecule, int]]:
    """Molecules and how many there are of each in a formula unit.

    Parameters
    ----------
    texts : str, or sequence of str: SMILES, whose parts between dots are molecules of their own, or the path of a
        .mol, .sdf, .mol2, .xyz or .cif file; with a count before it, as in "2*O" for two molecules of water.

    Returns
    -------
    list of (KnownMolecule, count), the largest first; the same molecule twice counts two

    Raises
    ------
    MoleculeError
    """
    found = {}
    for text in [texts] if isinstance(texts, str) else texts:
        times, rest = re.fullmatch(r"(?:(\d+)\s*\*)?(.*)", text.strip(), re.DOTALL).groups()
        times = int(times or 1)
        if not rest.strip() or not times:
            raise MoleculeError(f"{text!r} names no molecule: write a SMILES or a file, with a count as in '2*O'")
        for key, molecule in _read(rest.strip()):
            found[key] = (molecule, found.get(key, (None, 0))[1] + times)
    return sorted(found.values(), key=lambda pair: -len(pair[0]))


def _read(text):
    """(key that tells molecules apart, KnownMolecule) of each in a SMILES or file."""
    Chem = _rdkit()
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix in FILES:
        refuse_devices(path, MoleculeError, LARGEST_FILE)
        return _read_file(Chem, path)
    if len(text) > MOST_LETTERS:
        raise MoleculeError(f"{text[:40]!r} and {len(text) - 40} letters more are no SMILES of a molecule that could be placed")
    mol = Chem.MolFromSmiles(text)
    if mol is None or not mol.GetNumAtoms():
        raise MoleculeError(f"{text!r} is no SMILES that RDKit can read, nor a file: {_reason(Chem, text)}")
    return [(Chem.MolToSmiles(part), from_rdkit(part, Chem.MolToSmiles(part))) for part in _parts(Chem, mol)]


def _parts(Chem, mol):
    if mol.GetNumAtoms() > MOST_ATOMS:
        raise MoleculeError(f"a molecule of {mol.GetNumAtoms()} atoms is larger than any that could be placed")
    return Chem.GetMolFrags(mol, asMols=True)


def _reason(Chem, text):
    mol = Chem.MolFromSmiles(text, sanitize=False)
    problems = Chem.DetectChemistryProblems(mol) if mol else []
    return problems[0].Message() if problems else "its brackets, ring numbers or symbols are not right"


def _rdkit():
    try:
        from rdkit import Chem, RDLogger
    except ImportError:
        raise MoleculeError("a molecule is read by RDKit, which is not installed: pip install rdkit") from None
    RDLogger.DisableLog("rdApp.*")  # what is wrong is said by MoleculeError
    return Chem


def _read_file(Chem, path):
    suffix = path.suffix.lower()
    if suffix in (".xyz", ".cif"):
        return _read_geometry(Chem, path)
    if suffix == ".mol2":
        mol = Chem.MolFromMol2File(str(path), removeHs=False)
    else:
        mol = next((m for m in Chem.SDMolSupplier(str(path), removeHs=False) if m is not None), None)
    if mol is None or not mol.GetNumAtoms():
        raise MoleculeError(f"{path} holds no molecule that RDKit can read")
    solid = mol.GetNumConformers() and mol.GetConformer().Is3D()
    return [(Chem.MolToSmiles(Chem.RemoveHs(part)), from_rdkit(part, path.name, as_given=bool(solid)))
            for part in _parts(Chem, mol)]


def _read_geometry(Chem, path):
    """Molecules of a file without bonds: those by distance; taken as given but for torsions."""
    found = []
    try:
        if path.suffix.lower() == ".xyz":
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [line.split()[:4] for line in lines[2:2 + int(lines[0])]]
            elements = [gemmi.Element(row[0].capitalize()).name for row in rows]
            xyz = np.array([[float(x) for x in row[1:]] for row in rows])
            if "X" in elements or xyz.shape != (int(lines[0]), 3) or not (np.abs(xyz) < FAR).all():
                raise ValueError
            _check_apart(path, xyz)
            for rows in _connected(elements, xyz):
                found.append(([elements[i] for i in rows], xyz[rows]))
        else:
            from .cif import read_cif
            crystal = read_cif(path)
            for molecule in whole_molecules(crystal.fract, crystal.elements, crystal.cell, crystal.spacegroup):
                _check_apart(path, molecule.xyz)
                found.append(([crystal.elements[i] for i in molecule.atom], molecule.xyz))
    except (ValueError, IndexError, OSError):
        raise MoleculeError(f"{path} is no XYZ file: it has a number of atoms, a line of text, and a line for each atom with "
                            "its symbol and x y z in Å") from None
    made = [from_geometry(elements, xyz, path.name) for elements, xyz in found if not set(elements) <= {"H", "D"}]
    if not made:
        raise MoleculeError(f"{path} holds no atom but hydrogen, which the data do not show")
    return [((m.formula, len(m.bonds)), m) for m in made]


def _check_apart(path, xyz):
    from scipy.spatial.distance import pdist

    if len(xyz) > MOST_ATOMS:
        raise MoleculeError(f"{path} holds {len(xyz)} atoms, more than any molecule that could be placed")
    if len(xyz) > 1 and (nearest := pdist(xyz).min()) < LEAST_APART:
        raise MoleculeError(f"{path} has two atoms {nearest:.2f} Å apart, where one alone can be")


def _bonds(elements, xyz):
    """(m, 2) pairs nearer than the sum of their covalent radii and SLACK; two hydrogen atoms are never bonded."""
    radius, hydrogen = covalent_radii(elements), np.isin(elements, ["H", "D"])
    length = np.linalg.norm(xyz[:, None] - xyz, axis=-1)
    near = (length < radius[:, None] + radius + SLACK) & ~(hydrogen[:, None] & hydrogen)
    return np.argwhere(np.triu(near, 1))


def _connected(elements, xyz):
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    bonds = _bonds(elements, xyz)
    graph = coo_array((np.ones(len(bonds)), bonds.T), shape=(len(xyz), len(xyz)))
    number, label = connected_components(graph, directed=False)
    return [np.flatnonzero(label == i) for i in range(number)]


def from_geometry(elements, xyz, name) -> KnownMolecule:
    """A molecule as its atoms lie, with hydrogen: elements (n,), xyz (n, 3) Å.

    Bonds are found by distance. Those that are no part of a ring and longer than a double bond can be turned.
    """
    elements, xyz = ["H" if e == "D" else e for e in elements], np.asarray(xyz, float)
    if set(elements) <= {"H"}:
        raise MoleculeError(f"{name} is hydrogen alone, which the data do not show")
    bonds = _bonds(elements, xyz)
    heavy = np.flatnonzero(np.array(elements) != "H")
    row = {atom: i for i, atom in enumerate(heavy)}
    links = [(row[i], row[j]) for i, j in bonds if i in row and j in row]
    hydrogen = [(row[i] if i in row else row[j], j if i in row else i) for i, j in bonds if (i in row) != (j in row)]
    symbols = tuple(elements[i] for i in heavy)
    radius = covalent_radii(symbols)
    length = {(i, j): np.linalg.norm(xyz[heavy[i]] - xyz[heavy[j]]) for i, j in links}
    loose = [(i, j) for i, j in links if length[i, j] > DOUBLE * (radius[i] + radius[j])]
    return _assemble(name, symbols, xyz[heavy][None], links, loose, hydrogen, xyz[None], 0,
                     _symmetry_of(symbols, links))


def _symmetry_of(elements, links):
    """Permutations of the atoms that leave elements and bonds as they are."""
    Chem = _rdkit()
    mol = Chem.RWMol()
    for element in elements:
        mol.AddAtom(Chem.Atom(element))
    for i, j in links:
        mol.AddBond(int(i), int(j), Chem.BondType.SINGLE)
    return mol.GetSubstructMatches(mol, uniquify=False, maxMatches=MOST_PERMUTATIONS)


def from_rdkit(mol, name, as_given=False, seed=7) -> KnownMolecule:
    """A molecule of one piece from an RDKit Mol.

    as_given : its own coordinates are the one conformer; else conformers are made, more for flexible molecules
    """
    from rdkit import Chem

    mol = Chem.AddHs(Chem.Mol(mol), addCoords=as_given)
    if any(not atom.GetAtomicNum() for atom in mol.GetAtoms()):
        raise MoleculeError(f"{name} holds a dummy atom (*): write every atom of the molecule")
    heavy = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
    if not heavy:
        raise MoleculeError(f"{name} is hydrogen alone, which the data do not show")
    row = {atom: i for i, atom in enumerate(heavy)}
    pairs = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()]
    links = [(row[i], row[j]) for i, j in pairs if i in row and j in row]
    hydrogen = [(row.get(i, row.get(j)), j if i in row else i) for i, j in pairs if (i in row) != (j in row)]
    loose = [(row[b.GetBeginAtomIdx()], row[b.GetEndAtomIdx()]) for b in mol.GetBonds()
             if b.GetBondType() == Chem.BondType.SINGLE and not b.IsInRing()
             and b.GetBeginAtomIdx() in row and b.GetEndAtomIdx() in row]
    if as_given:
        every = mol.GetConformer().GetPositions()[None]
    elif mol.GetNumAtoms() == 1:
        every = np.zeros((1, 1, 3))
    else:
        # a flexible ring and each centre left open want their own conformers, torsions are searched
        flexible = sum(1 for ring in mol.GetRingInfo().AtomRings()
                       if sum(mol.GetAtomWithIdx(i).GetHybridization() == Chem.HybridizationType.SP3 for i in ring) > 1)
        every = _conformers(mol, min(MOST_CONFORMERS, 6 + len(loose) + 6 * flexible,
                                     max(6, 100_000 // mol.GetNumAtoms() ** 2)), seed)
        if every is None:
            raise MoleculeError(f"RDKit makes no conformer of {name[:80]} in {EMBED_SECONDS} s: correct its stereo centres, or "
                                "give its geometry as a .mol, .xyz or .cif file")
    symbols = tuple(mol.GetAtomWithIdx(i).GetSymbol() for i in heavy)
    return _assemble(name, symbols, every[:, heavy], links, loose, hydrogen, every, Chem.GetFormalCharge(mol),
                     _symmetry_of(symbols, links), None if as_given or mol.GetNumAtoms() == 1 else mol)


def _conformers(mol, n, seed, seconds=EMBED_SECONDS):
    """(k, atoms, 3) Å of an RDKit Mol with hydrogen, k <= n; None if there is none."""
    from rdkit import Chem
    from rdkit.Chem import AllChem, rdDistGeom

    mol = Chem.Mol(mol)
    parameters = rdDistGeom.ETKDGv3()
    parameters.randomSeed, parameters.useRandomCoords, parameters.timeout = seed, mol.GetNumHeavyAtoms() > 40, seconds
    rdDistGeom.EmbedMultipleConfs(mol, n, parameters)
    if not mol.GetNumConformers():
        return None
    if AllChem.MMFFHasAllMoleculeParams(mol):
        AllChem.MMFFOptimizeMoleculeConfs(mol, maxIters=FIELD_STEPS)
    elif AllChem.UFFHasAllMoleculeParams(mol):
        AllChem.UFFOptimizeMoleculeConfs(mol, maxIters=FIELD_STEPS)
    return np.array([conformer.GetPositions() for conformer in mol.GetConformers()])


def with_more_conformers(molecule: KnownMolecule, n, seed, seconds=10) -> KnownMolecule:
    """The same molecule with up to n conformers more, as many as RDKit makes in so many seconds."""
    every = _conformers(molecule.source, n, seed, seconds) if molecule.source is not None else None
    if every is None:
        return molecule
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.source.GetAtoms()])
    heavy = np.flatnonzero(numbers > 1)
    rows = [bond.GetBeginAtomIdx() if numbers[bond.GetBeginAtomIdx()] == 1 else bond.GetEndAtomIdx()
            for bond in molecule.source.GetBonds()
            if (numbers[bond.GetBeginAtomIdx()] > 1) != (numbers[bond.GetEndAtomIdx()] > 1)]
    hydrogen = _at_spacing(every[:, heavy], molecule.parents, every[:, rows])
    return replace(molecule, conformers=np.concatenate([molecule.conformers, every[:, heavy]]),
                   hydrogen=np.concatenate([molecule.hydrogen, hydrogen]))


def _at_spacing(conformers, parents, hydrogen):
    """Hydrogen (k, h, 3) at SPACING from its parents."""
    if not len(parents):
        return hydrogen.reshape(len(conformers), 0, 3)
    away = hydrogen - conformers[:, parents]
    return conformers[:, parents] + SPACING * away / np.linalg.norm(away, axis=-1, keepdims=True)


def _assemble(name, elements, conformers, links, loose, hydrogen, every, charge, symmetry, source=None):
    neighbours = [set() for _ in elements]
    for i, j in links:
        neighbours[i].add(j)
        neighbours[j].add(i)
    torsions = []
    for a, b in loose:
        side = _beyond(neighbours, a, b)
        if side is None:  # part of a ring
            continue
        if len(side) > len(elements) / 2:
            a, b = b, a
            side = _beyond(neighbours, a, b)
        rest = set(range(len(elements))) - side
        if all(_off_axis(conformers[0], a, b, part) > OFF_AXIS for part in (side, rest)):
            torsions.append(Torsion(a, b, np.array(sorted(side - {b}))))
    torsions = _without_repeats(torsions, conformers[0])
    torsions.sort(key=lambda t: -len(t.side))
    parents = np.array([parent for parent, _ in hydrogen], int)
    rows = [atom for _, atom in hydrogen]
    xyz = _at_spacing(conformers, parents, every[:, rows].reshape(len(every), -1, 3))
    symmetry = sorted(map(tuple, symmetry), key=lambda p: p != tuple(range(len(elements))))
    return KnownMolecule(name, elements, np.asarray(conformers, float), np.array(links, int).reshape(-1, 2), tuple(torsions),
                         parents, xyz, np.array(symmetry, int).reshape(-1, len(elements)), charge, source)


def _beyond(neighbours, a, b):
    """Atoms on the side of b when the bond a-b is cut, b with them; None if a is one of them."""
    seen, todo = {b}, [b]
    while todo:
        here = todo.pop()
        for other in neighbours[here] - seen - ({a} if here == b else set()):
            seen.add(other)
            todo.append(other)
    return None if a in seen else seen


def _off_axis(xyz, a, b, part):
    part = [i for i in part if i not in (a, b)]
    if not part:
        return 0.0
    axis = (xyz[b] - xyz[a]) / np.linalg.norm(xyz[b] - xyz[a])
    away = xyz[part] - xyz[b]
    return float(np.linalg.norm(away - np.outer(away @ axis, axis), axis=1).max())


def _without_repeats(torsions, xyz):
    """One torsion of each set about the same line, as the two single bonds beside a triple bond."""
    kept = []
    for torsion in sorted(torsions, key=lambda t: len(t.side)):
        axis = (xyz[torsion.b] - xyz[torsion.a]) / np.linalg.norm(xyz[torsion.b] - xyz[torsion.a])
        same = False
        for other in kept:
            away = np.array([xyz[other.a], xyz[other.b]]) - xyz[torsion.a]
            same |= bool(np.linalg.norm(away - np.outer(away @ axis, axis), axis=1).max() < OFF_AXIS)
        if not same:
            kept.append(torsion)
    return kept


def with_hydrogen(molecule: KnownMolecule, xyz, conformer=0) -> np.ndarray:
    """Hydrogen (h, 3) Å on atoms that lie at xyz (n, 3) Å, as in a conformer.

    Each parent with its neighbours, and theirs where it has one alone, is laid on the atoms found (Kabsch, 1976, Acta
    Cryst. A32, 922).
    """
    model = molecule.conformers[conformer]
    neighbours = [[] for _ in molecule.elements]
    for i, j in molecule.bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    placed = np.zeros((len(molecule.parents), 3))
    for parent in np.unique(molecule.parents):
        rows = [parent, *neighbours[parent]]
        if len(rows) < 4:
            rows += [k for j in neighbours[parent] for k in neighbours[j] if k not in rows]
        rotation = superpose(model[rows], xyz[rows], parent_first=True)
        mine = molecule.parents == parent
        placed[mine] = (molecule.hydrogen[conformer][mine] - model[parent]) @ rotation.T + xyz[parent]
    return placed


def superpose(moving, fixed, parent_first=False):
    """Rotation (3, 3) that lays moving (n, 3) on fixed (n, 3): about their first points, or their means."""
    centre = (lambda x: x[0]) if parent_first else (lambda x: x.mean(0))
    u, _, vt = np.linalg.svd((moving - centre(moving)).T @ (fixed - centre(fixed)))
    sign = np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0
    return (u @ np.diag([1, 1, sign]) @ vt).T


def scrambled(molecule: KnownMolecule, n, seed=0, spread=None) -> KnownMolecule:
    """The same molecule with n conformers in which every torsion has a random angle: a published geometry tells no angles.

    spread : standard deviation from the angle that it has, in radians; by default any angle
    """
    rng = np.random.default_rng(seed)
    made = []
    for k in range(n):
        xyz = np.concatenate([molecule.conformers[k % len(molecule.conformers)], molecule.hydrogen[k % len(molecule.hydrogen)]])
        for torsion in molecule.torsions:
            rows = np.concatenate([torsion.side, len(molecule) + np.flatnonzero(
                np.isin(molecule.parents, [*torsion.side, torsion.b]))])
            axis = xyz[torsion.b] - xyz[torsion.a]
            end, angle = xyz[torsion.b].copy(), rng.uniform(-np.pi, np.pi) if spread is None else rng.normal(0, spread)
            xyz[rows] = turn(xyz[rows] - end, axis / np.linalg.norm(axis), angle) + end
        made.append(xyz)
    made = np.array(made)
    return replace(molecule, conformers=made[:, :len(molecule)], hydrogen=made[:, len(molecule):])


def turn(xyz, axis, angle):
    """Points (n, 3) turned about an axis (3,) of length 1 through the origin by an angle in radians (Rodrigues)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return xyz * cos + np.cross(axis, xyz) * sin + np.outer(xyz @ axis, axis) * (1 - cos)


# --- the molecules of a published crystal, as a chemist would draw them ---


def drawn_molecules(crystal) -> list[tuple[KnownMolecule, int]] | None:
    """What ``read_molecules`` would give for a published Crystal: of its atoms the bonds alone are kept.

    Bond orders and charges follow from the distances (RDKit's rdDetermineBonds; Kim & Kim, 2015, Bull. Korean Chem. Soc. 36,
    1769). None where that makes no molecule one would draw, as of most metal complexes, or the charges do not add up.
    """
    found = molecules_in(crystal)
    choices = [list(_drawn(_rdkit(), [crystal.elements[i] for i in m.atom], m.xyz, m.bonds)) for m, _ in found]
    if not found or not all(choices):
        return None
    amounts, picked = [n for _, n in found], [options[0] for options in choices]

    def charge(some):
        return sum(q * n for (_, q), n in zip(some, amounts))

    for i, options in enumerate(choices):  # another charge of one molecule, where those of all do not add up
        if charge(picked):
            tried = [[*picked[:i], option, *picked[i + 1:]] for option in options]
            picked = next((some for some in tried if not charge(some)), picked)
    if charge(picked):
        return None
    return [(read_molecules(smiles)[0][0], n) for smiles, n in formula_unit([smiles for smiles, _ in picked], amounts)]


def molecules_in(crystal):
    """[(``bonds.whole_molecules`` entry, amount in the asymmetric unit as a Fraction)], those of hydrogen alone left out."""
    molecules = [m for m in whole_molecules(crystal.fract, crystal.elements, crystal.cell, crystal.spacegroup)
                 if crystal.heavy[m.atom].any()]
    return [(m, Fraction(float(crystal.occ[m.atom[m.own]].sum()) / len(m.atom)).limit_denominator(12)) for m in molecules]


def formula_unit(names, amounts):
    """[(name, how many in a formula unit)] of molecules by name, from their amounts in the asymmetric unit."""
    total = {name: sum(n for other, n in zip(names, amounts) if other == name) for name in names}
    ratio = [n / min(total.values()) for n in total.values()]
    common = lcm(*(r.denominator for r in ratio))
    return [(name, int(r * common)) for name, r in zip(total, ratio)]


def _drawn(Chem, elements, xyz, bonds):
    """(SMILES, charge) that atoms may be, the least charged first."""
    from rdkit.Chem import rdDetermineBonds

    elements = ["H" if e == "D" else e for e in elements]
    if len(elements) == 1:
        if elements[0] in IONS:
            yield IONS[elements[0]]
        return
    mol = Chem.RWMol(Chem.MolFromXYZBlock(f"{len(elements)}\n\n" + "\n".join(
        f"{e} {x:.4f} {y:.4f} {z:.4f}" for e, (x, y, z) in zip(elements, xyz))))
    for a, b in bonds.tolist():
        mol.AddBond(a, b, Chem.BondType.SINGLE)
    for charge in (0, 1, -1, 2, -2):
        try:
            made = Chem.Mol(mol.GetMol())
            rdDetermineBonds.DetermineBondOrders(made, charge=charge, maxIterations=2000)
            Chem.SanitizeMol(made)
            Chem.AssignStereochemistryFrom3D(made)
        except (ValueError, RuntimeError):
            continue
        if _sensible(Chem, made):
            yield Chem.MolToSmiles(Chem.RemoveHs(made)), charge


def _sensible(Chem, mol):
    """Whether a chemist would draw it: no radicals, few charges, and those where they are usual."""
    charged = [(a.GetSymbol(), a.GetFormalCharge()) for a in mol.GetAtoms() if a.GetFormalCharge()]
    return (not any(a.GetNumRadicalElectrons() for a in mol.GetAtoms()) and set(charged) <= CHARGED and len(charged) <= 6
            and sum(symbol == "C" for symbol, _ in charged) < 2
            and not mol.GetSubstructMatches(Chem.MolFromSmarts("[N,n;+](~[O-])~[O-]")))
