"""A learned step of charge flipping: a network that makes a density out of one, called a few times.

It sees the map in units of its sigma, the Patterson map of E² - 1, and the map of votes: the positive density convoluted with
the Patterson map, which every atom of the density casts for all others. Blocks of 2 × 2 × 2 points go through 3 × 3 × 3
convolutions, periodic as the cell is. ``benchmarks/learned_step.py`` trained it, on states that charge flipping visits,
and says what it is worth.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as nnf

FILE = Path(__file__).with_name("learned_step.safetensors")


class Periodic(torch.autograd.Function):
    """One voxel more on all sides of (b, c, x, y, z), by the period; autograd's own gradient takes as long as the network."""

    @staticmethod
    def forward(ctx, x):
        for axis in (2, 3, 4):
            x = torch.cat([x.narrow(axis, -1, 1), x, x.narrow(axis, 0, 1)], axis)
        return x

    @staticmethod
    def backward(ctx, g):
        g = g.clone()
        for axis in (4, 3, 2):
            n = g.shape[axis] - 2
            g.select(axis, 1).add_(g.select(axis, n + 1))
            g.select(axis, n).add_(g.select(axis, 0))
            g = g.narrow(axis, 1, n)
        return g


periodic = Periodic.apply


class Block(nn.Module):
    """x + two convolutions."""

    def __init__(self, c):
        super().__init__()
        self.one, self.two = nn.Conv3d(c, c, 3), nn.Conv3d(c, c, 3)
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        return x + self.scale * self.two(periodic(nnf.silu(self.one(periodic(nnf.silu(x))))))


class Network(nn.Module):
    """``channels`` (b, 3, nx, ny, nz), even sizes, and ``numbers_of`` a crystal (7,) -> a density (b, nx, ny, nz)."""

    def __init__(self, c=32, blocks=4):
        super().__init__()
        self.stem, self.numbers = nn.Conv3d(24, c, 3), nn.Linear(7, c)
        self.blocks = nn.Sequential(*(Block(c) for _ in range(blocks)))
        self.head = nn.Conv3d(c, 8, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, maps, numbers):
        b, c, *n = maps.shape
        half = [points // 2 for points in n]
        x = maps.reshape(b, c, half[0], 2, half[1], 2, half[2], 2).permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, 8 * c, *half)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        x = self.stem(periodic(x)) + self.numbers(numbers).view(1, -1, 1, 1, 1)
        x = self.head(nnf.silu(self.blocks(x))).float()
        return maps[:, 0] + x.reshape(b, 2, 2, 2, *half).permute(0, 4, 1, 5, 2, 6, 3).reshape(b, *n)


def read_network(path=FILE) -> Network:
    with safe_open(path, "pt") as file:
        network = Network(*(int(file.metadata()[name]) for name in ("c", "blocks")))
        network.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})
    return network.eval().to(memory_format=torch.channels_last_3d)


shipped = cache(read_network)


def channels(rho, amplitude):
    """(b, 3, nx, ny, nz) of densities (b, nx, ny, nz) and the half grid of |E|, each in units of its sigma."""
    n = rho.shape[1:]
    weight = torch.where(amplitude > 0, amplitude.square() - 1, 0)
    patterson = torch.fft.irfftn(torch.complex(weight, torch.zeros_like(weight)), s=n)
    rho = rho / rho.std(dim=(1, 2, 3), keepdim=True)
    votes = torch.fft.irfftn(torch.fft.rfftn(rho.clamp(min=0), dim=(1, 2, 3)) * weight, s=n, dim=(1, 2, 3))
    return torch.stack([rho, (patterson / patterson.std()).expand_as(rho), votes / votes.std(dim=(1, 2, 3), keepdim=True)], 1)


def numbers_of(cell, size, d_min):
    """(7,): points of the map per Å, angles, resolution."""
    edges, cosines = np.array(cell.parameters[:3]), np.cos(np.radians(cell.parameters[3:]))
    return torch.tensor([*(edges / size / 0.5 - 1) * 2, *cosines * 2, (d_min - 1.75) * 3], dtype=torch.float32)


def even(size):
    """A map's points along the axes (3,), each an even number."""
    return tuple(n + n % 2 for n in size)


def resized(sf, size, new):
    """Half grids (b, ...) of maps of `size` points for maps of `new` ones; what stands at Nyquist frequencies is no matter."""
    for axis in (1, 2):
        n, m = size[axis - 1], new[axis - 1]
        if n != m:
            least = min(n, m)
            low, high = (least + 1) // 2, least // 2
            shape = list(sf.shape)
            shape[axis] = m - low - high
            sf = torch.cat([sf.narrow(axis, 0, low), sf.new_zeros(shape), sf.narrow(axis, n - high, high)], axis)
    return sf


class LearnedStep:
    """A ``real_space_step`` of one FlippingGrid: maps (b, nx, ny, nz) -> the same, on the scale of E.

    In bfloat16: 3 ms a map of 13,000 points on a core with AMX, as long as a dozen cycles; several times that without.
    network : ``shipped`` by default
    """

    def __init__(self, grid, network=None):
        self.network, self.size, self.even = (network or shipped()).to(grid.device), grid.size, even(grid.size)
        self.amplitude = resized(grid.amplitude[None], self.size, self.even)[0]
        self.numbers = numbers_of(grid.cell, self.even, grid.d_min).to(grid.device)
        self.strong = torch.where(grid.amplitude > 0, grid.strong, 0)

    @torch.inference_mode()
    def __call__(self, rho):
        if self.size != self.even:
            sf = resized(torch.fft.rfftn(rho, dim=(1, 2, 3)), self.size, self.even)
            rho = torch.fft.irfftn(sf, s=self.even, dim=(1, 2, 3))
        with torch.autocast(rho.device.type, torch.bfloat16):
            rho = self.network(channels(rho, self.amplitude), self.numbers)
        sf = resized(torch.fft.rfftn(rho, dim=(1, 2, 3)), self.even, self.size)
        # weak reflections and those that were not measured keep their amplitudes
        sf = sf * (self.strong.square().sum() / (self.strong * sf.abs()).sum((1, 2, 3), keepdim=True))
        return torch.fft.irfftn(sf, s=self.size, dim=(1, 2, 3))
