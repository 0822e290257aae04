"""Charge flipping: against structures known beforehand."""


import gemmi
import numpy as np
import pytest
import torch

from makers import CELLS, REAL, random_crystal, reflections_of
from xrd_helpers import reflections
from xrd_helpers.cif import read_cif
from xrd_helpers.crystals import Crystal, count_elements
from xrd_helpers.phasing import PhasingError, Settings, origin, solve, verdict
from xrd_helpers.phasing.flipping_grid import FlippingGrid, flip, normalised_amplitudes
from xrd_helpers.reflections import Reflections


@pytest.mark.parametrize("name", CELLS)
def test_a_known_structure_is_found(name):
    crystal = random_crystal(name)
    found = solve(reflections_of(crystal, 0.8), crystal.elements, seed=1)
    match = origin.match_solution(found, crystal)
    assert match.n_matched == 7 and match.rms < 0.05 and found.r1 < 0.1 and found.accepted
    assert found.elements[0] == "S" and found.engine == "charge flipping" and found.seconds > 0


def test_a_molecule_on_a_mirror_plane_is_found_from_its_formula():
    """Half of each atom on the plane belongs to the asymmetric unit: more sites than atoms of the formula."""
    fract = np.array([[0.11, 0, 0.2], [0.23, 0, 0.42], [0.05, 0, 0.71], [0.32, 0, 0.9], [0.37, 0, 0.1], [0.2, 0.21, 0.63]])
    crystal = Crystal("mirror", gemmi.UnitCell(11.3, 7.1, 6.2, 90, 104, 90), gemmi.SpaceGroup("C 1 2/m 1"),
                      ("S", "O", "N", "C", "C", "C"), fract, np.full(6, 0.03), np.array([0.5] * 5 + [1]))
    found = solve(reflections_of(crystal, 0.8), {"S": 0.5, "O": 0.5, "N": 0.5, "C": 2}, seed=1)
    match = origin.match_solution(found, crystal)
    assert found.accepted and match.n_matched == 6 and found.r1 < 0.02
    assert sorted(found.elements) == sorted(crystal.elements) and sorted(found.occ) == [0.5] * 5 + [1]
    assert crystal.contents == {"S": 0.5, "O": 0.5, "N": 0.5, "C": 2}


@pytest.mark.slow
def test_what_cannot_be_solved_is_not_accepted():
    reflections = reflections_of(random_crystal("P 1 21/c 1"), 0.9)
    shuffled = np.random.default_rng(0).permutation(reflections.F)
    noise = Reflections(reflections.hkl, shuffled, reflections.sigF, reflections.cell, reflections.spacegroup)
    found = solve(noise, ("C",) * 7, trials=4, settings=Settings(cycles=100))
    assert found is None or not found.accepted


def test_the_same_seed_gives_the_same_solution():
    crystal = random_crystal("P 1 21 1")
    first, second = (solve(reflections_of(crystal, 0.9), crystal.elements, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.fract, second.fract)


def test_data_are_expanded_to_p1_once(monkeypatch):
    crystal, expanded = random_crystal("P -1"), []
    monkeypatch.setattr(reflections, "expand_to_p1",
                        lambda *given, expand=reflections.expand_to_p1: expanded.append(1) or expand(*given))
    assert solve(reflections_of(crystal, 0.9), crystal.elements).accepted and len(expanded) == 1


def test_one_thread_and_the_others_back_afterwards():
    crystal, before, seen = random_crystal("P -1"), torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        solve(reflections_of(crystal, 0.9), crystal.elements, trials=1,
                       real_space_step=lambda rho: seen.append(torch.get_num_threads()) or flip(rho))
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_another_real_space_step_can_be_given():
    crystal, calls = random_crystal("P -1"), []

    def step(rho):
        calls.append(rho.shape)
        return flip(rho)

    assert origin.solved(solve(reflections_of(crystal, 0.9), crystal.elements, real_space_step=step), crystal)
    assert len(set(calls)) == 1 and len(calls[0]) == 4


@pytest.mark.slow
def test_without_elements_the_volume_tells_how_many_atoms():
    crystal = random_crystal("P 1 21/c 1")
    found = solve(reflections_of(crystal, 0.9), trials=4, settings=Settings(cycles=50))
    assert set(found.elements) == {"C"} and len(found.fract) <= round(crystal.cell.volume / 4 / 18)


def test_what_missing_hydrogen_explains():
    data = reflections_of(random_crystal("P -1"), 1.5)  # sigF is 0.02 F
    assert verdict.certain_r1(count_elements(["C"] * 4 + ["H"] * 9), data) == pytest.approx(0.05 + 0.016 + 3 / 12)
    assert verdict.certain_r1(count_elements(["Br", "C"]), data) == pytest.approx(0.05 + 0.016 + 1 / np.sqrt(35**2 + 6**2))


def test_hydrogen_alone_is_refused():
    with pytest.raises(PhasingError):
        solve(reflections_of(random_crystal("P -1"), 1.0), ("H", "H"))


def test_predicted_amplitudes_guide_and_are_no_evidence():
    """They add 0.3 E to 0.4 of what the map has; wrong ones do not raise R1, which is of the measured reflections alone."""
    crystal = random_crystal("P 1 21/c 1")
    data, all_data = reflections_of(crystal, 1.2), reflections_of(crystal, 1.0)
    beyond = all_data.d < 1.2 - 1e-6
    shuffled = np.random.default_rng(0).permutation(all_data.F[beyond])
    predicted = Reflections(all_data.hkl[beyond], shuffled, all_data.sigF[beyond], crystal.cell, crystal.spacegroup)
    grid = FlippingGrid(data, predicted)
    sf = torch.fft.rfftn(torch.randn((1, *grid.size), generator=torch.Generator().manual_seed(0)), dim=(1, 2, 3))
    after = grid.run(sf, lambda rho: rho, 1)[0]
    E = normalised_amplitudes(predicted)
    general = np.flatnonzero((predicted.hkl > 0).all(1) & (2 * predicted.hkl < grid.size).all(1))
    assert len(general) > 50
    for row in general:
        h = tuple(predicted.hkl[row].tolist())
        assert float(after[h].abs()) == pytest.approx(0.4 * float(sf[0][h].abs()) + 0.3 * E[row], rel=1e-4)
    found = solve(data, crystal.elements, predicted=predicted, seed=1)
    assert origin.solved(found, crystal) and found.r1 < 0.02


@pytest.mark.parametrize("code, d_min", [("2238479", 0.8), ("1557858", 0.8), ("2004805", 1.0)])
def test_real_crystals_are_solved(code, d_min):
    path = REAL / "crystals" / f"{code}.cif"
    if not path.exists():
        pytest.skip("the real crystals are absent: point XRD_REAL_DATA at them")
    crystal = read_cif(path)
    found = solve(reflections_of(crystal, d_min), crystal.elements)
    assert origin.solved(found, crystal) and found.r1 < 0.25
