"""Random crystals: the recipes' limits, distances by gemmi's neighbour search, and one stream a crystal."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import gemmi
import numpy as np
import pytest

from xrd_helpers.config import UserError
from xrd_helpers.random_crystals import MOLECULE_SPACEGROUPS, can_make, random_crystals

ORDER = {"P 1 21/c 1": 4, "P 1 21 1": 2, "C 1 2 1": 4}  # positions a cell, from International Tables


@pytest.fixture(scope="module")
def many():
    return random_crystals(200, seed=11)


@pytest.fixture(scope="module")
def molecules():
    return random_crystals(250, seed=11, recipe="molecules")


def same(one, other):
    return (one.name == other.name and one.cell.parameters == other.cell.parameters
            and one.spacegroup.xhm() == other.spacegroup.xhm() and one.elements == other.elements
            and all(np.array_equal(getattr(one, field), getattr(other, field)) for field in ("fract", "u_iso", "occ")))


@pytest.mark.parametrize("recipe", ["atoms", "molecules"])
def test_same_seed_same_crystals_in_any_number_and_parts(recipe):
    whole = random_crystals(9, seed=3, recipe=recipe)
    parts = [crystal for n, first in ((3, 6), (2, 0), (4, 2))
             for crystal in random_crystals(n, seed=3, first=first, recipe=recipe)]
    parts = parts[3:] + parts[:3]  # asked for in another order
    assert len(whole) == len(parts) == 9
    assert all(same(one, other) for one, other in zip(whole, parts))
    assert len({c.name for c in whole}) == 9
    assert all(c.source == f"recipe {recipe}" for c in whole)


def digest(recipe):
    """Of every bit of six crystals."""
    text = hashlib.sha256()
    for c in random_crystals(6, seed=29, recipe=recipe):
        text.update(repr((c.name, c.cell.parameters, c.spacegroup.xhm(), c.elements)).encode())
        text.update(c.fract.tobytes() + c.u_iso.tobytes() + c.occ.tobytes())
    return text.hexdigest()


def test_another_process_makes_the_same_crystals():
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_random_crystals as t; " \
           "print(t.digest('molecules'), t.digest('atoms'))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": "7"}).stdout.split()
    assert there == [digest("molecules"), digest("atoms")]


@pytest.mark.parametrize("recipe", ["atoms", "molecules"])
def test_another_seed_gives_other_crystals(recipe):
    one, other = random_crystals(6, seed=3, recipe=recipe), random_crystals(6, seed=4, recipe=recipe)
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


def nearest_images(c, limit):
    """The number of pairs of atoms nearer than limit Å, each atom against all images of all atoms, over 27 cells."""
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 1, 1, 3)
    orth, close = np.array(c.cell.orth.mat.tolist()).T, 0
    for n, op in enumerate(c.spacegroup.operations()):
        image = np.array([op.apply_to_xyz(x) for x in c.fract.tolist()])[:, None] - c.fract
        d = np.linalg.norm((image - np.round(image) + shifts) @ orth, axis=-1)
        close += (d < limit).sum() - (len(c.fract) if n == 0 else 0)  # each atom itself
    return close


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


@pytest.mark.parametrize("name, n", [("P 41", 6), ("I 41/a :2", 4), ("P 6/m", 4), ("R -3 :H", 4), ("R -3 :R", 4),
                                     ("F m -3 m", 1), ("P 21 3", 3), ("P 1 1 21/b", 6), ("P 21/b 1 1", 6), ("P n n n :1", 4),
                                     ("C -1", 4)])
def test_recipe_atoms_makes_crystals_of_every_system(name, n):
    """The metric of each system from International Tables A, the distances by brute force."""
    group = gemmi.SpaceGroup(name)
    for c in random_crystals(n, 2, (name,)):
        a, b, c_, alpha, beta, gamma = c.cell.parameters
        assert c.spacegroup.xhm() == group.xhm() and c.cell.is_compatible_with_spacegroup(group)
        assert 14 - 1e-9 < c.cell.volume / (len(c.elements) * len(group.operations())) < 22 + 1e-9
        system = group.crystal_system_str()
        if name == "R -3 :R":
            assert a == b == c_ and alpha == beta == gamma != 90
        elif system in ("trigonal", "hexagonal"):
            assert a == b != c_ and (alpha, beta, gamma) == (90, 90, 120)
        elif system == "monoclinic":
            oblique = [angle for angle in (alpha, beta, gamma) if angle != 90]
            assert oblique == [gamma if name == "P 1 1 21/b" else alpha]
        elif system in ("tetragonal", "orthorhombic", "cubic"):
            assert (alpha, beta, gamma) == (90, 90, 90)
            assert len({a, b, c_}) == {"tetragonal": 2, "orthorhombic": 3, "cubic": 1}[system]
            assert system != "tetragonal" or a == b
        assert nearest_images(c, 1.3 - 1e-9) == 0
        assert (c.occ == 1).all()  # no atom on a special position


def test_recipe_atoms_can_make_every_group_of_the_tables():
    groups = {group.xhm(): group for group in gemmi.spacegroup_table()}
    assert len(groups) > 500 and all(can_make(group, "atoms") for group in groups.values())


@pytest.mark.parametrize("recipe", ["atoms", "molecules"])
@pytest.mark.parametrize("name", ["P 99", "", "nonsense"])
def test_an_unknown_group_is_an_error_that_names_it(name, recipe):
    with pytest.raises(UserError, match=f"{name!r} is no space group"):
        random_crystals(1, 0, (name,), recipe=recipe)


def test_an_unknown_recipe_is_an_error_that_names_those_there_are():
    with pytest.raises(UserError, match="'proteins'.*atoms and molecules"):
        random_crystals(1, 0, recipe="proteins")


@pytest.mark.parametrize("name, words", [("F m -3 m", "not cubic F m -3 m"), ("P 41", "not tetragonal P 41"),
                                         ("P 6/m", "not hexagonal P 6/m"), ("P 1 1 21/b", "unique axis b, not P 1 1 21/b"),
                                         ("P 21/b 1 1", "unique axis b, not P 21/b 1 1"),
                                         ("R -3 :R", "not trigonal R -3:R")])
def test_a_group_that_recipe_molecules_cannot_do_is_an_error_that_names_it(name, words):
    with pytest.raises(UserError, match=words):
        random_crystals(1, 0, ("P -1", name), recipe="molecules")
    assert not can_make(gemmi.SpaceGroup(name), "molecules")


# ---- recipe molecules ----

def test_groups_are_drawn_with_their_shares(molecules):
    groups = Counter(c.spacegroup.xhm() for c in molecules)
    assert set(groups) <= set(MOLECULE_SPACEGROUPS)
    for group, share in MOLECULE_SPACEGROUPS.items():  # four standard errors
        assert groups[group] == pytest.approx(250 * share, abs=4 * (250 * share) ** 0.5), group
    two = Counter(c.spacegroup.xhm() for c in random_crystals(60, 3, ("P 1 c 1", "P b c a"), recipe="molecules"))
    assert set(two) == {"P 1 c 1", "P b c a"} and min(two.values()) > 15


def test_molecules_have_the_volume_of_real_crystals(molecules):
    """18 Å³ an atom other than H is the old rule (Kempster & Lipson, 1972); 12 to 26 for nearly H-free and H-rich ones."""
    volumes = []
    for c in molecules:
        atoms = (c.occ * c.heavy).sum()
        assert 4 <= round(2 * atoms) / 2 <= 50 and c.heavy.sum() >= 4
        volumes.append(c.cell.volume / len(c.spacegroup.operations()) / atoms)
    assert np.median(volumes) == pytest.approx(17.9, abs=0.6)
    low, high = np.quantile(volumes, [0.02, 0.98])
    assert 12 < low and high < 26 and min(volumes) > 11 and max(volumes) < 40
    sizes = [c.heavy.sum() for c in molecules]
    assert 14 < np.median(sizes) < 26 and min(sizes) < 8 and max(sizes) > 40


def test_molecules_are_made_of_carbon_and_hydrogen_first(molecules):
    share = Counter(element for c in molecules for element, h in zip(c.elements, c.heavy) if h)
    total = share.total()
    assert 0.6 < share["C"] / total < 0.8 and 0.05 < share["N"] / total < 0.15 and 0.06 < share["O"] / total < 0.18
    assert sum("H" in c.elements for c in molecules) > 0.98 * len(molecules)
    h = sum((~c.heavy).sum() for c in molecules) / total
    assert 0.6 < h < 1.2
    assert 0.1 < sum(any(gemmi.Element(e).is_metal for e in c.elements) for c in molecules) / len(molecules) < 0.4


def test_displacements_of_molecules(molecules):
    """Within 0.005 to 0.25 Å², medians of 100 K and room-temperature structures, H exactly 1.2 of the atom it rides on."""
    medians = []
    for c in molecules:
        assert 0.005 <= c.u_iso.min() and c.u_iso.max() <= 0.25
        medians.append(np.median(c.u_iso[c.heavy]))
        x = c.fract @ np.array(c.cell.orth.mat.tolist()).T
        for i in np.flatnonzero(~c.heavy):
            d = np.linalg.norm(x[c.heavy] - x[i], axis=1)  # within the asymmetric unit, as molecules are stored in one piece
            assert c.u_iso[i] == pytest.approx(1.2 * c.u_iso[c.heavy][d.argmin()], rel=1e-12)
    assert 0.02 < np.median(medians) < 0.05 and np.quantile(medians, 0.1) < 0.025 and np.quantile(medians, 0.9) > 0.04


def test_an_atom_of_half_occupancy_is_on_a_site_of_multiplicity_two():
    """gemmi counts the operators that leave the site in place: two for occ 1/2, one for 1."""
    crystals = random_crystals(60, 31, ("P -1", "P 1 21/c 1", "C 1 2/c 1"), recipe="molecules")
    half = 0
    for c in crystals:
        cell = c.small_structure().cell
        for x, occ in zip(c.fract, c.occ):
            multiplicity = 1 + cell.is_special_position(gemmi.Fractional(*x), 0.1)
            assert occ == 1 / multiplicity
            half += occ == 0.5
    assert half >= 2
    assert all((c.occ == 1).all() for c in random_crystals(20, 31, ("P 1", "P 21 21 21", "C 1 2 1"), recipe="molecules"))
