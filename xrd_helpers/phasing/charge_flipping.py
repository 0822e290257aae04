"""Charge flipping: from amplitudes to a density, many trials in one batch of Fourier transforms.

Oszlányi & Sütő (2004), Acta Cryst. A60, 134, and (2005), A61, 147 (weak reflections shifted by 90 degrees); on
normalised amplitudes: Oszlányi & Sütő (2008), A64, 123; low-density elimination: Shiono & Woolfson (1992), A48, 451;
the origin by the agreement of symmetry-related phases: Palatinus & van der Lee (2008), J. Appl. Cryst. 41, 975.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import gemmi
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from ..config import UserError
from ..crystals import count_elements, rotations_and_translations
from ..metrics import normalize
from ..reflections import expand_to_p1
from . import verdict
from .peaks import grid_size, without_hydrogen
from .refine import Refiner
from .verdict import Evidence

# Flipping thresholds in sigmas of the map, one for each trial in turn. On ten light molecules the share of trials that
# succeed is the same at 0.8 and 1.0 Å for all of these; at 1.2 Å it is 50 % for -0.2 to 0.1 and 25 % for 0.45, at
# 1.5 Å 0 is best; 0.6 and more solves nothing. No single one is best for every crystal.
DELTAS = (0.1, 0.0, -0.2, 0.3)
WEAK = 0.45            # share of the reflections whose phases are turned; 0.3-0.5 beats 0.2 below 1 Å resolution
SPACING = 2.2          # points of the flipping map per d_min
# Atoms from the map are refined when their R1 is below this, at two resolutions in Å: right phases begin with 0.2-0.4
# at 1.0 Å, where refining costs more, and with 0.4-0.6 at 1.5 Å.
SCREEN_R1 = {1.0: 0.45, 1.5: 0.65}
MIN_AGREEMENT = 0.3    # agreement with the space group below which no atoms are built
BETTER = 0.02          # a trial is looked at again when its agreement has grown by this
MOST_REFINED = 2       # times that the atoms of one trial are refined, which costs more than all its cycles
ROUND = 25             # cycles between two looks at the maps
POLISH = 6             # cycles of low-density elimination after charge flipping
ATOM_VOLUME = 18.0     # Å³ for each atom that is not hydrogen, in organic crystals


class PhasingError(UserError):
    """Phasing cannot start, or ended without a structure, and why."""


@dataclass(frozen=True)
class Solution:
    """What phasing returns, whichever engine found it.

    fract : (n, 3), heights : (n,) of the peaks in sigmas of the map (nan where the engine tells none)
    elements : (n,) symbols, u_iso : (n,) Å², occ : (n,) crystallographic occupancy as in Crystal
    rho : (nx, ny, nz) density over the cell in electrons per Å³, without F000; None where the engine gives no map
    r1 : Σ |F - |Fcalc|| / Σ F of these atoms against the amplitudes given
    figure_of_merit : agreement of the P1 phases with the space group, 1 is perfect, about 0 random; nan if unknown
    trials : random starts used; seconds : wall time; engine : its name
    orientation : how the axes of `cell` came from those of the data, "as input" when they are the same
    evidence : what speaks for these atoms (``verdict.weigh``); None where they were not held against data
    """

    fract: np.ndarray
    heights: np.ndarray
    elements: tuple[str, ...]
    u_iso: np.ndarray
    occ: np.ndarray
    rho: np.ndarray | None
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    r1: float
    figure_of_merit: float
    trials: int
    seconds: float
    engine: str
    orientation: str = "as input"
    evidence: Evidence | None = None

    @property
    def probability(self) -> float:
        """That this is the structure: at least 80 % of its non-H atoms within 0.5 Å. nan where that is unknown."""
        return self.evidence.probability if self.evidence else float("nan")

    @property
    def verdict(self) -> str:
        """"solved", "uncertain" or "not solved"."""
        return verdict.word(self.probability)

    @property
    def accepted(self) -> bool:
        return self.verdict == "solved"


@contextmanager
def one_thread():
    """One thread for all arithmetic: transforms this small gain little from a second, and on a busy machine threads that
    wait for each other cost threefold. Many crystals are better phased in as many processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def solve(reflections, elements=None, *, trials=24, cycles=400, batch=4, seed=0, device="cpu",
          accept=None, real_space_step=None) -> Solution | None:
    """Solve a structure whose space group is known.

    Random phases are improved by charge flipping in P1, `batch` starts at a time. Every ROUND cycles the start whose
    map obeys the space group best is taken as far as refined atoms. The search ends when these are the structure with
    a probability of `accept` (``verdict.weigh``) and nothing but hydrogen is missing (``certain_r1``); if something
    else is, the starts of the batch are followed to their end and the best one is taken.

    Parameters
    ----------
    reflections : Reflections
    elements : {symbol: atoms in the asymmetric unit}, or a sequence of symbols; H atoms are not looked for. By default an
        atom of carbon in 18 Å³.
    trials, cycles : int, random starts, and cycles for each
    accept : float, probability; that of the verdict "solved" by default
    real_space_step : callable, maps (b, nx, ny, nz) float -> the same; ``flip`` with DELTAS by default

    Returns
    -------
    Solution, the one accepted or else the one with the lowest R1; None if no start gave any atoms
    """
    began = time.perf_counter()
    contents = _contents(reflections, elements)
    grid, refiner = FlippingGrid(reflections, device), Refiner(reflections)
    generator = torch.Generator().manual_seed(seed)
    accept = verdict.calibration()["thresholds"]["solved"] if accept is None else accept
    screen = np.interp(reflections.d_min, list(SCREEN_R1), list(SCREEN_R1.values()))
    best, merit, evidence, used = None, float("nan"), None, 0
    while used < trials and not (evidence and evidence.probability >= accept):
        deltas = torch.tensor([DELTAS[i % len(DELTAS)] for i in range(used, min(used + batch, trials))])
        deltas = deltas.reshape(-1, 1, 1, 1).to(grid.device)
        step = real_space_step or partial(flip, delta=deltas)
        used += len(deltas)
        sf, tried = grid.random_start(len(deltas), generator), np.full(len(deltas), MIN_AGREEMENT - BETTER)
        refined = np.zeros(len(deltas), int)
        for _ in range(0, cycles, ROUND):
            sf = grid.run(sf, step, ROUND)
            agreement, _ = grid.agreement(sf)
            i = int(np.where(agreement > tried + BETTER, agreement, -1).argmax())
            if agreement[i] <= tried[i] + BETTER:
                continue
            tried[i] = agreement[i]
            model, figure = build_atoms(grid, refiner, sf[i:i + 1], contents)
            if model is not None and model.r1 < screen and refined[i] < MOST_REFINED:
                refined[i] += 1
                model = refiner.complete(model, contents)
            if model is not None and (best is None or model.r1 < best.r1):
                best, merit = model, figure
                evidence = verdict.weigh(best, refiner, elements or contents, least=accept)
                if evidence.probability >= accept and evidence.r1 < evidence.expected:
                    break
    if best is None:
        return None
    if np.isnan(evidence.r_free):
        evidence = verdict.weigh(best, refiner, elements or contents)
    return Solution(fract=best.fract % 1, heights=best.heights, elements=best.elements, u_iso=best.u_iso,
                    occ=best.occ, rho=refiner.map(best), cell=reflections.cell, spacegroup=reflections.spacegroup,
                    r1=best.r1, figure_of_merit=merit, trials=used, seconds=time.perf_counter() - began,
                    engine="charge flipping", evidence=evidence)


def build_atoms(grid, refiner, sf, contents):
    """From one P1 map to atoms in the space group -> (Model or None, agreement with the space group)."""
    sf = grid.run(sf, eliminate_low_density, POLISH)
    agreement, shift = grid.agreement(sf)
    phases = grid.symmetrise(sf[0], shift[0])
    model = refiner.model_from_map(refiner.maps.map(grid.E * np.exp(1j * phases)), contents)
    return model and refiner.recycle(model, contents, rounds=3), float(agreement[0])


def flip(rho, delta=0.0):
    """Change the sign of all density below `delta` sigmas of its map; rho (b, nx, ny, nz), delta (b, 1, 1, 1) or one."""
    threshold = delta * rho.std(dim=(1, 2, 3), keepdim=True)
    return torch.where(rho < threshold, -rho, rho)


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


class FlippingGrid:
    """One data set in P1, ready for charge flipping: batches of complex half-sphere grids (b, nx, ny, nz // 2 + 1).

    The grids hold the conjugate of F(h) at h, so that torch's inverse transform is the density.
    """

    def __init__(self, reflections, device="cpu"):
        self.device = torch.device(device)
        self.E = normalised_amplitudes(reflections)
        p1 = expand_to_p1(reflections.hkl, reflections.spacegroup)
        self.p1 = p1
        self.size = grid_size(reflections.cell, p1.hkl, reflections.d_min / SPACING)
        self.half = (*self.size[:2], self.size[2] // 2 + 1)
        # every reflection of the sphere, as a voxel of the half grid and whether it stands there as its Friedel mate
        self.mate = p1.hkl[:, 2] < 0
        folded = np.where(self.mate[:, None], -p1.hkl, p1.hkl)
        self.voxel = np.ravel_multi_index((folded % self.size).T, self.half)
        stored = ~self.mate
        amplitude, weak, sign = (np.zeros(self.half, np.float32) for _ in range(3))
        E = self.E[p1.index[stored]]
        amplitude.flat[self.voxel[stored]] = E
        weak.flat[self.voxel[stored]] = E < np.quantile(self.E, WEAK)
        # +90° for h is -90° for -h: the plane l = 0 holds both
        h, k, l = p1.hkl[stored].T
        sign.flat[self.voxel[stored]] = np.where((l > 0) | (k > 0) | (k == 0) & (h > 0), 1, -1)
        self.amplitude = torch.as_tensor(amplitude, device=self.device)
        self.weak = torch.as_tensor(weak > 0, device=self.device)
        self.quarter_turn = torch.complex(torch.zeros(self.half), torch.as_tensor(sign)).to(self.device)
        self._prepare_agreement(reflections.spacegroup)

    def random_start(self, count, generator):
        """`count` grids with the right amplitudes and random phases."""
        rho = torch.randn((count, *self.size), generator=generator).to(self.device)
        return self._with_amplitudes(torch.fft.rfftn(rho, dim=(1, 2, 3)))

    def _with_amplitudes(self, sf):
        return sf * (self.amplitude / sf.abs().clamp_min(1e-12))

    def run(self, sf, real_space_step, cycles):
        """Improve grids (b, ...) by some cycles of a change in real space and the known amplitudes.

        Weak reflections keep the amplitude of the changed map and turn by 90 degrees; reflections that were not
        measured are zero. So is F000: left free, it grows until no density is below the threshold and all stands still.
        """
        for _ in range(cycles):
            rho = real_space_step(torch.fft.irfftn(sf, s=self.size, dim=(1, 2, 3)))
            new = torch.fft.rfftn(rho, dim=(1, 2, 3))
            sf = torch.where(self.weak, new * self.quarter_turn, self._with_amplitudes(new))
        return sf

    def _sphere(self, sf):
        """F(h) (b, m) of the whole sphere out of the grids, as the rest of the package writes it."""
        values = sf.reshape(len(sf), -1)[:, torch.as_tensor(self.voxel, device=self.device)].cpu().numpy()
        return np.where(self.mate, values, values.conj())

    def _prepare_agreement(self, spacegroup):
        """Pairs of reflections that an operator links, and the strong ones alone: they carry the phases."""
        rot, tran = rotations_and_translations(spacegroup)
        strong = np.flatnonzero(self.E[self.p1.index] > 1.0)
        row = np.full(self.size, -1)
        row[tuple((self.p1.hkl % self.size).T)] = np.arange(len(self.p1.hkl))
        first, second, turn, voxel = [], [], [], []
        for R, t in zip(rot[1:], tran[1:]):
            hkl = self.p1.hkl[strong]
            image = hkl @ R
            k = image - hkl
            moves = k.any(axis=1)  # a reflection that R leaves in place tells nothing about the origin
            first.append(strong[moves])
            second.append(row[tuple((image[moves] % self.size).T)])
            turn.append(np.exp(2j * np.pi * hkl[moves] @ t))
            voxel.append(np.ravel_multi_index((k[moves] % self.size).T, self.size))
        self.pairs = [np.concatenate(x) if x else np.zeros(0, int) for x in (first, second, turn, voxel)]

    def agreement(self, sf):
        """How well grids obey the space group, and where its origin lies in them.

        If the density is that of the group moved by u, F(hR) conj F(h) exp(2πi h·t) = |F|² exp(2πi (hR - h)·u). The
        sum over reflections and operators is a Fourier series in u; its maximum, divided by Σ |F|², is 1 for a map
        that has the symmetry. In P1 the agreement is the correlation of the unchanged map's amplitudes with E.

        Returns
        -------
        agreement : (b,), shift : (b, 3) u in fractions of the cell
        """
        first, second, turn, voxel = self.pairs
        if not len(first):
            return self._amplitude_correlation(sf), np.zeros((len(sf), 3))
        sphere = self._sphere(sf)
        best, shifts = np.zeros(len(sf)), np.zeros((len(sf), 3))
        for i, F in enumerate(sphere):
            product = F[second] * F[first].conj() * turn                      # (pairs,)
            series = np.bincount(voxel, product.real, np.prod(self.size)) + 1j * np.bincount(
                voxel, product.imag, np.prod(self.size))
            series = np.fft.fftn(series.reshape(self.size)).real
            top = np.unravel_index(series.argmax(), self.size)
            k = self.p1.hkl[second] - self.p1.hkl[first]
            shifts[i], value = _climb(product, k, np.array(top) / self.size)
            best[i] = value / np.abs(product).sum()
        return best, shifts

    def _amplitude_correlation(self, sf):
        rho = flip(torch.fft.irfftn(sf, s=self.size, dim=(1, 2, 3)))
        new = torch.fft.rfftn(rho, dim=(1, 2, 3)).abs()[:, self.amplitude > 0]
        target = self.amplitude[self.amplitude > 0]
        new, target = new - new.mean(1, keepdim=True), target - target.mean()
        return ((new * target).sum(1) / (new.norm(dim=1) * target.norm())).cpu().numpy()

    def symmetrise(self, sf, shift) -> np.ndarray:
        """Phases (n,) in radians of the asymmetric unit: of one grid, moved by -shift, averaged over the group."""
        sphere = self._sphere(sf[None])[0] * np.exp(-2j * np.pi * self.p1.hkl @ shift)
        sphere = np.where(self.p1.friedel, sphere.conj(), sphere) * np.exp(-1j * self.p1.shift)
        n = len(self.E)
        mean = np.bincount(self.p1.index, sphere.real, n) + 1j * np.bincount(self.p1.index, sphere.imag, n)
        return np.angle(mean)


def _climb(product, k, u, steps=12):
    """Newton steps from u (3,) to the maximum of Σ Re[product exp(-2πi k·u)] -> (u, value there)."""
    def value(u):
        return float((product * np.exp(-2j * np.pi * k @ u)).real.sum())

    best = value(u)
    for _ in range(steps):
        term = product * np.exp(-2j * np.pi * k @ u)
        gradient = 2 * np.pi * k.T @ term.imag
        curvature, axes = np.linalg.eigh(4 * np.pi**2 * (k.T * term.real) @ k)
        # upwards along every axis, even where the curvature has the wrong sign; polar directions stay where they are
        curvature = np.maximum(np.abs(curvature), 1e-3 * np.abs(curvature).max() + 1e-12)
        move = axes @ (axes.T @ gradient / curvature)
        for _ in range(4):
            if (now := value(u + move)) > best:
                u, best = u + move, now
                break
            move = move / 2
        else:
            break
    return u, best


def _contents(reflections, elements):
    """{symbol: atoms in the asymmetric unit} to look for."""
    if not elements:
        return {"C": max(1.0, round(reflections.cell.volume / len(reflections.spacegroup.operations()) / ATOM_VOLUME))}
    if not (found := without_hydrogen(elements)):
        raise PhasingError("the elements given are hydrogen alone: charge flipping looks for the others")
    return found
