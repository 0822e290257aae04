"""Statistics of a crystal: numbers by hand, distances by brute force, Wilson's distributions and his plot."""

import gemmi
import numpy as np
import pytest

from makers import make_crystal
from xrd_helpers.crystals import Crystal
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.statistics import crystal_statistics, neighbour_statistics

TRICLINIC = gemmi.UnitCell(9.1, 10.3, 11.7, 81, 95, 104)
MONOCLINIC = gemmi.UnitCell(12.0, 6.0, 9.0, 90, 110, 90)
COLUMNS = ["atoms", "volume per atom", "middle edge / shortest", "longest edge / shortest", "beta", "nearest", "second nearest",
           "bonded neighbours", "neighbours to 4 Å", "U", "U spread", "share C", "share N", "share O", "share heavier than F",
           "H per atom", "mean |E² - 1|", "Wilson B", "Wilson rms", "reflections"]


def brute_force(crystal, reach=4.5):
    """Sorted distances and elements about each atom but H over 7 × 7 × 7 cells; an image in the same place counts once."""
    rows = []
    heavy = [k for k, e in enumerate(crystal.elements) if e not in ("H", "D")]
    for i in heavy:
        found = {}
        for j in heavy:
            for op in crystal.spacegroup.operations():
                image = np.array(op.apply_to_xyz(crystal.fract[j].tolist())) - crystal.fract[i]
                image -= np.round(image)
                for shift in np.ndindex(7, 7, 7):
                    x = crystal.cell.orthogonalize(gemmi.Fractional(*(image + np.array(shift) - 3)))
                    if 1e-3 < x.length() < reach:
                        found[tuple(np.round(x.tolist(), 2) + 0.0)] = x.length(), crystal.elements[j]
        rows.append(sorted(found.values()))
    return rows


def test_a_row_has_the_numbers_worked_out_by_hand():
    """Edges 12, 6 and 9 Å, V = 12 · 6 · 9 · sin 110°, four positions a cell, half of the O missing."""
    fract = [[0.1, 0.1, 0.1], [0.2, 0.15, 0.3], [0.4, 0.3, 0.2], [0.7, 0.4, 0.4], [0.1, 0.1, 0.2]]
    crystal = make_crystal(("C", "N", "O", "Cl", "H"), "P 1 21/c 1", MONOCLINIC, fract,
                   u=[0.02, 0.04, 0.06, 0.08, 0.5], occ=[1, 1, 0.5, 1, 1])
    table = crystal_statistics([crystal])
    assert list(table.columns) == COLUMNS and len(table) == 1
    row = table.iloc[0]
    assert row["atoms"] == 3.5
    assert row["volume per atom"] == pytest.approx(12 * 6 * 9 * np.sin(np.radians(110)) / 4 / 3.5)
    assert row["middle edge / shortest"] == 1.5 and row["longest edge / shortest"] == 2
    assert row["beta"] == 110
    assert row["U"] == pytest.approx(0.05)                      # median of 0.02, 0.04, 0.06, 0.08: H has no say
    assert row["U spread"] == pytest.approx(0.0005**0.5 / 0.05)  # standard deviation over mean
    assert row["share C"] == row["share N"] == row["share heavier than F"] == pytest.approx(2 / 7)
    assert row["share O"] == pytest.approx(1 / 7)
    assert row["H per atom"] == pytest.approx(2 / 7)


def test_only_monoclinic_crystals_have_a_beta():
    row = crystal_statistics([make_crystal(("C", "O"), "P -1", TRICLINIC, [[0.1, 0.2, 0.3], [0.4, 0.1, 0.2]])]).iloc[0]
    assert np.isnan(row["beta"]) and row["longest edge / shortest"] == pytest.approx(11.7 / 9.1)


@pytest.mark.parametrize("group, cell", [("P -1", TRICLINIC), ("P 1", TRICLINIC), ("P 1 21/c 1", MONOCLINIC),
                                         ("C 1 2 1", MONOCLINIC), ("P -1", gemmi.UnitCell(4.1, 4.9, 6.2, 68, 74, 117))])
def test_distances_are_those_of_the_brute_force(group, cell):
    """An oblique cell with edges of 4 Å too, where the nearest image is not that of the rounded difference."""
    rng = np.random.default_rng(5)
    crystal = make_crystal(("C", "N", "H", "S"), group, cell, rng.uniform(-1, 2, (4, 3)))
    rows = brute_force(crystal)
    nearest, second, bonds, near = neighbour_statistics(crystal)
    assert len(nearest) == 3
    np.testing.assert_allclose(nearest, [row[0][0] if len(row) > 0 else 4.5 for row in rows], atol=2e-3)
    np.testing.assert_allclose(second, [row[1][0] if len(row) > 1 else 4.5 for row in rows], atol=2e-3)
    np.testing.assert_array_equal(near, [sum(d < 4 for d, _ in row) for row in rows])
    radius = {"C": 0.76, "N": 0.71, "S": 1.05}
    expected = [sum(d < radius[e] + radius[own] + 0.3 for d, e in row) for own, row in zip("CNS", rows)]
    np.testing.assert_array_equal(bonds, expected)
    row = crystal_statistics([crystal]).iloc[0]
    assert row["nearest"] == pytest.approx(nearest.mean()) and row["second nearest"] == pytest.approx(second.mean())
    assert row["neighbours to 4 Å"] == pytest.approx(near.mean())


def test_an_atom_on_a_special_position_counts_once():
    """Cu on the inversion centre of P -1 with one Cl at (2 Å, 0, 0): trans, 2 Å each; the next of Cl is Cu, then Cl at 4 Å."""
    cell = gemmi.UnitCell(10, 10, 10, 90, 90, 90)
    crystal = make_crystal(("Cu", "Cl"), "P -1", cell, [[0, 0, 0], [0.2, 0, 0]], occ=[0.5, 1])
    nearest, second, bonds, near = neighbour_statistics(crystal)
    np.testing.assert_allclose(nearest, [2, 2], atol=2e-3)
    np.testing.assert_allclose(second, [2, 4], atol=2e-3)
    np.testing.assert_array_equal(bonds, [2, 1])
    assert near[0] == 2
    row = crystal_statistics([crystal]).iloc[0]
    assert row["atoms"] == 1.5 and row["volume per atom"] == pytest.approx(1000 / 2 / 1.5)
    assert row["share heavier than F"] == pytest.approx(1)


def test_a_lone_atom_has_neighbours_at_the_reach():
    one = make_crystal("C", "P 1", (9, 9, 9, 90, 90, 90), [[0.3, 0.3, 0.3]])
    nearest, second, bonds, near = neighbour_statistics(one)
    assert (nearest, second, bonds, near) == (4.5, 4.5, 0, 0)


@pytest.mark.parametrize("group, cell", [("P 1", TRICLINIC), ("P 1 21/c 1", MONOCLINIC)])
def test_each_atom_of_benzene_has_two_bonds(group, cell):
    """C-C 1.39 Å, the second neighbour as far as the first; five C of the ring and what else is near within 4 Å."""
    angles = np.radians(60 * np.arange(6))
    x = np.vstack([r * np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1) for r in (1.39, 2.34)]) + [3.0, 1.7, 2.2]
    fract = [cell.fractionalize(gemmi.Position(*row)).tolist() for row in x]
    crystal = make_crystal(["C"] * 6 + ["H"] * 6, group, cell, fract)
    nearest, second, bonds, near = neighbour_statistics(crystal)
    np.testing.assert_allclose(nearest, 1.39, atol=2e-3)
    np.testing.assert_allclose(second, 1.39, atol=2e-3)
    np.testing.assert_array_equal(bonds, 2)
    assert (near >= 5).all()
    assert crystal_statistics([crystal]).iloc[0]["H per atom"] == 1


@pytest.mark.parametrize("group, expected", [("P 1", 0.736), ("P 1 21 1", 0.736), ("P -1", 0.968), ("P 1 21/c 1", 0.968)])
def test_mean_e_squared_minus_one_is_that_of_wilson(group, expected):
    """Equal atoms at random: 0.736 without and 0.968 with an inversion centre (International Tables B, table 2.1.5.1).

    P 21 has a centric zone besides, which is small in a cell of this size.
    """
    rng = np.random.default_rng(6)
    cell = TRICLINIC if "21" not in group else gemmi.UnitCell(12, 17, 14, 90, 103, 90)
    crystals = [make_crystal(["C"] * 40, group, cell, rng.random((40, 3))) for _ in range(4)]
    found = crystal_statistics(crystals, d_min=1.0)["mean |E² - 1|"]
    assert found.mean() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("u", [0.02, 0.05, 0.08])
def test_wilson_b_is_that_of_the_atoms(u):
    """B = 8π²U for equal atoms at random; 12 crystals, each with an error of about 0.3 Å²."""
    rng = np.random.default_rng(8)
    crystals = [make_crystal(["C", "N", "O"] * 10, "P 1", TRICLINIC, rng.random((30, 3)), u=u) for _ in range(6)]
    table = crystal_statistics(crystals)
    assert table["Wilson B"].mean() == pytest.approx(8 * np.pi**2 * u, abs=0.35)
    assert (table["Wilson rms"] < 0.35).all()


@pytest.mark.parametrize("group, cell", [("P -1", TRICLINIC), ("P 1 21/c 1", MONOCLINIC), ("C 1 2 1", MONOCLINIC)])
@pytest.mark.parametrize("d_min", [0.8, 1.1])
def test_reflections_are_those_of_gemmi(group, cell, d_min):
    crystal = make_crystal(("C", "N", "O"), group, cell, [[0.1, 0.2, 0.3], [0.4, 0.1, 0.2], [0.7, 0.3, 0.9]])
    n = crystal_statistics([crystal], d_min=d_min).iloc[0]["reflections"]
    space_group = gemmi.SpaceGroup(group)
    sphere = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), d_min, unique=False)
    asu, ops = gemmi.ReciprocalAsu(space_group), space_group.operations()
    unique = np.array(sorted({tuple(asu.to_asu(h.tolist(), ops)[0]) for h in sphere}))
    assert n == len(unique) - ops.systematic_absences(unique).sum() == len(gemmi.make_miller_array(cell, space_group, d_min))


def test_shape_of_a_cell_does_not_change_the_distances():
    """The same crystal on another basis, b' = a + b: distances and the Wilson plot stay, edges do not."""
    crystal = random_crystals(1, 2, ("P 1",))[0]
    op = gemmi.Op("x-y,y,z")  # coordinates on the axes a, a + b, c
    orth = np.array(crystal.cell.orth.mat.tolist())
    a, b, c = orth[:, 0], orth[:, 0] + orth[:, 1], orth[:, 2]

    def angle(u, v):
        return np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))

    cell = gemmi.UnitCell(*(np.linalg.norm(v) for v in (a, b, c)), angle(b, c), angle(a, c), angle(a, b))
    fract = np.array([op.apply_to_xyz(x) for x in crystal.fract.tolist()])
    other = Crystal("other", cell, crystal.spacegroup, crystal.elements, fract, crystal.u_iso, crystal.occ)
    one, two = crystal_statistics([crystal, other]).to_dict("records")
    for name in ("volume per atom", "nearest", "second nearest", "bonded neighbours", "neighbours to 4 Å",
                 "mean |E² - 1|", "Wilson B", "reflections"):
        assert two[name] == pytest.approx(one[name], rel=1e-3), name
    assert abs(cell.b - crystal.cell.b) > 0.5 and cell.gamma != pytest.approx(crystal.cell.gamma, abs=3)
