"""Solved or not: features against structures known beforehand, the stored calibration, and what is said of it."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest

from makers import CELLS, random_crystal, reflections_of
from xrd_helpers.phasing import Settings, output, solve, verdict
from xrd_helpers.phasing.refine import Model, Refiner
from xrd_helpers.reflections import Reflections

RIGHT = verdict.Evidence(r1=0.1, expected=0.2, r_free=0.12, held=1.0, bonded=1.0, steady=1.0)


def model_of(crystal, fract=None):
    fract = crystal.fract if fract is None else fract
    return Model(fract, crystal.elements, crystal.u_iso, crystal.occ, np.zeros(len(fract)))


def r_free_of(*given, **options):
    return verdict.left_out(*given, **options)[0]


def with_errors(reflections, share, seed=0):
    """The same amplitudes with errors of a normal distribution, `share` of each."""
    error = share * reflections.F * np.random.default_rng(seed).standard_normal(len(reflections))
    return Reflections(reflections.hkl, np.abs(reflections.F + error), share * reflections.F, reflections.cell,
                       reflections.spacegroup)


@pytest.mark.parametrize("name", CELLS)
def test_right_atoms_explain_the_reflections_left_out_to_their_errors(name):
    crystal = random_crystal(name)
    exact = reflections_of(crystal, 0.85)
    assert r_free_of(Refiner(exact), model_of(crystal), cycles=15) < 0.01
    # Σ |error| / Σ F of a normal error of 6 % is 0.06 (2/π)^1/2 = 0.048; the parameters cost a little
    r_free = r_free_of(Refiner(with_errors(exact, 0.06)), model_of(crystal), cycles=10)
    assert 0.043 < r_free < 0.07


@pytest.mark.parametrize("name, expected", [("P 1 21/c 1", 0.828), ("P -1", 0.828), ("P 1 21 1", 0.586), ("P 1", 0.586)])
def test_random_atoms_explain_nothing_that_was_left_out(name, expected):
    """Wilson's values are for one common scale; fitted to F, it is smaller and gains a fifth at most. Equal atoms: beside
    a heavy one R is lower."""
    crystal = replace(random_crystal(name), elements=("C",) * 7)
    refiner, rng = Refiner(reflections_of(crystal, 1.2)), np.random.default_rng(0)
    found = np.mean([r_free_of(refiner, model_of(crystal, rng.random((7, 3)))) for _ in range(8)])
    assert 0.7 * expected < found < 1.05 * expected


def test_reflections_left_out_are_not_fitted():
    """Atoms at random fit few data well, but not those left out: the difference between R and left-out R is overfitting."""
    crystal = replace(random_crystal("P 1 21 1"), elements=("C",) * 7)
    refiner = Refiner(reflections_of(crystal, 1.6))
    fitted = refiner.least_squares(model_of(crystal, np.random.default_rng(1).random((7, 3))), 20)
    assert r_free_of(refiner, fitted) > 1.3 * fitted.r1
    right = refiner.least_squares(model_of(crystal), 5)
    assert r_free_of(refiner, right) < 0.05


@pytest.mark.parametrize("name", CELLS)
def test_atoms_that_the_data_do_not_hold_do_not_come_back(name):
    """In the polar groups all atoms together may come back elsewhere along the polar directions."""
    crystal = random_crystal(name)
    refiner, wrong = Refiner(reflections_of(crystal, 1.0)), crystal.fract.copy()
    assert verdict.left_out(refiner, model_of(crystal), cycles=12)[1].max() < 0.05
    wrong[-1] = np.random.default_rng(1).random(3)
    away = verdict.left_out(refiner, model_of(crystal, wrong))[1]
    assert away[-1] > verdict.NEAR > away[0] and away.argmax() == 6, "a sulfur atom stands fast"


# --- bonds ---


def share_bonded(*atoms, group="P 1"):
    """Of (element, x, y, z), in Å, in a cube with an axis of 10 Å."""
    fract = np.array([atom[1:] for atom in atoms], float) / 10
    model = Model(fract, tuple(atom[0] for atom in atoms), np.full(len(atoms), 0.04), np.ones(len(atoms)), np.zeros(len(atoms)))
    return verdict.bonded(model, gemmi.UnitCell(10, 10, 10, 90, 90, 90), gemmi.SpaceGroup(group))


def test_bonds_by_hand():
    # twice 0.73 Å and 0.2 Å more at most; across the border of the cell too
    assert share_bonded(("C", 0.5, 5, 5), ("C", 9.0, 5, 5)) == 1
    assert share_bonded(("C", 1, 5, 5), ("C", 2.63, 5, 5)) == 1 and share_bonded(("C", 1, 5, 5), ("C", 2.7, 5, 5)) == 0
    assert share_bonded(("C", 1, 5, 5), ("Br", 2.95, 5, 5)) == 1, "0.73 + 1.14 Å"
    assert share_bonded(("C", 1, 5, 5), ("N", 2.0, 5, 5), ("C", 5, 5, 5), ("C", 6.5, 5, 5)) == 0.5, "1.0 Å is no bond"
    assert share_bonded(("Fe", 5, 5, 5), ("O", 7.1, 5, 5), ("O", 5, 5, 2.9), ("Cl", 1, 1, 1)) == 0.75


def test_bonds_to_images_of_the_same_atom():
    """Beside an inversion centre an atom may be bonded to its own image; on one, that is itself and no neighbour."""
    assert [share_bonded(("C", x, 0, 0), group="P -1") for x in (0.75, 0.4, 0.0, 9.25)] == [1, 0, 0, 1]


# --- the probability ---


def test_the_calibration_is_stored_whole():
    found = verdict.calibration()
    assert 0 < found["thresholds"]["not solved"] < found["thresholds"]["solved"] < 1
    assert 0 < found["limit"] < 1 - found["thresholds"]["solved"], "solved can be reached"
    assert {f["name"] for f in found["features"]} <= set(verdict.features(RIGHT))
    assert all(f["weight"] >= 0 and f["low"] < f["high"] for f in found["features"])
    rows = found["calibration"]
    assert [row["low"] for row in rows[1:]] == [row["high"] for row in rows[:-1]] and rows[-1]["high"] == 1
    assert all(0 <= row["right"] <= row["n"] for row in rows)
    assert found["held_out"]["hopeless"] and not any(kind["solved"] for kind in found["held_out"]["hopeless"].values())
    assert found["held_out"]["wrongly"] <= 0.01 * found["held_out"]["solved"]
    for key in ("seed", "commit", "machine", "data"):
        assert found[key] not in (None, "")


@pytest.mark.parametrize("better", [{"steady": 1.0}, {"r_free": 0.06}, {"held": 1.0}, {"bonded": 1.0}, {"expected": 0.4}])
def test_better_evidence_is_never_less_probable(better):
    doubtful = replace(RIGHT, r1=0.3, r_free=0.38, held=0.5, bonded=0.7, steady=0.5)
    assert verdict.probability(replace(doubtful, **better)) >= verdict.probability(doubtful)
    found = {"intercept": -1.0, "limit": 1e-3, "features": [{"name": "free", "weight": 2.0, "low": -1, "high": 0.5}]}
    assert verdict.probability(RIGHT, found) == pytest.approx(0.5), "0.5 is the highest value it was calibrated for"
    value = verdict.probability(replace(RIGHT, r_free=0.2 * np.exp(0.25)), found)
    assert value == pytest.approx(1 / (1 + np.exp(1.5))), "1 / (1 + exp(1 + 2 * 0.25))"
    assert verdict.probability(RIGHT, {**found, "intercept": 99.0}) == 1 - 1e-3


def test_words_for_probabilities():
    found = {"thresholds": {"not solved": 0.1, "solved": 0.9}}
    assert [verdict.word(p, found) for p in (0.05, 0.1, 0.89, 0.9, float("nan"))] == [
        "not solved", "uncertain", "uncertain", "solved", "uncertain"]


def test_right_and_wrong_atoms_are_told_apart():
    crystal = random_crystal("P 1 21/c 1")
    refiner = Refiner(reflections_of(crystal, 1.0))
    right = verdict.weigh(refiner.score(model_of(crystal)), refiner, crystal.contents)
    wrong = refiner.least_squares(model_of(crystal, np.random.default_rng(0).random((7, 3))), 5)
    weighed = verdict.weigh(wrong, refiner, crystal.contents)
    assert right.r1 < 0.01 and right.expected > 0.1 and right.held == right.steady == 1
    assert verdict.word(weighed.probability) == "not solved" and weighed.probability < right.probability
    # the costly part is left out where it could change nothing
    quick = verdict.weigh(wrong, refiner, crystal.contents, least=0.99)
    assert np.isnan(quick.r_free) and weighed.probability <= quick.probability < 0.99


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["P -1", "P 1 21/c 1", "P 1 21 1"])
def test_shuffled_amplitudes_are_never_solved(name, seed):
    data, rng = reflections_of(random_crystal(name), 1.1), np.random.default_rng(seed)
    F, order = data.F.copy(), np.argsort(data.d)
    for rows in np.array_split(order, max(1, len(order) // 40)):  # each shell keeps its amplitudes
        F[rows] = F[rng.permutation(rows)]
    found = solve(Reflections(data.hkl, F, data.sigF, data.cell, data.spacegroup), ("S", *"OONCCC"), trials=4,
                  settings=Settings(cycles=100))
    assert found is None or found.verdict != "solved"


def test_a_solution_of_another_engine_is_weighed_in_its_own_setting():
    """The same atoms on the axes a' = c, b' = -b, c' = a, and in P21, a subgroup: the data follow."""
    crystal = random_crystal("P 1 21/c 1")
    data = reflections_of(crystal, 0.9)
    solution = solve(data, crystal.contents, seed=1)
    here = verdict.weigh_solution(solution, data, crystal.contents)
    assert here.r1 == pytest.approx(solution.evidence.r1, abs=0.01) and here.bonded == solution.evidence.bonded
    a, b, c, alpha, beta, gamma = crystal.cell.parameters
    turned = replace(solution, cell=gemmi.UnitCell(c, b, a, gamma, beta, alpha), spacegroup=gemmi.SpaceGroup("P 1 21/a 1"),
                     fract=solution.fract[:, [2, 1, 0]] * [1, -1, 1])
    assert verdict.weigh_solution(turned, data, crystal.contents).r1 == pytest.approx(here.r1, abs=0.01)
    strange = replace(solution, cell=gemmi.UnitCell(5, 6, 7, 90, 90, 90))
    lost = replace(strange, evidence=verdict.weigh_solution(strange, data, crystal.contents))
    assert np.isnan(lost.probability) and lost.verdict == "uncertain" and "could not be calculated" in output.verdict(lost)


def test_the_verdict_says_why():
    crystal = random_crystal("P 1 21/c 1")
    solution = solve(reflections_of(crystal, 0.85), crystal.contents, seed=1)
    def text(p):
        return output.verdict(replace(solution, evidence=replace(solution.evidence, probability=p)))
    solved, doubtful, wrong = text(0.999), text(0.5), text(0.001)
    assert solved.startswith("Solved in P 1 21/c 1: 7 atoms, R1 0.0") and "such results were right in calibration" in solved
    assert f"{solution.evidence.r_free:.3f} for reflections left out" in solved
    assert "another one at the length of a bond" in solved
    assert doubtful.startswith("Uncertain in P 1 21/c 1") and "before you believe it" in doubtful
    assert wrong.startswith("Not solved in P 1 21/c 1") and replace(solution, evidence=None).verdict == "uncertain"
    assert output.verdict(replace(solution, evidence=None)).startswith("Uncertain")


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_a_handful_of_reflections_is_no_evidence_and_no_crash(n):
    """Fewer than there are parts to be left out, as of an element measured to low resolution."""
    few = reflections_of(random_crystal("P 1 21/c 1"), 2.0).select(np.arange(n))
    found = solve(few, ("C", "O"), trials=2, effort="quick")
    assert found is None or found.verdict != "solved"
    if found and n < 4:
        assert np.isnan(found.probability) and found.verdict == "uncertain"
