"""Packing: contacts counted by brute force over the images of the whole crystal, molecules found again by their bonds."""

from collections import Counter

import gemmi
import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from makers import make_crystal
from xrd_helpers import ROOT
from xrd_helpers.random_crystals import MOLECULE_SPACEGROUPS, random_crystals
from xrd_helpers.random_crystals import recipes as recipe
from xrd_helpers.random_crystals.packing import Contents, pack

# the groups of the recipe, and some that differ in their lattice or have more operators
GROUPS = (*MOLECULE_SPACEGROUPS, "C 1 2/m 1", "P n n m", "P 1 21/m 1", "P b c n", "P 2 2 2", "A 1 2/n 1", "F d d 2", "I 2 2 2")
PER_GROUP = 5
# Å, Bondi (1964), but H by Rowland & Taylor (1996); other elements are 1.9 here
BONDI = {"H": 1.10, "C": 1.70, "N": 1.55, "O": 1.52, "F": 1.47, "Cl": 1.75, "Br": 1.85, "I": 1.98, "S": 1.80, "P": 1.80,
         "Si": 2.10, "B": 1.85, "Na": 1.25, "K": 1.60}
ACCEPTORS = ("N", "O", "F")
CLOSEST = 0.28       # Å below the sum of the radii, as the module says
HOFMANN = {"H": 5.08, "C": 13.87, "N": 11.8, "O": 11.39, "F": 11.17, "S": 25.2, "Cl": 25.8, "Br": 32.7, "I": 46.2, "B": 13.24,
           "P": 29.5, "Si": 37.3}  # Å³ an atom, Hofmann (2002)


def cartesian(crystal, fract):
    return fract @ np.array(crystal.cell.orth.mat.tolist()).T


class Surroundings:
    """The atoms of the asymmetric unit and every image near the box about them, with molecules by their bonds.

    Near is 8 Å, or as far as the inverse of the longest molecule reaches if one sits on a centre.
    """

    def __init__(self, crystal, centric=False):
        here = cartesian(crystal, crystal.fract)
        margin = 4 + np.ptp(here, axis=0).max() if centric else 8.0
        low, high = here.min(axis=0) - margin, here.max(axis=0) + margin
        corners = np.array(np.meshgrid(*zip(low, high))).reshape(3, -1).T
        corners = np.array([crystal.cell.fractionalize(gemmi.Position(*x)).tolist() for x in corners])
        xyz, number = [here], [np.arange(len(here))]
        ranges = [np.arange(np.floor(a), np.ceil(b)) for a, b in zip(corners.min(axis=0), corners.max(axis=0))]
        shifts = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
        for op in crystal.spacegroup.operations():  # centring included
            image = np.array([op.apply_to_xyz(x) for x in crystal.fract.tolist()])
            x = cartesian(crystal, (image - np.floor(image))[:, None] + shifts)
            inside = ((x > low) & (x < high)).all(axis=2)
            xyz.append(x[inside])
            number.append(np.nonzero(inside)[0])
        xyz, number = np.vstack(xyz), np.concatenate(number)
        same = cKDTree(xyz).query_pairs(1e-3, output_type="ndarray")  # of an atom on a special position one is enough
        keep = np.ones(len(xyz), bool)
        keep[same.max(axis=1)] = False
        self.n, self.xyz, self.number = len(here), xyz[keep], number[keep]
        self.elements = np.array(crystal.elements)[self.number]
        self.tree = cKDTree(self.xyz)
        self._find_molecules()

    def pairs(self, reach):
        i, j = self.tree.query_pairs(reach, output_type="ndarray").T
        return i, j, np.linalg.norm(self.xyz[i] - self.xyz[j], axis=1)

    def _find_molecules(self):
        """Bonds between atoms other than H within 0.25 Å of the covalent radii; an H belongs to its nearest atom."""
        radius = np.array([gemmi.Element(e).covalent_r for e in self.elements])
        single = np.isin(self.elements, ("H", "Na", "K"))
        i, j, d = self.pairs(3.4)
        bond = (d < radius[i] + radius[j] + 0.25) & ~single[i] & ~single[j]
        h = np.flatnonzero(self.elements == "H")
        parent = self.tree.query(self.xyz[h], k=2)[1][:, 1]
        i, j = np.concatenate([i[bond], h]), np.concatenate([j[bond], parent])
        self.molecule = connected_components(coo_matrix((np.ones(len(i)), (i, j)), shape=(len(single),) * 2), directed=False)[1]
        self.can_give = np.zeros(len(single), bool)  # H of N-H and O-H
        self.can_give[h] = np.isin(self.elements[parent], ("N", "O"))
        self.donor = np.zeros(len(single), bool)
        self.donor[parent] = True
        self.donor &= np.isin(self.elements, ACCEPTORS)

    def contacts(self, reach=4.0):
        """i, j, d of pairs of different molecules, one of them in the asymmetric unit, and the limit for each."""
        i, j, d = self.pairs(reach)
        keep = (i < self.n) & (self.molecule[i] != self.molecule[j])
        i, j, d = i[keep], j[keep], d[keep]
        radius = np.array([BONDI.get(e, 1.9) for e in self.elements])
        limit = radius[i] + radius[j] - CLOSEST
        polar = np.isin(self.elements, ACCEPTORS)
        of_h = (self.can_give[i] & polar[j]) | (self.can_give[j] & polar[i])
        of_donor = polar[i] & polar[j] & (self.donor[i] | self.donor[j])
        limit = np.where(of_h, np.minimum(limit, 1.70), np.where(of_donor, np.minimum(limit, 2.60), limit))
        return i, j, d, limit


def made_with_contents(group, n, seed):
    """Random crystals of the recipe, each with the contents that were packed."""
    packed = []

    def watched(contents, rng):
        result = pack(contents, rng)
        if result[0] is not None:
            packed.append((contents, contents.volume))
        return result

    original, recipe.pack = recipe.pack, watched
    try:
        crystals = random_crystals(n, seed, (group,), recipe="molecules")
    finally:
        recipe.pack = original
    assert len(packed) == n
    return [(crystal, *row) for crystal, row in zip(crystals, packed)]


@pytest.fixture(scope="module")
def packed():
    return {group: made_with_contents(group, PER_GROUP, 7) for group in GROUPS}


@pytest.fixture(scope="module")
def surroundings(packed):
    return {group: [Surroundings(row[0], any(place is not None for place in row[1].fixed)) for row in rows]
            for group, rows in packed.items()}


@pytest.mark.parametrize("group", GROUPS)
def test_contacts_between_molecules_keep_the_limits(packed, surroundings, group):
    for (crystal, _, _), around in zip(packed[group], surroundings[group]):
        i, j, d, limit = around.contacts()
        wrong = d < limit - 1e-6
        assert not wrong.any(), (crystal.name, around.elements[i[wrong]], around.elements[j[wrong]], d[wrong])
        assert (d < limit + CLOSEST + 0.3).sum() >= 6, "molecules of a crystal touch"


def test_hydrogen_bonds_are_made_and_the_limits_are_reached(packed, surroundings):
    """Some crystals have an H nearer to its acceptor than other atoms may come, and many a contact at the limit."""
    short, at_limit = 0, 0
    for rows in surroundings.values():
        for around in rows:
            i, j, d, limit = around.contacts()
            give = around.can_give[i] | around.can_give[j]
            short += (give & (limit == 1.70) & (d < 2.2)).any()
            at_limit += (d < limit + 0.05).any()
    assert short > 3 and at_limit > len(GROUPS)


@pytest.mark.parametrize("group", GROUPS)
def test_cell_is_that_of_its_group_with_the_volume_asked_for(packed, group):
    for crystal, contents, volume in packed[group]:
        assert crystal.cell.volume == pytest.approx(volume, rel=1e-9)
        assert crystal.spacegroup.xhm() == contents.spacegroup.xhm() == group
        assert crystal.cell.is_compatible_with_spacegroup(crystal.spacegroup)
        system = crystal.spacegroup.crystal_system_str()
        free = {"triclinic": (3, 4, 5), "monoclinic": (4,), "orthorhombic": ()}[system]
        for k in set(range(3, 6)) - set(free):
            assert crystal.cell.parameters[k] == pytest.approx(90, abs=1e-9)
        if system == "monoclinic":
            assert 90 <= crystal.cell.beta < 140
        if system == "triclinic":
            assert gemmi.GruberVector(crystal.cell, crystal.spacegroup).is_niggli(1e-6)
        # real crystals: the sum of Hofmann's volumes within a few percent
        atoms = sum(HOFMANN.get(e, 32) * o for e, o in zip(crystal.elements, crystal.occ))
        atoms *= len(crystal.spacegroup.operations())
        assert 0.859 < crystal.cell.volume / atoms < 1.30


@pytest.mark.parametrize("group", GROUPS)
def test_molecules_are_rigid(packed, group):
    """Distances within each molecule are those that it had before it was packed."""
    for crystal, contents, _ in packed[group]:
        x = cartesian(crystal, crystal.fract)
        assert crystal.elements == tuple(e for elements in contents.elements for e in elements)
        assert len(x) == sum(map(len, contents.xyz))
        end = 0
        for xyz in contents.xyz:
            start, end = end, end + len(xyz)
            before, after = (np.linalg.norm(y[:, None] - y[None], axis=2) for y in (xyz, x[start:end]))
            np.testing.assert_allclose(after, before, rtol=0, atol=1e-9)


def test_molecules_keep_their_bonds_in_reduced_and_reversed_cells():
    """C-H of the recipe's output alone, in 20 triclinic and 20 monoclinic crystals: 0.95 to 0.97 Å and the noise on both."""
    lengths = []
    for group in ("P -1", "P 1", "P 1 21/c 1", "C 1 c 1"):
        for crystal in random_crystals(10, 3, (group,), recipe="molecules"):
            d = np.linalg.norm((x := cartesian(crystal, crystal.fract))[:, None] - x, axis=2) + 9 * np.eye(len(x))
            elements = np.array(crystal.elements)
            for i in np.flatnonzero(elements == "H"):
                if elements[d[i].argmin()] == "C":
                    lengths.append(d[i].min())
    assert len(lengths) > 300
    assert np.mean(lengths) == pytest.approx(0.96, abs=0.01) and np.std(lengths) < 0.04
    assert 0.8 < min(lengths) < max(lengths) < 1.12


@pytest.mark.parametrize("group", GROUPS)
def test_molecules_are_whole_and_no_larger_than_they_were(packed, surroundings, group):
    """Every molecule, found by its bonds in the crystal, has the atoms of the one that was packed: both halves if centric."""
    for (crystal, contents, _), around in zip(packed[group], surroundings[group]):
        end = 0
        for elements, place in zip(contents.elements, contents.fixed):
            start, end = end, end + len(elements)
            members = np.flatnonzero(around.molecule == around.molecule[start])
            expected = Counter(elements)
            if place is not None:  # an atom on the centre counts once
                for e, o in zip(elements, crystal.occ[start:end]):
                    expected[e] += 1 if o == 1 else 0
            assert Counter(around.elements[members].tolist()) == expected, (crystal.name, place)


@pytest.mark.parametrize("group", ["P -1", "P 1 21/c 1", "P 1 21/n 1", "C 1 2/c 1", "P b c a", "P b c n"])
def test_molecules_on_inversion_centres_sit_on_one(group):
    """gemmi finds one more operator that leaves the middle of the molecule in place: -1, and the images fill the molecule."""
    found = 0
    for crystal, contents, _ in made_with_contents(group, 40, 17):
        end, cell = 0, crystal.small_structure().cell
        for elements, place in zip(contents.elements, contents.fixed):
            start, end = end, end + len(elements)
            if place is None:
                assert (crystal.occ[start:end] == 1).all()
                continue
            found += 1
            around = Surroundings(crystal, centric=True)
            members = around.molecule == around.molecule[start]
            middle = cell.fractionalize(gemmi.Position(*around.xyz[members].mean(axis=0)))
            assert cell.is_special_position(middle, 1e-6) == 1
            inverses = [op for op in crystal.spacegroup.operations() if np.trace(op.rot) == -3 * op.DEN]
            moved = [np.array(op.apply_to_xyz(middle.tolist())) - middle.tolist() for op in inverses]
            assert any(np.abs(x - np.round(x)).max() < 1e-6 for x in moved)
            x = around.xyz[members] - around.xyz[members].mean(axis=0)
            assert np.linalg.norm(x[:, None] + x, axis=2).min(axis=1).max() < 1e-6
            on_centre = np.linalg.norm(around.xyz[start:end] - cell.orthogonalize(middle).tolist(), axis=1) < 1e-6
            np.testing.assert_array_equal(crystal.occ[start:end], np.where(on_centre, 0.5, 1))
    assert found >= 2


def benzene():
    """From the textbook: C on a circle of 1.39, H of 2.34 Å."""
    angles = np.radians(60 * np.arange(6))
    ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    return ["C"] * 6 + ["H"] * 6, np.vstack([1.39 * ring, 2.34 * ring]), [-1] * 6 + list(range(6))


def contents_of(group, volume, fixed=None, half=False):
    elements, xyz, parents = benzene()
    if half:
        keep = [0, 1, 2, 6, 7, 8]
        elements, xyz, parents = [elements[k] for k in keep], xyz[keep], [-1] * 3 + [0, 1, 2]
    return Contents(gemmi.SpaceGroup(group), volume, [elements], [xyz], [parents], [fixed], np.ones(len(elements)))


def as_crystal(contents, cell, fract):
    return make_crystal(contents.elements[0], contents.spacegroup.xhm(), cell, fract, occ=contents.occ)


@pytest.mark.parametrize("group, z, fixed", [("P b c a", 4, np.zeros(3)), ("P -1", 1, np.array([0.5, 0, 0.5])),
                                             ("P 1 21/c 1", 4, None), ("P 21 21 21", 4, None), ("P 1", 1, None)])
def test_benzene_packs_at_the_density_of_benzene(group, z, fixed):
    """492 Å³ for the four molecules of Pbca at 270 K (Cox 1958; Bacon et al. 1964)."""
    contents, rng = contents_of(group, 123.0 * z, fixed, fixed is not None), np.random.default_rng(4)
    for _ in range(40):
        cell, fract = pack(contents, rng)
        if cell is not None:
            break
    else:
        raise AssertionError("no packing in 40 attempts")
    crystal = as_crystal(contents, cell, fract)
    assert cell.volume == pytest.approx(123.0 * z, rel=1e-9) and cell.is_compatible_with_spacegroup(crystal.spacegroup)
    around = Surroundings(crystal, fixed is not None)
    _, _, d, limit = around.contacts()
    assert (d >= limit - 1e-6).all() and (d < 3.2).any()
    members = around.molecule == around.molecule[0]
    assert Counter(around.elements[members].tolist()) == {"C": 6, "H": 6}
    middle = around.xyz[members].mean(axis=0)
    radii = np.linalg.norm(around.xyz[members] - middle, axis=1)
    np.testing.assert_allclose(np.sort(radii), [1.39] * 6 + [2.34] * 6, atol=1e-9)
    if fixed is not None:
        difference = np.array(cell.fractionalize(gemmi.Position(*middle)).tolist()) - fixed
        assert np.abs(difference - np.round(difference)).max() < 1e-9


def test_what_does_not_fit_is_given_up():
    """Benzene in 70 Å³, less than its van der Waals volume of 80."""
    rng = np.random.default_rng(0)
    for group in ("P 1 21/c 1", "P -1"):
        assert pack(contents_of(group, 70.0 * len(gemmi.SpaceGroup(group).operations())), rng) == (None, None)


def test_starts_differ_and_follow_the_stream():
    cells = []
    for seed in (1, 1, 2):
        contents, rng = contents_of("P 1 21/c 1", 560.0), np.random.default_rng(seed)
        while (result := pack(contents, rng))[0] is None:
            pass
        cells.append(result)
    assert cells[0][0].parameters == cells[1][0].parameters != cells[2][0].parameters
    np.testing.assert_array_equal(cells[0][1], cells[1][1])


def test_what_numba_compiles_needs_no_folder_to_write_to():
    """``compiled`` does without; numba.njit(cache=True) is an error on import where neither package nor home can be written."""
    rooms = [path.name for path in (ROOT / "xrd_helpers").rglob("*.py") if "njit" in path.read_text(encoding="utf-8")]
    assert rooms == ["compiled.py"]
