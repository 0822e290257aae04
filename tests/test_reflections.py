"""Reflections: expansion to P1 against direct summation, merging and quality against sums by hand."""

from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest

from reflection_makers import CELLS
from xrd_helpers import reflections as refl
from xrd_helpers.reflections import Measured


def brute_force(hkl, fract, weights, spacegroup):
    """F(h) = Σ_ops Σ_atoms w exp(2πi h·(R x + t)), over all operators, centring included: (n,) complex."""
    sf = np.zeros(len(hkl), complex)
    for op in spacegroup.operations():
        for x, w in zip(fract, weights):
            sf += w * np.exp(2j * np.pi * (hkl @ np.array(op.apply_to_xyz(list(x)))))
    return sf


@pytest.mark.parametrize("name", CELLS)
def test_expansion_agrees_with_direct_summation_on_the_whole_sphere(name):
    cell, spacegroup = gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name)
    rng = np.random.default_rng(1)
    fract, weights = rng.random((3, 3)), [3.0, 1.0, 2.0]
    hkl = refl.unique_hkl(cell, spacegroup, 1.2)
    p1 = refl.expand_to_p1(hkl, spacegroup)
    sf = p1.structure_factors(brute_force(hkl, fract, weights, spacegroup))
    np.testing.assert_allclose(sf, brute_force(p1.hkl, fract, weights, spacegroup), atol=1e-9)
    # every reflection of the sphere once, except the systematic absences
    sphere = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), 1.2)
    absent = spacegroup.operations().systematic_absences(sphere)
    sphere = sphere[~absent]
    expected = {tuple(h) for h in np.concatenate([sphere, -sphere])}
    assert {tuple(h) for h in p1.hkl} == expected and len(p1.hkl) == len(expected)


def test_table_refuses_what_is_not_merged():
    cell, spacegroup = gemmi.UnitCell(*CELLS["P -1"]), gemmi.SpaceGroup("P -1")
    for hkl, F in [([[1, 0, 0], [1, 0, 0]], [1, 1]), ([[0, 0, 0]], [1]), ([[1, 0, 0]], [-1]), ([[1, 0, 0]], [np.nan])]:
        with pytest.raises(refl.ReflectionError):
            refl.Reflections(np.array(hkl), np.array(F, float), np.ones(len(F)), cell, spacegroup)


def test_d_is_that_of_the_cell():
    cell = gemmi.UnitCell(*CELLS["P -1"])
    table = refl.Reflections(np.array([[1, -2, 3]]), [1.0], [0.1], cell, gemmi.SpaceGroup("P -1"))
    star = np.linalg.inv(np.array(cell.orth.mat.tolist()))
    assert table.d[0] == pytest.approx(1 / np.linalg.norm(np.array([1, -2, 3]) @ star), rel=1e-12)


def test_merging_weights_equivalents(tmp_path):
    # P21/c: (1 2 3) and (-1 2 -3) are equivalent, and their Friedel mates; F² 100 ± 1 and 110 ± 2
    cell, spacegroup = gemmi.UnitCell(*CELLS["P 1 21/c 1"]), gemmi.SpaceGroup("P 1 21/c 1")
    merged = refl.merge([[1, 2, 3], [-1, 2, -3], [2, 1, 1]], [100, 110, -3], [1, 2, 1], cell, spacegroup)
    by_F = sorted(zip(merged.F, merged.sigF))
    assert len(merged) == 2 and by_F[0] == (0.0, 1.0)
    assert by_F[1][0] ** 2 == pytest.approx((100 / 1 + 110 / 4) / (1 + 1 / 4))


def test_quality_against_sums_by_hand():
    """Two reflections of P-1, the first measured twice and its Friedel mate once; the third index is absent in P21/c only."""
    cell, spacegroup = gemmi.UnitCell(5.1, 6.3, 7.7, 81, 95, 104), gemmi.SpaceGroup("P -1")
    hkl = np.array([[1, 2, 1], [1, 2, 1], [-1, -2, -1], [0, 1, 1]])
    measured = Measured(hkl, np.array([10.0, 14, 12, 5]), np.array([1.0, 1, 1, 2]), cell, spacegroup, {}, 0.7, (Path("x"),), "")
    merged = measured.merge()
    found = measured.quality(merged)
    assert found.n_measured == 4 and found.n_unique == 2
    assert found.r_int == pytest.approx((2 + 2 + 0) / 36) and found.i_over_sigma == pytest.approx((10 + 14 + 12 + 2.5) / 4)
    # the reflections of half the sphere to that resolution, counted one by one
    box = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), -1).reshape(-1, 3)
    box = box[(box != 0).any(1)].astype("i4")
    possible = (cell.calculate_d_array(box) >= merged.d_min - 1e-6).sum() / 2
    assert found.completeness == pytest.approx(2 / possible)
    below = replace(measured, intensity=np.array([2.0, -1, 2, 5])).quality(merged)  # the sum of I, not of |I|, as SHELXL has it
    assert below.r_int == pytest.approx((1 + 2 + 1) / 3)
    once = Measured(hkl[2:], np.array([1.0, 1]), np.ones(2), cell, spacegroup, {}, 0.7, (Path("x"),), "")
    assert once.quality(once.merge()).r_int is None


def test_shells_against_sums_by_hand():
    """Every reflection of P-1 to 1 Å twice, 100 and 100 + 2 k; of those beyond the middle of the volume a half is missing."""
    cell, spacegroup = gemmi.UnitCell(5.1, 6.3, 7.7, 81, 95, 104), gemmi.SpaceGroup("P -1")
    hkl = refl.unique_hkl(cell, spacegroup, 1.0)
    d = cell.calculate_d_array(hkl.astype(np.int32))
    hkl = hkl[(d**-3.0 < 0.5) | (np.arange(len(d)) % 2 == 0) | (d == d.min())]
    twice = np.concatenate([hkl, -hkl])
    I = 100.0 + np.repeat([0, 1], len(hkl)) * 2 * np.tile(np.abs(hkl[:, 1]), 2)
    measured = Measured(twice, I, np.full(len(I), 5.0), cell, spacegroup, {}, 0.7, (Path("x"),), "")
    found = measured.shells(measured.merge(), 4)
    d = cell.calculate_d_array(hkl.astype(np.int32))
    assert sum(x.n_measured for x in found) == len(twice) and sum(x.n_unique for x in found) == len(hkl)
    assert [x.n_unique / x.n_possible for x in found] == pytest.approx([1, 1, 0.5, 0.5], abs=0.06)
    for x in found:
        inside = (d <= x.d_max + 1e-6) & (d >= x.d_min - 1e-6)
        k = np.abs(hkl[inside, 1])
        assert x.n_unique == inside.sum() and x.r_int == pytest.approx(2 * k.sum() / (200 + 2 * k).sum())
        assert x.i_over_sigma == pytest.approx(((100 + k) / (5 / 2**0.5)).mean())


def test_intensities_are_those_before_merging():
    cell, spacegroup = gemmi.UnitCell(*CELLS["P -1"]), gemmi.SpaceGroup("P -1")
    merged = refl.merge([[1, 2, 3], [1, 1, 1], [2, 0, 0]], [9999, -3, 4], [10, 5, 3], cell, spacegroup)
    rows = {tuple(h): (i, s) for h, i, s in zip(merged.hkl.tolist(), *merged.intensities())}
    assert rows[1, 2, 3] == pytest.approx((9999, 10)) and rows[1, 1, 1] == pytest.approx((0, 5))
    assert rows[2, 0, 0] == pytest.approx((4, 3))
