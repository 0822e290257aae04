"""Random crystals: the recipe's limits, distances by gemmi's neighbour search, and one stream a crystal."""

from collections import Counter

import gemmi
import numpy as np
import pytest

from xrd_helpers.random_crystals import random_crystals

ORDER = {"P 1 21/c 1": 4, "P 1 21 1": 2, "C 1 2 1": 4}  # positions a cell, from International Tables


@pytest.fixture(scope="module")
def many():
    return random_crystals(200, seed=11)


def same(one, other):
    return (one.name == other.name and one.cell.parameters == other.cell.parameters
            and one.spacegroup.xhm() == other.spacegroup.xhm() and one.elements == other.elements
            and all(np.array_equal(getattr(one, field), getattr(other, field)) for field in ("fract", "u_iso", "occ")))


def test_same_seed_same_crystals_in_any_number_and_parts():
    whole = random_crystals(9, seed=3)
    parts = random_crystals(2, seed=3) + random_crystals(4, seed=3, first=2) + random_crystals(3, seed=3, first=6)
    assert len(whole) == len(parts) == 9
    assert all(same(one, other) for one, other in zip(whole, parts))
    assert len({c.name for c in whole}) == 9


def test_another_seed_gives_other_crystals():
    one, other = random_crystals(6, seed=3), random_crystals(6, seed=4)
    cells = {c.cell.parameters for c in one + other}
    assert len(cells) == 12


def test_volume_number_and_elements_are_those_of_the_recipe(many):
    numbers = [len(c.elements) for c in many]
    assert min(numbers) == 10 and max(numbers) == 29
    volumes = [c.cell.volume / (ORDER[c.spacegroup.xhm()] * len(c.elements)) for c in many]
    assert 14 - 1e-6 < min(volumes) < 14.5 and 21.5 < max(volumes) < 22 + 1e-6
    assert np.mean(volumes) == pytest.approx(18, abs=0.5)    # uniform: standard error 0.16
    elements = Counter(element for c in many for element in c.elements)
    assert set(elements) == {"C", "N", "O", "Cl"}
    for element, count in elements.items():                   # equal odds: standard error 0.007
        assert count / elements.total() == pytest.approx(0.25, abs=0.03), element
    groups = Counter(c.spacegroup.xhm() for c in many)
    assert set(groups) == set(ORDER) and min(groups.values()) > 45
    assert all((c.occ == 1).all() for c in many)


def test_cells_are_monoclinic_with_unique_axis_b(many):
    for c in many:
        assert c.cell.alpha == c.cell.gamma == 90 and 90 <= c.cell.beta <= 116
        assert c.cell.is_compatible_with_spacegroup(c.spacegroup)
    betas, shapes = [c.cell.beta for c in many], [c.cell.a / c.cell.b for c in many]
    assert min(betas) < 92 and max(betas) > 114
    assert np.std(np.log(shapes)) == pytest.approx(0.3 * 2**0.5, abs=0.08)  # axes differ by about a third


def test_displacements_are_those_of_organic_crystals(many):
    u = np.concatenate([c.u_iso for c in many])
    assert 0.015 * 0.75 <= u.min() < 0.014 and 0.080 < u.max() <= 0.07 * 1.35  # Å²
    for c in many:
        assert 1 < c.u_iso.max() / c.u_iso.min() <= 1.35 / 0.75


def test_no_two_atoms_of_the_crystal_are_nearer_than_the_limit():
    """Each atom against all images of all atoms, its own among them, by gemmi.NeighborSearch."""
    close = 0
    for c in random_crystals(30, seed=5):
        small = c.small_structure()
        search = gemmi.NeighborSearch(small, 3.0).populate()
        for site in small.sites:
            assert len(search.find_site_neighbors(site, 0, 1.3 - 1e-6)) == 1, (c.name, site.label)  # itself
            close += len(search.find_site_neighbors(site, 0, 1.35)) - 1
        # gemmi merges images of one atom that come within 0.8 Å of each other: these in numpy
        shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 1, 3)
        for op in list(c.spacegroup.operations())[1:]:
            image = np.array([op.apply_to_xyz(list(x)) for x in c.fract]) - c.fract
            image = (image - np.round(image) + shifts) @ np.array(c.cell.orth.mat.tolist()).T
            assert np.linalg.norm(image, axis=-1).min() >= 1.3 - 1e-6
    assert close > 10  # atoms come near to the limit, so it is the limit that keeps them apart


def test_other_systems_that_the_recipe_can_do():
    triclinic, orthorhombic = (random_crystals(3, 1, (name,)) for name in ("P -1", "P 21 21 21"))
    for c in triclinic:
        assert all(75 <= angle <= 115 and angle != 90 for angle in c.cell.parameters[3:])
        assert c.spacegroup.hm == "P -1" and 14 < c.cell.volume / (2 * len(c.elements)) < 22
    for c in orthorhombic:
        assert c.cell.parameters[3:] == (90, 90, 90)
        assert c.spacegroup.hm == "P 21 21 21" and 14 < c.cell.volume / (4 * len(c.elements)) < 22


@pytest.mark.parametrize("name, words", [("F m -3 m", "not cubic"), ("P 41", "not tetragonal"),
                                         ("P 1 1 21/b", "unique axis b"), ("P 99", "P 99")])
def test_a_group_without_recipe_is_an_error_that_names_it(name, words):
    with pytest.raises(ValueError, match=words):
        random_crystals(1, 0, (name,))
