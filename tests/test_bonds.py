"""Whole molecules out of an asymmetric unit: known molecules on special positions, over cell borders, and without end."""

import gemmi
import numpy as np
import pytest

from xrd_helpers import locate
from xrd_helpers.bonds import neighbours, whole_molecules
from xrd_helpers.cif import read_cif

CELL = gemmi.UnitCell(7, 8, 9, 82, 95, 104)


def in_cell(xyz, cell=CELL):
    return np.asarray(xyz, float) @ np.array(cell.frac.mat.tolist()).T


def molecules(xyz, elements, symbol="P 1", cell=CELL):
    return whole_molecules(in_cell(xyz, cell), elements, cell, gemmi.SpaceGroup(symbol))


def hexagon(radius=1.39):
    angle = np.radians(60 * np.arange(6) + 10)
    return radius * np.stack([np.cos(angle), np.sin(angle), 0.3 * np.sin(angle)], axis=1)


def lengths(molecule):
    i, j = molecule.bonds.T
    return np.linalg.norm(molecule.xyz[i] - molecule.xyz[j], axis=1)


@pytest.mark.parametrize("symbol, cell", [("P 1", (3.1, 8, 9, 82, 95, 104)), ("P -1", (5, 4.2, 6, 60, 65, 55)),
                                          ("C 1 2/c 1", (9, 5, 7, 90, 128, 90)), ("P 21 21 21", (4, 5, 6, 90, 90, 90))])
def test_neighbours_are_those_of_all_images_of_all_cells_around(symbol, cell):
    """Against a loop over operators of gemmi and many lattice translations; the last atom is on a special position."""
    cell, spacegroup, reach = gemmi.UnitCell(*cell), gemmi.SpaceGroup(symbol), 4.3
    fract = np.vstack([np.random.default_rng(1).uniform(-1, 2, (4, 3)), [0, 0, 0]])
    expected = []
    shifts = np.stack(np.meshgrid(*[np.arange(-7, 8)] * 3), -1).reshape(-1, 3)
    orth = np.array(cell.orth.mat.tolist())
    for i, x in enumerate(fract):
        for j, y in enumerate(fract):
            images = np.vstack([np.array(op.apply_to_xyz(y.tolist())) + shifts for op in spacegroup.operations()])
            lengths = np.linalg.norm((images - x) @ orth.T, axis=1)
            near = (lengths < reach) & (lengths > 1e-6)
            _, once = np.unique(images[near].round(6), axis=0, return_index=True)
            expected += [(i, j, round(length, 6)) for length in lengths[near][once]]
    found = neighbours(fract, cell, spacegroup, reach)
    assert sorted(zip(found.i, found.j, found.length.round(6))) == sorted(expected)
    np.testing.assert_allclose(np.linalg.norm(found.step @ orth.T, axis=1), found.length)
    ops = list(spacegroup.operations())
    for i, j, step in zip(found.i, found.j, found.step):
        away = [np.array(op.apply_to_xyz(fract[j].tolist())) - fract[i] - step for op in ops]
        assert min(np.abs(a - np.round(a)).max() for a in away) < 1e-9, "the step leads to an image"


def test_half_a_ring_on_an_inversion_centre_is_a_ring():
    ring, = molecules(hexagon()[:3], ["C"] * 3, "P -1")
    assert len(ring.atom) == 6 and sorted(ring.atom) == [0, 0, 1, 1, 2, 2] and list(ring.atom[ring.own]) == [0, 1, 2]
    assert sorted(np.bincount(ring.bonds.ravel())) == [2] * 6
    np.testing.assert_allclose(sorted(map(tuple, ring.xyz.round(6))), sorted(map(tuple, hexagon().round(6))), atol=1e-5)


def test_an_atom_on_the_centre_is_there_once():
    complex_, = molecules([[0, 0, 0], [1.9, 0.3, 0.2]], ["Cu", "O"], "P -1")
    assert list(complex_.atom) == [0, 1, 1] and list(complex_.own) == [True, True, False] and len(complex_.bonds) == 2


def test_a_molecule_torn_apart_at_the_borders_is_put_together():
    fract = in_cell(hexagon() + [3, 4, 0.1])
    torn = fract - np.floor(fract) - [[0, 0, 0], [1, 0, 0], [0, -2, 0], [0, 0, 0], [0, 0, 3], [1, 1, 1]]
    ring, = whole_molecules(torn, ["C"] * 6, CELL, gemmi.SpaceGroup("P 1"))
    sides = np.linalg.norm(np.diff(hexagon(), axis=0, append=hexagon()[:1]), axis=1)
    np.testing.assert_allclose(sorted(lengths(ring)), sorted(sides))
    assert ring.own.all()


def test_a_chain_without_end_is_cut_where_it_repeats():
    cell = gemmi.UnitCell(2.6, 9, 9, 90, 90, 90)
    chain, = molecules([[0, 0, 0], [1.3, 0.7, 0]], ["C", "C"], cell=cell)
    assert list(chain.atom) == [0, 1] and chain.bonds.tolist() == [[0, 1]]


def test_molecules_stand_by_their_size_and_hydrogen_is_not_bonded_to_hydrogen():
    water = np.array([[0, 0, 0], [0.6, 0.5, 0], [-0.1, 0.7, 0]])  # H-H 0.73 Å, as short as in the molecule
    found = molecules([*water, *(hexagon() + [0, 0, 4.5])], ["O", "H", "H"] + ["C"] * 6)
    assert [len(molecule.atom) for molecule in found] == [6, 3]
    assert sorted(found[1].bonds.tolist()) == [[0, 1], [0, 2]]


@pytest.mark.parametrize("name, sizes, n_bonds", [
    ("paracetamol", [20], [20]), ("sucrose", [45], [46]), ("glycine_dihydrate", [10, 3, 3], [9, 2, 2]),
    ("dimethylquinacridone", [42], [46]), ("ornithine_hydrochloride", [22, 1], [21, 0])])
def test_shipped_crystals_are_made_of_the_molecules_of_their_names(name, sizes, n_bonds):
    crystal = read_cif(locate(f"data/molecules/{name}.cif"))
    found = whole_molecules(crystal.fract, crystal.elements, crystal.cell, crystal.spacegroup)
    assert [len(molecule.atom) for molecule in found] == sizes and [len(molecule.bonds) for molecule in found] == n_bonds
    assert sorted(np.concatenate([molecule.atom[molecule.own] for molecule in found])) == list(range(len(crystal.elements)))
