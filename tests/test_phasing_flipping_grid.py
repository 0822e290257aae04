"""The maps that charge flipping works on: against direct sums and grids made by hand."""

import numpy as np
import pytest
import torch

from makers import CELLS, random_crystal, reflections_of
from xrd_helpers.phasing import origin
from xrd_helpers.phasing.flipping_grid import FlippingGrid, flip, keep_peaks, normalised_amplitudes
from xrd_helpers.phasing.fourier import HalfGrid
from xrd_helpers.reflections import Reflections, expand_to_p1
from xrd_helpers.structure_factors import structure_factors


def test_normalised_amplitudes_are_one_on_average_in_every_shell():
    reflections = reflections_of(random_crystal("P 1 21/c 1"), 0.7)
    E2 = normalised_amplitudes(reflections) ** 2
    order = np.argsort(reflections.d)
    assert [part.mean() for part in np.array_split(E2[order], 5)] == pytest.approx([1] * 5, abs=0.12)
    # h0l of P21/c: two of the four operators leave it in place, F² is twice as large on average and E² is not
    h0l = reflections.hkl[:, 1] == 0
    epsilon = reflections.spacegroup.operations().epsilon_factor_without_centering_array(reflections.hkl.astype("i4"))
    assert (epsilon[h0l] == 2).all() and (epsilon[(reflections.hkl != 0).all(1)] == 1).all()


@pytest.mark.parametrize("name", [name for name in CELLS if name != "P 1"])
def test_agreement_finds_the_origin_of_a_shifted_map(name):
    crystal = random_crystal(name)
    reflections = reflections_of(crystal, 0.9)
    grid = FlippingGrid(reflections)
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
    assert flip(rho).flatten().tolist() == [4, 1, 1, 4]
    assert flip(rho, 0.45).flatten().tolist() == [4, -1, 1, 4]
    deltas = torch.tensor([0.0, 0.45]).reshape(2, 1, 1, 1)  # one for each map of the batch
    assert flip(torch.cat([rho, rho]), deltas)[:, 1].flatten().tolist() == [1, -1]


def test_weak_reflections_turn_by_ninety_degrees_and_stay_real():
    crystal = random_crystal("P 1")
    grid = FlippingGrid(reflections_of(crystal, 1.0))
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
    data = reflections_of(crystal, 1.5)
    missing = int(data.F.argmax())
    rest = Reflections(*(np.delete(x, missing, 0) for x in (data.hkl, data.F, data.sigF)), data.cell, data.spacegroup)
    grid = FlippingGrid(rest)
    sf = torch.fft.rfftn(torch.randn((1, *grid.size), generator=torch.Generator().manual_seed(0)), dim=(1, 2, 3))
    after = (grid.run(sf, lambda rho: rho, 1) / sf)[0].numpy() * sf[0].abs().numpy()
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
    assert FlippingGrid(reflections_of(crystal, 0.8)).factor.real.max() == 0, "nothing to gain beyond 0.8 Å"


def test_keep_peaks_by_hand():
    rho = torch.zeros(2, 6, 5, 4)
    rho[0, 0, 0, 0], rho[0, 5, 0, 0], rho[0, 3, 2, 1] = 3, 2, 1  # the second is a neighbour of the first, round the corner
    rho[1, 1, 1, 1] = 5
    kept = keep_peaks(rho, 2)
    assert kept[0].nonzero().tolist() == [[0, 0, 0], [3, 2, 1]] and kept[0].sum() == 4
    assert kept[1].sum() == 5 and kept[1, 1, 1, 1] == 5


@pytest.mark.parametrize("name", ["P -1", "P 1 21/c 1", "C 1 c 1"])
def test_symmetrised_grids_have_the_symmetry(name):
    crystal = random_crystal(name)
    data = reflections_of(crystal, 1.2)
    grid = FlippingGrid(data)
    phi = np.angle(structure_factors(crystal, data.hkl))
    p1 = expand_to_p1(data.hkl, crystal.spacegroup)
    on_grid = torch.as_tensor(HalfGrid(p1, grid.size).coefficients(grid.E * np.exp(1j * phi)))[None]
    rho = torch.fft.irfftn(on_grid, s=grid.size, dim=(1, 2, 3))
    assert grid.agreement(on_grid, grid.links(crystal.spacegroup))[0][0] == pytest.approx(1, abs=1e-4)
    # the map of the grid is that of E and these phases, summed up directly
    wave = p1.structure_factors(grid.E * np.exp(1j * phi)) * np.exp(-2j * np.pi * p1.hkl @ (np.array([2, 3, 5]) / grid.size))
    assert float(rho[0, 2, 3, 5]) * np.prod(grid.size) == pytest.approx(wave.sum().real, rel=1e-3, abs=1e-2)
