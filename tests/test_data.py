"""The crystals under data/: whole, chemically sane, and of the published density."""
from collections import Counter
from itertools import product
from pathlib import Path

import gemmi
import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[1] / "data"
MOLECULES = sorted((DATA / "molecules").glob("*.cif"))
SIMPLE = sorted((DATA / "simple").glob("*.cif"))
each = pytest.mark.parametrize("path", MOLECULES + SIMPLE, ids=lambda p: p.stem)
each_molecule = pytest.mark.parametrize("path", MOLECULES, ids=lambda p: p.stem)
each_simple = pytest.mark.parametrize("path", SIMPLE, ids=lambda p: p.stem)

# Moieties in the formula unit, where it is not a single molecule.
MOIETIES = {"ornithine_hydrochloride": 2, "glycine_dihydrate": 3}

# Calculated density (g/cm3) printed by the reference itself, at its temperature and pressure.
DENSITY = {
    "paracetamol": 1.338, "ornithine_hydrochloride": 1.429, "dimethylquinacridone": 1.444,
    "glycylglycine_high_pressure": 1.780, "glycine_alpha_high_pressure": 1.781,
    "isobutyl_tetrahydroindoleacetic_acid": 1.207, "biphenylyl_diimine": 1.173,
    "sucrose": 1.614, "hydantoin": 1.669, "dithioquinacridone": 1.497,
    # the elements and salts: handbook values at room temperature
    "nickel": 8.91, "copper": 8.93, "aluminium": 2.70, "silver": 10.50, "iron": 7.87,
    "tungsten": 19.25, "magnesium": 1.738, "silicon": 2.329, "germanium": 5.323,
    "diamond": 3.515, "sodium_chloride": 2.165, "magnesium_oxide": 3.58,
    "calcium_fluoride": 3.18, "titanium_dioxide": 4.25, "zinc_sulfide": 4.09,
    "caesium_chloride": 3.99,
}
# Well-known density at room temperature and pressure: a cold crystal is a little denser, a
# compressed one (here 2 GPa and, for glycylglycine, more) clearly so.
AMBIENT = {"paracetamol": (1.293, 1.00, 1.05), "sucrose": (1.587, 1.00, 1.04),
           "glycine_alpha_high_pressure": (1.607, 1.05, 1.15)}

# Shortest interatomic distance (A), from tables of interatomic distances.
NEAREST = {
    "nickel": 2.492, "copper": 2.556, "aluminium": 2.863, "silver": 2.889, "iron": 2.482,
    "tungsten": 2.741, "magnesium": 3.197, "silicon": 2.352, "germanium": 2.450,
    "diamond": 1.545, "sodium_chloride": 2.820, "magnesium_oxide": 2.106,
    "calcium_fluoride": 2.366, "titanium_dioxide": 1.946, "zinc_sulfide": 2.342,
    "caesium_chloride": 3.571,
}


# Bond lengths (A) that occur between non-hydrogen atoms, single to triple and delocalised.
BONDS = {"CC": (1.30, 1.58), "CN": (1.24, 1.53), "CO": (1.18, 1.47), "CS": (1.60, 1.85)}


def load(path):
    block = gemmi.cif.read(str(path)).sole_block()
    return block, gemmi.read_small_structure(str(path))


def value(block, tag):
    return gemmi.cif.as_string(block.find_value(tag) or "")


def formula(block):
    out = Counter()
    for word in value(block, "_chemical_formula_sum").split():
        element = word.rstrip("0123456789")
        out[element] += int(word[len(element):] or 1)
    return out


def expand(structure):
    """Element and fractional position of every atom in the cell."""
    atoms = structure.get_all_unit_cell_sites()
    return [a.element.name for a in atoms], np.array([a.fract.tolist() for a in atoms])


def distances(structure):
    """Elements and d[i, j, t]: from atom i to the image t of atom j in the 27 cells around."""
    elements, x = expand(structure)
    metric = np.array(structure.cell.orth.mat.tolist())
    shifts = np.array(list(product((-1, 0, 1), repeat=3)))
    delta = x[None, :, :] - x[:, None, :]
    delta -= np.round(delta)
    d = np.linalg.norm((delta[:, :, None, :] + shifts) @ metric.T, axis=-1)
    centre = len(shifts) // 2
    d[np.arange(len(x)), np.arange(len(x)), centre] = np.inf
    return np.array(elements), d


def density(structure):
    structure.change_occupancies_to_crystallographic()
    order = len(structure.spacegroup.operations())
    mass = sum(s.occ * s.element.weight for s in structure.sites) * order
    return mass / structure.cell.volume / 0.602214076


def test_numbers():
    assert len(MOLECULES) >= 8
    assert len(SIMPLE) == 16
    assert {p.stem for p in SIMPLE} >= {"nickel", "copper", "aluminium", "silicon",
                                        "sodium_chloride"}


def test_tables_name_files():
    """No published value can go unused because of a misspelt name."""
    stems = {p.stem for p in MOLECULES + SIMPLE}
    for table in (MOIETIES, DENSITY, AMBIENT, NEAREST):
        assert set(table) <= stems
    assert set(NEAREST) == {p.stem for p in SIMPLE}


@each
def test_space_group(path):
    block, structure = load(path)
    group = gemmi.find_spacegroup_by_name(value(block, "_space_group_name_H-M_alt"))
    assert group is not None
    assert int(value(block, "_space_group_IT_number")) == group.number
    assert int(value(block, "_symmetry_Int_Tables_number")) == group.number
    written = [gemmi.Op(row.str(0)) for row in block.find(["_space_group_symop_operation_xyz"])]
    assert len(written) == len(group.operations())
    assert {op.wrap().triplet() for op in written} == \
        {op.wrap().triplet() for op in group.operations()}
    assert structure.spacegroup.xhm() == group.xhm()
    assert structure.cell.is_compatible_with_spacegroup(group)
    assert float(value(block, "_cell_volume")) == pytest.approx(structure.cell.volume, rel=1e-3)


@each_molecule
def test_monoclinic(path):
    _, structure = load(path)
    assert structure.spacegroup.crystal_system_str() == "monoclinic"
    assert structure.spacegroup.monoclinic_unique_axis() == "b"
    assert structure.cell.alpha == structure.cell.gamma == 90
    assert abs(structure.cell.beta - 90) > 1


@each
def test_reference(path):
    block, _ = load(path)
    assert path.read_bytes().isascii()
    assert path.stem == block.name
    text = value(block, "_publ_section_references")
    assert len(text) > 60
    assert value(block, "_journal_name_full") and value(block, "_chemical_name_common")
    if not value(block, "_journal_name_full").startswith("Unpublished"):
        assert f"({value(block, '_journal_year')})" in text
        assert value(block, "_journal_page_first") in text
    assert "U values" in " ".join(value(block, "_publ_section_comment").split())


@each
def test_content(path):
    block, structure = load(path)
    z = int(value(block, "_cell_formula_units_Z"))
    want = {element: n * z for element, n in formula(block).items()}
    elements, _ = expand(structure)
    assert Counter(elements) == want
    structure.change_occupancies_to_crystallographic()
    order = len(structure.spacegroup.operations())
    got = Counter()
    for site in structure.sites:
        got[site.element.name] += site.occ * order
    assert got.keys() == want.keys()
    for element, n in want.items():
        assert got[element] == pytest.approx(n, abs=1e-3), element


@each
def test_displacements(path):
    _, structure = load(path)
    for site in structure.sites:
        assert 0.001 < site.u_iso < 0.15, site.label
        assert site.occ == 1


@each_molecule
def test_contacts_of_molecules(path):
    _, structure = load(path)
    elements, d = distances(structure)
    hydrogen = elements == "H"
    nearest = d.min(axis=2)
    assert nearest[~hydrogen][:, ~hydrogen].min() > 1.1
    assert nearest[~hydrogen][:, hydrogen].min() > 0.7
    assert nearest[hydrogen][:, hydrogen].min() > 1.2


@each_molecule
def test_bonds(path):
    _, structure = load(path)
    elements, d = distances(structure)
    heavy = elements != "H"
    for i, j, t in np.argwhere(d < 1.9):
        if heavy[i] and heavy[j]:
            low, high = BONDS["".join(sorted((elements[i], elements[j])))]
            assert low < d[i, j, t] < high
    for i, element in enumerate(elements):
        near_heavy = np.sort(d[i, heavy].ravel())
        near_h = (d[i, ~heavy].ravel() < 1.25).sum()
        if element == "H":
            assert (near_heavy < 1.25).sum() == 1
        elif element == "O" and near_heavy[0] > 1.7:
            assert near_h == 2  # water
        elif element in ("C", "N", "O"):
            bonds = (near_heavy < 1.7).sum()
            assert near_heavy[0] > 1.1 and bonds >= 1
            # no atom may have more neighbours than its valence
            assert bonds + near_h <= {"C": 4, "N": 4, "O": 2}[element]
        elif element == "S":
            assert 1.6 < near_heavy[0] < 1.9
        else:
            assert element == "Cl" and near_heavy[0] > 2.5  # chloride ion


@each_molecule
def test_number_of_molecules(path):
    block, structure = load(path)
    elements, d = distances(structure)
    radius = np.array([gemmi.Element(e).covalent_r for e in elements])
    bonded = (d < (radius[:, None] + radius + 0.25)[:, :, None]).any(axis=2)
    group = np.arange(len(elements))
    for _ in elements:
        merged = np.array([group[row].min() if row.any() else group[i]
                           for i, row in enumerate(bonded)])
        merged = np.minimum(group, merged)
        if (merged == group).all():
            break
        group = merged
    z = int(value(block, "_cell_formula_units_Z"))
    assert len(set(group)) == z * MOIETIES.get(path.stem, 1)


@each_molecule
def test_volume_per_atom(path):
    _, structure = load(path)
    elements, _ = expand(structure)
    heavy = sum(e != "H" for e in elements)
    assert 10 < structure.cell.volume / heavy < 25
    assert 4 <= sum(s.element.name != "H" for s in structure.sites) <= 25


@each_molecule
def test_reflection_box(path):
    """With a <= c, all reflections to 0.8 A lie in h -13..12, k 0..17, l 0..22."""
    _, structure = load(path)
    a, b, c, _, beta, _ = structure.cell.parameters
    cell = gemmi.UnitCell(min(a, c), b, max(a, c), 90, beta, 90)
    h, k, l = np.mgrid[-25:26, 0:31, 0:41].reshape(3, -1)
    keep = (l > 0) | (h >= 0)
    hkl = np.stack([h, k, l], axis=1)[keep]
    hkl = hkl[np.any(hkl != 0, axis=1)]
    frac = np.array(cell.frac.mat.tolist())
    seen = hkl[np.linalg.norm(hkl @ frac, axis=1) <= 1 / 0.8]
    assert len(seen) > 200
    low, high = seen.min(axis=0), seen.max(axis=0)
    assert (high < [25, 30, 40]).all() and low[0] > -25  # the search itself was wide enough
    assert low[0] >= -13 and (high <= [12, 17, 22]).all()


@each_simple
def test_contacts_of_simple_crystals(path):
    _, structure = load(path)
    _, d = distances(structure)
    assert d.min() > 1.5
    assert d.min() == pytest.approx(NEAREST[path.stem], abs=0.004)


@pytest.mark.parametrize("name", DENSITY)
def test_density(name):
    path, = DATA.glob(f"*/{name}.cif")
    tolerance = 0.003 if path.parent.name == "molecules" else 0.007
    assert density(load(path)[1]) == pytest.approx(DENSITY[name], rel=tolerance)


@pytest.mark.parametrize("name", AMBIENT)
def test_denser_than_at_ambient_conditions(name):
    ambient, low, high = AMBIENT[name]
    path, = DATA.glob(f"*/{name}.cif")
    assert low < density(load(path)[1]) / ambient < high
