"""Maps that charge flipping works on: one data set in P1, many maps in one batch of Fourier transforms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..crystals import rotations_and_translations
from ..wilson import normalize
from .fourier import FourierSum, HalfGrid, grid_size
from .learned_step import LearnedStep

MOST_LINKED = 1500     # strong reflections of half the sphere that tell how well phases agree with a space group


@dataclass(frozen=True)
class Settings:
    """How charge flipping improves maps, what it was tuned with: benchmarks/starts.py tells what some of it is worth.

    deltas : flipping thresholds in sigmas of the map, one for each trial in turn. On ten light molecules the share of trials
        that succeed is the same at 0.8 and 1.0 Å for all of these; at 1.2 Å it is 50 % for -0.2 to 0.1 and 25 % for 0.45, at
        1.5 Å 0 is best; 0.6 and more solves nothing. No single one is best for every crystal.
    weak : share of the reflections whose phases are turned; 0.3-0.5 beats 0.2 below 1 Å resolution
    spacing : points of the map per d_min; free_spacing : per Å to which reflections float
    free, free_to, free_least : what was not measured floats ("free lunch": Caliandro et al. (2005), Acta Cryst. D61, 556):
        every amplitude of the changed map down to free_to Å, but not below free_least of d_min, is kept, times free
    expected : so much of the |E| that is expected there, 1 or the predicted one, is added. Of 67 light molecules at 1.5 Å,
        52 % of the starts come right with free 0.6 and none of it, 59 % with these, 68 % with PattersonNet's |E|.
    cycles : of each start; batch : starts at a time
    peak_cycle : every so many cycles the map is replaced by its highest peaks, one for each atom
    symmetrise : every so many cycles the phases are averaged over the space group, of several that they obey best
    polish : cycles of low-density elimination after charge flipping
    learned : 0, or times that a network makes the map after that; then it does so every `symmetrise` cycles, too, instead of
        its peaks (``learned_step``). For light molecules and data that end between 1.4 and 2.1 Å: of 40, 56, 34, 28 % of the
        starts come right with 2, at 1.5, 1.75, 2.0 Å, 42, 25, 20 % with 0, which take 15-25 % less time.
    """

    deltas: tuple[float, ...] = (0.1, 0.0, -0.2, 0.3)
    weak: float = 0.45
    spacing: float = 2.2
    free: float = 0.4
    expected: float = 0.3
    free_to: float = 0.97
    free_least: float = 0.65
    free_spacing: float = 2.05
    cycles: int = 400
    batch: int = 4
    peak_cycle: int = 10
    symmetrise: int = 100
    polish: int = 6
    learned: int = 0

    def thresholds(self, trials):
        """Flipping thresholds (b, 1, 1, 1) of some of the trials, given by their numbers."""
        return torch.tensor([self.deltas[i % len(self.deltas)] for i in trials]).reshape(-1, 1, 1, 1)


def flip(rho, delta=0.0):
    """Change the sign of all density below `delta` sigmas; rho (b, nx, ny, nz) of mean zero, delta (b, 1, 1, 1) or one."""
    sigma = torch.linalg.vector_norm(rho, dim=(1, 2, 3), keepdim=True) / rho[0].numel() ** 0.5
    return torch.where(rho < delta * sigma, -rho, rho)


def keep_peaks(rho, n):
    """Of maps (b, nx, ny, nz) the n highest maxima alone, each at one point: what is left of a map are its atoms."""
    around = rho
    for axis in (1, 2, 3):
        around = torch.maximum(around, torch.maximum(around.roll(1, axis), around.roll(-1, axis)))
    height, where = torch.where(rho == around, rho, 0).flatten(1).topk(min(n, rho[0].numel()), dim=1)
    return torch.zeros_like(rho).flatten(1).scatter_(1, where, height).reshape(rho.shape)


def eliminate_low_density(rho):
    """Take away low density smoothly (Shiono & Woolfson, 1992): rho (1 - exp(-rho² / 2 c²)) where rho > 0, c 0.2 of
    a typical peak; rho (b, nx, ny, nz)."""
    c = 1.5 * rho.std(dim=(1, 2, 3), keepdim=True)
    return torch.where(rho > 0, rho * (1 - torch.exp(-0.5 * (rho / c) ** 2)), torch.zeros_like(rho))


def normalised_amplitudes(reflections, per_shell=60) -> np.ndarray:
    """Quasi-normalised amplitudes (n,) in shells of about `per_shell`; systematic absences are 0 and in no mean."""
    ops = reflections.spacegroup.operations()
    hkl = reflections.hkl.astype(np.int32)
    present = ~ops.systematic_absences(hkl)
    E = np.zeros(len(hkl))
    E[present] = normalize(reflections.F[present], reflections.d[present],
                           ops.epsilon_factor_without_centering_array(hkl[present]),
                           max(1, int(present.sum()) // per_shell))
    return E


class FlippingGrid(HalfGrid):
    """One data set in P1, ready for charge flipping: batches of complex half grids (b, nx, ny, nz // 2 + 1)."""

    def __init__(self, reflections, predicted=None, settings=Settings(), device="cpu"):
        p1, d_min = reflections.p1, reflections.d_min
        free_to = max(settings.free_least * d_min, min(settings.free_to, d_min))
        spacing = min(d_min / settings.spacing, free_to / settings.free_spacing)
        super().__init__(p1, grid_size(reflections.cell, p1.hkl, spacing))
        self.device, self.settings = torch.device(device), settings
        self.E, self.cell, self.d_min = normalised_amplitudes(reflections), reflections.cell, d_min
        # every reflection of the sphere, as a voxel of the half grid and whether it stands there as its Friedel mate
        self._place, self._mate = self._voxels(p1.hkl), p1.hkl[:, 2] < 0
        E = self.E[p1.index[self.rows]]
        weak = E < np.quantile(self.E, settings.weak)
        # +90° for h is -90° for -h: the plane l = 0 holds both
        h, k, l = p1.hkl[self.rows].T
        turn = np.where((l > 0) | (k > 0) | (k == 0) & (h > 0), 1j, -1j)
        amplitude, factor = np.zeros(self.half, np.float32), self._floating(reflections, free_to)
        amplitude.flat[self.voxel] = E
        factor.flat[self.voxel] = np.where(weak, turn, 0)
        self.amplitude, self.factor = (torch.as_tensor(grid, device=self.device) for grid in (amplitude, factor))
        self.strong = torch.where(self.factor == 0, self.amplitude, 0)
        self.strong[(self.factor.real > 0) & (self.amplitude == 0)] = settings.expected
        if predicted is not None:
            self._be_guided(predicted)
        self._row = np.full(self.size, -1)
        self._row[tuple((p1.hkl % self.size).T)] = np.arange(len(p1.hkl))

    def random_start(self, count, generator):
        """`count` grids with the right amplitudes and random phases."""
        rho = torch.randn((count, *self.size), generator=generator).to(self.device)
        return self._with_amplitudes(torch.fft.rfftn(rho, dim=(1, 2, 3)))

    def _with_amplitudes(self, sf):
        return sf * (self.amplitude / sf.abs().clamp_min(1e-12))

    def _floating(self, reflections, free_to):
        """Grid of what the amplitude of a reflection that was not measured is multiplied by: settings.free, or 0 if it is
        absent."""
        hkl = np.stack(np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in self.size), indexing="ij"), -1)
        hkl = hkl[:, :, :self.half[2]].reshape(-1, 3).astype(np.int32)
        hkl[:, 2] = np.abs(hkl[:, 2])  # the last plane of a half grid
        factor = np.zeros(len(hkl), np.complex64)
        if free_to < reflections.d_min:
            # half a grid along an axis, h and -h are one voxel, though their mates are not
            free = hkl.any(1) & (2 * np.abs(hkl) < self.size).all(1)
            free &= ~np.array(reflections.spacegroup.operations().systematic_absences(hkl), bool)
            free[free] = reflections.cell.calculate_d_array(hkl[free]) >= free_to
            factor[free] = self.settings.free
        return factor.reshape(self.half)

    def _voxels(self, hkl):
        return np.ravel_multi_index((np.where(hkl[:, 2:] < 0, -hkl, hkl) % self.size).T, self.half)

    def _be_guided(self, predicted):
        p1 = predicted.p1
        inside = (2 * np.abs(p1.hkl) < self.size).all(1)
        voxel = torch.as_tensor(self._voxels(p1.hkl[inside]), device=self.device)
        E = torch.as_tensor(normalised_amplitudes(predicted)[p1.index[inside]].astype(np.float32), device=self.device)
        free = self.factor.view(-1)[voxel].real > 0
        self.strong.view(-1)[voxel[free]] = self.settings.expected * E[free]

    def run(self, sf, real_space_step, cycles):
        """Improve grids (b, ...) by some cycles of a change in real space and the known amplitudes.

        Weak reflections keep the amplitude of the changed map and turn by 90 degrees; reflections that were not measured
        keep settings.free of it beside settings.expected. F000 is zero: left free, it grows until no density is below the
        threshold and all stands still.
        """
        for _ in range(cycles):
            rho = real_space_step(torch.fft.irfftn(sf, s=self.size, dim=(1, 2, 3)))
            new = torch.fft.rfftn(rho, dim=(1, 2, 3))
            re, im = torch.view_as_real(new).unbind(-1)
            # squares and rsqrt: a third of the time of abs and a division
            sf = new * (self.factor + self.strong * (re.square() + im.square() + 1e-9).rsqrt())
        return sf

    @cached_property
    def learned_step(self):
        return LearnedStep(self)

    def polished(self, sf):
        """Grids (b, ...) after the last cycle."""
        sf = self.run(sf, eliminate_low_density, self.settings.polish)
        return self.run(sf, self.learned_step, self.settings.learned) if self.settings.learned else sf

    def sphere(self, sf):
        """F(h) (b, m) of the whole sphere ``p1`` out of the grids, as the rest of the package writes it."""
        values = sf.reshape(len(sf), -1)[:, torch.as_tensor(self._place, device=self.device)].cpu().numpy()
        return np.where(self._mate, values, values.conj())

    def rows_of(self, hkl):
        """Where reflections (m, 3) stand in the sphere of ``p1``: (m,) int."""
        return self._row[tuple((hkl % self.size).T)]

    def links(self, spacegroup):
        """Pairs of reflections that an operator of the group links, of the strong ones alone: they carry the phases.

        Returns
        -------
        first, second : (pairs,) rows of h and hR in the sphere, turn : exp(2πi h·t), k : (pairs, 3) int, hR - h
        """
        rot, tran = rotations_and_translations(spacegroup)
        hkl = self.p1.hkl
        E = self.E[self.p1.index]
        # one of two Friedel mates: the other adds the same
        strong = np.flatnonzero((E > max(1.0, np.sort(E)[-2 * MOST_LINKED:][0])) & (hkl @ [1, 10**4, 10**8] > 0))
        hkl = hkl[strong]
        parts = [(strong, self.rows_of(hkl @ R), np.exp(2j * np.pi * hkl @ t), hkl @ R - hkl)
                 for R, t in zip(rot[1:], tran[1:])]
        if not parts:
            return np.zeros(0, int), np.zeros(0, int), np.zeros(0, complex), np.zeros((0, 3), int)
        first, second, turn, k = (np.concatenate(column) for column in zip(*parts))
        moves = k.any(axis=1)  # a reflection that R leaves in place tells nothing about the origin
        return first[moves], second[moves], turn[moves], k[moves]

    def agreement(self, sf, links):
        """How well grids obey a space group, given by its ``links``, and where its origin lies in them.

        If the density is that of the group moved by u, F(hR) conj F(h) exp(2πi h·t) = |F|² exp(2πi (hR - h)·u). The
        sum over reflections and operators is a Fourier series in u; its maximum, divided by Σ |F|², is 1 for a map
        that has the symmetry. In P1 the agreement is the correlation of the unchanged map's amplitudes with E.

        Returns
        -------
        agreement : (b,), shift : (b, 3) u in fractions of the cell
        """
        first, second, turn, k = links
        if not len(first):
            return self._amplitude_correlation(sf), np.zeros((len(sf), 3))
        series, best, shifts = FourierSum(k, self.size), np.zeros(len(sf)), np.zeros((len(sf), 3))
        for i, F in enumerate(self.sphere(sf)):
            product = F[second] * F[first].conj() * turn                      # (pairs,)
            shifts[i], value = series.maximum(product)
            best[i] = value / max(np.abs(product).sum(), 1e-30)
        return best, shifts

    def origins(self, sf, links, n):
        """The `n` best places of the origin of a group in one grid (nx, ny, nz // 2 + 1) -> agreement (m,), shift (m, 3).

        As ``agreement``, which finds the best: where many phases are wrong, or a part of the structure has more symmetry
        than the whole, the right place is often the second or third.
        """
        first, second, turn, k = links
        if not len(first):
            return np.zeros(1), np.zeros((1, 3))
        F, = self.sphere(sf[None])
        product = F[second] * F[first].conj() * turn
        shifts, values = FourierSum(k, self.size).maxima(product, n)
        return values / max(np.abs(product).sum(), 1e-30), shifts

    def _amplitude_correlation(self, sf):
        rho = flip(torch.fft.irfftn(sf, s=self.size, dim=(1, 2, 3)))
        new = torch.fft.rfftn(rho, dim=(1, 2, 3)).abs()[:, self.amplitude > 0]
        target = self.amplitude[self.amplitude > 0]
        new, target = new - new.mean(1, keepdim=True), target - target.mean()
        return ((new * target).sum(1) / (new.norm(dim=1) * target.norm())).cpu().numpy()

    def symmetrise(self, sf, shift, p1) -> np.ndarray:
        """Phases (n,) in radians of n reflections: of one grid, moved by -shift, averaged over their mates p1 in a group."""
        sphere = self.sphere(sf[None])[0][self.rows_of(p1.hkl)] * np.exp(-2j * np.pi * p1.hkl @ shift)
        sphere = np.where(p1.friedel, sphere.conj(), sphere) * np.exp(-1j * p1.shift)
        return np.angle(np.bincount(p1.index, sphere.real) + 1j * np.bincount(p1.index, sphere.imag))
