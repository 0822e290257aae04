"""Fourier sums: against direct sums, and sums whose maximum is known."""

import numpy as np
import pytest

from makers import random_crystal, reflections_of
from xrd_helpers.phasing.fourier import FourierSum, MapGrid
from xrd_helpers.structure_factors import structure_factors


def test_map_is_the_fourier_sum():
    crystal = random_crystal("P 1 21 1")
    reflections = reflections_of(crystal, 1.5)
    sf = structure_factors(crystal, reflections.hkl)
    grid = MapGrid(reflections.p1, crystal.cell, 0.6)
    rho = grid.map(sf)
    p1 = reflections.p1
    point = np.array([2, 3, 5])
    wave = np.exp(-2j * np.pi * p1.hkl @ (point / rho.shape))
    direct = (structure_factors(crystal, p1.hkl) * wave).sum() / crystal.cell.volume
    assert rho[tuple(point)] == pytest.approx(direct.real, abs=1e-4) and abs(direct.imag) < 1e-6


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("factor", [1, 2])
def test_the_maximum_of_waves_that_are_in_phase_at_one_point(dimensions, factor):
    """Σ w cos 2π k·(u - v) is Σ w at v and nowhere more; with even k at v and half an axis from it, too."""
    rng = np.random.default_rng(dimensions)
    k, v = factor * rng.integers(-6, 7, (80, dimensions)), rng.random(dimensions)
    weight = rng.random(80)
    u, value = FourierSum(k, [36] * dimensions).maximum(weight * np.exp(2j * np.pi * k @ v), gain=0)
    assert abs(value / weight.sum() - 1) < 1e-12
    np.testing.assert_allclose(np.abs((factor * (u - v) + 0.5) % 1 - 0.5), 0, atol=1e-7)


def test_a_direction_that_no_wave_feels_stays_where_it_is():
    k = np.array([[1, 0], [2, 0], [3, 0]])
    u, value = FourierSum(k, (16, 16)).maximum(np.exp(2j * np.pi * k @ [0.3, 0.4]), gain=0)
    assert abs(u[0] - 0.3) < 1e-7 and u[1] == 0 and abs(value - 3) < 1e-12
