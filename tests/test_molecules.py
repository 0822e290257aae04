"""Molecules: formulas and bond lengths of the textbooks, angles of the regular solids, clashes along the graph of bonds."""

from collections import Counter

import gemmi
import numpy as np
import pytest

from xrd_helpers.random_crystals.molecules import (
    CHELATES,
    DIRECTIONS,
    FOURFOLD,
    METALS,
    SANDWICHES,
    Molecule,
    _chelate,
    _part,
    _sandwich,
    draw_taste,
    groups,
    ions,
    ligands,
    metal_core,
    organic_core,
)

PALETTES = {"group": {name: row[0] for name, row in groups().items()},
            "ligand": {name: row[0] for name, row in ligands().items()}, "ion": ions()}
HYDRIDES = [(palette, name) for palette, rows in PALETTES.items() for name in rows]

# Å: mean lengths of International Tables C, table 9.5.1.1 (Allen et al. 1987), rounded outward by about 0.02, most by
# kinds of bond: triple, double, aromatic, single
LENGTHS = {
    "C-C": ((1.17, 1.21), (1.31, 1.35), (1.37, 1.43), (1.43, 1.58)), "C-N": ((1.13, 1.16), (1.26, 1.52)),
    "C-O": ((1.19, 1.24), (1.25, 1.39), (1.39, 1.47)), "N-O": ((1.20, 1.26),), "N-N": ((1.23, 1.38),), "C-S": ((1.67, 1.83),),
    "O-S": ((1.42, 1.45), (1.57, 1.72)), "O-P": ((1.47, 1.51), (1.55, 1.76)), "C-F": ((1.29, 1.40),), "C-Cl": ((1.63, 1.81),),
    "Br-C": ((1.78, 1.98),), "C-I": ((2.08, 2.18),), "C-P": ((1.76, 1.87),), "C-Si": ((1.80, 1.90),), "B-C": ((1.55, 1.62),),
    "B-O": ((1.35, 1.52),), "B-F": ((1.36, 1.42),), "F-P": ((1.56, 1.66),), "Cl-O": ((1.40, 1.45),), "N-S": ((1.60, 1.78),),
    # riding H: SHELXL at -100 °C, aromatic and NH 0.95 and 0.88, CH to CH3 1.00 to 0.98, OH 0.84
    "C-H": ((0.94, 1.00),), "H-N": ((0.87, 0.92),), "H-O": ((0.83, 0.85),), "B-H": ((1.08, 1.14),), "H-S": ((1.19, 1.35),),
    "H-P": ((1.24, 1.42),), "H-Si": ((1.39, 1.49),),
}
FORMULAS = {
    "benzene": "C6H6", "pyridine": "C5H5N", "pyrimidine": "C4H4N2", "pyrazole": "C3H4N2", "imidazole": "C3H4N2",
    "triazole": "C2H3N3", "oxadiazole": "C2H2N2O", "thiophene": "C4H4S", "thiazole": "C3H3NS", "furan": "C4H4O",
    "pyrrole": "C4H5N",
    "naphthalene": "C10H8", "anthracene": "C14H10", "phenanthrene": "C14H10", "pyrene": "C16H10", "quinoline": "C9H7N",
    "indole": "C8H7N", "benzofuran": "C8H6O", "benzimidazole": "C7H6N2", "benzothiazole": "C7H5NS", "purine": "C5H4N4",
    "coumarin": "C9H6O2", "chromone": "C9H6O2", "quinolone": "C9H7NO", "phthalimide": "C8H5NO2", "isatin": "C8H5NO2",
    "naphthoquinone": "C10H6O2", "quinone": "C6H4O2", "uracil": "C4H4N2O2", "pyridone": "C5H5NO", "maleimide": "C4H3NO2",
    "pyrazolone": "C3H4N2O", "thiazolone": "C3H3NOS", "pyranone": "C5H4O2", "cyclohexane": "C6H12", "decalin": "C10H18",
    "perhydrophenanthrene": "C14H24", "piperidine": "C5H11N", "morpholine": "C4H9NO", "oxane": "C5H10O",
    "piperazine": "C4H10N2",
    "cyclopentane": "C5H10", "oxolane": "C4H8O", "pyrrolidine": "C4H9N", "methane": "CH4", "water": "H2O", "amine": "H3N",
    "carbonyl": "CH2O", "carboxylic acid": "CH2O2", "amide": "CH3NO", "ethene": "C2H4", "imine": "CH3N", "azo": "H2N2",
    "ethyne": "C2H2", "nitrile": "CHN", "nitro": "HNO2", "sulfonyl": "H2O2S", "trifluoromethyl": "CHF3", "sulfane": "H2S",
    "phosphane": "H3P", "phosphane oxide": "H3OP", "silane": "H4Si", "borane": "BH3", "fluoride": "FH", "chloride": "ClH",
}
FLAT = ("benzene", "pyridine", "pyrimidine", "pyrazole", "imidazole", "triazole", "oxadiazole", "thiophene", "thiazole",
        "furan", "pyrrole", "naphthalene", "anthracene", "phenanthrene", "pyrene", "quinoline", "indole", "benzofuran",
        "benzimidazole", "benzothiazole", "purine", "coumarin", "chromone", "quinolone", "phthalimide", "isatin",
        "naphthoquinone", "quinone", "uracil", "pyridone", "maleimide", "pyrazolone", "thiazolone", "pyranone", "carbonyl",
        "carboxylic acid", "amide", "ethene", "imine", "azo", "nitro", "borane", "flat amine")
CHAIRS = ("cyclohexane", "decalin", "perhydrophenanthrene", "piperidine", "morpholine", "oxane", "piperazine")


def distances(xyz):
    return np.linalg.norm(xyz[:, None] - xyz[None], axis=2)


def bonded(elements, xyz):
    """(n, n) bool by distance: covalent radii of gemmi and 0.25 Å; an H belongs to its nearest atom alone."""
    radius = np.array([gemmi.Element(e).covalent_r for e in elements])
    h = np.array([e == "H" for e in elements])
    d = distances(xyz) + 99 * np.eye(len(xyz))
    bonds = (d < radius[:, None] + radius + 0.25) & ~h & ~h[:, None]
    for i in np.flatnonzero(h):
        if len(xyz) > 1:
            bonds[i, d[i].argmin()] = bonds[d[i].argmin(), i] = True
    return bonds


def bonds_apart(bonds):
    """(n, n) the least number of bonds between two atoms; 99 if no way leads from one to the other."""
    apart = np.where(np.eye(len(bonds), dtype=bool), 0, 99)
    reached = np.eye(len(bonds), dtype=bool)
    for step in range(1, len(bonds)):
        wider = reached | (reached @ bonds)
        if (wider == reached).all():
            break
        apart[wider & ~reached] = step
        reached = wider
    return apart


def bond_angles(elements, xyz, bonds, centre):
    """Degrees at one atom between each two of its bonds."""
    to = xyz[bonds[centre]] - xyz[centre]
    to /= np.linalg.norm(to, axis=1, keepdims=True)
    return np.degrees(np.arccos(np.clip((to @ to.T)[np.triu_indices(len(to), 1)], -1, 1)))


def pair_name(one, other):
    return "-".join(sorted((one, other)))


def odd_lengths(elements, xyz):
    """Bonds between atoms of the table that are of none of its lengths."""
    d = distances(xyz)
    odd = []
    for i, j in np.argwhere(np.triu(bonded(elements, xyz))):
        windows = LENGTHS.get(pair_name(elements[i], elements[j]), ((0, 9),))
        if not any(low - 1e-9 <= d[i, j] <= high + 1e-9 for low, high in windows):
            odd.append((elements[i], elements[j], round(float(d[i, j]), 3)))
    return odd


@pytest.mark.parametrize("name", FORMULAS)
def test_group_has_the_formula_of_its_name(name):
    formula = Counter(PALETTES["group"][name].elements)
    hill = [e for e in ("C", "H") if e in formula] + sorted(set(formula) - {"C", "H"}) if "C" in formula else sorted(formula)
    assert "".join(f"{e}{formula[e] if formula[e] > 1 else ''}" for e in hill) == FORMULAS[name]
    assert PALETTES["group"][name].n_heavy == sum(formula.values()) - formula["H"]


@pytest.mark.parametrize("palette, name", HYDRIDES, ids=["-".join(row) for row in HYDRIDES])
def test_bond_lengths_are_those_of_the_tables(palette, name):
    hydride = PALETTES[palette][name]
    elements, xyz = hydride.elements, hydride.xyz
    if len(elements) == 1:
        return
    assert not odd_lengths(elements, xyz)
    bonds, d = bonded(elements, xyz), distances(xyz)
    assert (bonds_apart(bonds) < 99).all(), "in one piece"
    for i, j in np.argwhere(np.triu(~bonds, 1)):
        # H on one atom, then H and another; F-P-F at right angles is 2.2 Å
        n_h = (elements[i] == "H") + (elements[j] == "H")
        assert d[i, j] > {2: 1.33, 1: 1.75, 0: 2.05}[n_h], (elements[i], elements[j], d[i, j])
    for i, parent in enumerate(hydride.parent):
        assert (parent >= 0) == (elements[i] == "H")
        if parent >= 0:
            assert np.delete(d[i], i).min() == d[i, parent]


@pytest.mark.parametrize("palette, name, pair, length", [
    ("group", "benzene", "C-C", 1.39), ("group", "naphthalene", "C-C", 1.40), ("group", "cyclohexane", "C-C", 1.53),
    ("group", "ethene", "C-C", 1.335), ("group", "ethyne", "C-C", 1.19), ("group", "nitrile", "C-N", 1.14),
    ("ligand", "nitrile", "C-N", 1.14), ("group", "pyridine", "C-N", 1.34), ("group", "amide", "C-N", 1.33),
    ("group", "imine", "C-N", 1.28), ("group", "azo", "N-N", 1.25), ("group", "carbonyl", "C-O", 1.215),
    ("group", "quinone", "C-O", 1.22), ("group", "furan", "C-O", 1.365), ("group", "nitro", "N-O", 1.22),
    ("group", "sulfonyl", "O-S", 1.435), ("group", "thiophene", "C-S", 1.71), ("group", "phosphane oxide", "O-P", 1.49),
    ("group", "trifluoromethyl", "C-F", 1.33), ("ion", "chloroform", "C-Cl", 1.77), ("ion", "perchlorate", "Cl-O", 1.42),
    ("ion", "nitrate", "N-O", 1.235), ("ion", "tetrafluoroborate", "B-F", 1.37), ("ion", "hexafluorophosphate", "F-P", 1.58),
    ("group", "piperazine", "C-N", 1.47), ("group", "oxane", "C-O", 1.43)])
def test_bond_of_its_own_length(palette, name, pair, length):
    """Within 0.025 Å of the mean of the tables, so that a double bond is not a single one."""
    hydride = PALETTES[palette][name]
    bonds = bonded(hydride.elements, hydride.xyz)
    found = [distances(hydride.xyz)[i, j] for i, j in np.argwhere(np.triu(bonds))
             if pair_name(hydride.elements[i], hydride.elements[j]) == pair]
    assert found and np.abs(np.array(found) - length).max() < 0.025


@pytest.mark.parametrize("name", FLAT)
def test_aromatic_and_trigonal_groups_are_flat(name):
    xyz = PALETTES["group"][name].xyz
    assert np.linalg.svd(xyz - xyz.mean(axis=0), compute_uv=False)[-1] < 1e-6 if len(xyz) > 3 else True
    heavy = [i for i, e in enumerate(PALETTES["group"][name].elements) if e != "H"]
    bonds = bonded(PALETTES["group"][name].elements, xyz)
    for i in heavy:
        angles = bond_angles(None, xyz, bonds, i)
        if bonds[i].sum() == 3:
            assert angles.sum() == pytest.approx(360, abs=1e-4)
        assert (angles > 95).all() and (angles < 136).all()  # the narrowest at the S of thiazole, 89° in real ones


@pytest.mark.parametrize("name", CHAIRS + ("cyclopentane", "oxolane", "pyrrolidine"))
def test_saturated_rings_are_puckered_with_tetrahedral_angles(name):
    """Cyclohexane's ring angle is 111.4°; its torsions are ±55° (electron diffraction). An envelope is flatter."""
    hydride = PALETTES["group"][name]
    elements, xyz = hydride.elements, hydride.xyz
    bonds = bonded(elements, xyz)
    heavy = np.array([e != "H" for e in elements])
    skeleton = bonds & heavy & heavy[:, None]
    low, high = (107, 115) if name in CHAIRS else (100, 110)
    for i in np.flatnonzero(heavy):
        assert all(low < a < high for a in bond_angles(elements, xyz, skeleton, i))
        assert all(99 < a < 120 for a in bond_angles(elements, xyz, bonds, i))
        assert bonds[i].sum() == {"C": 4, "N": 3, "O": 2}[elements[i]]
    if name in CHAIRS:
        apart = bonds_apart(skeleton[np.ix_(heavy, heavy)])
        x = xyz[heavy]
        torsions = []
        for i, j in np.argwhere(apart == 1):
            for a in np.flatnonzero((apart[i] == 1) & (apart[j] == 2)):
                for b in np.flatnonzero((apart[j] == 1) & (apart[a] == 3)):
                    torsions.append(abs(np.degrees(gemmi.calculate_dihedral(*(gemmi.Position(*x[k]) for k in (a, i, j, b))))))
        assert torsions and all(45 < t < 66 or 165 < t <= 180.001 for t in torsions)


@pytest.mark.parametrize("palette, name, angle", [
    ("group", "methane", 109.4712), ("group", "silane", 109.4712), ("group", "sulfonyl", 109.4712),
    ("group", "water", 109.4712),
    ("ion", "perchlorate", 109.4712), ("ion", "tetrafluoroborate", 109.4712), ("ion", "nitrate", 120),
    ("group", "borane", 120), ("group", "nitro", [123.6, 118.2, 118.2]), ("group", "carbonyl", [121.7, 121.7, 116.6]),
    ("ligand", "carbon monoxide", 180)])
def test_centres_have_the_angles_of_the_regular_solids(palette, name, angle):
    hydride = PALETTES[palette][name]
    angles = bond_angles(None, hydride.xyz, np.arange(len(hydride.xyz))[None].repeat(len(hydride.xyz), 0) > 0, 0)
    np.testing.assert_allclose(angles, angle, atol=1e-3 if np.ndim(angle) == 0 else 0.06)


@pytest.mark.parametrize("geometry, angles", [("square", [90] * 4 + [180] * 2), ("octahedral", [90] * 12 + [180] * 3),
                                              ("tetrahedral", [109.4712] * 6)])
def test_sites_of_a_metal_have_the_angles_of_the_solids(geometry, angles):
    unit = DIRECTIONS[geometry]
    found = np.degrees(np.arccos(np.clip((unit @ unit.T)[np.triu_indices(len(unit), 1)], -1, 1)))
    np.testing.assert_allclose(np.sort(found), angles, atol=1e-3)


def test_ferrocene_is_ferrocene():
    """Fe-C 2.05, C-C 1.41 and 3.32 Å between the rings (Seiler & Dunitz, 1979)."""
    core = _sandwich("Fe", True)
    assert Counter(core.elements) == Counter(C=10, H=10, Fe=1)
    carbon = core.xyz[[e == "C" for e in core.elements]]
    np.testing.assert_allclose(np.linalg.norm(carbon, axis=1), 2.05, atol=0.02)
    assert np.ptp(carbon[:, 2]) == pytest.approx(3.32, abs=0.1)
    d = np.sort(distances(carbon), axis=1)
    np.testing.assert_allclose(d[:, 1:3], 1.41, atol=0.025)


@pytest.mark.parametrize("metal", sorted(SANDWICHES))
def test_half_a_sandwich_has_three_free_sites(metal):
    core = _sandwich(metal, False)
    sites = core.xyz[[p == 0 for p in core.parent]]
    assert len(sites) == 3 and (sites[:, 2] < 0).all()
    u = sites / np.linalg.norm(sites, axis=1, keepdims=True)
    assert all(75 < a < 100 for a in np.degrees(np.arccos((u @ u.T)[np.triu_indices(3, 1)])))  # near 90: piano stool


@pytest.mark.parametrize("ring", CHELATES, ids="-".join)
@pytest.mark.parametrize("planar", [True, False])
def test_chelates_bite_as_real_ones(ring, planar):
    """Cu-N, Cu-O 1.9-2.05, Cu-S 2.2-2.4 Å, bite of a five-ring 80-95°, of a six-ring 85-110°; the rings flat."""
    core = _chelate("Cu", ring, True, planar)
    n = len(ring)
    donors = [1, n]
    m = (len(core.elements) - 1 - 2 * planar) // 2
    for donor in donors + [d + m for d in donors]:
        low, high = (2.2, 2.4) if core.elements[donor] == "S" else (1.75, 2.1)
        assert low < np.linalg.norm(core.xyz[donor]) < high, core.elements[donor]
    u = core.xyz[donors] / np.linalg.norm(core.xyz[donors], axis=1, keepdims=True)
    assert 75 < np.degrees(np.arccos(u[0] @ u[1])) < 115
    one, other = (core.xyz[[0, *(first + k for k in range(n))]] for first in (1, 1 + m))
    normals = [np.linalg.svd(ring_ - ring_.mean(axis=0))[2][-1] for ring_ in (one, other)]
    assert abs(normals[0] @ normals[1]) == pytest.approx(1 if planar else 0, abs=1e-6)


def grown(seed, inversion=None):
    """A molecule as the recipe makes one, or None if it did not grow; with the number of atoms asked for."""
    rng = np.random.default_rng([23, seed])
    size = int(rng.integers(4, 51))
    taste = draw_taste(rng, size)
    centric = rng.random() < 0.2 if inversion is None else inversion
    if rng.random() < 0.3 and size >= 5:
        core, centric = metal_core(rng, size, centric)
    else:
        core = organic_core(rng, size, taste, centric)
    molecule = Molecule(core, taste, centric)
    return (molecule, size) if molecule.grow(rng, size) else None


def whole(molecule):
    """Elements and coordinates of all atoms: with an inversion centre, those of the other half too."""
    if not molecule.inversion:
        return list(molecule.elements), molecule.xyz
    other = np.linalg.norm(molecule.xyz, axis=1) > 1e-6
    return (list(molecule.elements) + [e for e, o in zip(molecule.elements, other) if o],
            np.vstack([molecule.xyz, -molecule.xyz[other]]))


@pytest.fixture(scope="module")
def molecules():
    made = [row for row in (grown(seed) for seed in range(200)) if row]
    assert len(made) > 150
    return made


def test_molecules_have_the_number_of_atoms_asked_for(molecules):
    for molecule, size in molecules:
        assert sum(e != "H" for e in molecule.elements) == molecule.n_heavy == size
        assert len(molecule.elements) == len(molecule.xyz) == len(molecule.parent) == len(molecule.is_h) == len(molecule.radius)
    assert {size for _, size in molecules} >= set(range(6, 46))


def test_every_h_rides_on_its_nearest_atom(molecules):
    for molecule, _ in molecules:
        elements, xyz = whole(molecule)
        d = distances(xyz) + 99 * np.eye(len(xyz))
        for i, parent in enumerate(molecule.parent):
            assert (parent >= 0) == (elements[i] == "H")
            if parent >= 0:
                assert d[i].argmin() == parent and elements[parent] != "H"
                assert 0.83 < d[i, parent] < 1.45


def test_every_site_of_a_metal_is_filled(molecules):
    """Coordination 4 or 6, or that of cyclopentadienyl: no metal keeps an H, and no ligand is lost."""
    seen = Counter()
    for molecule, _ in molecules:
        elements, xyz = whole(molecule)
        for i in [i for i, e in enumerate(elements) if e in METALS]:
            bonds = bonded(elements, xyz)
            assert not any(elements[j] == "H" for j in np.flatnonzero(bonds[i]))
            around = np.flatnonzero(bonds[i])
            if all(np.delete(distances(xyz)[i], i) > 1.6):
                seen[len(around)] += 1
            assert len(around) >= 4
    assert seen[4] > 3 and seen[6] > 3


def test_no_bond_joins_two_of_nitrogen_oxygen_and_halogens(molecules):
    """Those within a group are short: nitro 1.22, azo 1.25, azoles to 1.37 Å. A join would be the sum of the radii, longer."""
    polar = {"N", "O", "F", "Cl", "Br", "I"}
    for molecule, _ in molecules:
        elements, xyz = whole(molecule)
        apart = distances(xyz)
        radius = np.array([gemmi.Element(e).covalent_r for e in elements])
        for i in [i for i, e in enumerate(elements) if e in polar]:
            for j in [j for j in range(i) if elements[j] in polar]:
                if apart[i, j] < radius[i] + radius[j] + 0.1:
                    allowed = {"N-O": 1.24, "N-N": 1.38}.get(pair_name(elements[i], elements[j]), 0)
                    assert apart[i, j] < allowed, (elements[i], elements[j], apart[i, j])


def test_joined_bonds_are_single_bonds_of_the_tables(molecules):
    found = Counter()
    for molecule, _ in molecules:
        elements, xyz = whole(molecule)
        assert not odd_lengths(elements, xyz)
        for i, j in np.argwhere(np.triu(bonded(elements, xyz))):
            found[pair_name(elements[i], elements[j])] += 1
    assert all(found[pair] for pair in ("C-C", "C-N", "C-O", "C-S", "C-F", "C-Cl", "Br-C", "N-O", "O-S"))


def test_flat_groups_join_flat_and_saturated_ones_staggered():
    """Biaryls, esters and nitro groups lie in a plane mostly, as long as nothing is in the way; C-C-C-C is gauche or anti."""
    rng, palette = np.random.default_rng(2), groups()
    found = {"flat": [], "staggered": []}
    for _ in range(300):
        for kind, core, other in (("flat", "benzene", "nitro"), ("staggered", "methane", "methane")):
            molecule = Molecule(palette[core][0])
            part = _part(palette[other][0], int(np.flatnonzero(palette[other][0].parent >= 0)[0]))
            h = molecule.parent.index(0) if core == "methane" else molecule.is_h.argmax()
            first = molecule.parent[h]
            assert molecule._join(h, part, rng.random(11))
            beside = [i for i in range(len(molecule.xyz)) if molecule.parent[i] == h or (other == "nitro" and i >= 12)]
            ours = [i for i in range(len(molecule.xyz)) if i not in (h, first) and i not in beside
                    and np.linalg.norm(molecule.xyz[i] - molecule.xyz[first]) < 1.6]
            a, b, c, d = molecule.xyz[[ours[0], first, h, beside[0]]]
            across = np.cross(b - a, c - b), np.cross(c - b, d - c)
            found[kind].append(np.degrees(np.arccos(across[0] @ across[1] / np.prod(np.linalg.norm(across, axis=1)))))
    flat, staggered = (np.array(found[kind]) for kind in found)
    assert 0.7 < (np.minimum(flat, 180 - flat) < 30).mean() < 0.98, "12° of spread, and a fifth anyhow"
    assert (np.abs(np.abs(staggered - 120) - 60) < 30).all()


def test_molecules_are_in_one_piece(molecules):
    for molecule, _ in molecules:
        assert (bonds_apart(bonded(*whole(molecule))) < 99).all()


def test_atoms_of_a_molecule_do_not_clash(molecules):
    """Four bonds apart or more: two atoms other than H keep 2.4 Å (a peri O···O), H keeps 1.8 (the bay of a terphenyl)."""
    for molecule, _ in molecules:
        elements, xyz = whole(molecule)
        far = bonds_apart(bonded(elements, xyz)) >= 4
        h = np.array([e == "H" for e in elements])
        d = distances(xyz)
        clash = np.argwhere(np.triu(far & (d < np.where(h | h[:, None], 1.8, 2.4))))
        assert not len(clash), [(elements[i], elements[j], round(float(d[i, j]), 2)) for i, j in clash]


def test_molecules_with_an_inversion_centre_are_symmetric():
    made = [row[0] for row in (grown(1000 + seed, True) for seed in range(60)) if row and row[0].inversion]
    on_centre = 0
    for molecule in made:
        elements, xyz = whole(molecule)
        d = np.linalg.norm(xyz[:, None] + xyz[None], axis=2)  # to the inverse of each
        assert (d.min(axis=1) < 1e-9).all() and all(elements[i] == elements[j] for i, j in enumerate(d.argmin(axis=1)))
        assert (bonds_apart(bonded(elements, xyz)) < 99).all()
        assert (distances(xyz) + 9 * np.eye(len(xyz))).min() > 0.8
        at_origin = np.linalg.norm(molecule.xyz, axis=1) < 1e-6
        assert at_origin.sum() <= 1
        np.testing.assert_array_equal(molecule.occupancies, np.where(at_origin, 0.5, 1))
        # twice the half, the atom on the centre once, is the formula of the whole
        assert 2 * molecule.occupancies.sum() == len(elements)
        on_centre += at_origin.any()
    assert len(made) > 30 and 0 < on_centre < len(made)


def test_molecules_without_an_inversion_centre_have_full_occupancy(molecules):
    for molecule, _ in molecules:
        if not molecule.inversion:
            assert (molecule.occupancies == 1).all()


def test_the_same_stream_gives_the_same_molecule():
    for seed in range(12):
        one, other = grown(seed), grown(seed)
        assert (one is None) == (other is None)
        if one:
            assert one[0].elements == other[0].elements and one[0].parent == other[0].parent
            np.testing.assert_array_equal(one[0].xyz, other[0].xyz)
    formulas = {tuple(sorted(Counter(row[0].elements).items())) for row in map(grown, range(40)) if row}
    assert len(formulas) > 25


def test_a_molecule_without_a_site_or_room_for_its_ligands_does_not_grow():
    rng = np.random.default_rng(0)
    assert not Molecule(ions()["perchlorate"]).grow(rng, 8)
    core = PALETTES["group"]["benzene"]
    full = Molecule(core)
    assert full.grow(rng, 6) and full.elements == list(core.elements)
    metal, _ = metal_core(np.random.default_rng(3), 5)
    crowded = Molecule(metal)
    n_sites = sum(p == 0 for p in crowded.parent)
    assert n_sites >= 4 and not crowded.grow(rng, n_sites)  # one atom short of a ligand for each site


def test_shares_of_metals_are_those_of_the_list():
    """Copper is the most frequent metal of the Cambridge Structural Database; only square or tetrahedral if fourfold."""
    seen = Counter()
    for seed in range(600):
        core, _ = metal_core(np.random.default_rng(seed), 5)
        seen[core.elements[0]] += 1
        if core.elements[0] in FOURFOLD:
            assert core.elements[1:] == ("H",) * 4
    assert seen["Cu"] / seen.total() == pytest.approx(METALS["Cu"] / sum(METALS.values()), abs=0.05)
    assert len(seen) > 15
