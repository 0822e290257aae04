"""Crystals: classes of atoms, operators without the inversion, the exchange of a and c."""

import gemmi
import numpy as np
import pytest

from makers import MONOCLINIC, direct_sum, make_crystal
from xrd_helpers.crystals import CrystalError, swap_a_and_c, without_inversion


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


@pytest.mark.parametrize("symbol, inversion", [
    ("P -1", True), ("P 1 21/c 1", True), ("C 1 2/c 1", True), ("I 41/a m d:2", True), ("F d -3 m:2", True),
    ("P n n n:2", True), ("P 1", False), ("P 1 21 1", False), ("P -4", False),
    ("P n n n:1", False), ("F d -3 m:1", False)])  # origin choice 1: the inversion is off the origin
def test_the_operators_that_an_inversion_at_the_origin_leaves_out(symbol, inversion):
    spacegroup = gemmi.SpaceGroup(symbol)
    rot, tran, found = without_inversion(spacegroup)
    assert found == inversion and (rot[0] == np.eye(3)).all() and not tran[0].any()
    assert not found or (np.linalg.det(rot) > 0).all()
    centring = np.array(spacegroup.operations().cen_ops) / 24
    whole = [(sign * R, sign * t + c) for R, t in zip(rot, tran) for c in centring for sign in ((1, -1) if found else (1,))]
    names = {(R.tobytes(), tuple(np.round(24 * t).astype(int) % 24)) for R, t in whole}
    assert len(whole) == len(names) and names == {
        ((np.array(op.rot) // 24).tobytes(), tuple(np.array(op.tran) % 24)) for op in spacegroup.operations()}
