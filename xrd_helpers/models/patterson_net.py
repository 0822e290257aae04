"""PattersonNet: extends amplitudes in the space of interatomic vectors. The whole model is in this file.

E² - 1 on the whole measured sphere is the transform of the sharpened Patterson function without its origin peak (Patterson,
1934, Phys. Rev. 46, 372; International Tables, Vol. B, chapter 2.3): a map of the vectors between atoms, blurred to the
resolution of the data. The missing reflections are its missing detail. So the map is laid on a periodic grid of about
0.4 Å, whatever the cell, a network of 3 × 3 × 3 convolutions that knows the map's period and symmetry sharpens it, and its
transform gives E beyond the data; a second pass sees the map of measured and predicted E². It starts from what needs no
training: the square of the positive map, whose transform already holds a third of what there is to know (as Sayre's
equation does for a density: 1952, Acta Cryst. 5, 60). The fall-off with resolution is put back from the crystal's own
Wilson fit, so that without any knowledge the prediction is the shell mean.

Any Laue class: the network sees the part of the cell that is left when it is folded along its mirror planes and once by the
inversion (a half for -1, a quarter for 2/m, an eighth for mmm), padded by the symmetry; what other rotations are left, the
average of equivalent reflections takes in.
"""

import math
from dataclasses import dataclass

import gemmi
import numpy as np
import torch
from torch import nn
from torch.nn import functional as nnf

from ..crystals import all_operators
from ..gridding import smooth_even
from ..wilson import CARBON, Expected, ShellMean, heavy_share
from .base import ONE, NormalizedModel

STEP = 0.4                              # Å between points of the map, about
ORIGIN_PEAKS = (0.6, 1.3, 2.6)          # Å, widths of the peaks at the origin that the network is shown
HARKER = 0.35                           # Å, width of Harker planes and lines
N_MAPS = len(ORIGIN_PEAKS) + 3          # maps besides the Patterson
N_NUMBERS = 12                          # that describe the crystal and its data


def grid_points(edge, d_target) -> int:
    """Points along an edge (Å): even, no prime factor above 7, and every index to d_target below one half of them."""
    return smooth_even(max(2 * int(edge / d_target) + 2, 2 * round(edge / STEP / 2)))


class PattersonMap:
    """One crystal of boxes of amplitudes, as the network sees it: nothing in it depends on what was not measured.

    voxels : (n,) flat voxels of the box to be predicted, `base` (n,) scaled amplitudes that are expected there (``Expected``)
    """

    def __init__(self, boxes, i, mean: ShellMean, d_target):
        self.sample, box = boxes.samples[i], boxes.box
        cell, group = self.sample.cell, self.sample.spacegroup
        self.size = [grid_points(edge, d_target) for edge in (cell.a, cell.b, cell.c)]
        absent, epsilon, d, target, measured = (x[i].flatten().cpu().numpy() for x in (
            boxes.absent, boxes.epsilon, boxes.d, boxes.target, boxes.measured))
        self.d_min, hkl, expected = float(d[measured].min()), box.hkl, Expected.of(boxes, i, mean)
        centring = np.zeros(len(hkl), bool)  # their E² is not known to be zero: the lattice has no such reflections
        for shift in group.operations().cen_ops:
            centring |= (hkl @ np.array(shift)) % gemmi.Op.DEN != 0
        inner, outer = measured & ~centring, target & ~measured & ~centring
        # a screw axis or a glide plane makes known zeros
        values = np.where(absent, -1, epsilon * expected.E2 - 1)[inner]
        self.fold = Fold(box.rotations)
        places, rows = self._places(hkl[inner], box.rotations)
        self.inner, once = (torch.as_tensor(x) for x in np.unique(places, return_index=True))
        self.values = torch.as_tensor(values[rows], dtype=torch.float32)[once]
        places, rows = self._places(hkl[outer], box.rotations)
        self.read, self.row = torch.as_tensor(places), torch.as_tensor(rows)
        self.outer, once = (torch.as_tensor(x) for x in np.unique(places, return_index=True))
        self.outer_row = self.row[once]
        self.epsilon = torch.as_tensor(np.where(absent, 0, epsilon)[outer], dtype=torch.float32)
        self.images = torch.as_tensor(np.bincount(rows), dtype=torch.float32)  # of each reflection, in the half-complex grid
        self.voxels, self.base = expected.voxels, torch.as_tensor(expected.F, dtype=torch.float32)
        self.present = torch.as_tensor(np.searchsorted(np.flatnonzero(outer), self.voxels))
        self._geometry()

    def _places(self, hkl, rotations):
        """Flat places in a half-complex transform of hkl (n, 3) and all images with l >= 0, and the row of each."""
        images = np.einsum("ni,gij->gnj", hkl, rotations).reshape(-1, 3)
        rows, n = np.tile(np.arange(len(hkl)), len(rotations)), self.size
        stored = images[:, 2] >= 0
        h, k, l = images[stored].T % np.array(n)[:, None]
        return (h * n[1] + k) * (n[2] // 2 + 1) + l, rows[stored]

    def _geometry(self):
        """``maps``: peaks at the origin, the distance from it, Harker planes and lines. ``numbers`` of the crystal."""
        cell, group, contents = self.sample[:3]
        n, orth = np.array(self.size), np.array(cell.orth.mat.tolist())
        u = np.stack(np.meshgrid(*(np.arange(points) / whole for points, whole in zip(self.fold.shape(n), n)),
                                 indexing="ij"), -1)
        r, planes, lines = (np.zeros(u.shape[:3]) for _ in range(3))
        r += distance(u, np.eye(3), orth)
        for rot, tran in zip(*all_operators(group)):
            # the vectors between x and its image, x - Rx - t, fill a plane or a line (Harker, 1936, J. Chem. Phys. 4, 381)
            span = orth @ (np.eye(3) - rot)
            axes, size, _ = np.linalg.svd(span)
            rank = int((size > 1e-6).sum())
            if rank in (1, 2):
                across = axes[:, rank:].T                                     # (1 or 2, 3), of length 1 and normal to it
                near = np.exp(-0.5 * (distance(u + tran, across, orth) / HARKER) ** 2)
                found = planes if rank == 2 else lines
                np.maximum(found, near, out=found)
        peaks = [np.exp(-0.5 * (r / width) ** 2) for width in ORIGIN_PEAKS]
        self.maps = torch.as_tensor(np.stack([*peaks, np.minimum(r, 8) / 4 - 1, planes, lines]), dtype=torch.float32)[None]
        z = np.array([gemmi.Element(element).atomic_number for element in contents] or [6], float)
        z2 = z**2 * np.array(list(contents.values()) or [cell.volume / len(group.operations()) / 18])
        n_equal = z2.sum() ** 2 / (z2 * z**2).sum() * len(group.operations())  # equal atoms of the same contrast
        step = np.array([cell.a, cell.b, cell.c]) / n / STEP - 1
        cosines = np.cos(np.radians([cell.beta, cell.alpha, cell.gamma]))
        self.numbers = torch.tensor([*(step * 5), cosines[0] * 3, np.log(n_equal / 50), np.log(cell.volume / 1200),
                                     float(group.is_centrosymmetric()), heavy_share(contents or CARBON), *(cosines[1:] * 3),
                                     np.log(len(group.operations()) / 4), 5 * (self.d_min - 1.5)], dtype=torch.float32)

    def to(self, device):
        for name, value in vars(self).items():
            if torch.is_tensor(value):
                setattr(self, name, value.to(device))
        return self

    def to_map(self, E2=None):
        """(1, 1, x, y, z) the folded map of the measured values, and of E² (m,) beyond where it is given."""
        n = self.size
        full = torch.zeros(n[0] * n[1] * (n[2] // 2 + 1), device=self.values.device).index_put((self.inner,), self.values)
        if E2 is not None:
            full = full.index_put((self.outer,), (self.epsilon * E2 - 1)[self.outer_row])
        full = full.view(n[0], n[1], n[2] // 2 + 1)
        rho = torch.fft.irfftn(torch.complex(full, torch.zeros_like(full)), s=n, norm="forward")
        x, y, z = self.fold.shape(n)
        return rho[None, None, :x, :y, :z] / math.sqrt(2 * len(self.inner))  # about as many as the sphere has

    def to_sphere(self, rho):
        """Coefficients (m,) of the reflections beyond, means over equivalent ones, of a folded map (x, y, z)."""
        found = torch.fft.rfftn(self.fold.whole(rho).float(), norm="ortho").real.flatten()[self.read]
        return torch.zeros_like(self.images).index_add(0, self.row, found) / self.images

    def squared(self):
        """Coefficients (m,) of the square of the positive map: mean 0 and deviation 1 over those that are present."""
        g = self.to_sphere(self.to_map()[0, 0].clamp(min=0) ** 2)
        return (g - g[self.present].mean()) / g[self.present].std()


class Fold:
    """The part of a periodic map (x, y, z) with the symmetry of a Laue group (rotations (g, 3, 3)) that the network sees.

    mirrors : axes along which the map is folded by a mirror plane; once : the axis folded by the inversion and these mirrors,
    which turn the `turned` axes around; None where mirrors fold all three
    """

    def __init__(self, rotations):
        group = {tuple(r.ravel()) for r in rotations}
        self.mirrors = [i for i in range(3) if tuple(np.diag([-1 if i == j else 1 for j in range(3)]).ravel()) in group]
        rest = [i for i in range(3) if i not in self.mirrors]
        self.once, self.turned = (rest[0], rest[1:]) if rest else (None, [])

    def shape(self, n) -> list[int]:
        """Points along the axes of the folded map, of a whole one with an even number n (3,)."""
        return [points if axis in self.turned else points // 2 + 1 for axis, points in enumerate(n)]

    def _turn(self, x):
        """-u of each turned axis: the last three dimensions of x are the map."""
        for axis in self.turned:
            x = x.flip(axis - 3).roll(1, axis - 3)
        return x

    def whole(self, x):
        """The map (x, y, z) unfolded."""
        for axis in self.mirrors:
            x = torch.cat([x, x.narrow(axis, 1, x.shape[axis] - 2).flip(axis)], axis)
        if self.once is not None:
            x = torch.cat([x, self._turn(x.narrow(self.once, 1, x.shape[self.once] - 2).flip(self.once))], self.once)
        return x

    def pad(self, x):
        """One voxel on all sides of (..., x, y, z), by the symmetry and the period."""
        if self.once is not None:
            axis = self.once - 3
            x = torch.cat([self._turn(x.narrow(axis, 1, 1)), x, self._turn(x.narrow(axis, -2, 1))], axis)
        for axis in self.mirrors:
            x = torch.cat([x.narrow(axis - 3, 1, 1), x, x.narrow(axis - 3, -2, 1)], axis - 3)
        for axis in self.turned:
            x = torch.cat([x.narrow(axis - 3, -1, 1), x, x.narrow(axis - 3, 0, 1)], axis - 3)
        return x


def distance(u, across, orth):
    """Å between points u (..., 3) and the lattice, along the directions across (k, 3), orthonormal; orth (3, 3) of the cell."""
    steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    along = (u - np.round(u)) @ (across @ orth).T                             # (..., k)
    steps = np.unique((steps @ (across @ orth).T).round(6), axis=0)
    nearest = np.full(u.shape[:-1], np.inf)
    for step in steps:
        np.minimum(nearest, ((along + step) ** 2).sum(-1), out=nearest)
    return np.sqrt(nearest)


class Block(nn.Module):
    """x + two convolutions; no normalisation, since the height of the map means something."""

    def __init__(self, c):
        super().__init__()
        self.one, self.two = nn.Conv3d(c, c, 3), nn.Conv3d(c, c, 3)
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x, pad):
        return x + self.scale * self.two(pad(nnf.silu(self.one(pad(nnf.silu(x))))))


class PattersonNet(NormalizedModel):
    """The boxes have to say what is known of each crystal (``samples``)."""

    any_box = True

    @dataclass
    class Config:
        channels: int = 24
        blocks: int = 3      # in each pass
        passes: int = 2
        d_target: float = 0.8
        n_points: int = 40   # of the mean amplitude against resolution

    def __init__(self, config=None):
        config = config or self.Config()
        super().__init__(config, config.n_points)
        c = self.config
        self.stem = nn.ModuleList(nn.Conv3d(1 if i else 1 + N_MAPS, c.channels, 3) for i in range(c.passes))
        self.numbers = nn.Linear(N_NUMBERS, c.channels)
        self.start = nn.Parameter(torch.tensor(0.3))  # how much the squared map counts
        self.blocks = nn.ModuleList(nn.ModuleList(Block(c.channels) for _ in range(c.blocks)) for _ in range(c.passes))
        self.head = nn.ModuleList(nn.Conv3d(c.channels, 1, 1) for _ in range(c.passes))
        for head in self.head:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    @classmethod
    def config_for(cls, box, d_target):
        return cls.Config(d_target=d_target)

    def predict(self, boxes):
        return torch.stack([self._fill(boxes, i, crystal.voxels, crystal.base * self._passes(crystal)[-1])
                            for i, crystal in enumerate(self._maps(boxes))])

    def loss(self, boxes, truth):
        """Squared error of F over the expected amplitude, relative to it: between an error in E and one in F.

        Passes before the last one count for 0.3.
        """
        losses = []
        for i, crystal in enumerate(self._maps(boxes)):
            F = truth.F[i].flatten()[torch.as_tensor(crystal.voxels, device=truth.F.device)].to(crystal.base)
            parts = [(crystal.base * (E - F / crystal.base).square()).mean() / crystal.base.mean()
                     for E in self._passes(crystal)]
            losses.append(parts[-1] + 0.3 * sum(parts[:-1]))
        return torch.stack(losses).mean()

    def _maps(self, boxes):
        """The PattersonMap of each crystal, on the device of the network."""
        return (PattersonMap(boxes, i, self.mean, self.config.d_target).to(self.mean_F.device) for i in range(len(boxes)))

    def _passes(self, crystal):
        """[E (n,) of the reflections to be predicted, after each pass], on a scale where 1 is expected of all."""
        g, E, found, pad = self.start * crystal.squared(), None, [], crystal.fold.pad
        for i, (stem, blocks, head) in enumerate(zip(self.stem, self.blocks, self.head)):
            if i == 0:
                x = stem(pad(torch.cat([crystal.to_map(), crystal.maps], 1)))
                x = x + self.numbers(crystal.numbers).view(1, -1, 1, 1, 1)
            else:
                x = x + stem(pad(crystal.to_map(E.square())))
            for block in blocks:
                x = block(x, pad)
            g = g + 0.3 * crystal.to_sphere(head(x)[0, 0])
            E = nnf.softplus(g + ONE)
            found.append(E[crystal.present])
        return found

    @staticmethod
    def _fill(boxes, i, voxels, F):
        """A box (H, K, L) with the measured amplitudes, F (n,) at its voxels, and equal values where voxels are equivalent."""
        box, out = boxes.box, boxes.F_in[i].flatten().clone()
        known = boxes.measured[i].flatten()
        out[torch.as_tensor(voxels, device=out.device)] = F.to(out)
        same = torch.as_tensor(box.representative, device=out.device)
        out = torch.where(known, boxes.F_in[i].flatten(), out[same])
        return (out * (boxes.target[i] & ~boxes.absent[i]).flatten()).view(box.shape)
