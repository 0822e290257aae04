"""Restrained least squares: against direct summation, finite differences and closed forms, in oblique cells."""

from collections import defaultdict
from dataclasses import replace

import gemmi
import numpy as np
import pytest

from makers import REAL
from xrd_helpers.bonds import covalent_radii, neighbours
from xrd_helpers.cif_folders import read_cif_folders
from xrd_helpers.crystals import Crystal
from xrd_helpers.phasing.refine import Model, Refiner
from xrd_helpers.phasing.restraints import (
    BONDS,
    RestrainedRefiner,
    Restraints,
    choose_peaks,
    find_pairs,
    local_maxima,
    restrain,
)
from xrd_helpers.reflections import Reflections, unique_hkl
from xrd_helpers.structure_factors import structure_factors

CELLS = {"P 1": (5.1, 6.3, 7.7, 81, 95, 104), "P -1": (6.1, 7.3, 8.7, 81, 95, 104), "P 1 21/c 1": (7.3, 9.1, 8.4, 90, 111, 90),
         "C 1 c 1": (12.3, 6.1, 9.4, 90, 107, 90), "P 21 21 21": (5.9, 7.7, 9.1, 90, 90, 90)}


def crystal_of(name, n=6, seed=1):
    rng = np.random.default_rng(seed)
    return Crystal(name, gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name), ("S", "O", "N", "C", "C", "C")[:n],
                   rng.random((n, 3)), rng.uniform(0.02, 0.06, n), np.ones(n))


def refiner_of(crystal, d_min=1.2):
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
    F = np.abs(structure_factors(crystal, hkl))
    return RestrainedRefiner(Reflections.of_good_data(hkl, F, crystal.cell, crystal.spacegroup), ["S", "O", "N", "C"])


@pytest.mark.parametrize("name", CELLS)
def test_structure_factors_and_derivatives(name):
    """Fcalc is that of direct summation; columns of J are finite differences of it."""
    crystal = crystal_of(name)
    refiner = refiner_of(crystal)
    kind = refiner.kinds(crystal.elements)
    J, sf = refiner.derivatives(crystal.fract, kind, crystal.u_iso, crystal.occ)
    true = structure_factors(crystal, refiner.reflections.hkl)
    np.testing.assert_allclose(sf, true, atol=2e-4 * np.abs(true).max())
    np.testing.assert_allclose(J[:, -1], np.abs(true), atol=2e-4 * np.abs(true).max())
    n, h = len(kind), 1e-5
    plain, clear = Refiner(refiner.reflections), np.abs(true) > 0.02 * np.abs(true).max()
    for column in range(4 * n):
        axis, atom = divmod(column, n)
        sizes = []
        for sign in (1, -1):
            fract, u_iso = crystal.fract.copy(), crystal.u_iso.copy()
            if axis < 3:
                fract[atom, axis] += sign * h
            else:
                u_iso[atom] += sign * h
            moved = Crystal(name, crystal.cell, crystal.spacegroup, crystal.elements, fract, u_iso, crystal.occ)
            sizes.append(np.abs(structure_factors(moved, refiner.reflections.hkl)))
        slope = (sizes[0] - sizes[1]) / (2 * h)
        np.testing.assert_allclose(J[clear, column], slope[clear], atol=2e-3 * np.abs(slope).max() + 1e-3)
    model = Model(crystal.fract, crystal.elements, crystal.u_iso, crystal.occ, np.zeros(n))
    np.testing.assert_allclose(np.abs(plain.structure_factors(model)), J[:, -1], atol=2e-4 * np.abs(true).max())


@pytest.mark.parametrize("name", CELLS)
def test_pairs_are_those_of_gemmi(name):
    crystal = crystal_of(name)
    restraints = Restraints(["S", "O", "N", "C"], crystal.cell, crystal.spacegroup)
    first, second, _, vector, length = restraints.pairs(crystal.fract, crystal.occ, 2.4)
    np.testing.assert_allclose(np.linalg.norm(vector, axis=1), length)
    cell = crystal.small_structure().cell  # knows the images
    for i in range(6):
        for j in range(i + 1, 6):
            a, b = (gemmi.Fractional(*crystal.fract[k]) for k in (i, j))
            nearest = cell.find_nearest_image(cell.orthogonalize(a), cell.orthogonalize(b), gemmi.Asu.Any).dist()
            mine = length[(first == i) & (second == j)]
            assert mine.min(initial=9) == pytest.approx(nearest, abs=1e-6) if nearest < 2.4 else not len(mine)


def chi2(fract, u_iso, restraints, kind):
    """Sum of squared restraints, written once more from its definition."""
    from xrd_helpers.phasing import restraints as module
    first, second, _, _, length = restraints.pairs(fract, np.ones(len(fract)))
    total = ((u_iso - np.median(u_iso)) ** 2).sum() / module.S_MEDIAN ** 2
    for i, j, d in zip(first, second, length):
        a, b = kind[i], kind[j]
        if d < restraints.longest[a, b]:
            total += ((d - restraints.bond[a, b]) / restraints.spread[a, b]) ** 2
            total += ((u_iso[i] - u_iso[j]) / module.S_SIMILAR) ** 2 if i != j else 0
        elif d < module.APART and restraints.longest[a, b] < module.APART:
            total += ((d - module.ASIDE) / module.S_ASIDE) ** 2
    return total


@pytest.mark.parametrize("name", ["P -1", "P 1 21/c 1"])
def test_restraints_pull_along_their_gradient(name):
    """The right side is minus half the gradient of chi², also of bonds to images, and the matrix is symmetric and positive."""
    cell, spacegroup = gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name)
    # C, O at 1.5 Å, N at 2.0 Å from C; the last is bonded to its own image across the centre at the origin
    inverse = np.linalg.inv(np.array(cell.orth.mat.tolist()))
    at = np.array([0.31, 0.27, 0.33])
    fract = np.array([at, at + inverse @ [1.5, 0, 0], at + inverse @ [0, 1.4, 1.43], inverse @ [0.4, 0.5, 0.3]])
    restraints, kind = Restraints(["O", "N", "C"], cell, spacegroup), np.array([2, 0, 1, 2])
    u_iso = np.array([0.03, 0.05, 0.04, 0.07])
    n = len(kind)
    normal, rhs = np.zeros((4 * n + 1, 4 * n + 1)), np.zeros(4 * n + 1)
    restrain(normal, rhs, restraints.pairs(fract, np.ones(n)), kind, u_iso, restraints.rot, restraints.orth, restraints.bond,
             restraints.spread, restraints.longest)
    np.testing.assert_allclose(normal, normal.T)
    assert np.linalg.eigvalsh(normal).min() > -1e-6
    for column in range(3 * n):
        axis, atom = divmod(column, n)
        step = np.zeros((n, 3))
        step[atom, axis] = 1e-6
        slope = (chi2(fract + step, u_iso, restraints, kind) - chi2(fract - step, u_iso, restraints, kind)) / 2e-6
        assert rhs[column] == pytest.approx(-slope / 2, rel=1e-4, abs=1e-2)
    assert np.abs(rhs[:3 * n]).max() > 10


def test_bonds_of_the_table_are_symmetric_and_others_come_from_radii():
    cell, group = gemmi.UnitCell(*CELLS["P 1"]), gemmi.SpaceGroup("P 1")
    restraints = Restraints(["Cu", "Cl", "C"], cell, group)
    assert restraints.bond[1, 2] == restraints.bond[2, 1] == BONDS["CCl"][0]
    assert restraints.bond[0, 1] == pytest.approx(gemmi.Element("Cu").covalent_r + gemmi.Element("Cl").covalent_r)
    assert (restraints.shortest < restraints.bond).all() and (restraints.bond < restraints.longest).all()


def test_good_data_overrule_the_restraints():
    """A C-C bond of 1.62 Å, two and a half spreads too long, is found from 1.50 Å at 0.8 Å, and not with bad data at 2.5 Å."""
    cell, group = gemmi.UnitCell(*CELLS["P -1"]), gemmi.SpaceGroup("P -1")
    inverse, at = np.linalg.inv(np.array(cell.orth.mat.tolist())), np.array([0.31, 0.27, 0.33])
    fract = np.array([at, at + inverse @ [1.62, 0, 0]])
    crystal = Crystal("long", cell, group, ("C", "C"), fract, np.full(2, 0.04), np.ones(2))

    def length(d_min, noise):
        hkl = unique_hkl(cell, group, d_min)
        F = np.abs(structure_factors(crystal, hkl))
        refiner = RestrainedRefiner(Reflections(hkl, F, noise * F.mean() + 0 * F, cell, group), ["C"])
        start = np.array([at, at + inverse @ [1.5, 0, 0]])
        refined = refiner.least_squares(Model(start, crystal.elements, crystal.u_iso, crystal.occ, np.zeros(2)), 8)
        return cell.orthogonalize(gemmi.Fractional(*(refined.fract[1] - refined.fract[0]))).length()

    assert length(0.8, 0.02) == pytest.approx(1.62, abs=0.003)
    assert length(2.5, 1.0) < 1.58


def test_the_map_and_its_peaks_are_those_of_the_other_engine():
    crystal = crystal_of("P 1 21/c 1")
    refiner = refiner_of(crystal, 0.9)
    sf = structure_factors(crystal, refiner.reflections.hkl)
    rho, other = refiner.density(sf.astype(np.complex64)), refiner.maps.map(sf)
    np.testing.assert_allclose(rho / rho.std(), other / other.std(), atol=1e-3)
    voxel, value = local_maxima(rho, 0.0)
    r, none = refiner.restraints, (np.zeros((0, 3)), np.zeros(0, np.int64))
    fract, height, occ, _, _ = choose_peaks(rho, voxel, np.argsort(-value), 6, *none, r.rot, r.tran, r.orth, r.bond, r.longest,
                                            0, 0.9)
    assert height.argmax() == 0 and occ[0] == 1
    cell = crystal.small_structure().cell
    for x in fract[:1]:  # the highest is the sulphur atom
        a, b = (cell.orthogonalize(gemmi.Fractional(*y)) for y in (x, crystal.fract[0]))
        assert cell.find_nearest_image(a, b, gemmi.Asu.Any).dist() < 0.1


def test_an_atom_on_an_inversion_centre_stays_there():
    cell, group = gemmi.UnitCell(*CELLS["P -1"]), gemmi.SpaceGroup("P -1")
    fract = np.array([[0, 0, 0], [0.3, 0.2, 0.4]])
    crystal = Crystal("centre", cell, group, ("S", "C"), fract, np.full(2, 0.03), np.array([0.5, 1]))
    refiner = refiner_of(crystal)
    start = Model(np.array([[0.01, 0, 0.005], [0.31, 0.21, 0.4]]), crystal.elements, crystal.u_iso, crystal.occ, np.zeros(2))
    refined = refiner.least_squares(start, 8)
    np.testing.assert_allclose(refined.fract[0], 0, atol=1e-9)
    np.testing.assert_allclose(refined.fract[1], crystal.fract[1], atol=1e-3)
    assert refined.r1 < 0.02


def test_find_pairs_knows_both_sides_of_a_centre():
    """An atom 0.7 Å from an inversion centre has its own image at 1.4 Å."""
    cell, group = gemmi.UnitCell(*CELLS["P -1"]), gemmi.SpaceGroup("P -1")
    restraints = Restraints(["C"], cell, group)
    fract = (np.linalg.inv(restraints.orth) @ [0.7, 0, 0])[None]
    first, second, _, _, length = find_pairs(fract, np.ones(1), restraints.rot, restraints.tran, restraints.orth, 2.0)
    assert first.tolist() == second.tolist() == [0] and length[0] == pytest.approx(1.4)


@pytest.mark.slow
def test_bond_lengths_against_published_structures():
    """7,700 bonds: the median of each pair of elements with twenty or more is within the spread, and nine in ten within two."""
    if not (REAL / "crystals").is_dir():
        pytest.skip(f"{REAL} has no crystals/: set XRD_REAL_DATA")
    lengths = defaultdict(list)
    for crystal in read_cif_folders([REAL / "crystals"])[0]:
        symbols = np.array(crystal.elements)[crystal.heavy]
        radius = covalent_radii(symbols)
        near = neighbours(crystal.fract[crystal.heavy], crystal.cell, crystal.spacegroup, 3.0)
        bonded = (near.length > 0.9) & (near.length < radius[near.i] + radius[near.j] + 0.2) & (near.i <= near.j)
        for i, j, length in zip(near.i[bonded], near.j[bonded], near.length[bonded]):
            lengths["".join(sorted((symbols[i], symbols[j])))].append(length)
    common = [pair for pair, found in lengths.items() if len(found) >= 20 and pair in BONDS]
    assert len(common) > 15 and sum(len(lengths[pair]) for pair in common) > 7000
    for pair in common:
        mean, spread = BONDS[pair]
        found = np.array(lengths[pair])
        assert abs(np.median(found) - mean) < spread, pair
        assert (np.abs(found - mean) < 2 * spread + 0.05).mean() > 0.9, pair


def test_amplitudes_determine_all_parameters_or_what_restraints_leave_them():
    crystal = crystal_of("P -1")
    n, model = len(crystal.elements), Model(crystal.fract, crystal.elements, crystal.u_iso, crystal.occ, np.zeros(6))
    exact = refiner_of(crystal)
    assert exact.n_parameters(exact.score(model)) == pytest.approx(4 * n + 1, rel=0.01)
    few = refiner_of(crystal, 3.5)
    assert len(few.reflections) < 4 * n + 1
    bent = few.score(replace(model, fract=crystal.fract + np.random.default_rng(0).normal(0, 0.02, (n, 3))))
    assert 1 < few.n_parameters(bent) < len(few.reflections)
    assert bent.r1 < few.adjusted_r1(bent) < np.inf and Refiner(few.reflections).adjusted_r1(bent) == np.inf


def test_what_other_atoms_give_is_added():
    """Four atoms beside the structure factors of the two others are all six."""
    crystal = crystal_of("P 1 21/c 1")
    refiner = refiner_of(crystal)
    kind = refiner.kinds(crystal.elements)
    all_six = refiner.derivatives(crystal.fract, kind, crystal.u_iso, crystal.occ)
    rest = refiner.derivatives(crystal.fract[4:], kind[4:], crystal.u_iso[4:], crystal.occ[4:])[1]
    J, sf = refiner.derivatives(crystal.fract[:4], kind[:4], crystal.u_iso[:4], crystal.occ[:4], rest)
    np.testing.assert_allclose(sf, all_six[1], atol=1e-4 * np.abs(sf).max())
    columns = [6 * block + atom for block in range(4) for atom in range(4)] + [24]
    np.testing.assert_allclose(J, all_six[0][:, columns], atol=2e-3 * np.abs(J).max())
