"""Whole molecules out of an asymmetric unit: known molecules on special positions, over cell borders, and without end."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from makers import direct_sum
from xrd_helpers import locate
from xrd_helpers.bonds import assembled, neighbours, whole_molecules
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


@pytest.mark.parametrize("name, n_pieces", [("paracetamol", 1), ("glycine_dihydrate", 3), ("dimethylquinacridone", 1),
                                            ("ornithine_hydrochloride", 2)])
def test_scattered_atoms_are_assembled(name, n_pieces):
    """In one piece each and near each other without any symmetry; gemmi's structure factors are those of the crystal."""
    crystal = read_cif(locate(f"data/molecules/{name}.cif"))
    rng, ops = np.random.default_rng(3), list(crystal.spacegroup.operations())
    scattered = [np.array(ops[rng.integers(len(ops))].apply_to_xyz(x.tolist())) + rng.integers(-2, 3, 3) for x in crystal.fract]
    order, fract = assembled(scattered, crystal.elements, crystal.cell, crystal.spacegroup)
    elements = tuple(crystal.elements[i] for i in order)
    made = replace(crystal, fract=fract, elements=elements, u_iso=crystal.u_iso[order], occ=crystal.occ[order], u_aniso=None)
    hkl = np.random.default_rng(4).integers(-5, 6, (40, 3))
    before = direct_sum(replace(crystal, u_aniso=None), hkl)
    np.testing.assert_allclose(np.abs(direct_sum(made, hkl)), np.abs(before), atol=1e-3)
    xyz = np.array([crystal.cell.orthogonalize(gemmi.Fractional(*x)).tolist() for x in fract])
    away = np.linalg.norm(xyz[:, None] - xyz, axis=-1)
    reach = np.where([e == "H" for e in elements], 1.2, 1.9)
    n, piece = connected_components(away < np.minimum(reach, reach[:, None]))
    assert n == n_pieces and (np.diff(piece) != 0).sum() == n - 1, "one molecule after the other"
    assert (fract[piece == piece[0]].mean(0) >= 0).all() and (fract[piece == piece[0]].mean(0) < 1).all()
    for other in range(1, n):
        assert away[piece == other][:, piece != other].min() < 3.6, "side by side"
