"""Least squares: against structure factors by direct summation, and atoms known beforehand."""

import numpy as np
import pytest

from makers import CELLS, random_crystal, reflections_of
from xrd_helpers.phasing.refine import Model, Refiner
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
