"""Riding hydrogen: its geometry against closed forms, its places against published ones."""

import numpy as np
import pytest

from xrd_helpers import ROOT
from xrd_helpers.bonds import neighbours
from xrd_helpers.cif import read_cif
from xrd_helpers.crystals import Crystal
from xrd_helpers.phasing.hydrogen import arrangements, place_hydrogen, with_hydrogen
from xrd_helpers.phasing.refine import Model
from xrd_helpers.phasing.restraints import RestrainedRefiner
from xrd_helpers.reflections import Reflections, unique_hkl
from xrd_helpers.structure_factors import structure_factors

MOLECULES = ROOT / "data" / "molecules"


def unit(vectors):
    vectors = np.asarray(vectors, float)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def angle(a, b):
    return np.degrees(np.arccos(unit(a) @ unit(b)))


def test_between_two_bonds_one_in_their_plane_or_two_across_it():
    bonds = unit([[1, 0.3, 0.2], [-0.4, 1, -0.1]])
    flat, pair = arrangements("C", bonds)
    assert np.linalg.norm(flat) == pytest.approx(0.95) and flat[0] @ np.cross(*bonds) == pytest.approx(0, abs=1e-12)
    assert angle(flat[0], bonds[0]) == pytest.approx(angle(flat[0], bonds[1]))
    np.testing.assert_allclose(np.linalg.norm(pair, axis=1), 0.99)
    assert angle(*pair) == pytest.approx(108)
    for one in pair:
        assert angle(one, bonds[0]) == pytest.approx(angle(one, bonds[1])) and angle(one, bonds[0]) > 100


def test_on_an_end_methyl_amine_and_hydroxyl_at_their_angles():
    bond = unit([[0.2, -0.7, 0.4]])
    for element, expected in (("C", {1: 180, 2: 120, 3: 109.5}), ("N", {2: 120, 3: 109.5}), ("O", {1: 109.5})):
        found = arrangements(element, bond)
        assert {len(xyz) for xyz in found} == set(expected)
        for xyz in found:
            np.testing.assert_allclose([angle(x, bond[0]) for x in xyz], expected[len(xyz)], atol=1e-4)
            if len(xyz) == 3:  # cos of the angle between two of three on a cone: 1 - 1.5 sin²
                np.testing.assert_allclose(angle(xyz[0], xyz[1]), np.degrees(np.arccos(1 - 1.5 * np.sin(np.radians(109.5))**2)))


@pytest.mark.parametrize("element, bonds", [
    ("O", [[1, 0, 0], [0, 1, 0]]), ("C", [[1, 0, 0], [-1, 0.1, 0]]), ("Cl", [[1, 0, 0]]), ("C", np.zeros((0, 3))),
    ("C", [[1, 0, 0], [-0.5, 0.866, 0.05], [-0.5, -0.866, 0.05]]), ("C", [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])])
def test_no_room_no_hydrogen(element, bonds):
    assert arrangements(element, np.asarray(bonds, float).reshape(-1, 3)) == []


def refined(crystal, d_min, truth=None):
    """Refiner and Model of the atoms of a crystal that are not hydrogen, against amplitudes of all."""
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
    data = Reflections.of_good_data(hkl, np.abs(structure_factors(truth or crystal, hkl)), crystal.cell, crystal.spacegroup)
    heavy, n = crystal.heavy, crystal.heavy.sum()
    elements = tuple(np.array(crystal.elements)[heavy])
    refiner = RestrainedRefiner(data, sorted(set(elements)))
    model = Model(crystal.fract[heavy], elements, np.full(n, 0.04), crystal.occ[heavy], np.zeros(n))
    return refiner, refiner.least_squares(model, 6)


def n_right(found, crystal):
    """Hydrogen atoms found within 0.35 Å of published ones: those were put nearer to their parents or farther by some."""
    true = crystal.fract[~crystal.heavy]
    pairs = [neighbours(np.vstack([x, true]), crystal.cell, crystal.spacegroup, 0.35) for x in found]
    return sum(bool((pair.i == 0).any()) for pair in pairs)


@pytest.mark.parametrize("name", ["paracetamol", "hydantoin", "biphenylyl_diimine"])
@pytest.mark.parametrize("d_min", [1.2, 1.5])
def test_hydrogen_comes_where_it_was_published(name, d_min):
    crystal = read_cif(MOLECULES / f"{name}.cif")
    refiner, model = refined(crystal, d_min)
    found = with_hydrogen(refiner, model, crystal.contents["H"])
    hydrogen = np.array(found.elements) == "H"
    assert hydrogen.sum() >= 0.75 * crystal.contents["H"] and n_right(found.fract[hydrogen], crystal) >= hydrogen.sum() - 1
    assert found.r1 < 0.75 * model.r1 and (hydrogen == (np.arange(len(hydrogen)) >= len(model.fract))).all()
    np.testing.assert_allclose(refiner.score(found).r1, found.r1, rtol=0.02)


def test_no_more_than_the_formula_has():
    crystal = read_cif(MOLECULES / "paracetamol.cif")
    assert len(place_hydrogen(*refined(crystal, 1.2), most=4).fract) <= 4


def test_where_there_is_none_none_is_seen():
    crystal = read_cif(MOLECULES / "paracetamol.cif")
    heavy = crystal.heavy
    bare = Crystal("bare", crystal.cell, crystal.spacegroup, tuple(np.array(crystal.elements)[heavy]), crystal.fract[heavy],
                   crystal.u_iso[heavy], crystal.occ[heavy])
    refiner, model = refined(crystal, 1.2, truth=bare)
    noise = np.random.default_rng(1).normal(0, 0.03, len(refiner.reflections))
    refiner.reflections.F[:] *= 1 + noise
    assert len(place_hydrogen(refiner, refiner.least_squares(model, 4)).fract) <= 1
