"""Charge flipping, peaks and refinement: against direct sums, finite differences and structures known beforehand."""

import os
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

from xrd_helpers import ROOT
from xrd_helpers.cif import read_cif
from xrd_helpers.crystals import Crystal
from xrd_helpers.phasing import charge_flipping as flipping
from xrd_helpers.phasing import origin, peaks, verdict
from xrd_helpers.phasing.refine import Model, Refiner
from xrd_helpers.reflections import Reflections, expand_to_p1, unique_hkl
from xrd_helpers.structure_factors import structure_factors

REAL = Path(os.environ.get("XRD_REAL_DATA") or ROOT.parent / "shared" / "data")
CELLS = {"P 1": (5.1, 6.3, 7.7, 81, 95, 104), "P -1": (6.1, 7.3, 8.7, 81, 95, 104),
         "P 1 21 1": (6.1, 8.3, 6.2, 90, 103, 90), "P 1 21/c 1": (7.3, 9.1, 8.4, 90, 111, 90),
         "C 1 2 1": (12.1, 6.3, 7.2, 90, 108, 90), "C 1 c 1": (12.3, 6.1, 9.4, 90, 107, 90)}


def random_crystal(name, n_atoms=7, seed=3):
    """Atoms at least 1.5 Å apart, images included, in general positions."""
    cell, spacegroup = gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name)
    rng, fract = np.random.default_rng(seed), []
    while len(fract) < n_atoms:
        x = rng.random(3)
        images = [np.array(op.apply_to_xyz(list(y))) for op in spacegroup.operations() for y in [*fract, x]]
        vectors = [(x - y + 0.5) % 1 - 0.5 for y in images]
        lengths = sorted(cell.orthogonalize(gemmi.Fractional(*v)).length() for v in vectors)
        if min(lengths[1:], default=9) > 1.5:  # the shortest is the atom itself
            fract.append(x)
    elements = ("S", "O", "O", "N", "C", "C", "C")[:n_atoms]
    return Crystal(name, cell, spacegroup, elements, np.array(fract), np.linspace(0.02, 0.06, n_atoms),
                   np.ones(n_atoms))


def amplitudes(crystal, d_min):
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
    F = np.abs(structure_factors(crystal, hkl))
    return Reflections(hkl, F, 0.02 * F, crystal.cell, crystal.spacegroup)


@pytest.mark.parametrize("name", CELLS)
def test_a_known_structure_is_found(name):
    crystal = random_crystal(name)
    found = flipping.solve(amplitudes(crystal, 0.8), crystal.elements, seed=1)
    match = origin.match_solution(found, crystal)
    assert match.n_matched == 7 and match.rms < 0.05 and found.r1 < 0.1 and found.accepted
    assert found.elements[0] == "S" and found.engine == "charge flipping" and found.seconds > 0


def test_a_molecule_on_a_mirror_plane_is_found_from_its_formula():
    """Half of each atom on the plane belongs to the asymmetric unit: more sites than atoms of the formula."""
    fract = np.array([[0.11, 0, 0.2], [0.23, 0, 0.42], [0.05, 0, 0.71], [0.32, 0, 0.9], [0.37, 0, 0.1], [0.2, 0.21, 0.63]])
    crystal = Crystal("mirror", gemmi.UnitCell(11.3, 7.1, 6.2, 90, 104, 90), gemmi.SpaceGroup("C 1 2/m 1"),
                      ("S", "O", "N", "C", "C", "C"), fract, np.full(6, 0.03), np.array([0.5] * 5 + [1]))
    found = flipping.solve(amplitudes(crystal, 0.8), {"S": 0.5, "O": 0.5, "N": 0.5, "C": 2}, seed=1)
    match = origin.match_solution(found, crystal)
    assert found.accepted and match.n_matched == 6 and found.r1 < 0.02
    assert sorted(found.elements) == sorted(crystal.elements) and sorted(found.occ) == [0.5] * 5 + [1]
    assert crystal.contents == {"S": 0.5, "O": 0.5, "N": 0.5, "C": 2}


def test_what_cannot_be_solved_is_not_accepted():
    reflections = amplitudes(random_crystal("P 1 21/c 1"), 0.9)
    shuffled = np.random.default_rng(0).permutation(reflections.F)
    noise = Reflections(reflections.hkl, shuffled, reflections.sigF, reflections.cell, reflections.spacegroup)
    found = flipping.solve(noise, ("C",) * 7, trials=4, cycles=100)
    assert found is None or not found.accepted


def test_the_same_seed_gives_the_same_solution():
    crystal = random_crystal("P 1 21 1")
    first, second = (flipping.solve(amplitudes(crystal, 0.9), crystal.elements, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.fract, second.fract)


def test_one_thread_and_the_others_back_afterwards():
    crystal, before, seen = random_crystal("P -1"), torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        flipping.solve(amplitudes(crystal, 0.9), crystal.elements, trials=1,
                       real_space_step=lambda rho: seen.append(torch.get_num_threads()) or flipping.flip(rho))
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_another_real_space_step_can_be_given():
    crystal, calls = random_crystal("P -1"), []

    def step(rho):
        calls.append(rho.shape)
        return flipping.flip(rho)

    assert origin.solved(flipping.solve(amplitudes(crystal, 0.9), crystal.elements, real_space_step=step), crystal)
    assert len(set(calls)) == 1 and len(calls[0]) == 4


def test_without_elements_the_volume_tells_how_many_atoms():
    crystal = random_crystal("P 1 21/c 1")
    found = flipping.solve(amplitudes(crystal, 0.9), trials=4, cycles=50)
    assert set(found.elements) == {"C"} and len(found.fract) <= round(crystal.cell.volume / 4 / 18)


def test_what_missing_hydrogen_explains():
    data = amplitudes(random_crystal("P -1"), 1.5)  # sigF is 0.02 F
    assert verdict.certain_r1(["C"] * 4 + ["H"] * 9, data) == pytest.approx(0.05 + 0.016 + 3 / 12)
    assert verdict.certain_r1(["Br", "C"], data) == pytest.approx(0.05 + 0.016 + 1 / np.sqrt(35**2 + 6**2))


def test_hydrogen_alone_is_refused():
    with pytest.raises(flipping.PhasingError):
        flipping.solve(amplitudes(random_crystal("P -1"), 1.0), ("H", "H"))


def test_normalised_amplitudes_are_one_on_average_in_every_shell():
    reflections = amplitudes(random_crystal("P 1 21/c 1"), 0.7)
    E2 = flipping.normalised_amplitudes(reflections) ** 2
    order = np.argsort(reflections.d)
    assert [part.mean() for part in np.array_split(E2[order], 5)] == pytest.approx([1] * 5, abs=0.12)
    # h0l of P21/c: two of the four operators leave it in place, F² is twice as large on average and E² is not
    h0l = reflections.hkl[:, 1] == 0
    epsilon = reflections.spacegroup.operations().epsilon_factor_without_centering_array(reflections.hkl.astype("i4"))
    assert (epsilon[h0l] == 2).all() and (epsilon[(reflections.hkl != 0).all(1)] == 1).all()


@pytest.mark.parametrize("name", [name for name in CELLS if name != "P 1"])
def test_agreement_finds_the_origin_of_a_shifted_map(name):
    crystal = random_crystal(name)
    reflections = amplitudes(crystal, 0.9)
    grid = flipping.FlippingGrid(reflections)
    phi = np.angle(structure_factors(crystal, reflections.hkl))
    moved = np.array([0.13, 0.27, 0.41])
    p1 = expand_to_p1(reflections.hkl, crystal.spacegroup)
    sphere = p1.structure_factors(grid.E * np.exp(1j * phi)) * np.exp(2j * np.pi * p1.hkl @ moved)
    stored = p1.hkl[:, 2] >= 0
    sf = np.zeros(grid.half, np.complex64)
    sf[tuple((p1.hkl[stored] % grid.size).T)] = sphere[stored].conj()
    agreement, shift = grid.agreement(torch.as_tensor(sf)[None], grid.links(crystal.spacegroup))
    assert agreement[0] == pytest.approx(1, abs=1e-4)
    # the shift itself is found up to an allowed origin: the phases must be the true ones
    found = np.degrees(grid.symmetrise(torch.as_tensor(sf), shift[0], p1))
    result = origin.phase_error(found, np.degrees(phi), reflections.hkl, reflections.F, crystal.spacegroup)
    assert result.mean_error < 0.5 and not result.inverted


def test_flipping_by_hand():
    rho = torch.tensor([4.0, 1.0, -1.0, -4.0]).reshape(1, 4, 1, 1)  # sigma is 2.915, 0.45 sigma 1.312
    assert flipping.flip(rho).flatten().tolist() == [4, 1, 1, 4]
    assert flipping.flip(rho, 0.45).flatten().tolist() == [4, -1, 1, 4]
    deltas = torch.tensor([0.0, 0.45]).reshape(2, 1, 1, 1)  # one for each map of the batch
    assert flipping.flip(torch.cat([rho, rho]), deltas)[:, 1].flatten().tolist() == [1, -1]


def test_weak_reflections_turn_by_ninety_degrees_and_stay_real():
    crystal = random_crystal("P 1")
    grid = flipping.FlippingGrid(amplitudes(crystal, 1.0))
    start = grid.random_start(1, torch.Generator().manual_seed(0))
    after = grid.run(start, lambda rho: rho, 1)
    weak = grid.factor.numpy().imag != 0
    turn = np.degrees(np.angle((after / start)[0].numpy()[weak]))
    np.testing.assert_allclose(np.abs(turn), 90, atol=0.1)
    strong = ~weak & (grid.amplitude.numpy() > 0)
    np.testing.assert_allclose(after[0].numpy()[strong], start[0].numpy()[strong], atol=1e-4)
    # Hermitian on the plane l = 0, else the transform would not be that of a real map
    plane = after[0, :, :, 0].numpy()
    mate = np.roll(plane[::-1, ::-1], 1, axis=(0, 1))
    np.testing.assert_allclose(plane, mate.conj(), atol=1e-3)


def test_what_was_not_measured_floats():
    """Measured to 1.5 Å with one reflection missing: all to 0.975 Å have 0.4 |F| + 0.3, absent ones and F000 nothing."""
    crystal = random_crystal("P 1 21/c 1")
    data = amplitudes(crystal, 1.5)
    missing = int(data.F.argmax())
    rest = Reflections(*(np.delete(x, missing, 0) for x in (data.hkl, data.F, data.sigF)), data.cell, data.spacegroup)
    grid = flipping.FlippingGrid(rest)
    sf = torch.fft.rfftn(torch.randn((1, *grid.size), generator=torch.Generator().manual_seed(0)), dim=(1, 2, 3))
    after = ((grid.run(sf, lambda rho: rho, 1) / sf)[0].numpy() * sf[0].abs().numpy())
    hkl = np.stack(np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in grid.size[:2]), np.arange(grid.half[2]), indexing="ij"), -1)
    hkl = hkl.astype("i4").reshape(-1, 3)
    known = {op for h in rest.hkl for image in crystal.spacegroup.operations().sym_ops
             for op in (tuple(image.apply_to_hkl(h.tolist())), tuple(-x for x in image.apply_to_hkl(h.tolist())))}
    d = np.array([crystal.cell.calculate_d(h.tolist()) if h.any() else np.inf for h in hkl])
    absent = np.array(crystal.spacegroup.operations().systematic_absences(hkl), bool)
    edge = np.abs(d - 0.975) < 1e-4
    nyquist = (2 * np.abs(hkl) == grid.size).any(1)
    inside = ~edge & ~nyquist & (d >= 0.975) & np.isfinite(d) & ~absent & np.array([tuple(h) not in known for h in hkl])
    assert inside.sum() > 800 and tuple(data.hkl[missing]) in set(map(tuple, hkl[inside].tolist()))
    np.testing.assert_allclose(after.ravel()[inside], 0.4 * sf[0].abs().numpy().ravel()[inside] + 0.3, rtol=1e-4)
    assert not np.abs(after.ravel()[(absent | (d < 0.975) | np.isinf(d)) & ~edge]).any()
    assert flipping.FlippingGrid(amplitudes(crystal, 0.8)).factor.real.max() == 0, "nothing to gain beyond 0.8 Å"


def test_predicted_amplitudes_guide_and_are_no_evidence():
    """They add 0.3 E to 0.4 of what the map has; wrong ones do not raise R1, which is of the measured reflections alone."""
    crystal = random_crystal("P 1 21/c 1")
    data, all_data = amplitudes(crystal, 1.2), amplitudes(crystal, 1.0)
    beyond = all_data.d < 1.2 - 1e-6
    shuffled = np.random.default_rng(0).permutation(all_data.F[beyond])
    predicted = Reflections(all_data.hkl[beyond], shuffled, all_data.sigF[beyond], crystal.cell, crystal.spacegroup)
    grid = flipping.FlippingGrid(data, predicted)
    sf = torch.fft.rfftn(torch.randn((1, *grid.size), generator=torch.Generator().manual_seed(0)), dim=(1, 2, 3))
    after = grid.run(sf, lambda rho: rho, 1)[0]
    E = flipping.normalised_amplitudes(predicted)
    general = np.flatnonzero((predicted.hkl > 0).all(1) & (2 * predicted.hkl < grid.size).all(1))
    assert len(general) > 50
    for row in general:
        h = tuple(predicted.hkl[row].tolist())
        assert float(after[h].abs()) == pytest.approx(0.4 * float(sf[0][h].abs()) + 0.3 * E[row], rel=1e-4)
    found = flipping.solve(data, crystal.elements, predicted=predicted, seed=1)
    assert origin.solved(found, crystal) and found.r1 < 0.02


def test_keep_peaks_by_hand():
    rho = torch.zeros(2, 6, 5, 4)
    rho[0, 0, 0, 0], rho[0, 5, 0, 0], rho[0, 3, 2, 1] = 3, 2, 1  # the second is a neighbour of the first, round the corner
    rho[1, 1, 1, 1] = 5
    kept = flipping.keep_peaks(rho, 2)
    assert kept[0].nonzero().tolist() == [[0, 0, 0], [3, 2, 1]] and kept[0].sum() == 4
    assert kept[1].sum() == 5 and kept[1, 1, 1, 1] == 5


@pytest.mark.parametrize("name", ["P -1", "P 1 21/c 1", "C 1 c 1"])
def test_symmetrised_grids_have_the_symmetry(name):
    crystal = random_crystal(name)
    data = amplitudes(crystal, 1.2)
    grid = flipping.FlippingGrid(data)
    phi = np.angle(structure_factors(crystal, data.hkl))
    p1 = expand_to_p1(data.hkl, crystal.spacegroup)
    on_grid = grid.from_structure_factors(p1, grid.E * np.exp(1j * phi))[None]
    rho = torch.fft.irfftn(on_grid, s=grid.size, dim=(1, 2, 3))
    assert grid.agreement(on_grid, grid.links(crystal.spacegroup))[0][0] == pytest.approx(1, abs=1e-4)
    # the map of the grid is that of E and these phases, summed up directly
    wave = p1.structure_factors(grid.E * np.exp(1j * phi)) * np.exp(-2j * np.pi * p1.hkl @ (np.array([2, 3, 5]) / grid.size))
    assert float(rho[0, 2, 3, 5]) * np.prod(grid.size) == pytest.approx(wave.sum().real, rel=1e-3, abs=1e-2)


def test_map_is_the_fourier_sum():
    crystal = random_crystal("P 1 21 1")
    reflections = amplitudes(crystal, 1.5)
    sf = structure_factors(crystal, reflections.hkl)
    grid = peaks.MapGrid(reflections.hkl, crystal.cell, crystal.spacegroup, 0.6)
    rho = grid.map(sf)
    p1 = expand_to_p1(reflections.hkl, crystal.spacegroup)
    point = np.array([2, 3, 5])
    wave = np.exp(-2j * np.pi * p1.hkl @ (point / rho.shape))
    direct = (structure_factors(crystal, p1.hkl) * wave).sum() / crystal.cell.volume
    assert rho[tuple(point)] == pytest.approx(direct.real, abs=1e-4) and abs(direct.imag) < 1e-6


def test_peaks_are_at_the_atoms():
    crystal = random_crystal("P 1 21/c 1")
    reflections = amplitudes(crystal, 0.7)
    rho = peaks.MapGrid(reflections.hkl, crystal.cell, crystal.spacegroup, 0.25).map(
        structure_factors(crystal, reflections.hkl))
    found = peaks.find_peaks(rho, crystal.cell, crystal.spacegroup, 7)
    assert (np.diff(found.height) <= 0).all() and (found.occ == 1).all()
    match = origin.match_atoms(found.fract, crystal.fract, crystal.cell, crystal.spacegroup)
    assert match.n_matched == 7 and match.rms < 0.06  # the ripples of sulfur move the others a little
    again = peaks.find_peaks(rho, crystal.cell, crystal.spacegroup, 7, exclude=crystal.fract)
    assert len(again) == 0 or again.height[0] < found.height[-1]


def test_a_peak_near_a_special_position_is_put_there():
    # 0.2 Å from the inversion centre of P-1: its image is 0.4 Å away, nearer than two atoms can be
    cell, spacegroup = gemmi.UnitCell(*CELLS["P -1"]), gemmi.SpaceGroup("P -1")
    orth = np.array(cell.orth.mat.tolist())
    rot, tran = np.array([np.eye(3), -np.eye(3)]), np.zeros((2, 3))
    x, occ = peaks.snap(np.array([0.5 + 0.2 / 6.1, 0.5, 0]), rot, tran, orth, 0.9)
    np.testing.assert_allclose(x, [0.5, 0.5, 0], atol=1e-12)
    assert occ == 0.5
    x, occ = peaks.snap(np.array([0.5 + 1.2 / 6.1, 0.5, 0]), rot, tran, orth, 0.9)
    assert x[0] == 0.5 + 1.2 / 6.1 and occ == 1


def test_elements_go_to_the_highest_peaks():
    contents = peaks.without_hydrogen(["C", "H", "S", "C", "O", "D"])
    assert contents == {"S": 1, "O": 1, "C": 2} and list(contents) == ["S", "O", "C"]
    assert peaks.assign_elements([1, 1, 0.5, 1, 1, 1], contents) == ("S", "O", "C", "C", "C", "C")
    # iron on an inversion centre, and four atoms of oxygen on a mirror plane
    contents = {"Fe": 0.5, "O": 2, "C": 3}
    assert peaks.assign_elements([0.5, 0.5, 0.5, 0.5, 0.5, 1, 1], contents) == ("Fe", "O", "O", "O", "O", "C", "C")
    assert peaks.assign_elements([1, 1, 1], {"Fe": 0.5, "C": 3}) == ("Fe", "C", "C"), "there is one peak at least"


@pytest.mark.parametrize("name", CELLS)
def test_refiner_agrees_with_direct_summation_and_refines_back(name):
    crystal = random_crystal(name)
    reflections = amplitudes(crystal, 0.9)
    refiner = Refiner(reflections)
    model = Model(crystal.fract, crystal.elements, crystal.u_iso, crystal.occ, np.zeros(7))
    sf = structure_factors(crystal, reflections.hkl)
    np.testing.assert_allclose(refiner.structure_factors(model), sf, atol=2e-4 * np.abs(sf).max())
    rng = np.random.default_rng(4)
    shaken = Model(crystal.fract + rng.normal(0, 0.008, (7, 3)), crystal.elements, np.full(7, 0.04), crystal.occ,
                   np.zeros(7))
    before = refiner.score(shaken).r1
    refined = refiner.least_squares(shaken, 8)
    assert before > 0.1 and refined.r1 < 1e-3
    np.testing.assert_allclose(refined.u_iso, crystal.u_iso, atol=1e-3)


@pytest.mark.parametrize("name", ["P 1 21 1", "P 1 21/c 1"])
def test_misnamed_atoms_get_their_names_back(name):
    crystal = random_crystal(name)  # S O O N C C C
    refiner = Refiner(amplitudes(crystal, 0.9))
    wrong = Model(crystal.fract, ("S", "O", "C", "N", "O", "C", "C"), np.full(7, 0.04), crystal.occ, np.zeros(7))
    wrong = refiner.least_squares(wrong, 6)
    filled = refiner.filled(wrong)
    assert filled[2] > 1.1 and filled[4] < 0.9, "oxygen named carbon is more than filled, carbon named oxygen less"
    again = refiner.exchange_elements(wrong)
    assert again.elements == crystal.elements and again.r1 < 0.01 < wrong.r1
    assert refiner.exchange_elements(again) is again


@pytest.mark.parametrize("code, d_min", [("2238479", 0.8), ("1557858", 0.8), ("2004805", 1.0)])
def test_real_crystals_are_solved(code, d_min):
    path = REAL / "crystals" / f"{code}.cif"
    if not path.exists():
        pytest.skip("the real crystals are absent: point XRD_REAL_DATA at them")
    crystal = read_cif(path)
    found = flipping.solve(amplitudes(crystal, d_min), crystal.elements)
    assert origin.solved(found, crystal) and found.r1 < 0.25
