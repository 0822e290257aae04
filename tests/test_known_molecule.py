import builtins
import subprocess
import sys

import numpy as np
import pytest

from xrd_helpers.cif import read_cif
from xrd_helpers.known_molecule import (
    MoleculeError,
    drawn_molecules,
    from_geometry,
    read_molecules,
    scrambled,
    superpose,
    turn,
    with_hydrogen,
    with_more_conformers,
)

Chem = pytest.importorskip("rdkit.Chem")


def one(text):
    (molecule, _), = read_molecules(text)
    return molecule


def test_paracetamol_has_the_formula_bonds_and_torsions_of_its_drawing():
    molecule = one("CC(=O)Nc1ccc(O)cc1")
    assert molecule.formula == "C8H9NO2" and molecule.charge == 0
    assert len(molecule) == 11 and len(molecule.bonds) == 11
    assert molecule.n_hydrogen.tolist() == [3, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1]
    # N-C(aryl) and C(carbonyl)-N; those to CH3 and OH turn hydrogen alone
    assert sorted((min(t.a, t.b), max(t.a, t.b)) for t in molecule.torsions) == [(1, 3), (3, 4)]
    assert molecule.labels[:4] == ["C1", "C2", "O1", "N1"]
    lengths = np.linalg.norm(molecule.conformers[:, 5] - molecule.conformers[:, 6], axis=-1)
    assert np.abs(lengths - 1.39).max() < 0.03  # aromatic C-C: Allen et al. (1987), 1.380 (13) and 1.387 (10) Å


def test_a_bond_beside_a_triple_bond_is_turned_once_and_a_nitrile_never():
    assert len(one("c1ccccc1C#Cc1ccccc1C").torsions) == 1
    assert len(one("N#Cc1ccccc1").torsions) == 0


def test_counts_and_components():
    found = read_molecules(["C[NH3+].[Cl-]", "2*O"])
    assert [(m.formula, n, m.charge) for m, n in found] == [("CH6N", 1, 1), ("Cl", 1, -1), ("H2O", 2, 0)]
    assert [(m.formula, n) for m, n in read_molecules(["O", "O"])] == [("H2O", 2)]


@pytest.mark.parametrize("text, says", [
    ("CCC(", "is no SMILES"), ("C(C)(C)(C)(C)C", "valence"), ("nowhere.mol", "No such file"), ("[H][H]", "hydrogen alone"),
    ("C*", "dummy"), ("0*O", "names no molecule"), ("", "names no molecule")])
def test_what_is_no_molecule_is_said_in_a_sentence(text, says):
    with pytest.raises(MoleculeError, match=says):
        read_molecules(text)


def test_without_rdkit_it_says_so(monkeypatch):
    def refuse(name, *args, **kwargs):
        if name.startswith("rdkit"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MoleculeError, match="pip install rdkit"):
        read_molecules("CCO")


def test_the_package_imports_without_rdkit():
    code = "import sys, xrd_helpers.known_molecule, xrd_helpers.cli; assert not any(m.startswith('rdkit') for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torsions_keep_the_distances_that_rigid_names():
    molecule = one("CC(C)C[C@H](N)C(=O)OCc1ccccc1")
    turned = scrambled(molecule, 3, seed=1)
    rigid = molecule.rigid()
    for k, xyz in enumerate(turned.conformers):
        was = np.linalg.norm(molecule.conformers[k][:, None] - molecule.conformers[k], axis=-1)
        now = np.linalg.norm(xyz[:, None] - xyz, axis=-1)
        np.testing.assert_allclose(now[rigid], was[rigid], atol=1e-9)
        assert np.abs(now - was)[~rigid].max() > 0.3
        hydrogen = np.linalg.norm(turned.hydrogen[k] - xyz[molecule.parents], axis=1)
        np.testing.assert_allclose(hydrogen, 0.95, atol=1e-9)


def test_hydrogen_rides_on_a_molecule_that_was_moved():
    molecule = one("CC(=O)Nc1ccc(O)cc1")
    axis = np.array([1, 2, 2]) / 3
    moved = turn(molecule.conformers[0], axis, 1.1) + [3, -1, 2]
    expected = turn(molecule.hydrogen[0], axis, 1.1) + [3, -1, 2]
    np.testing.assert_allclose(with_hydrogen(molecule, moved), expected, atol=1e-6)


def test_superpose_finds_the_rotation():
    x = np.random.default_rng(0).normal(size=(6, 3))
    rotation = superpose(x, turn(x, np.array([0, 0.6, 0.8]), 2.0))
    np.testing.assert_allclose(x @ rotation.T, turn(x, np.array([0, 0.6, 0.8]), 2.0), atol=1e-9)


@pytest.mark.parametrize("suffix", [".xyz", ".mol", ".sdf"])
def test_a_file_is_taken_as_it_stands(tmp_path, suffix):
    from rdkit.Chem import AllChem
    mol = Chem.AddHs(Chem.MolFromSmiles("CC(=O)Nc1ccc(O)cc1"))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    path = tmp_path / f"paracetamol{suffix}"
    path.write_text(Chem.MolToXYZBlock(mol) if suffix == ".xyz" else Chem.MolToMolBlock(mol))
    molecule = one(str(path))
    assert molecule.formula == "C8H9NO2" and len(molecule.torsions) == 2
    heavy = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() > 1]
    np.testing.assert_allclose(molecule.conformers, mol.GetConformer().GetPositions()[None, heavy], atol=1e-3)


MOL2 = """@<TRIPOS>MOLECULE
acetamide
9 8 1 0 0
SMALL
USER_CHARGES
@<TRIPOS>ATOM
1 C1 -1.3800 -0.1900 0.0000 C.3 1 ACM 0.0
2 C2 0.0900 0.1300 0.0000 C.2 1 ACM 0.0
3 O1 0.5000 1.2800 0.0000 O.2 1 ACM 0.0
4 N1 0.9100 -0.9200 0.0000 N.am 1 ACM 0.0
5 H1 -1.5600 -1.2600 0.0000 H 1 ACM 0.0
6 H2 -1.8400 0.2600 0.8900 H 1 ACM 0.0
7 H3 -1.8400 0.2600 -0.8900 H 1 ACM 0.0
8 H4 1.9000 -0.7700 0.0000 H 1 ACM 0.0
9 H5 0.5500 -1.8600 0.0000 H 1 ACM 0.0
@<TRIPOS>BOND
1 1 2 1
2 2 3 2
3 2 4 am
4 1 5 1
5 1 6 1
6 1 7 1
7 4 8 1
8 4 9 1
"""  # written by hand, after the format of Tripos; distances of Jeffrey et al. (1980), Acta Cryst. B36, 2292, about


def test_a_mol2_file_is_taken_as_it_stands(tmp_path):
    path = tmp_path / "acetamide.mol2"
    path.write_text(MOL2)
    molecule = one(str(path))
    assert molecule.formula == "C2H5NO" and molecule.labels == ["C1", "C2", "O1", "N1"]
    np.testing.assert_allclose(molecule.conformers[0][2], [0.5, 1.28, 0], atol=1e-4)
    assert sorted(map(sorted, molecule.bonds.tolist())) == [[0, 1], [1, 2], [1, 3]]
    assert molecule.n_hydrogen.tolist() == [3, 0, 0, 2] and len(molecule.torsions) == 0
    path.write_text(MOL2.replace("@<TRIPOS>ATOM", "ATOMS"))
    with pytest.raises(MoleculeError, match="acetamide.mol2 holds no molecule"):
        one(str(path))


def test_a_crystal_file_gives_whole_molecules():
    found = read_molecules("data/molecules/glycine_dihydrate.cif")
    assert [(m.formula, n) for m, n in found] == [("C2H5NO2", 1), ("H2O", 2)]


@pytest.mark.parametrize("name, smiles", [
    ("paracetamol", ["CC(=O)Nc1ccc(O)cc1"]), ("ornithine_hydrochloride", ["[NH3+]CCC[C@H]([NH3+])C(=O)[O-]", "[Cl-]"]),
    ("dithioquinacridone", ["S=c1c2ccccc2[nH]c2cc3c(=S)c4ccccc4[nH]c3cc12"]),
    ("glycine_dihydrate", ["[NH3+]CC([O-])=O", "2*O"])])
def test_a_published_crystal_is_drawn_as_a_chemist_would(name, smiles):
    found = drawn_molecules(read_cif(f"data/molecules/{name}.cif"))
    expected = [(Chem.CanonSmiles(text.removeprefix("2*")), 2 if text[0] == "2" else 1) for text in smiles]
    assert [(m.name, n) for m, n in found] == expected


def test_no_drawing_is_made_of_what_is_no_molecule():
    assert drawn_molecules(read_cif("data/simple/titanium_dioxide.cif")) is None


def test_bonds_of_a_geometry_are_told_by_distance():
    # butadiene, C=C 1.34 and C-C 1.46 Å, angles of 120°
    x = [[0, 0, 0], [1.34, 0, 0], [2.07, 1.264, 0], [3.41, 1.264, 0]]
    molecule = from_geometry(["C"] * 4, x, "butadiene")
    assert [(t.a, t.b) for t in molecule.torsions] in ([(1, 2)], [(2, 1)])
    assert molecule.symmetry.tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]


def test_more_conformers_are_of_the_same_molecule():
    molecule = one("CC1CCCC(O)C1")
    more = with_more_conformers(molecule, 4, seed=3)
    n = len(molecule.conformers)
    assert len(more.conformers) == len(more.hydrogen) == n + 4
    i, j = molecule.bonds.T
    lengths = np.linalg.norm(more.conformers[:, i] - more.conformers[:, j], axis=-1)
    assert lengths.min() > 1.38 and lengths.max() < 1.58  # C-O 1.43, C-C 1.53 Å
    np.testing.assert_allclose(np.linalg.norm(more.hydrogen - more.conformers[:, more.parents], axis=-1), 0.95, atol=1e-9)
    given = from_geometry(["C", "O"], [[0, 0, 0], [1.43, 0, 0]], "given")
    assert with_more_conformers(given, 4, seed=3) is given
