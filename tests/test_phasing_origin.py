"""Origins, hands and their comparison: against International Tables, and cases moved by hand."""

from types import SimpleNamespace

import gemmi
import numpy as np
import pytest

from xrd_helpers.crystals import Crystal
from xrd_helpers.phasing import origin
from xrd_helpers.reflections import unique_hkl

HALVES = [(x, y, z) for x in (0, 0.5) for y in (0, 0.5) for z in (0, 0.5)]
CELLS = {"P 1": (6.1, 8.3, 11.7, 81, 95, 104), "P -1": (6.1, 8.3, 11.7, 81, 95, 104),
         "P 1 21 1": (7.1, 9.3, 6.2, 90, 103, 90), "P 1 21/c 1": (7.3, 9.1, 8.4, 90, 111, 90),
         "C 1 2 1": (12.1, 6.3, 7.2, 90, 108, 90), "C 1 2/c 1": (12.3, 6.1, 9.4, 90, 107, 90),
         "P 1 c 1": (7.3, 9.1, 8.4, 90, 111, 90), "C 1 c 1": (12.3, 6.1, 9.4, 90, 107, 90),
         "P 21 21 21": (6.1, 8.2, 11.3, 90, 90, 90)}


@pytest.mark.parametrize("name, shifts, polar", [  # International Tables, Vol. A (2002), table 15.2.1.3
    ("P 1", [(0, 0, 0)], [(1, 0, 0), (0, 1, 0), (0, 0, 1)]),
    ("P -1", HALVES, []),
    ("P 1 21/c 1", HALVES, []),
    ("P 1 21/n 1", HALVES, []),
    ("P 21 21 21", HALVES, []),
    ("P 1 21 1", [(x, 0, z) for x in (0, 0.5) for z in (0, 0.5)], [(0, 1, 0)]),
    ("C 1 2 1", [(0, 0, 0), (0, 0, 0.5)], [(0, 1, 0)]),
    ("C 1 2/c 1", [(0, y, z) for y in (0, 0.5) for z in (0, 0.5)], []),
    ("P 1 c 1", [(0, 0, 0), (0, 0.5, 0)], [(1, 0, 0), (0, 0, 1)]),
    ("C 1 c 1", [(0, 0, 0)], [(1, 0, 0), (0, 0, 1)]),   # (0 1/2 0) is (1/2 0 0), the centring less a polar shift
    ("P n a 21", [(x, y, 0) for x in (0, 0.5) for y in (0, 0.5)], [(0, 0, 1)]),
    ("F -4 3 m", [(k / 4,) * 3 for k in range(4)], []),
    ("P 31", [(0, 0, 0), (1 / 3, 2 / 3, 0), (2 / 3, 1 / 3, 0)], [(0, 0, 1)])])
def test_allowed_origins_are_those_of_the_tables(name, shifts, polar):
    found, directions = origin.allowed_origins(gemmi.SpaceGroup(name))
    assert tuple(found[0]) == (0, 0, 0)
    if name == "F -4 3 m":  # classes modulo the centring: compare their sums of coordinates, 0, 1/4, 1/2, 3/4
        assert len(found) == 4 and sorted(found.sum(1) % 1) == pytest.approx([0, 0.25, 0.5, 0.75])
    elif name == "C 1 2/c 1":  # (0 1/2 0) is (1/2 0 0) by the centring, and so on: as classes
        assert sorted(tuple(t) for t in found) == shifts
    else:
        np.testing.assert_allclose(sorted(map(tuple, found)), sorted(shifts), atol=1e-12)
    assert len(directions) == len(polar)
    assert not polar or np.linalg.matrix_rank(np.array([*directions, *polar])) == len(polar)


def atoms(n=9):
    return np.random.default_rng(5).random((n, 3))


def setting(name):
    return gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name)


@pytest.mark.parametrize("name", CELLS)
def test_atoms_match_from_every_allowed_origin_and_hand(name):
    cell, spacegroup = setting(name)
    true, rng = atoms(), np.random.default_rng(6)
    ops = list(spacegroup.operations())
    shifts, polar = origin.allowed_origins(spacegroup)
    for sign in (1, -1):
        for shift in shifts:
            # other images of the same atoms, in another order and another cell
            found = [ops[rng.integers(len(ops))].apply_to_xyz(list(x)) for x in true]
            found = sign * (np.array(found) - shift - rng.random(len(polar)) @ polar) + rng.integers(-1, 2, (9, 3))
            match = origin.match_atoms(found[::-1], true, cell, spacegroup)
            assert match.n_matched == match.n_true == 9 and match.rms < 1e-6
            assert sorted(map(tuple, match.pairs)) == [(i, 8 - i) for i in range(9)]
            distance = (match.fract[::-1] - true + 0.5) % 1 - 0.5
            np.testing.assert_allclose(distance, 0, atol=1e-6)


@pytest.mark.parametrize("name, shift", [("P 1 21/c 1", (0.25, 0, 0)), ("P 1 21/c 1", (0.21, 0.13, 0.32)),
                                         ("P 1 21 1", (0.25, 0, 0)), ("C 1 2/c 1", (0.25, 0.25, 0))])
def test_atoms_do_not_match_from_an_origin_that_is_not_allowed(name, shift):
    cell, spacegroup = setting(name)
    match = origin.match_atoms(atoms() + shift, atoms(), cell, spacegroup)
    assert match.n_matched < 5


def test_matching_is_one_to_one_and_counts_within_the_tolerance():
    cell, spacegroup = setting("P 1 21/c 1")
    true = np.array([[0.1, 0.2, 0.3], [0.4, 0.1, 0.2], [0.3, 0.4, 0.1]])
    b = 1 / cell.b  # 1 Å along b
    found = np.array([true[0] + [0, 0.2 * b, 0], true[0] - [0, 0.3 * b, 0], true[1] + [0, 0.6 * b, 0], true[2]])
    match = origin.match_atoms(found, true, cell, spacegroup)
    assert sorted(map(tuple, match.pairs)) == [(0, 0), (3, 2)]
    assert match.rms == pytest.approx(np.sqrt(0.2**2 / 2))
    assert origin.match_atoms(found, true, cell, spacegroup, tolerance=0.65).n_matched == 3


def test_enantiomorphic_groups_keep_their_hand():
    assert len(origin.hands(gemmi.SpaceGroup("P 31"))) == 1
    assert len(origin.hands(gemmi.SpaceGroup("P 1 21 1"))) == 2
    inverted, centre = origin.hands(gemmi.SpaceGroup("I 41"))[1]
    assert inverted and tuple(centre) == (0.5, 0, 0)  # International Tables: I41 inverts at 1/4 0 0


def structure_phases(name, fract, weights):
    cell, spacegroup = setting(name)
    hkl = unique_hkl(cell, spacegroup, 1.1)
    sf = np.zeros(len(hkl), complex)
    for op in spacegroup.operations():
        for x, w in zip(fract, weights):
            sf += w * np.exp(2j * np.pi * (hkl @ np.array(op.apply_to_xyz(list(x)))))
    return hkl, np.abs(sf), np.degrees(np.angle(sf))


@pytest.mark.parametrize("name", CELLS)
def test_phases_agree_from_every_allowed_origin_and_hand(name):
    spacegroup = setting(name)[1]
    weights = 1 + np.arange(9)
    hkl, F, phi = structure_phases(name, atoms(), weights)
    shifts, polar = origin.allowed_origins(spacegroup)
    for sign in (1, -1):
        for shift in shifts:
            moved = sign * (atoms() - shift - np.array([0.137, 0.271, 0.419])[:len(polar)] @ polar)
            agreement = origin.phase_error(structure_phases(name, moved, weights)[2], phi, hkl, F, spacegroup)
            assert agreement.mean_error < 1e-3 and agreement.map_cc == pytest.approx(1, abs=1e-8)
            assert agreement.inverted == (sign == -1 and not spacegroup.is_centrosymmetric())


def test_phases_of_another_origin_or_structure_do_not_agree():
    hkl, F, phi = structure_phases("P 1 21/c 1", atoms(), np.ones(9))
    # a quarter of the axis: h odd reflections move by 90 degrees
    other = phi + 90 * hkl[:, 0]
    agreement = origin.phase_error(other, phi, hkl, F, gemmi.SpaceGroup("P 1 21/c 1"))
    assert agreement.mean_error > 30 and agreement.map_cc < 0.7
    random = np.random.default_rng(0).choice([0, 180], len(hkl))
    assert origin.phase_error(random, phi, hkl, F, gemmi.SpaceGroup("P 1 21/c 1")).map_cc < 0.4


def test_phase_error_by_hand():
    # two reflections that no origin shift of P-1 can move (all indices even): 60 degrees at F 1, 0 at F 3
    agreement = origin.phase_error([60, 10], [0, 10], [[2, 0, 0], [0, 4, 2]], [1, 3], gemmi.SpaceGroup("P -1"))
    assert agreement.mean_error == pytest.approx(15) and agreement.map_cc == pytest.approx((0.5 + 9) / 10)


def test_solved_counts_the_atoms_that_are_not_hydrogen():
    cell, spacegroup = setting("P 1 21 1")
    true = atoms(6)
    crystal = Crystal("test", cell, spacegroup, ("C", "C", "O", "N", "C", "H"), true, np.full(6, 0.03), np.ones(6))
    assert origin.solved(true[:4] + [0.5, 0.3, 0], crystal)  # 4 of 5, from another origin
    assert not origin.solved(true[[0, 1, 2, 5]], crystal)    # the hydrogen atom does not count
    assert not origin.solved(None, crystal)


@pytest.mark.parametrize("name, basis", [("P 1 21/n 1", "x-z,y,z"), ("P 1 21/a 1", "z,-y,x"), ("P 1 21 1", "z,-y,x")])
def test_a_solution_on_other_axes_is_compared_on_those_of_the_crystal(name, basis):
    # gemmi's change of basis brings cell, operators and atoms of P21/c (or P21) to other axes
    cell, spacegroup = setting("P 1 21/c 1" if "/" in name else "P 1 21 1")
    true = atoms(6)
    crystal = Crystal("test", cell, spacegroup, ("C",) * 6, true, np.full(6, 0.03), np.ones(6))
    op = gemmi.Op(basis)
    group = spacegroup.operations()
    group.change_basis_forward(op)
    other = cell.changed_basis_forward(op, False)
    found = SimpleNamespace(fract=np.array([op.apply_to_xyz(list(x)) for x in true]) % 1, cell=other,
                            spacegroup=gemmi.find_spacegroup_by_ops(group))
    assert found.spacegroup.xhm() == name and not np.allclose(other.parameters, cell.parameters)
    match = origin.match_solution(found, crystal)
    assert match.n_matched == match.n_true == 6 * len(spacegroup.operations()) and match.rms < 1e-6
    found.fract = np.random.default_rng(9).random((6, 3))
    assert not origin.solved(found, crystal)


def test_a_solution_of_lower_symmetry_is_recognised():
    cell, spacegroup = setting("P 1 21/c 1")
    crystal = Crystal("test", cell, spacegroup, ("C",) * 9, atoms(), np.full(9, 0.03), np.ones(9))
    inverted = -atoms()
    found = SimpleNamespace(fract=np.concatenate([atoms(), inverted]), cell=cell,
                            spacegroup=gemmi.SpaceGroup("P 1 21 1"))
    # the screw axis of P21/c is at z = 1/4, that of P21 at 0 and its origin anywhere along y
    found.fract = found.fract - [0, 0.123, 0.25]
    match = origin.match_solution(found, crystal)
    assert match.n_matched == match.n_true == 36 and match.rms < 1e-6
    # the same molecules, wrongly packed
    found.fract[9:] += [0.2, 0.1, 0.3]
    assert not origin.solved(found, crystal)


def test_another_lattice_has_no_match():
    cell, spacegroup = setting("P 1 21 1")
    crystal = Crystal("test", cell, spacegroup, ("C",) * 9, atoms(), np.full(9, 0.03), np.ones(9))
    found = SimpleNamespace(fract=atoms(), cell=gemmi.UnitCell(5, 6, 7, 90, 100, 90), spacegroup=spacegroup)
    assert origin.match_solution(found, crystal) is None and not origin.solved(found, crystal)
