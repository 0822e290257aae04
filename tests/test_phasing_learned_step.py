"""The learned step of charge flipping: periodic, on any grid, and what it does to phases that are half right."""

from functools import partial

import numpy as np
import torch
from torch.nn import functional as nnf

from xrd_helpers.phasing import Settings, solve, solved
from xrd_helpers.phasing.flipping_grid import FlippingGrid, flip
from xrd_helpers.phasing.learned_step import LearnedStep, channels, even, numbers_of, periodic, resized, shipped
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.reflections import Reflections, unique_hkl
from xrd_helpers.structure_factors import structure_factors


def reflections_of(crystal, d_min):
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
    return Reflections.of_good_data(hkl, np.abs(structure_factors(crystal, hkl)), crystal.cell, crystal.spacegroup)


def test_padding_is_that_of_torch_with_the_gradient_of_its_definition():
    x = torch.randn(2, 3, 4, 2, 6, dtype=torch.double, requires_grad=True)
    assert torch.equal(periodic(x), nnf.pad(x, (1,) * 6, mode="circular"))
    assert torch.autograd.gradcheck(periodic, (x,))


def test_a_map_of_more_points_is_the_same_sum_of_waves():
    size, k = (9, 7, 8), np.array([[1, -2, 3], [-4, 3, 1], [2, 0, -2]])
    assert even(size) == (10, 8, 8)

    def waves(points):
        u = np.stack(np.meshgrid(*(np.arange(n) / n for n in points), indexing="ij"), -1)
        return torch.as_tensor(np.cos(2 * np.pi * (u @ k.T) + [0.3, 1.1, 2.0]).sum(-1)[None])

    there = resized(torch.fft.rfftn(waves(size), dim=(1, 2, 3)), size, even(size)) * (640 / np.prod(size))
    assert torch.allclose(torch.fft.irfftn(there, s=even(size), dim=(1, 2, 3)), waves(even(size)), atol=1e-10)
    back = resized(there, even(size), size) * (np.prod(size) / 640)
    assert torch.allclose(torch.fft.irfftn(back, s=size, dim=(1, 2, 3)), waves(size), atol=1e-10)


def test_two_cells_in_a_row_are_treated_as_one():
    crystal, = random_crystals(1, 5, ["P 1 21 1"], recipe="molecules")
    maps = torch.randn(1, 3, 8, 6, 10, generator=torch.Generator().manual_seed(0))
    numbers = numbers_of(crystal.cell, (8, 6, 10), 1.5)
    with torch.inference_mode():
        one, two = (shipped()(x, numbers) for x in (maps, maps.tile(1, 1, 2, 1, 1)))
    assert torch.allclose(two, one.tile(1, 2, 1, 1), atol=1e-4) and (one - maps[:, 0]).abs().max() > 0.1


def test_the_votes_of_a_point_are_the_patterson_map_about_it():
    amplitude = torch.rand(8, 6, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    rho = torch.zeros(1, 8, 6, 10)
    rho[0, 3, 1, 4] = 1.0
    _, patterson, votes = channels(rho, amplitude)[0]
    assert torch.allclose(votes / votes.norm(), patterson.roll((3, 1, 4), (0, 1, 2)) / patterson.norm(), atol=1e-5)


def agreement(grid, sf, crystal):
    """(b,) Σ E² cos Δφ / Σ E² at the best shift and hand."""
    true, E2 = np.exp(-1j * np.angle(structure_factors(crystal, grid.p1.hkl))), grid.E[grid.p1.index] ** 2
    series = np.zeros((2 * len(sf), *grid.size), complex)
    phases = np.exp(1j * np.angle(grid.sphere(sf)))
    series[:, *(grid.p1.hkl % grid.size).T] = E2 * np.concatenate([phases, phases.conj()]) * true
    return (np.fft.fftn(series, axes=(1, 2, 3)).real.max((1, 2, 3)) / E2.sum()).reshape(2, -1).max(0)


def test_phases_on_their_way_become_better_and_true_ones_stay():
    before, after = [], []
    for crystal in random_crystals(6, 1234, ["P 1 21/c 1", "P -1"], recipe="molecules"):
        reflections = reflections_of(crystal, 1.75)
        grid = FlippingGrid(reflections)
        sf = grid.run(grid.random_start(8, torch.Generator().manual_seed(0)), partial(flip, delta=0.0), 100)
        before.append(agreement(grid, sf, crystal))
        after.append(agreement(grid, grid.run(sf, LearnedStep(grid), 1), crystal))
        right = torch.as_tensor(grid.coefficients(grid.E * np.exp(1j * np.angle(structure_factors(crystal, reflections.hkl)))))
        assert agreement(grid, right[None], crystal) > 0.99
        assert agreement(grid, grid.run(right[None], LearnedStep(grid), 1), crystal) > 0.85
    assert np.mean(after) > np.mean(before) + 0.02


def test_the_engine_calls_it_as_often_as_its_settings_say(monkeypatch):
    crystal, = random_crystals(1, 7, ["P -1"], recipe="molecules")
    called, reflections = [], reflections_of(crystal, 1.5)

    def step(rho):
        called.append(len(rho))
        return rho

    monkeypatch.setattr(FlippingGrid, "learned_step", staticmethod(step))
    for learned, times in ((0, 0), (2, 2 + 2)):  # at cycles 100 and 200, and twice after the last one
        called.clear()
        solve(reflections, crystal.contents, trials=4, minutes=0.01, settings=Settings(cycles=200, learned=learned))
        assert called == [4] * times


def test_a_structure_is_solved_with_it():
    crystal, = random_crystals(1, 7, ["P -1"], recipe="molecules")
    assert solved(solve(reflections_of(crystal, 1.2), crystal.contents, settings=Settings(learned=2)), crystal)
