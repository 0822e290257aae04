"""Charge flipping: from amplitudes to a density, many trials in one batch of Fourier transforms.

Oszlányi & Sütő (2004), Acta Cryst. A60, 134, and (2005), A61, 147 (weak reflections shifted by 90 degrees); on
normalised amplitudes: Oszlányi & Sütő (2008), A64, 123; low-density elimination: Shiono & Woolfson (1992), A48, 451;
the origin by the agreement of symmetry-related phases: Palatinus & van der Lee (2008), J. Appl. Cryst. 41, 975.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import gemmi
import numpy as np
import torch
from scipy.fft import fftn
from scipy.ndimage import maximum_filter
from threadpoolctl import threadpool_limits

from ..config import UserError
from ..crystals import count_elements, rotations_and_translations
from ..metrics import normalize
from ..reflections import expand_to_p1
from . import verdict
from .building import Builder, Chain, build
from .peaks import grid_size, without_hydrogen
from .refine import Model
from .restraints import RestrainedRefiner
from .verdict import Evidence, certain_r1

# Flipping thresholds in sigmas of the map, one for each trial in turn. On ten light molecules the share of trials that
# succeed is the same at 0.8 and 1.0 Å for all of these; at 1.2 Å it is 50 % for -0.2 to 0.1 and 25 % for 0.45, at
# 1.5 Å 0 is best; 0.6 and more solves nothing. No single one is best for every crystal.
DELTAS = (0.1, 0.0, -0.2, 0.3)
WEAK = 0.45            # share of the reflections whose phases are turned; 0.3-0.5 beats 0.2 below 1 Å resolution
SPACING = 2.2          # points of the flipping map per d_min
# What was not measured floats ("free lunch": Caliandro et al. (2005), Acta Cryst. D61, 556): every amplitude of the changed
# map down to FREE_TO Å, but not below FREE_LEAST of d_min, is kept, times FREE, and EXPECTED of the |E| it has in the mean,
# or of the predicted one, is added. What this, peaks and the average over the group are worth: benchmarks/starts.py. Of 67
# light molecules at 1.5 Å, 52 % of the starts come right with 0.6 and 0, 59 % with these, 68 % with PattersonNet's |E|.
FREE, EXPECTED = 0.4, 0.3
FREE_TO, FREE_LEAST, FREE_SPACING = 0.97, 0.65, 2.05
PEAK_CYCLE = 10        # every so many cycles the map is replaced by its highest peaks, one for each atom
SYMMETRISE = 100       # every so many cycles the phases are averaged over the space group, of several that they obey best
# Atoms from the map are refined when their R1 is below this, at two resolutions in Å: right phases begin with 0.2-0.4
# at 1.0 Å, where refining costs more, and with 0.4-0.6 at 1.5 Å.
SCREEN_R1 = {1.0: 0.45, 1.5: 0.65}
MOST_LINKED = 1500     # strong reflections of half the sphere that tell how well phases agree with a space group
MIN_AGREEMENT = 0.3    # agreement with the space group below which no atoms are built
BETTER = 0.02          # a trial is looked at again when its agreement has grown by this
MOST_REFINED = 2       # times that the atoms of one trial are refined, which costs more than all its cycles
CLEARLY = 0.15         # a space group whose agreement is so much lower than another's is out
# Twice the atoms fit what the model lacks, hydrogen and anisotropy, too: R1 in half the operators of the right group is
# 0.77-0.99 of that in the right group, and 0.2-0.5 where the operators left out were wrong.
HALVED = 0.7
MOST_GROUPS = 2        # of as many operators, in which atoms are built from one map
SURE = 0.98            # probability at which a search ends though more than hydrogen is missing, anisotropy for one
# Minutes that a search may take, in which starts that ended without a structure are built on by random omission.
MINUTES = {"quick": 0.0, "normal": 0.5, "thorough": 10.0}
LOOK_TO = 1.3          # Å, d_min from which atoms are built by omission alone: completing them fails more often than not
BUILT = 16             # starts that are built on together
ORIGINS, NEARLY = 3, 0.6  # places of the origin that are tried, where the agreement is at least NEARLY the best one
SETTLE = 0.55          # R1, that of five right atoms of eight, below which the number of atoms and their elements are settled
SETTLED = 2            # chains whose number of atoms is settled
ENOUGH = 0.75          # of ``certain_r1``, an upper limit, below which a chain may end
ROUND = 20             # cycles between two looks at the maps
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
    groups : (SpaceGroup, agreement) of each in which the structure was looked for
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
    groups: tuple[tuple[gemmi.SpaceGroup, float], ...] = ()
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
def solve(reflections, elements=None, *, groups=None, predicted=None, trials=96, cycles=400, batch=None, seed=0, device="cpu",
          accept=None, real_space_step=None, effort="normal", minutes=None) -> Solution | None:
    """Solve a structure whose space group is known, or one of several.

    Random phases are improved by charge flipping in P1, `batch` starts at a time. Every ROUND cycles the start whose
    map obeys a space group best is taken as far as atoms in the groups that it obeys (``_worth_building``), and they are
    refined in the one where they explain most (``Candidate.rank``). The search ends when they are the structure with a
    probability of `accept` (``verdict.weigh``) and nothing but hydrogen is missing (``certain_r1``), or of SURE; else the
    starts of the batch are followed to their end and the best one is taken. Starts that led to nothing are built on by
    random omission (``building``), BUILT at a time; of data that end before LOOK_TO all are.

    Parameters
    ----------
    reflections : Reflections
    elements : {symbol: atoms in the asymmetric unit}, or a sequence of symbols; H atoms are not looked for. By default an
        atom of carbon in 18 Å³.
    predicted : Reflections, none of them measured. They guide the maps (EXPECTED); atoms are refined against, and judged
        by, what was measured alone.
    groups : sequence of gemmi.SpaceGroup, those in which the structure may be, all of one Laue class and with the lattice of
        the reflections, whose own group is the only one by default. Reflections that are absent in some of these groups
        only must be in the table: give it in a group without such absences.
    trials, cycles : int, random starts, and cycles for each
    accept : float, probability; that of the verdict "solved" by default
    effort : "quick", without building; "normal" or "thorough", with MINUTES; minutes : the same as a number, the search ends
        after so many, or after `trials`
    real_space_step : callable, maps (b, nx, ny, nz) float -> the same; ``flip`` with DELTAS by default

    Returns
    -------
    Solution, the one accepted or else the one that explains most; None if no start gave any atoms
    """
    began = time.perf_counter()
    grid = FlippingGrid(reflections, predicted, device)
    candidates = [Candidate(grid, reflections, group, elements) for group in groups or [reflections.spacegroup]]
    generator = torch.Generator().manual_seed(seed)
    elements = elements or candidates[0].contents
    accept = verdict.calibration()["thresholds"]["solved"] if accept is None else accept
    certain = certain_r1(elements, reflections)
    n_peaks = max(1, round(sum(candidates[0].contents.values()) * candidates[0].n_ops))
    screen = np.interp(reflections.d_min, list(SCREEN_R1), list(SCREEN_R1.values()))
    minutes = _minutes(effort) if minutes is None else minutes
    building = minutes > 0
    looking = not building or reflections.d_min < LOOK_TO
    batch = batch or (4 if looking else BUILT)
    until = began + 60 * minutes if building else np.inf
    best, evidence, used, waiting = None, None, 0, []

    def accepted(found):
        """Whether what was found, if it is the best so far, is the structure."""
        nonlocal best, evidence
        if building and found and found.model.r1 < SETTLE:
            found = found.settled()
        if found and (best is None or found.rank() < best.rank()):
            best, evidence = found, verdict.weigh(found.model, found.candidate.refiner, elements, least=accept)
            return evidence.probability >= (accept if evidence.r1 < evidence.expected else max(accept, SURE))
        return False

    def sure():
        return bool(evidence and evidence.probability >= accept)

    while used < trials and not sure() and time.perf_counter() < until:
        deltas = torch.tensor([DELTAS[i % len(DELTAS)] for i in range(used, min(used + batch, trials))])
        deltas = deltas.reshape(-1, 1, 1, 1).to(grid.device)
        step = real_space_step or partial(flip, delta=deltas)
        used += len(deltas)
        sf = grid.random_start(len(deltas), generator)
        tried = np.full((len(candidates), len(deltas)), MIN_AGREEMENT - BETTER)
        left = np.full(tried.shape, MOST_REFINED)
        for cycle in range(0, cycles, ROUND):
            for _ in range(0, ROUND, PEAK_CYCLE):
                sf = grid.run(sf, step, PEAK_CYCLE - 1)
                sf = grid.run(sf, partial(keep_peaks, n=n_peaks), 1)
            averaging = (cycle + ROUND) % SYMMETRISE == 0
            if looking or averaging:
                agreement, shift = map(np.stack, zip(*(grid.agreement(sf, candidate.links) for candidate in candidates)))
            if looking:
                improved = agreement > tried + BETTER                             # (groups, b)
                i = int(np.where(improved, agreement, -1).max(0).argmax())
                if improved[:, i].any():
                    tried[:, i] = np.maximum(tried[:, i], agreement[:, i])
                    if accepted(_look(grid, candidates, sf[i:i + 1], screen, certain, left[:, i])):
                        break
            if averaging and cycle + ROUND < cycles:
                obeyed = agreement.argmax(0)
                sf = torch.stack([candidates[g].symmetrised(sf[i], shift[g, i]) for i, g in enumerate(obeyed)])
        if building and not sure():
            waiting.append(sf)
            if sum(map(len, waiting)) >= BUILT or used >= trials or time.perf_counter() > until:
                chains = build(_chains(grid, candidates, torch.cat(waiting)), until)
                waiting = []
                any(accepted(_found(candidates, chain)) for chain in chains[:SETTLED])
    if best is None:
        return None
    candidate = best.candidate
    model = candidate.refiner.exchange_elements(best.model)
    if np.isnan(evidence.r_free) or model is not best.model:
        evidence = verdict.weigh(model, candidate.refiner, elements)
    return Solution(fract=model.fract % 1, heights=model.heights, elements=model.elements, u_iso=model.u_iso, occ=model.occ,
                    rho=candidate.refiner.map(model), cell=reflections.cell, spacegroup=candidate.spacegroup, r1=model.r1,
                    figure_of_merit=best.agreement[candidates.index(candidate)], trials=used,
                    seconds=time.perf_counter() - began, engine="charge flipping", evidence=evidence,
                    groups=tuple((other.spacegroup, figure) for other, figure in zip(candidates, best.agreement)))


class Found(NamedTuple):
    """Atoms in one of the candidate groups, and how well the map they come from agrees with each of these."""

    candidate: Candidate
    model: Model
    agreement: list[float]

    def rank(self):
        return self.candidate.rank(self.model)

    def settled(self):
        """With the number of atoms and the elements that explain most."""
        builder = self.candidate.builder
        return self._replace(model=builder.model(builder.settled(builder.atoms(self.model))))


def _minutes(effort):
    if effort not in MINUTES:
        raise PhasingError(f"effort {effort!r} is none of {', '.join(MINUTES)}")
    return MINUTES[effort]


def _chains(grid, candidates, sf):
    """Chains from P1 grids (b, ...): in the groups worth it, from the likeliest places of their origin."""
    sf = grid.run(sf, eliminate_low_density, POLISH)
    figures = np.stack([grid.agreement(sf, candidate.links)[0] for candidate in candidates])    # (groups, b)
    chains = []
    for i in range(len(sf)):
        for g in _worth_building(candidates, figures[:, i]):
            candidate = candidates[g]
            agreement, shifts = grid.origins(sf[i], candidate.links, ORIGINS)
            for figure, shift in zip(agreement, shifts):
                if figure >= NEARLY * agreement[0] and (atoms := candidate.builder.start(candidate._averaged(sf[i], shift))):
                    chains.append(Chain(candidate.builder, atoms, HALVED ** np.log2(candidate.n_ops), figures[:, i].tolist()))
    return chains


def _found(candidates, chain) -> Found:
    candidate = next(candidate for candidate in candidates if candidate.builder is chain.builder)
    return Found(candidate, chain.builder.model(chain.best), chain.agreement)


def _look(grid, candidates, sf, screen, certain, left) -> Found | None:
    """Atoms from one P1 grid (1, ...), in the group where they explain most; None if there are none.

    The likeliest group alone is refined, or the next where that has been done ``left`` (groups,) times already; but before a
    structure is believed, every group with more operators has its turn.
    """
    sf = grid.run(sf, eliminate_low_density, POLISH)
    figures, shifts = zip(*(grid.agreement(sf, candidate.links) for candidate in candidates))
    figures = [float(figure[0]) for figure in figures]
    built = [Found(candidates[g], model, figures) for g in _worth_building(candidates, figures)
             if (model := candidates[g].build_atoms(sf[0], shifts[g][0])) is not None]
    built.sort(key=Found.rank)
    done = None
    for row, (candidate, model, _) in enumerate(built):
        wanted = done is None or (done.candidate.refiner.adjusted_r1(done.model) < certain
                                  and candidate.n_ops > done.candidate.n_ops)
        g = candidates.index(candidate)
        if wanted and model.r1 < screen and left[g]:
            left[g] -= 1
            built[row] = Found(candidate, candidate.refiner.complete(model, candidate.contents, certain), figures)
            done = done or built[row]
    return min(built, key=Found.rank, default=None)


def _worth_building(candidates, figures):
    """Rows of the candidate groups in which atoms are built from one map, given the agreement of each, the likeliest first.

    They are those that agree nearly as well as the best, and of those that explain most absences the ones that do so among
    these: heavy atoms can hide a glide plane. A map that has the symmetry of a group has that of its subgroups as well, and
    agrees with all of them to within the error of its phases; so the group with more absences comes first, then that
    with more operators. P1 comes last: it always agrees, and what it is given as agreement is not of the same kind.
    """
    linked = [g for g, candidate in enumerate(candidates) if len(candidate.links[0])]
    most = max((candidates[g].n_absent for g in linked), default=0)
    near = set(range(len(candidates))) - set(linked)
    for rows in (linked, [g for g in linked if candidates[g].n_absent == most]):
        near.update(g for g in rows if figures[g] > max(figures[h] for h in rows) - CLEARLY)
    near = sorted(near, key=lambda g: (-candidates[g].n_absent, -candidates[g].n_ops, -figures[g]))
    return [g for i, g in enumerate(near) if sum(candidates[h].n_ops == candidates[g].n_ops for h in near[:i]) < MOST_GROUPS]


class Candidate:
    """A space group in which the structure may be, with the reflections that are not absent in it.

    contents : {symbol: atoms in the asymmetric unit}, from `elements`, which are those in the group of the reflections
    links : ``FlippingGrid.links``, n_ops : operators, centring included, n_absent : reflections left out
    """

    def __init__(self, grid, reflections, spacegroup, elements):
        present = ~np.array(spacegroup.operations().systematic_absences(reflections.hkl.astype(np.int32)), bool)
        self.spacegroup, self.grid, self.n_absent = spacegroup, grid, int((~present).sum())
        self.reflections = replace(reflections.select(present), spacegroup=spacegroup)
        self.n_ops, n_ops = (len(group.operations()) for group in (spacegroup, reflections.spacegroup))
        ratio = n_ops / self.n_ops
        self.elements = {symbol: n * ratio for symbol, n in count_elements(elements or ()).items()}
        self.contents = _contents(self.reflections, self.elements)
        self.elements = self.elements or self.contents
        self.links = grid.links(spacegroup)

    @cached_property
    def refiner(self):
        return RestrainedRefiner(self.reflections, list(self.contents))

    @cached_property
    def builder(self):
        return Builder(self.refiner, self.contents, ENOUGH * certain_r1(self.elements, self.reflections))

    @cached_property
    def E(self):
        return normalised_amplitudes(self.reflections)

    def build_atoms(self, sf, shift) -> Model | None:
        """Atoms from one P1 grid in which the origin of the group lies at `shift`."""
        maps = self.refiner.maps
        model = self.refiner.model_from_map(maps.map(self._averaged(sf, shift)), self.contents)
        return model and self.refiner.recycle(model, self.contents, rounds=3)

    def _averaged(self, sf, shift):
        """E with the phases of a P1 grid, averaged over the group: (n,) complex."""
        return self.E * np.exp(1j * self.grid.symmetrise(sf, shift, self.refiner.maps.p1))

    def symmetrised(self, sf, shift):
        """A P1 grid with the symmetry of the group, its origin that of the cell."""
        return self.grid.from_structure_factors(self.refiner.maps.p1, self._averaged(sf, shift))

    def rank(self, model) -> float:
        """Adjusted R1, which has to be lower by HALVED in a group with half the operators, and so twice the parameters."""
        return self.refiner.adjusted_r1(model) * HALVED ** np.log2(self.n_ops)


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


class FlippingGrid:
    """One data set in P1, ready for charge flipping: batches of complex half-sphere grids (b, nx, ny, nz // 2 + 1).

    The grids hold the conjugate of F(h) at h, so that torch's inverse transform is the density.
    """

    def __init__(self, reflections, predicted=None, device="cpu"):
        self.device = torch.device(device)
        self.E = normalised_amplitudes(reflections)
        p1 = expand_to_p1(reflections.hkl, reflections.spacegroup)
        self.p1 = p1
        free_to = max(FREE_LEAST * reflections.d_min, min(FREE_TO, reflections.d_min))
        self.size = grid_size(reflections.cell, p1.hkl, min(reflections.d_min / SPACING, free_to / FREE_SPACING))
        self.half = (*self.size[:2], self.size[2] // 2 + 1)
        # every reflection of the sphere, as a voxel of the half grid and whether it stands there as its Friedel mate
        self.voxel, self.mate = self._voxels(p1.hkl), p1.hkl[:, 2] < 0
        stored = ~self.mate
        E = self.E[p1.index[stored]]
        weak = E < np.quantile(self.E, WEAK)
        # +90° for h is -90° for -h: the plane l = 0 holds both
        h, k, l = p1.hkl[stored].T
        turn = np.where((l > 0) | (k > 0) | (k == 0) & (h > 0), 1j, -1j)
        amplitude, factor = np.zeros(self.half, np.float32), self._floating(reflections, free_to)
        amplitude.flat[self.voxel[stored]] = E
        factor.flat[self.voxel[stored]] = np.where(weak, turn, 0)
        self.amplitude, self.factor = (torch.as_tensor(grid, device=self.device) for grid in (amplitude, factor))
        self.strong = torch.where(self.factor == 0, self.amplitude, 0)
        self.strong[(self.factor.real > 0) & (self.amplitude == 0)] = EXPECTED
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
        """Grid of what the amplitude of a reflection that was not measured is multiplied by: FREE, or 0 if it is absent."""
        hkl = np.stack(np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in self.size), indexing="ij"), -1)
        hkl = hkl[:, :, :self.half[2]].reshape(-1, 3).astype(np.int32)
        hkl[:, 2] = np.abs(hkl[:, 2])  # the last plane of a half grid
        factor = np.zeros(len(hkl), np.complex64)
        if free_to < reflections.d_min:
            # half a grid along an axis, h and -h are one voxel, though their mates are not
            free = hkl.any(1) & (2 * np.abs(hkl) < self.size).all(1) & ~np.array(reflections.spacegroup.operations().systematic_absences(hkl), bool)
            free[free] = reflections.cell.calculate_d_array(hkl[free]) >= free_to
            factor[free] = FREE
        return factor.reshape(self.half)

    def _voxels(self, hkl):
        return np.ravel_multi_index((np.where(hkl[:, 2:] < 0, -hkl, hkl) % self.size).T, self.half)

    def _be_guided(self, predicted):
        p1 = expand_to_p1(predicted.hkl, predicted.spacegroup)
        inside = (2 * np.abs(p1.hkl) < self.size).all(1)
        voxel = torch.as_tensor(self._voxels(p1.hkl[inside]), device=self.device)
        E = torch.as_tensor(normalised_amplitudes(predicted)[p1.index[inside]].astype(np.float32), device=self.device)
        free = self.factor.view(-1)[voxel].real > 0
        self.strong.view(-1)[voxel[free]] = EXPECTED * E[free]

    def from_structure_factors(self, p1, sf):
        """The grid (nx, ny, nz // 2 + 1) of structure factors (n,) of an asymmetric unit, whose mates in P1 are p1."""
        stored = p1.hkl[:, 2] >= 0
        grid = np.zeros(self.half, np.complex64)
        grid.flat[self._voxels(p1.hkl[stored])] = p1.structure_factors(sf)[stored].conj()
        return torch.as_tensor(grid, device=self.device)

    def run(self, sf, real_space_step, cycles):
        """Improve grids (b, ...) by some cycles of a change in real space and the known amplitudes.

        Weak reflections keep the amplitude of the changed map and turn by 90 degrees; reflections that were not measured
        keep FREE of it beside EXPECTED. F000 is zero: left free, it grows until no density is below the threshold and all stands still.
        """
        for _ in range(cycles):
            rho = real_space_step(torch.fft.irfftn(sf, s=self.size, dim=(1, 2, 3)))
            new = torch.fft.rfftn(rho, dim=(1, 2, 3))
            re, im = torch.view_as_real(new).unbind(-1)
            # squares and rsqrt: a third of the time of abs and a division
            sf = new * (self.factor + self.strong * (re.square() + im.square() + 1e-9).rsqrt())
        return sf

    def _sphere(self, sf):
        """F(h) (b, m) of the whole sphere out of the grids, as the rest of the package writes it."""
        values = sf.reshape(len(sf), -1)[:, torch.as_tensor(self.voxel, device=self.device)].cpu().numpy()
        return np.where(self.mate, values, values.conj())

    def rows(self, hkl):
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
        parts = [(strong, self.rows(hkl @ R), np.exp(2j * np.pi * hkl @ t), hkl @ R - hkl) for R, t in zip(rot[1:], tran[1:])]
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
        # all k even, as in P-1, means that the series repeats in each half of the axis: one half, twice as finely
        period = np.maximum(np.gcd.reduce(k, axis=0), 1)
        voxel = np.ravel_multi_index((k // period % self.size).T, self.size)
        sphere = self._sphere(sf)
        best, shifts = np.zeros(len(sf)), np.zeros((len(sf), 3))
        for i, F in enumerate(sphere):
            product = F[second] * F[first].conj() * turn                      # (pairs,)
            series = np.zeros(self.size, np.complex64)
            series.real.flat = np.bincount(voxel, product.real, series.size)
            series.imag.flat = np.bincount(voxel, product.imag, series.size)
            top = np.unravel_index(fftn(series, overwrite_x=True).real.argmax(), self.size)
            shifts[i], value = _climb(product, k, np.array(top) / self.size / period)
            best[i] = value / np.abs(product).sum()
        return best, shifts

    def origins(self, sf, links, n):
        """The `n` best places of the origin of a group in one grid (nx, ny, nz // 2 + 1) -> agreement (m,), shift (m, 3).

        As ``agreement``, which finds the best: where many phases are wrong, or a part of the structure has more symmetry
        than the whole, the right place is often the second or third.
        """
        first, second, turn, k = links
        if not len(first):
            return np.zeros(1), np.zeros((1, 3))
        period = np.maximum(np.gcd.reduce(k, axis=0), 1)
        F = self._sphere(sf[None])[0]
        product = F[second] * F[first].conj() * turn
        series = np.zeros(self.size, np.complex64)
        np.add.at(series, tuple((k // period % self.size).T), product)
        value = fftn(series, overwrite_x=True).real
        value = value[tuple(slice(None) if along else slice(1) for along in k.any(0))]  # constant along a polar axis
        voxel = np.argwhere(value == maximum_filter(value, size=3, mode="wrap"))
        voxel = voxel[np.argsort(-value[tuple(voxel.T)], kind="stable")[:n]]
        climbed = sorted((_climb(product, k, at / self.size / period) for at in voxel), key=lambda found: -found[1])
        return np.array([top for _, top in climbed]) / np.abs(product).sum(), np.array([shift for shift, _ in climbed])

    def _amplitude_correlation(self, sf):
        rho = flip(torch.fft.irfftn(sf, s=self.size, dim=(1, 2, 3)))
        new = torch.fft.rfftn(rho, dim=(1, 2, 3)).abs()[:, self.amplitude > 0]
        target = self.amplitude[self.amplitude > 0]
        new, target = new - new.mean(1, keepdim=True), target - target.mean()
        return ((new * target).sum(1) / (new.norm(dim=1) * target.norm())).cpu().numpy()

    def symmetrise(self, sf, shift, p1) -> np.ndarray:
        """Phases (n,) in radians of n reflections: of one grid, moved by -shift, averaged over their mates p1 in a group."""
        sphere = self._sphere(sf[None])[0][self.rows(p1.hkl)] * np.exp(-2j * np.pi * p1.hkl @ shift)
        sphere = np.where(p1.friedel, sphere.conj(), sphere) * np.exp(-1j * p1.shift)
        return np.angle(np.bincount(p1.index, sphere.real) + 1j * np.bincount(p1.index, sphere.imag))


def _climb(product, k, u, steps=12):
    """Newton steps from u (3,) to the maximum of Σ Re[product exp(-2πi k·u)] -> (u, value there)."""
    k = k.astype(float)
    term = product * np.exp(-2j * np.pi * (k @ u))
    for _ in range(steps):
        best = term.real.sum()
        gradient = 2 * np.pi * term.imag @ k
        curvature, axes = np.linalg.eigh(4 * np.pi**2 * (k.T * term.real) @ k)
        # upwards along every axis, even where the curvature has the wrong sign; polar directions stay where they are
        curvature = np.maximum(np.abs(curvature), 1e-3 * np.abs(curvature).max() + 1e-12)
        move = axes @ (axes.T @ gradient / curvature)
        for _ in range(4):
            moved = product * np.exp(-2j * np.pi * (k @ (u + move)))
            if moved.real.sum() > best:
                u, term = u + move, moved
                break
            move = move / 2
        if term.real.sum() < best * (1 + 1e-5):
            break
    return u, float(term.real.sum())


def _contents(reflections, elements):
    """{symbol: atoms in the asymmetric unit} to look for."""
    if not elements:
        return {"C": max(1.0, round(reflections.cell.volume / len(reflections.spacegroup.operations()) / ATOM_VOLUME))}
    if not (found := without_hydrogen(elements)):
        raise PhasingError("the elements given are hydrogen alone: charge flipping looks for the others")
    return found
