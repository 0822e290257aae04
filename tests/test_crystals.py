"""Crystals: classes of atoms, the exchange of a and c."""

import numpy as np
import pytest

from makers import MONOCLINIC, direct_sum, make_crystal
from xrd_helpers.crystals import CrystalError, swap_a_and_c


def images(crystal):
    """Every operator applied to every atom: (g, n, 3)."""
    return np.array([[op.apply_to_xyz(list(x)) for x in crystal.fract] for op in crystal.spacegroup.operations()])


def some_hkl(n=40, seed=0):
    return np.random.default_rng(seed).integers(-7, 8, (n, 3))


def test_classes_of_atoms():
    assert make_crystal(["C", "H", "D", "F"]).light
    assert not make_crystal(["C", "Na"]).light and not make_crystal(["C", "Cl"]).light
    assert make_crystal(["C", "H", "D", "F"]).heavy.tolist() == [True, False, False, True]


def monoclinic(name):
    return make_crystal("CNOS", name, MONOCLINIC, u=(0.02, 0.06), occ=(0.5, 1), seed=1)


@pytest.mark.parametrize("name, swapped", [  # the other cell choice of the same type, International Tables A
    ("P 1 21/c 1", "P 1 21/a 1"), ("P 1 21/n 1", "P 1 21/n 1"), ("P 1 21 1", "P 1 21 1"), ("C 1 2 1", "A 1 2 1"),
    ("C 1 2/c 1", "A 1 2/a 1"), ("I 1 2/a 1", "I 1 2/c 1"), ("P 1 c 1", "P 1 a 1"), ("I 1 2/c 1", "I 1 2/a 1")])
def test_swapped_crystal_is_the_same_crystal(name, swapped):
    before, after = monoclinic(name), swap_a_and_c(monoclinic(name))
    assert after.spacegroup.xhm() == swapped
    assert after.cell.parameters == (9.2, 6.3, 12.1, 90, 104, 90)
    assert after.cell.volume == pytest.approx(before.cell.volume, rel=1e-12)
    hkl = some_hkl()
    F, F_after = np.abs(direct_sum(before, hkl)), np.abs(direct_sum(after, hkl[:, [2, 1, 0]] * [1, -1, 1]))
    np.testing.assert_allclose(F_after, F, rtol=0, atol=1e-5 * F.max())
    # a polar or chiral group tells the wrong sign of k apart
    assert F.max() > 10
    # all distances between the atoms of the two cells, images of the neighbouring cells too
    for crystal in (before, after):
        assert np.allclose(np.linalg.det(crystal.cell.orth.mat.tolist()), crystal.cell.volume)
    np.testing.assert_allclose(distances(after), distances(before), atol=1e-9)
    # the hand: the signed volume that four atoms span
    assert signed_volume(after) == pytest.approx(signed_volume(before), rel=1e-9)
    # and back
    again = swap_a_and_c(after)
    assert again.spacegroup.xhm() == name and again.cell.parameters == before.cell.parameters
    np.testing.assert_allclose(again.fract, before.fract, atol=1e-12)


def distances(crystal):
    """Sorted shortest distances of the atoms of the asymmetric unit to all atoms of the crystal, (n, g n) Å."""
    orth = np.array(crystal.cell.orth.mat.tolist())
    others = images(crystal).reshape(-1, 3)
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3)
    difference = others[None] - crystal.fract[:, None]
    difference = (difference - np.round(difference))[:, :, None] + shifts
    return np.sort(np.linalg.norm(difference @ orth.T, axis=-1).min(axis=2), axis=1)


def signed_volume(crystal):
    orth = np.array(crystal.cell.orth.mat.tolist())
    return np.linalg.det((crystal.fract[1:4] - crystal.fract[0]) @ orth.T)


def test_a_setting_without_partner_is_an_error_that_names_it():
    with pytest.raises(CrystalError, match="C 1 21 1 has no setting with a and c exchanged"):
        swap_a_and_c(monoclinic("C 1 21 1"))
