"""Building by random omission: from spoilt models, wrong formulas, and data that charge flipping alone does not solve."""

import subprocess
import sys
from functools import lru_cache

import gemmi
import numpy as np
import pytest

from xrd_helpers import ROOT
from xrd_helpers.config import UserError
from xrd_helpers.phasing import charge_flipping as flipping
from xrd_helpers.phasing.building import Atoms, Builder, Chain, build, count_neighbours, heights_at
from xrd_helpers.phasing.origin import match_atoms
from xrd_helpers.phasing.restraints import RestrainedRefiner
from xrd_helpers.phasing.verdict import certain_r1
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.reflections import Reflections, unique_hkl
from xrd_helpers.structure_factors import structure_factors

CELL, GROUP = gemmi.UnitCell(7.3, 9.1, 8.4, 90, 111, 90), gemmi.SpaceGroup("P 1 21/c 1")


@lru_cache
def molecule(group="P 1 21/c 1", least=9, most=14):
    """A light random molecule in general positions."""
    for seed in range(40):
        for crystal in random_crystals(8, seed, [group], 0, "molecules"):
            if crystal.light and least <= crystal.heavy.sum() <= most and (crystal.occ > 0.99).all():
                return crystal


def data_of(crystal, d_min):
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
    return Reflections.of_good_data(hkl, np.abs(structure_factors(crystal, hkl)), crystal.cell, crystal.spacegroup)


def builder_of(crystal, d_min, contents=None, seed=0):
    data = data_of(crystal, d_min)
    contents = contents or {symbol: n for symbol, n in crystal.contents.items() if symbol != "H"}
    return Builder(RestrainedRefiner(data, list(contents)), contents, 0.75 * certain_r1(crystal.contents, data), seed)


def atoms_of(builder, crystal, rows):
    fract = crystal.fract[crystal.heavy][rows]
    return builder.weighed(builder.refined(Atoms(fract, np.full(len(rows), builder.common), np.full(len(rows), 0.04),
                                                 np.ones(len(rows))), 3))


def test_neighbours_by_hand():
    pairs = np.array([0, 0, 1]), np.array([1, 2, 1]), np.array([1.5, 1.0, 1.4])
    shortest, longest = np.full((1, 1), 1.1), np.full((1, 1), 1.7)
    bonds, close = count_neighbours(*pairs, np.zeros(3, int), shortest, longest, 3)
    assert bonds.tolist() == [1, 2, 0] and close.tolist() == [1, 0, 1]  # atom 1 has a bond to its own image


def test_heights_are_linear_between_points():
    rho = np.arange(24.0).reshape(2, 3, 4)
    fract = np.array([[0, 1 / 3, 0.25], [0.25, 0, 0], [0, 0, 0.875], [-0.5, 1, 1]])
    np.testing.assert_allclose(heights_at(rho, fract), [5, 6, 1.5, 12])


def test_a_part_of_a_molecule_grows_whole_at_1_5_angstrom():
    crystal = molecule()
    n = int(crystal.heavy.sum())
    builder = builder_of(crystal, 1.5)
    rng = np.random.default_rng(0)
    start = atoms_of(builder, crystal, rng.permutation(n)[:2 * n // 3])
    chain = build([Chain(builder, start)], stages=((1, 150),))[0]
    match = match_atoms(chain.best.fract, crystal.fract[crystal.heavy], crystal.cell, crystal.spacegroup)
    assert match.n_matched == n and chain.best.r1 < builder.enough
    model = builder.model(chain.best)
    assert len(model.elements) == n and model.heights.min() > 2 and model.r1 == chain.best.r1


@pytest.mark.parametrize("change", [-3, 3])
def test_a_formula_that_is_off_by_three_atoms(change):
    crystal = molecule()
    n = int(crystal.heavy.sum())
    builder = builder_of(crystal, 1.2, {"O": 1.0, "N": 1.0, "C": n + change - 2.0})
    if change < 0:
        start = atoms_of(builder, crystal, np.arange(n)[-change:])
    else:
        start = atoms_of(builder, crystal, np.arange(n))
        more = builder.with_more(start, np.random.default_rng(1).random((change, 3)), np.ones(change))
        start = builder.weighed(builder.refined(more, 3))
    settled = builder.settled(start)
    match = match_atoms(settled.fract, crystal.fract[crystal.heavy], crystal.cell, crystal.spacegroup)
    assert len(settled.kind) == match.n_matched == n


def test_the_same_seed_builds_the_same():
    crystal = molecule()
    costs = []
    for _ in range(2):
        builder = builder_of(crystal, 1.5, seed=7)
        start = atoms_of(builder, crystal, np.arange(5))
        costs.append(build([Chain(builder, start)], stages=((1, 20),))[0].best.cost)
    assert costs[0] == costs[1]


def test_wrong_atoms_cost_more_than_right_ones():
    """Of data that end at 2 Å, where atoms without restraints can be fitted to anything."""
    crystal = molecule()
    builder = builder_of(crystal, 2.0)
    right = atoms_of(builder, crystal, np.arange(crystal.heavy.sum()))
    rng = np.random.default_rng(0)
    wrong = right._replace(fract=rng.random(right.fract.shape))
    wrong = build([Chain(builder, builder.refined(wrong, 3))], stages=((1, 60),))[0].best
    assert right.cost < 0.15 and wrong.cost > right.cost + 0.05


@pytest.mark.parametrize("group", ["P 1 21/c 1", "P 1 21 1"])
def test_a_molecule_is_solved_at_1_5_angstrom(group):
    crystal = molecule(group)
    found = flipping.solve(data_of(crystal, 1.5), crystal.contents, minutes=2)
    match = match_atoms(found.fract, crystal.fract[crystal.heavy], crystal.cell, crystal.spacegroup)
    assert match.n_matched >= 0.8 * match.n_true and found.accepted


def test_the_phases_of_the_start_lead_to_atoms_where_its_peaks_do_not():
    """At 1.75 Å bonded atoms are not resolved: the highest peaks of the true map are no atoms."""
    crystal = molecule()
    builder, data = builder_of(crystal, 1.75), data_of(crystal, 1.75)
    start = flipping.normalised_amplitudes(data) * np.exp(1j * np.angle(structure_factors(crystal, data.hkl)))
    chain = Chain(builder, builder.start(start), start=start, guided=20)
    chain.follow()
    first, led = (match_atoms(atoms.fract, crystal.fract[crystal.heavy], crystal.cell, crystal.spacegroup).n_matched
                  for atoms in (chain.first, chain.best))
    assert led >= 0.9 * crystal.heavy.sum() and led > first and chain.guided == 0


def test_an_unknown_effort_is_refused():
    with pytest.raises(UserError, match="quick, normal, thorough"):
        flipping.solve(data_of(molecule(), 1.5), {"C": 5}, effort="great")


@pytest.mark.slow
def test_loops_compile_where_no_cache_can_be_written(tmp_path):
    """With neither the package's folder nor the user's to write to, numba refuses cache=True; the loops run all the same."""
    code = ("import numba.core.caching as c\n"
            "c.CacheImpl._locator_classes = []\n"
            "from xrd_helpers.phasing.building import heights_at\n"
            "import numpy as np\n"
            "print(heights_at(np.ones((2, 2, 2)), np.zeros((1, 3)))[0])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "1.0", done.stderr
