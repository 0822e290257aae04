from dataclasses import replace
from types import SimpleNamespace

import gemmi
import numpy as np
import pytest
from typer.testing import CliRunner

from xrd_helpers.cif import read_cif
from xrd_helpers.cli import app
from xrd_helpers.config import UserError
from xrd_helpers.crystals import Crystal, all_operators
from xrd_helpers.known_molecule import from_geometry, read_molecules, turn
from xrd_helpers.phasing import placing
from xrd_helpers.phasing.climbing import climb, data_of, draw, mutate, r_factors, score
from xrd_helpers.phasing.distances import distances_of, refine, rigid_distances
from xrd_helpers.phasing.origin import match_atoms, solved
from xrd_helpers.phasing.placing import (
    Arrangement,
    Part,
    PlacingError,
    Search,
    _joints,
    amplitudes_of,
    arrangements,
    contacts,
    place,
    special_sites,
    symmetric,
)
from xrd_helpers.phasing.refine import Refiner
from xrd_helpers.reflections import Reflections, unique_hkl
from xrd_helpers.shelx import write_shelx
from xrd_helpers.structure_factors import structure_factors

pytest.importorskip("rdkit")

TRICLINIC = gemmi.UnitCell(7.1, 8.3, 9.7, 78, 99, 107)
MONOCLINIC = gemmi.UnitCell(8.1, 9.3, 10.7, 90, 104, 90)


def calculated(crystal, d_min):
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
    return Reflections.of_good_data(hkl, np.abs(structure_factors(crystal, hkl)), crystal.cell, crystal.spacegroup)


def dummy(cell, group, d_min=2.0):
    hkl = unique_hkl(cell, gemmi.SpaceGroup(group), d_min)
    return Refiner(Reflections.of_good_data(hkl, np.ones(len(hkl)), cell, gemmi.SpaceGroup(group)))


@pytest.mark.parametrize("cell, group", [(TRICLINIC, "P -1"), (TRICLINIC, "P 1"), (MONOCLINIC, "P 1 21/c 1"),
                                         (MONOCLINIC, "C 1 2 1")])
def test_amplitudes_are_those_of_gemmi(cell, group):
    rng, elements = np.random.default_rng(1), ("C", "N", "O", "Cl")
    refiner = dummy(cell, group)
    data, d = data_of(refiner, elements, np.zeros(4), np.ones(4), 0.045)
    fract = rng.random((4, 3))
    crystal = Crystal("", cell, gemmi.SpaceGroup(group), elements, fract, np.full(4, 0.045), np.ones(4))
    small = crystal.small_structure()
    calculator = gemmi.StructureFactorCalculatorX(small.cell)
    order = np.argsort(-refiner.reflections.d, kind="stable")
    expected = [abs(calculator.calculate_sf_from_small_structure(small, h)) for h in refiner.reflections.hkl[order].tolist()]
    re, im = amplitudes_of((fract @ refiner.orth.T).astype(np.float32), data)
    np.testing.assert_allclose(np.hypot(re, im), expected, atol=2e-3 * max(expected))
    assert (np.diff(d) <= 0).all()


def test_hydrogen_is_spread_over_a_shell():
    refiner = dummy(TRICLINIC, "P 1")
    bare, d = data_of(refiner, ["C"], [0], [1], 0.0)
    with_h, _ = data_of(refiner, ["C"], [2], [1], 0.0)
    form = refiner.form_factor("H")[np.argsort(-refiner.reflections.d, kind="stable")]
    # Debye (1915): sin(qr) / qr with q = 2π/d, r = 1 Å
    np.testing.assert_allclose(with_h.form - bare.form, [2 * form * np.sin(2 * np.pi / d) / (2 * np.pi / d)], atol=1e-4)


def lengths_of(xyz):
    return np.linalg.norm(xyz[..., :, None, :] - xyz[..., None, :, :], axis=-1)


@pytest.fixture(scope="module")
def two_in_a_cell():
    """Paracetamol anywhere and biphenyl on the inversion centres of P -1."""
    molecules = [read_molecules(text)[0][0] for text in ("CC(=O)Nc1ccc(O)cc1", "c1ccccc1-c1ccccc1")]
    return Search(dummy(TRICLINIC, "P -1", 3.0), molecules, Arrangement((Part(0, 1), Part(1, 2)), 2, 18.0))


def drawn(search, n, loose, seed=3):
    m = len(search.molecules)
    xyz, free = np.empty((n, len(search.elements), 3), np.float32), np.empty((n, m, 3, 3), np.float32)
    chosen = np.random.default_rng(seed).integers(len(search.conformers), size=(n, m))
    draw(xyz, free, search.conformers, chosen, search.joints, search.sites, search.refiner.orth, loose, seed)
    return xyz, free, chosen


def test_placements_are_drawn_everywhere_and_turned_every_way(two_in_a_cell):
    search, n = two_in_a_cell, 400
    xyz, free, chosen = drawn(search, n, 0.0)
    first = search.joints.first
    frac = np.array(TRICLINIC.frac.mat.tolist())
    for b in range(0, n, 40):  # what torsions do not change is that of the conformer
        conformer = np.concatenate([search.conformers[chosen[b, c], first[c]:first[c + 1]] for c in (0, 1)])
        for i, j in np.asarray(search.rows)[:, :2].astype(int):
            assert np.linalg.norm(xyz[b, i] - xyz[b, j]) == pytest.approx(np.linalg.norm(conformer[i] - conformer[j]), abs=1e-3)
    centre = [xyz[:, first[c]:first[c + 1]].mean(1) @ frac.T for c in (0, 1)]
    # even from 0 to 1: mean 1/2 and deviation 1 / sqrt(12); and on the eight centres of Wyckoff's table, an eighth on each
    assert np.abs(centre[0].mean(0) - 0.5).max() < 0.06 and np.abs(centre[0].std(0) - 12**-0.5).max() < 0.03
    assert np.ptp(centre[0], axis=0).min() > 0.95
    half = np.round(2 * centre[1]).astype(int)
    np.testing.assert_allclose(centre[1], half / 2, atol=1e-4)
    counts = np.bincount((half % 2) @ [4, 2, 1], minlength=8)
    assert counts.min() > 50 - 4 * 50**0.5 and (free[:, 1] == 0).all()
    np.testing.assert_allclose(free[:, 0], np.tile(np.eye(3), (n, 1, 1)), atol=1e-5)
    # directions on the sphere: ⟨u⟩ = 0 and ⟨u uᵀ⟩ = 1/3
    bond = xyz[:, 1] - xyz[:, 0]
    bond /= np.linalg.norm(bond, axis=1)[:, None]
    assert np.abs(bond.mean(0)).max() < 0.12 and np.abs(bond.T @ bond / n - np.eye(3) / 3).max() < 0.08
    # torsions: a normal deviate of 0.25 from those of the conformer, or any angle for up to all of them
    again, _, _ = drawn(search, n, 1.0)
    assert not np.array_equal(again, xyz) and np.array_equal(drawn(search, 5, 0.0)[0], xyz[:5])
    spread = [np.abs(lengths_of(x[:, first[1]:]) - lengths_of(search.conformers[rows[:, 1], first[1]:])).max((1, 2)).mean()
              for x, rows in ((xyz, chosen), (again, chosen))]
    assert spread[1] > 1.5 * spread[0] > 0


def test_a_change_of_a_placement_is_of_one_molecule_and_one_kind(two_in_a_cell):
    search, n = two_in_a_cell, 300
    xyz, free, chosen = drawn(search, n, 0.0)
    before = xyz.copy()
    mutate(xyz, free, search.conformers, chosen, search.joints, search.sites, search.refiner.orth, 5)
    first = search.joints.first
    parts = [slice(first[c], first[c + 1]) for c in (0, 1)]
    changed = np.array([[np.abs(xyz[b, part] - before[b, part]).max() > 1e-4 for part in parts] for b in range(n)])
    assert (changed.sum(1) <= 1).all() and changed.any(1).mean() > 0.9
    kinds = {"torsion": 0, "rotation": 0, "shift": 0}
    for b in range(n):
        part = parts[0] if changed[b, 0] else parts[1]
        moved = xyz[b, part].mean(0) - before[b, part].mean(0)
        rigid = np.abs(lengths_of(xyz[b, part]) - lengths_of(before[b, part])).max() < 1e-3
        shifted = np.abs(xyz[b, part] - before[b, part] - moved).max() < 1e-3
        kinds["shift" if shifted else "rotation" if rigid else "torsion"] += 1
        if rigid and not shifted:
            assert np.abs(moved).max() < 1e-3, "about its centre"
        if part == parts[1] and rigid:
            assert np.abs(moved).max() < 1e-3, "on a centre of inversion there is no way to go"
    # 0.6 torsions and 0.1 all of it, 0.2 rotations, 0.1 shifts
    assert 0.6 < kinds["torsion"] / n < 0.8 and 0.12 < kinds["rotation"] / n < 0.28 and 0.05 < kinds["shift"] / n < 0.16


@pytest.mark.parametrize("cell, group", [(TRICLINIC, "P -1"), (MONOCLINIC, "P 1 21 1")])
def test_scores_of_placements_are_the_correlation_and_r1_of_gemmis_amplitudes(cell, group):
    """Over the strongest of reflections by resolution; the weight of each is as ``data`` has it."""
    rng, elements, group = np.random.default_rng(2), ("C", "N", "O", "Cl"), gemmi.SpaceGroup(group)
    hkl = unique_hkl(cell, group, 1.8)
    refiner = Refiner(Reflections.of_good_data(hkl, rng.uniform(5, 90, len(hkl)), cell, group))
    data, _ = data_of(refiner, elements, np.zeros(4), np.ones(4), 0.045)
    order, n = np.argsort(-refiner.reflections.d, kind="stable"), 60
    for _ in range(2):
        fract = rng.random((4, 3))
        small = Crystal("", cell, group, elements, fract, np.full(4, 0.045), np.ones(4)).small_structure()
        calculator = gemmi.StructureFactorCalculatorX(small.cell)
        A = np.array([abs(calculator.calculate_sf_from_small_structure(small, h)) for h in hkl[order][:n].tolist()])
        xyz, F, w = (fract @ refiner.orth.T).astype(np.float32)[None], refiner.reflections.F[order][:n], data.weight[:n]
        a, f = A - (w * A).sum() / w.sum(), F - (w * F).sum() / w.sum()
        cc = (w * a * f).sum() / np.sqrt((w * a * a).sum() * (w * f * f).sum())
        assert score(xyz, data, n)[0] == pytest.approx(cc, abs=1e-3)
        k = (A @ F) / (A @ A)
        assert r_factors(xyz, data, n)[0] == pytest.approx(np.abs(F - k * A).sum() / F.sum(), abs=1e-3)


@pytest.mark.parametrize("name, cell", [("P 1 21/c 1", MONOCLINIC), ("P 21 21 21", gemmi.UnitCell(8.1, 9.3, 10.7, 90, 90, 90))])
def test_a_climb_follows_the_gradient_and_keeps_the_molecule(name, cell):
    """With and without an inversion at the origin."""
    (molecule, _), = read_molecules("CC(=O)Nc1ccc(O)cc1")
    xyz = molecule.conformers[0] + [1.5, 2.0, 3.0]
    crystal = Crystal("", cell, gemmi.SpaceGroup(name), molecule.elements, xyz @ np.array(cell.frac.mat.tolist()).T,
                      np.full(len(molecule), 0.045), np.ones(len(molecule)))
    refiner = Refiner(calculated(crystal, 2.0))
    data, _ = data_of(refiner, molecule.elements, np.zeros(len(molecule)), np.ones(len(molecule)), 0.045)
    centre = xyz.mean(0)
    start = turn(xyz - centre, np.array([0.0, 0.6, 0.8]), 0.15) + centre + [0.2, -0.1, 0.15]
    moved = start[None].astype(np.float32)
    n = len(data.F)
    before = score(moved, data, n)[0]
    climb(moved, np.eye(3, dtype=np.float32)[None, None], data, _joints([molecule]), np.full(150, n),
          np.linspace(1, 0.05, 150).astype(np.float32))
    assert before < 0.9 and score(moved, data, n)[0] > 0.999
    np.testing.assert_allclose(moved[0], xyz, atol=0.02)
    rigid = molecule.rigid()
    for x in (moved[0],):
        length = np.linalg.norm(x[:, None] - x, axis=-1), np.linalg.norm(xyz[:, None] - xyz, axis=-1)
        np.testing.assert_allclose(length[0][rigid], length[1][rigid], atol=1e-3)


def test_refinement_brings_atoms_back_and_holds_distances():
    (molecule, _), = read_molecules("CC(=O)Nc1ccc(O)cc1")
    xyz = molecule.conformers[0] + [1.5, 2.0, 3.0]
    crystal = Crystal("", TRICLINIC, gemmi.SpaceGroup("P -1"), molecule.elements,
                      xyz @ np.array(TRICLINIC.frac.mat.tolist()).T, np.full(11, 0.06), np.ones(11))
    refiner = Refiner(calculated(crystal, 2.0))
    data, d = data_of(refiner, molecule.elements, np.zeros(11), np.ones(11), 0.045)
    start = xyz + np.random.default_rng(0).normal(0, 0.1, xyz.shape)
    sigma = refiner.reflections.sigF[np.argsort(-refiner.reflections.d, kind="stable")]
    moved, u, r1, strain = refine(start, data, refiner, sigma, distances_of(rigid_distances([molecule]), xyz), 20)
    assert np.linalg.norm(moved - xyz, axis=1).max() < 0.03 and r1 < 0.02 and strain < 0.2
    assert u == pytest.approx(0.015, abs=0.004)


def test_special_positions_of_the_tables():
    # International Tables, Vol. A: P-1 has eight inversion centres; P 2/m has 2/m at eight points, twofold axes at four lines,
    # mirrors at two planes; P 21 21 21 has none
    assert len(special_sites(gemmi.SpaceGroup("P -1"), 2)) == 8
    assert len(special_sites(gemmi.SpaceGroup("P 1 2/m 1"), 4)) == 8
    rank = [round(np.trace(site[3:].reshape(3, 3))) for site in special_sites(gemmi.SpaceGroup("P 1 2/m 1"), 2)]
    assert sorted(rank) == [1, 1, 1, 1, 2, 2]
    assert len(special_sites(gemmi.SpaceGroup("P 21 21 21"), 2)) == 0
    # Wyckoff a-d of P 21/c, two centres of the cell each
    assert len(special_sites(gemmi.SpaceGroup("P 1 21/c 1"), 2)) == 8


def test_contacts_are_those_between_images():
    fract = np.array([[0.1, 0.2, 0.3], [0.25, 0.3, 0.35]])
    refiner = dummy(TRICLINIC, "P -1")
    rot, tran = (np.asarray(x, float) for x in all_operators(gemmi.SpaceGroup("P -1")))
    shortest, bump = contacts(fract @ refiner.orth.T, np.array([0, 2]), refiner.orth, rot, tran, 2.5)
    cells = np.stack(np.meshgrid(*[[-2, -1, 0, 1, 2]] * 3), -1).reshape(-1, 3)
    inverted = [np.linalg.norm(refiner.orth @ (-x + n - y)) for x in fract for y in fract for n in cells]
    shifted = [np.linalg.norm(refiner.orth @ (x + n - y)) for x in fract for y in fract for n in cells if n.any()]
    lengths = np.array(inverted + shifted)
    assert shortest == pytest.approx(lengths.min(), abs=1e-6)
    assert bump == pytest.approx((((2.5 - lengths[lengths < 2.5]) / 0.2) ** 2).sum(), rel=1e-6)


def test_a_molecule_on_a_centre_is_brought_to_its_symmetry():
    # biphenyl-like: six atoms and their images through (1/2, 1/2, 1/2), moved a little
    group = gemmi.SpaceGroup("P -1")
    refiner = dummy(TRICLINIC, "P -1")
    half = np.array([[0.7, 0, 0], [1.4, 1.2, 0], [2.8, 1.2, 0.3]])
    centre = refiner.orth @ [0.5, 0.5, 0.5]
    exact = np.concatenate([half, -half]) + centre
    rot, tran = (np.asarray(x, float) for x in all_operators(group))
    noise = np.random.default_rng(0).normal(0, 0.05, exact.shape)
    made, kept, occ, disordered = symmetric(exact + noise - noise.mean(0), ("C",) * 6, 2, refiner.orth, rot, tran)
    np.testing.assert_allclose(made[:3] + made[3:], np.tile(2 * centre, (3, 1)), atol=1e-9)
    assert kept.tolist() == [True] * 3 + [False] * 3 and (occ == 1).all() and not disordered.any()


def test_restraints_for_shelxl_name_every_bond_and_angle_once():
    crystal = read_cif("data/molecules/paracetamol.cif")
    names = [f"{e}{i}" for i, e in enumerate(crystal.elements)]
    assert placing.shelx_restraints(crystal, names, 0.9) == []
    lines = placing.shelx_restraints(crystal, names, 2.5)
    assert max(map(len, lines)) <= 80
    found = {"DFIX": {}, "DANG": {}}
    for kind, length, sigma, *atoms in map(str.split, lines):
        assert float(sigma) == {"DFIX": 0.02, "DANG": 0.04}[kind]
        for pair in zip(atoms[::2], atoms[1::2]):
            assert frozenset(pair) not in found[kind]
            found[kind][frozenset(pair)] = float(length)
    # C8H9NO2 has a ring: 20 atoms and 20 bonds, and Σ n (n - 1) / 2 angles of atoms with n neighbours:
    # 7 of three (six of the ring, C=O), one N, one CH3 with four, one O with two
    assert len(found["DFIX"]) == 20 and len(found["DANG"]) == 8 * 3 + 6 + 1
    place = {name: gemmi.Fractional(*x) for name, x in zip(names, crystal.fract)}
    for pairs in found.values():
        for (a, b), length in ((tuple(pair), length) for pair, length in pairs.items()):
            image = crystal.small_structure().cell.find_nearest_image(*(crystal.cell.orthogonalize(place[x]) for x in (a, b)))
            assert image.dist() == pytest.approx(length, abs=6e-4)


def water():
    return read_molecules("O")[0][0]


def test_how_many_fit_follows_from_the_volume():
    (molecule, _), = read_molecules("CC(=O)Nc1ccc(O)cc1")  # 11 atoms, 4 in 770 Å³ of the monoclinic form
    cell, group = gemmi.UnitCell(7.09, 9.23, 11.62, 90, 97.8, 90), gemmi.SpaceGroup("P 1 21/n 1")
    first = arrangements([molecule], [1], cell, group)[0]
    assert first.parts == (Part(0, 1),) and first.volume == pytest.approx(cell.volume / 44)
    assert "1 C8H9NO2 in the asymmetric unit, 17.1" in first.describe([molecule])
    (biphenyl, _), = read_molecules("c1ccccc1-c1ccccc1")   # Z = 2 in P 21/a, on inversion centres
    first = arrangements([biphenyl], [1], gemmi.UnitCell(8.12, 5.63, 9.51, 90, 95.1, 90), gemmi.SpaceGroup("P 1 21/a 1"))[0]
    assert first.parts == (Part(0, 2),)


def test_contradictions_are_said():
    cell, group = gemmi.UnitCell(7.09, 9.23, 11.62, 90, 97.8, 90), gemmi.SpaceGroup("P 1 21/n 1")
    salt = read_molecules("C[NH3+]")[0][0]
    with pytest.raises(PlacingError, match="charge of \\+1.*counter-ion"):
        arrangements([salt], [1], cell, group)
    (large, _), = read_molecules("CCCCCCCCCCCCCCCCCCCCCCCCCCCCCC")
    with pytest.raises(PlacingError, match="about 10 non-H atoms, and C30H62 has 30"):
        arrangements([large], [1], cell, group)


def test_paracetamol_is_found_from_its_drawing_at_two_and_a_half_angstrom():
    crystal, told = read_cif("data/molecules/paracetamol.cif"), []
    (molecule, _), = read_molecules("CC(=O)Nc1ccc(O)cc1")
    solution = place(calculated(crystal, 2.5), [molecule], minutes=0.3, several=3, watch=told.append)
    assert len(told) > 2 and told[0].starts == 0 and told[0].r1 == float("inf")
    assert told[-1].starts == solution.trials and 0 < told[-1].seconds < solution.seconds + 0.1
    assert all(a.seconds <= b.seconds and a.starts <= b.starts for a, b in zip(told, told[1:]))
    heavy = np.array(solution.elements) != "H"
    assert solved(solution.fract[heavy], crystal)
    assert solution.r1 < 0.12 and (~heavy).sum() == 9
    assert solution.evidence.next_r1 > 0.2 and solution.evidence.found >= 1
    assert "1 C8H9NO2 in the asymmetric unit" in solution.evidence.in_words()
    assert len(solution.others) == 2 and solution.others[0].probability >= solution.others[1].probability
    for other in solution.others:  # what is as good as another one is doubtful
        assert not solved(other.fract[np.array(other.elements) != "H"], crystal)
        assert other.r1 > solution.r1 and other.probability <= 0.5 and other.evidence.next_r1 < other.r1


@pytest.mark.slow
def test_half_a_molecule_on_a_centre_and_water_are_found():
    """A flat molecule of our own on an inversion centre of a triclinic cell, water beside it."""
    ring = np.array([[1.39 * np.cos(a), 1.39 * np.sin(a), 0] for a in np.arange(6) * np.pi / 3])
    outer = ring[[0, 3]] * (1.39 + 1.74) / 1.39
    elements, xyz = ["C"] * 6 + ["Cl"] * 2, np.concatenate([ring, outer])
    molecule = from_geometry(elements, xyz, "dichlorobenzene without hydrogen")
    cell, group = gemmi.UnitCell(4.2, 6.6, 6.9, 81, 103, 96), gemmi.SpaceGroup("P -1")
    orth = np.array(cell.orth.mat.tolist())
    turned = turn(xyz, np.array([1, 2, 2]) / 3, 0.9)
    fract = np.concatenate([turned[[0, 1, 2, 6]] @ np.linalg.inv(orth).T, [[0.53, 0.31, 0.62]]])
    names = ("C", "C", "C", "Cl", "O")
    crystal = Crystal("", cell, group, names, fract, np.full(5, 0.05), np.ones(5))
    chosen = Arrangement((Part(0, 2), Part(1, 1)), 1, 18.0)
    solution = place(calculated(crystal, 1.5), [molecule, replace(water(), name="water")], minutes=0.05, chosen=chosen)
    heavy = np.array(solution.elements) != "H"
    match = match_atoms(solution.fract[heavy], fract, cell, group)
    assert heavy.sum() == 5 and match.n_matched == 5 and match.rms < 0.15


def test_the_same_seed_gives_the_same_answer():
    crystal = read_cif("data/molecules/paracetamol.cif")
    (molecule, _), = read_molecules("CC(=O)Nc1ccc(O)cc1")
    refiner = Refiner(calculated(crystal, 3.0))
    chosen = arrangements([molecule], [1], crystal.cell, crystal.spacegroup)[0]
    best = []
    for _ in range(2):
        search = Search(refiner, [molecule], chosen)
        search.cost_of_step = 1e-9
        search.round(np.random.default_rng(3), float("inf"))
        best.append(search.pool[0].refined)
    np.testing.assert_array_equal(*best)


def run(*arguments):
    return CliRunner().invoke(app, ["solve", *map(str, arguments)])


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    crystal = read_cif("data/molecules/paracetamol.cif")
    stem = tmp_path_factory.mktemp("job") / "paracetamol"
    write_shelx(stem, calculated(crystal, 1.2), crystal.contents)
    return stem.with_suffix(".hkl"), crystal


def test_the_command_line_places_a_molecule_and_writes_its_files(job):
    hkl, crystal = job
    done = run(hkl, "--molecule", "CC(=O)Nc1ccc(O)cc1", "--d-min", 2.5, "--minutes", 0.3)
    assert done.exit_code == 0, done.output
    assert "1 C8H9NO2 in the asymmetric unit" in done.output
    assert "placing C8H9NO2 until the answer is certain, 0.3 minutes at most\n" in done.output  # before the search
    written = read_cif(hkl.parent / "paracetamol_xrd" / "paracetamol.cif")
    assert solved(written.fract[written.heavy], crystal)
    res = (hkl.parent / "paracetamol_xrd" / "paracetamol.res").read_text()
    # C1 is the first atom drawn, CH3; O1 the second oxygen's neighbour in the drawing, C=O
    assert all(f"\n{label} " in res for label in ("C1", "C8", "N1", "O1", "O2", "H9"))


def test_the_space_group_is_searched_with_a_molecule(job):
    hkl, crystal = job
    done = run(hkl, "--molecule", "CC(=O)Nc1ccc(O)cc1", "--d-min", 2.0, "--minutes", 0.5, "--spacegroup", "search", "--out",
               hkl.parent / "searched")
    assert done.exit_code == 0, done.output
    written = read_cif(hkl.parent / "searched" / "paracetamol.cif")
    assert written.spacegroup.xhm() == crystal.spacegroup.xhm()
    assert solved(written.fract[written.heavy], crystal)


def test_of_two_molecules_the_lower_r1_is_the_likelier_one(monkeypatch):
    monkeypatch.setattr(placing, "calibration", lambda: {"pairs": {"weight": 5.0, "limit": 0.01}})
    p = placing.preferences([SimpleNamespace(r1=0.1), SimpleNamespace(r1=0.2)])
    # logistic function of 5 ln 2: 1 / (1 + 2**-5) = 32 / 33, and no nearer to 1 than the limit
    np.testing.assert_allclose(p, [0.005 + 0.99 * 32 / 33, 0.005 + 0.99 / 33])
    p = placing.preferences([SimpleNamespace(r1=r) for r in (0.3, 0.3, 0.3, 1e-9)])
    assert p[0] == p[1] == p[2] and p.sum() == pytest.approx(1) and p[3] == pytest.approx(1 - 0.01 * 3 / 4, abs=1e-4)


@pytest.mark.slow
def test_of_two_isomers_the_right_one_is_named_and_both_where_they_are_one(job):
    hkl, _ = job
    wanted = ["--molecule", "CC(=O)Nc1ccc(O)cc1", "--d-min", 2.0, "--minutes", 0.05]
    done = run(hkl, *wanted, "--or", "CNC(=O)c1ccc(O)cc1", "--or", "C" * 30, "--out", hkl.parent / "isomers")
    assert done.exit_code == 0, done.output
    assert "The data prefer CC(=O)Nc1ccc(O)cc1:" in done.output and "\nCNC(=O)c1ccc(O)cc1: R1 0." in done.output
    assert "\n" + "C" * 30 + ": the asymmetric unit of" in done.output and "Solved in P 1 21/n 1" in done.output
    again = "Oc1ccc(NC(C)=O)cc1"  # the same, written from the other end
    done = run(hkl, *wanted, "--or", again, "--out", hkl.parent / "same")
    told = done.output.split("The data do not tell ")[1].split(". The first")[0]
    assert sorted(told.split(" from ")) == sorted([wanted[1], again])


@pytest.mark.slow
def test_a_fragment_is_completed(job):
    hkl, crystal = job
    done = run(hkl, "--fragment", "Nc1ccc(O)cc1", "--minutes", 0.1, "--out", hkl.parent / "fragment")
    assert done.exit_code == 0, done.output
    written = read_cif(hkl.parent / "fragment" / "paracetamol.cif")
    assert solved(written.fract[written.heavy], crystal)


@pytest.mark.parametrize("arguments, says", [
    (["--molecule", "CC(=O)Nc1ccc(O)cc1", "--fragment", "CC"], "either --molecule"),
    (["--molecule", "C[NH3+]"], "counter-ion"), (["--molecule", "CCC("], "no SMILES"),
    (["--molecule", "CCO", "--extend", "shell_mean"], "--extend is for structures of which no molecule is known"),
    (["--or", "CCO"], "give that, too"),
    (["--fragment", "CCO", "--engine", "shelxt"], "leave out --fragment")])
def test_contradictions_on_the_command_line_are_sentences(job, arguments, says):
    done = run(job[0], *arguments, "--out", job[0].parent / "nothing")
    assert isinstance(done.exception, UserError) and says in str(done.exception)
