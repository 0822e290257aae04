"""Atoms at the maxima of a map: against crystals known beforehand, and places worked out by hand."""

import gemmi
import numpy as np

from makers import CELLS, random_crystal, reflections_of
from xrd_helpers.crystals import count_elements
from xrd_helpers.phasing import origin, peaks
from xrd_helpers.phasing.fourier import MapGrid
from xrd_helpers.structure_factors import structure_factors


def test_peaks_are_at_the_atoms():
    crystal = random_crystal("P 1 21/c 1")
    reflections = reflections_of(crystal, 0.7)
    rho = MapGrid(reflections.p1, crystal.cell, 0.25).map(
        structure_factors(crystal, reflections.hkl))
    found = peaks.find_peaks(rho, crystal.cell, crystal.spacegroup, 7)
    assert (np.diff(found.height) <= 0).all() and (found.occ == 1).all()
    match = origin.match_atoms(found.fract, crystal.fract, crystal.cell, crystal.spacegroup)
    assert match.n_matched == 7 and match.rms < 0.06  # the ripples of sulfur move the others a little
    again = peaks.find_peaks(rho, crystal.cell, crystal.spacegroup, 7, exclude=crystal.fract)
    assert len(again) == 0 or again.height[0] < found.height[-1]


def test_a_peak_near_a_special_position_is_put_there():
    # 0.2 Å from the inversion centre of P-1: its image is 0.4 Å away, nearer than two atoms can be
    orth = np.array(gemmi.UnitCell(*CELLS["P -1"]).orth.mat.tolist())
    rot, tran = np.array([np.eye(3), -np.eye(3)]), np.zeros((2, 3))
    x, occ = peaks.snap(np.array([0.5 + 0.2 / 6.1, 0.5, 0]), rot, tran, orth, 0.9)
    np.testing.assert_allclose(x, [0.5, 0.5, 0], atol=1e-12)
    assert occ == 0.5
    x, occ = peaks.snap(np.array([0.5 + 1.2 / 6.1, 0.5, 0]), rot, tran, orth, 0.9)
    assert x[0] == 0.5 + 1.2 / 6.1 and occ == 1


def test_elements_go_to_the_highest_peaks():
    contents = peaks.without_hydrogen(count_elements(["C", "H", "S", "C", "O", "D"]))
    assert contents == {"S": 1, "O": 1, "C": 2} and list(contents) == ["S", "O", "C"]
    assert peaks.assign_elements([1, 1, 0.5, 1, 1, 1], contents) == ("S", "O", "C", "C", "C", "C")
    # iron on an inversion centre, and four atoms of oxygen on a mirror plane
    contents = {"Fe": 0.5, "O": 2, "C": 3}
    assert peaks.assign_elements([0.5, 0.5, 0.5, 0.5, 0.5, 1, 1], contents) == ("Fe", "O", "O", "O", "O", "C", "C")
    assert peaks.assign_elements([1, 1, 1], {"Fe": 0.5, "C": 3}) == ("Fe", "C", "C"), "there is one peak at least"
