"""Least squares and what completes a model: against gemmi's direct summation, and atoms known beforehand."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest

from makers import CELLS, direct_sum, random_crystal, reflections_of
from xrd_helpers.phasing.origin import match_atoms
from xrd_helpers.phasing.refine import Model, Refiner
from xrd_helpers.reflections import Reflections
from xrd_helpers.structure_factors import structure_factors


@pytest.mark.parametrize("name", CELLS)
def test_refiner_agrees_with_direct_summation_and_refines_back(name):
    crystal = random_crystal(name)
    reflections = reflections_of(crystal, 0.9)
    refiner = Refiner(reflections)
    model = Model(crystal.fract, crystal.elements, crystal.u_iso, crystal.occ, np.zeros(7))
    sf = structure_factors(crystal, reflections.hkl)
    np.testing.assert_allclose(refiner.structure_factors(model), sf, atol=2e-4 * np.abs(sf).max())
    rng = np.random.default_rng(4)
    shaken = Model(crystal.fract + rng.normal(0, 0.008, (7, 3)), crystal.elements, np.full(7, 0.04), crystal.occ,
                   np.zeros(7))
    before = refiner.score(shaken).r1
    refined = refiner.least_squares(shaken, 8)
    assert before > 0.1 and refined.r1 < 1e-3
    np.testing.assert_allclose(refined.u_iso, crystal.u_iso, atol=1e-3)


@pytest.mark.parametrize("name", ["P 1 21 1", "P 1 21/c 1"])
def test_misnamed_atoms_get_their_names_back(name):
    crystal = random_crystal(name)  # S O O N C C C
    refiner = Refiner(reflections_of(crystal, 0.9))
    wrong = Model(crystal.fract, ("S", "O", "C", "N", "O", "C", "C"), np.full(7, 0.04), crystal.occ, np.zeros(7))
    wrong = refiner.least_squares(wrong, 6)
    filled = refiner.filled(wrong)
    assert filled[2] > 1.1 and filled[4] < 0.9, "oxygen named carbon is more than filled, carbon named oxygen less"
    again = refiner.exchange_elements(wrong)
    assert again.elements == crystal.elements and again.r1 < 0.01 < wrong.r1
    assert refiner.exchange_elements(again) is again


def model_of(crystal, **changes):
    """The crystal as a model, all of it right but for the changes."""
    right = Model(crystal.fract, crystal.elements, crystal.u_iso, crystal.occ, np.zeros(len(crystal.fract)))
    return replace(right, **changes)


def test_scale_and_r1_are_those_of_their_definitions():
    """Of a model that is wrong, on data three times as large: by gemmi's direct summation."""
    crystal = random_crystal("C 1 2 1")
    exact = reflections_of(crystal, 1.0)
    reflections = Reflections(exact.hkl, 3 * exact.F, exact.sigF, exact.cell, exact.spacegroup)
    wrong = replace(crystal, u_iso=np.full(7, 0.1))
    F_calc = np.abs(direct_sum(wrong, exact.hkl))
    scale = (reflections.F @ F_calc) / (F_calc @ F_calc)
    refiner = Refiner(reflections)
    scored = refiner.score(model_of(wrong))
    r1 = np.abs(reflections.F - scale * F_calc).sum() / reflections.F.sum()
    assert scored.scale == pytest.approx(scale, rel=1e-5) and scored.r1 == pytest.approx(r1, rel=1e-4) and r1 > 0.1
    # 29 parameters: x, y, z and U of seven atoms, and the scale
    n = len(reflections)
    assert refiner.adjusted_r1(scored) == pytest.approx(r1 * np.sqrt(n / (n - 29)), rel=1e-4)
    assert refiner.select(np.arange(30)).adjusted_r1(scored) == pytest.approx(r1 * np.sqrt(30), rel=1e-4)
    assert refiner.select(np.arange(29)).adjusted_r1(scored) == np.inf
    some = refiner.select(np.arange(0, n, 5))
    np.testing.assert_allclose(some.structure_factors(scored), direct_sum(wrong, exact.hkl[::5]), atol=2e-3)
    assert len(some.reflections) == len(range(0, n, 5)) and len(refiner.reflections) == n


@pytest.mark.parametrize("u", [0.01, 0.05, 0.11])
def test_the_overall_u_is_found(u):
    crystal = random_crystal("P 1 21 1")
    refiner = Refiner(reflections_of(replace(crystal, u_iso=np.full(7, u)), 1.0))
    fitted = refiner.fit_overall_u(model_of(crystal))
    np.testing.assert_allclose(fitted.u_iso, u, rtol=1e-12)
    assert fitted.r1 < 1e-5 and fitted.scale == pytest.approx(1, rel=1e-5)


def test_a_step_moves_atoms_0_2_angstrom_and_u_0_03_at_most():
    crystal = random_crystal("P 1")
    refiner, rng = Refiner(reflections_of(crystal, 0.9)), np.random.default_rng(0)
    start = model_of(crystal, fract=crystal.fract + rng.normal(0, 0.04, (7, 3)), u_iso=np.array(7 * [0.2]))
    tried = []
    refiner.score = lambda model, sf=None: tried.append(Refiner.score(refiner, model, sf)) or tried[-1]
    refiner.least_squares(start, 4)
    assert len(tried) == 5, "as many steps as were asked for, and what they began with"
    orth = np.array(crystal.cell.orth.mat.tolist())
    moved = np.array([np.linalg.norm((b.fract - a.fract) @ orth.T, axis=1) for a, b in zip(tried, tried[1:])])
    assert moved.max() == pytest.approx(0.2, rel=1e-3) and moved.min() < 0.15
    change = np.array([b.u_iso - a.u_iso for a, b in zip(tried, tried[1:])])
    assert np.abs(change).max() == pytest.approx(0.03, rel=1e-3)
    assert all(0.005 <= model.u_iso.min() and model.u_iso.max() <= 0.25 for model in tried)


def test_the_best_cycle_is_kept():
    crystal = random_crystal("P 1 21/c 1")
    refiner = Refiner(reflections_of(crystal, 1.0))
    right = refiner.least_squares(model_of(crystal), 0)
    assert right.fract is crystal.fract and right.r1 < 1e-5
    assert refiner.least_squares(model_of(crystal), 3).r1 <= right.r1


def test_atoms_on_special_positions_stay_there_and_the_others_come_to_theirs():
    """Iron on the inversion centre at 1/2 1/2 0 of P -1, and on the axis 0 y 0 of C 2."""
    for name, special, free in (("P -1", [0.5, 0.5, 0], []), ("C 1 2 1", [0, 0.2, 0], [1])):
        crystal = random_crystal(name, 4)
        fract = np.vstack([special, [[0.3, 0.1, 0.4], [0.22, 0.71, 0.81], [0.1, 0.43, 0.27]]])
        crystal = replace(crystal, elements=("Fe", "O", "N", "C"), fract=fract, occ=np.array([0.5, 1, 1, 1]))
        reflections = reflections_of(crystal, 0.9)
        refiner = Refiner(reflections)
        sf = refiner.structure_factors(model_of(crystal))
        np.testing.assert_allclose(sf, direct_sum(crystal, reflections.hkl), atol=5e-3)
        shift = np.array([[0.01, 0.012, -0.008]] + [[0.004, -0.006, 0.005]] * 3)
        refined = refiner.least_squares(model_of(crystal, fract=fract + shift), 8)
        assert refined.r1 < 2e-3
        fixed = [axis for axis in range(3) if axis not in free]
        np.testing.assert_allclose(refined.fract[0, fixed], np.array(special)[fixed], atol=1e-9)
        off = refined.fract - fract
        off[:, free] -= off[0, free]  # the origin along a polar axis is free
        np.testing.assert_allclose(off, 0, atol=1e-3)


def test_the_share_of_an_atom_is_the_derivative_of_the_amplitude_with_its_occupancy():
    """By differences of gemmi's direct sums."""
    crystal = random_crystal("C 1 c 1", 3)
    reflections = reflections_of(crystal, 1.0)
    *_, shares, sf = Refiner(reflections)._shares(model_of(crystal))
    for atom in range(3):
        more, less = (np.abs(direct_sum(replace(crystal, occ=1 + h * np.eye(3)[atom]), reflections.hkl)) for h in (1e-4, -1e-4))
        np.testing.assert_allclose(shares[:, atom], (more - less) / 2e-4, atol=1e-2)
    np.testing.assert_allclose(shares.sum(1), np.abs(sf), atol=1e-3)


@pytest.mark.parametrize("name", ["P -1", "P 1 21 1"])
def test_an_atom_of_which_too_little_is_there_is_seen(name):
    """0.9 and 1 / 0.9 of an atom: of its share along F, data that are linear in it show so much."""
    crystal = random_crystal(name)
    refiner = Refiner(reflections_of(crystal, 0.9))
    for share in (0.95, 1.05):
        occ = np.ones(7)
        occ[3] = share
        filled = refiner.filled(refiner.score(model_of(crystal, occ=occ)))
        # the scale takes up a little of it for all
        assert filled[3] / np.delete(filled, 3).mean() == pytest.approx(1 / share, abs=0.01)


@pytest.mark.parametrize("name", ["P 1 21/c 1", "C 1 2 1"])
def test_maps_are_fourier_sums_of_gemmi(name):
    """2F - Fc of a right model is its density, and F - Fc zero; of one without its sulfur it is highest there."""
    crystal = random_crystal(name)
    reflections = reflections_of(crystal, 0.9)
    refiner = Refiner(Reflections(reflections.hkl, 5 * reflections.F, reflections.sigF, crystal.cell, crystal.spacegroup))
    right = refiner.score(model_of(crystal))
    assert right.scale == pytest.approx(5, rel=1e-5)
    rho = refiner.map(right)
    assert max(np.array(crystal.cell.parameters[:3]) / rho.shape) <= reflections.d_min / 3
    p1 = reflections.p1
    sf = direct_sum(crystal, p1.hkl)
    for point in ((1, 2, 3), (5, 0, 7)):
        wave = np.exp(-2j * np.pi * p1.hkl @ (np.array(point) / rho.shape))
        assert rho[point] == pytest.approx((sf * wave).sum().real / crystal.cell.volume, abs=2e-4)
    assert np.abs(refiner.map(right, difference=True)).max() < 1e-3 * rho.max()
    lacking = refiner.score(model_of(crystal, occ=np.array([0.0, 1, 1, 1, 1, 1, 1])))
    difference = refiner.map(lacking, difference=True)
    top = gemmi.Fractional(*(np.unravel_index(difference.argmax(), rho.shape) / np.array(rho.shape)))
    images = [gemmi.Fractional(*op.apply_to_xyz(crystal.fract[0].tolist())) for op in crystal.spacegroup.operations()]
    assert min(crystal.cell.find_nearest_image(crystal.cell.orthogonalize(top), crystal.cell.orthogonalize(x),
                                               gemmi.Asu.Any).dist() for x in images) < 0.25
    # a model with too much: 2F - Fc is never less than zero
    too_much = replace(right, scale=right.scale * 10)
    assert np.abs(refiner.map(too_much)).max() < 1e-6 * rho.max() < np.abs(refiner.map(too_much, difference=True)).max()


def test_names_go_by_the_density_the_highest_first():
    crystal = random_crystal("P 1 21 1")  # S O O N C C C
    refiner = Refiner(reflections_of(replace(crystal, u_iso=np.full(7, 0.1)), 0.8))
    order = np.array([4, 1, 6, 0, 3, 2, 5])
    fract = crystal.fract[order] + [[2, -1, 0]]  # in other cells, too, is what the map has
    mixed = refiner.score(model_of(crystal, fract=fract, elements=7 * ("C",), u_iso=np.full(7, 0.1), occ=np.ones(7)))
    named = refiner.rename(mixed, {"S": 1, "O": 2, "N": 1, "C": 3})
    assert named.elements == crystal.elements and (np.diff(named.heights) <= 0).all()
    back = [np.abs(crystal.fract + [2, -1, 0] - x).max(axis=1).argmin() for x in named.fract]
    assert back[0] == 0 and set(back[1:3]) == {1, 2} and sorted(back) == list(range(7))
    rho = refiner.map(mixed)
    at = tuple(np.round(crystal.fract[0] * rho.shape).astype(int) % rho.shape)
    assert named.heights[0] == pytest.approx(rho[at] / rho.std(), rel=0.25) and rho.std() < 0.7, "in sigmas of the map"


SOME_CELLS = pytest.mark.parametrize("name", ["P -1", "P 1 21/c 1", "C 1 2 1", "C 1 c 1"])
CONTENTS = {"S": 1, "O": 2, "N": 1, "C": 3}


@SOME_CELLS
def test_atoms_come_from_the_map(name):
    crystal = random_crystal(name)
    reflections = reflections_of(crystal, 0.8)
    refiner = Refiner(reflections)
    rho = refiner.maps.map(direct_sum(crystal, reflections.hkl))
    model = refiner.model_from_map(rho, CONTENTS)
    assert model.elements == crystal.elements and len(set(model.u_iso)) == 1 and model.r1 < 0.25
    match = match_atoms(model.fract, crystal.fract, crystal.cell, crystal.spacegroup)
    assert match.n_matched == 7 and match.rms < 0.1
    assert len(refiner.model_from_map(rho, CONTENTS, 3).fract) == 3
    assert model.heights[0] == pytest.approx(rho.max() / rho.std(), rel=0.1)
    assert refiner.model_from_map(np.zeros((8, 8, 8)), CONTENTS) is None


@SOME_CELLS
@pytest.mark.parametrize("rows", [[0, 1, 2], [1, 2, 4, 5]], ids=["with sulfur", "without"])
def test_what_lacks_comes_from_the_map_of_the_rest(name, rows):
    """Again and again from 2F - Fc until most is there; all of it, with the right names, from F - Fc and least squares."""
    crystal = random_crystal(name)
    refiner = Refiner(reflections_of(crystal, 0.8))
    part = Model(crystal.fract[rows], tuple(np.array(crystal.elements)[rows]), np.full(len(rows), 0.04), np.ones(len(rows)),
                 np.zeros(len(rows)))
    part = refiner.score(part)
    assert refiner.recycle(part, CONTENTS, 0) is part
    again = refiner.recycle(part, CONTENTS, 3)
    assert again.r1 < part.r1 - 0.05 and len(again.fract) == 7
    whole = refiner.complete(part, CONTENTS)
    match = match_atoms(whole.fract, crystal.fract, crystal.cell, crystal.spacegroup)
    assert match.n_matched == 7 and match.rms < 1e-3 and whole.r1 < 1e-3
    assert whole.elements == crystal.elements


def test_completion_ends_after_rounds_in_vain():
    """Of a model that cannot get better: one round where it is good enough, else as many as were asked for."""
    crystal = random_crystal("P -1")
    refiner, calls = Refiner(reflections_of(crystal, 0.9)), []
    refiner.least_squares = lambda model, cycles: calls.append(cycles) or Refiner.least_squares(refiner, model, cycles)
    for enough, patience, rounds in ((0.01, 3, 1), (0.0, 3, 3), (0.0, 2, 2)):
        calls.clear()
        whole = refiner.complete(model_of(crystal), CONTENTS, enough, patience, cycles=5)
        assert calls == [5] * (rounds + 1) and whole.r1 < 1e-4


def scripted(scores):
    """A refiner of atoms in a large cell whose least squares give one R1 after the other, and what it has been asked."""
    crystal, scores = random_crystal("P -1"), iter(scores)
    refiner, asked = Refiner(reflections_of(crystal, 2.0)), []
    refiner.least_squares = lambda model, cycles: replace(model, r1=next(scores))
    refiner.model_from_map = lambda rho, contents: replace(model_of(crystal), r1=next(scores))
    refiner._add_peaks = lambda model, contents: asked.append(model) or model
    refiner.rename = lambda model, contents: model
    return refiner, asked


@pytest.mark.parametrize("u, dropped", [
    (7 * [0.04], 1), (8 * [0.04], 1), (15 * [0.04], 1), (16 * [0.04], 2), (24 * [0.04], 3),  # an eighth
    (7 * [0.04] + [0.16, 0.151, 0.2], 3), (7 * [0.04] + [0.149, 0.16, 0.2], 2),  # above 0.15 Å² ...
    (9 * [0.06] + [0.209, 0.211, 0.25], 2)])                                      # ... and 3.5 times the median, 0.21
def test_atoms_that_melt_are_dropped_and_an_eighth_at_least(u, dropped):
    refiner, asked = scripted([0.3, 0.3])
    n = len(u)
    model = Model(np.random.default_rng(0).random((n, 3)), n * ("C",), np.array(u), np.ones(n), np.arange(n))
    refiner.complete(model, {"C": n}, patience=1)
    left, = asked
    assert len(left.fract) == n - dropped
    assert sorted(left.u_iso) == sorted(u)[:n - dropped] and (np.diff(left.heights) > 0).all(), "in the order they had"


@pytest.mark.parametrize("enough, scores, best", [
    (0, [0.3, 0.299, 0.2985, 0.3], 0.2985),           # better by 0.002 resets the patience of three rounds, less does not
    (0, [0.3, 0.297, 0.296, 0.296, 0.296], 0.296), (0, [0.3, 0.4, 0.4, 0.29, 0.4, 0.4, 0.4], 0.29),
    (0.3, [0.31, 0.32, 0.305, 0.32, 0.302, 0.28, 0.28], 0.28),  # below what is enough no further
    (0.3, [0.3, 0.4, 0.4, 0.4], 0.3), (0.3, [0.29, 0.4], 0.29)])
def test_completion_has_patience(enough, scores, best):
    refiner, asked = scripted(scores)
    found = refiner.complete(model_of(random_crystal("P -1")), CONTENTS, enough)
    assert found.r1 == best and len(asked) == len(scores) - 1


@pytest.mark.parametrize("scores, best, used", [
    ([0.45, 0.46, 0.48, 0.3], 0.45, 3), ([0.6, 0.3], 0.5, 1), ([0.51, 0.4], 0.4, 2)])
def test_recycling_ends_where_it_gets_worse(scores, best, used):
    """By more than 0.02."""
    left = list(scores)
    refiner, _ = scripted(iter(lambda: left.pop(0), None))
    start = replace(model_of(random_crystal("P -1")), r1=0.5)
    assert refiner.recycle(start, CONTENTS, used).r1 == best and len(left) == len(scores) - used
    if used < len(scores):
        left[:] = scores
        assert refiner.recycle(start, CONTENTS, len(scores)).r1 == best and len(left) == len(scores) - used
    refiner.model_from_map = lambda rho, contents: None
    assert refiner.recycle(start, CONTENTS, 4) is start
