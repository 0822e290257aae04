"""Charge flipping: from amplitudes to a density and its atoms, from many random starts.

Oszlányi & Sütő (2004), Acta Cryst. A60, 134, and (2005), A61, 147 (weak reflections shifted by 90 degrees); on
normalised amplitudes: Oszlányi & Sütő (2008), A64, 123; low-density elimination: Shiono & Woolfson (1992), A48, 451;
the origin by the agreement of symmetry-related phases: Palatinus & van der Lee (2008), J. Appl. Cryst. 41, 975.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from ..config import UserError
from ..crystals import count_elements
from . import verdict
from .building import Builder, Chain, build
from .flipping_grid import FlippingGrid, Settings, flip, keep_peaks, normalised_amplitudes
from .fourier import HalfGrid
from .hydrogen import with_hydrogen
from .origin import match_atoms
from .peaks import without_hydrogen
from .refine import Model
from .restraints import RestrainedRefiner
from .solution import PhasingError, Solution
from .verdict import certain_r1

# Atoms from the map are refined when their R1 is below this, at two resolutions in Å: right phases begin with 0.2-0.4
# at 1.0 Å, where refining costs more, and with 0.4-0.6 at 1.5 Å.
SCREEN_R1 = {1.0: 0.45, 1.5: 0.65}
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
TRIALS = 96            # random starts
LOOK_TO = 1.3          # Å, d_min from which atoms are built by omission alone: completing them fails more often than not
POOLS = 16, 64         # starts that are built on together, first and then: what is easy comes out of a few
PART = 0.3             # of the time left, that the starts of a pool may take before they are built on
ORIGINS, NEARLY = 3, 0.6  # places of the origin that are tried, where the agreement is at least NEARLY the best one
SETTLE = 0.55          # R1, that of five right atoms of eight, below which the number of atoms and their elements are settled
SETTLED = 2            # chains whose number of atoms is settled
MOST_COMPARED = 32     # of the best atoms found, among which other solutions are
ALIKE = 0.8            # share of the atoms within 0.5 Å, from which two solutions are the same
OTHERS = 10.0          # s that the others may take
ENOUGH = 0.75          # of ``certain_r1``, an upper limit, below which a chain may end
ROUND = 20             # cycles between two looks at the maps
ATOM_VOLUME = 18.0     # Å³ for each atom that is not hydrogen, in organic crystals


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
def solve(reflections, elements=None, *, groups=None, predicted=None, trials=None, seed=0, accept=None, effort="normal",
          minutes=None, several=1, settings=Settings(), device="cpu", real_space_step=None, watch=None) -> Solution | None:
    """Solve a structure whose space group is known, or one of several.

    Random phases are improved by charge flipping in P1, some starts at a time. Every ROUND cycles the start whose
    map obeys a space group best is taken as far as atoms in the groups that it obeys (``_worth_building``), and they are
    refined in the one where they explain most (``Candidate.rank``). The search ends when they are the structure with a
    probability of `accept` (``verdict.weigh``) and nothing but hydrogen is missing (``certain_r1``), or of SURE; else the
    starts of the batch are followed to their end and the best one is taken. Starts that led to nothing are built on by
    random omission (``building``), one of the POOLS at a time; of data that end before LOOK_TO all are.

    Parameters
    ----------
    reflections : Reflections
    elements : {symbol: atoms in the asymmetric unit}, or a sequence of symbols; H atoms are not looked for. By default an
        atom of carbon in 18 Å³.
    predicted : Reflections, none of them measured. They guide the maps; atoms are refined against, and judged
        by, what was measured alone.
    groups : sequence of gemmi.SpaceGroup, those in which the structure may be, all of one Laue class and with the lattice of
        the reflections, whose own group is the only one by default. Reflections that are absent in some of these groups
        only must be in the table: give it in a group without such absences.
    trials : int, random starts, at most; by default TRIALS where none are built on, else what the time allows
    accept : float, probability; that of the verdict "solved" by default
    effort : "quick", without building; "normal" or "thorough", with MINUTES; minutes : the same as a number, the search ends
        after so many, or after `trials`
    several : solutions that are wanted, the best one and its ``others``, which cost some seconds
    settings : how the maps are improved
    real_space_step : callable, maps (b, nx, ny, nz) float -> the same; ``flip`` with the thresholds of the settings by default
    watch : function that is called now and then with a Progress

    Returns
    -------
    Solution, the one accepted, with hydrogen as far as the data see it, or else the one that explains most, without; None if
    no start gave any atoms

    Raises
    ------
    PhasingError
        If the elements are hydrogen alone.
    UserError
        If there is no such effort.
    """
    began, elements = time.perf_counter(), count_elements(elements or ())
    grid, candidates = _prepared(reflections, elements, groups, predicted, settings, device)
    generator = torch.Generator().manual_seed(seed)
    elements = elements or candidates[0].contents
    accept = verdict.calibration()["thresholds"]["solved"] if accept is None else accept
    certain = certain_r1(elements, reflections)
    screen = np.interp(reflections.d_min, list(SCREEN_R1), list(SCREEN_R1.values()))
    minutes = minutes_of(effort) if minutes is None else minutes
    building = minutes > 0
    trials = trials or (sys.maxsize if building else TRIALS)
    looking = not building or reflections.d_min < LOOK_TO
    batch = settings.batch if looking else min(POOLS)
    until = began + 60 * minutes if building else np.inf
    best, evidence, used, waiting, (pool, larger), kept = None, None, 0, [], POOLS, []
    enough = began + PART * 60 * minutes

    def accepted(found):
        """Whether what was found, if it is the best so far, is the structure."""
        nonlocal best, evidence
        if building and found and found.model.r1 < SETTLE:
            found = found.settled()
        kept.extend([found] * bool(found))
        if found and (best is None or found.rank() < best.rank()):
            best, evidence = found, verdict.weigh(found.model, found.candidate.refiner, elements, least=accept)
            return evidence.probability >= (accept if evidence.r1 < evidence.expected else max(accept, SURE))
        return False

    def sure():
        return bool(evidence and evidence.probability >= accept)

    def tell(r1=np.inf):
        if watch:
            watch(Progress(used, time.perf_counter() - began, min(r1, best.model.r1 if best else np.inf),
                           evidence.probability if evidence else np.nan))

    while used < trials and not sure() and time.perf_counter() < until:
        deltas = settings.thresholds(range(used, min(used + batch, trials))).to(grid.device)
        used += len(deltas)
        tried = np.full((len(candidates), len(deltas)), MIN_AGREEMENT - BETTER)
        left = np.full(tried.shape, MOST_REFINED)
        for sf, agreement in _flipped(grid, candidates, grid.random_start(len(deltas), generator),
                                      real_space_step or partial(flip, delta=deltas), looking):
            tell()
            if looking:
                improved = agreement > tried + BETTER                         # (groups, b)
                i = int(np.where(improved, agreement, -1).max(0).argmax())
                if improved[:, i].any():
                    tried[:, i] = np.maximum(tried[:, i], agreement[:, i])
                    found, *less = _look(grid, candidates, sf[i:i + 1], screen, certain, left[:, i]) or [None]
                    kept += less
                    if accepted(found):
                        break
        if building and not sure():
            waiting.append(sf)
            if sum(map(len, waiting)) >= pool or used >= trials or time.perf_counter() > enough:
                chains = build(_chains(grid, candidates, torch.cat(waiting)), until, watch=tell)
                waiting, pool = [], larger
                enough = time.perf_counter() + PART * (until - time.perf_counter())
                kept += [_found(candidates, built) for built in chains[1:several]]
                any(accepted(_found(candidates, built)) for built in chains[:SETTLED])
    if best is None:
        return None
    candidate = best.candidate
    model = candidate.refiner.exchange_elements(best.model)
    if np.isnan(evidence.r_free) or model is not best.model:
        evidence = verdict.weigh(model, candidate.refiner, elements)
    if sure():
        model = with_hydrogen(candidate.refiner, model, elements.get("H", np.inf if "C" in elements else 0))
    others, until = [], time.perf_counter() + OTHERS
    for other in _distinct(kept, best, several):
        if time.perf_counter() < until:
            refined = _refined(other, elements)
            if other.candidate is not candidate or not _alike(refined[1], best.model, candidate.reflections):
                others.append(refined)
    seconds = time.perf_counter() - began

    def solution(found, model, evidence, **more):
        return Solution(fract=model.fract % 1, heights=model.heights, elements=model.elements, u_iso=model.u_iso, occ=model.occ,
                        cell=reflections.cell, spacegroup=found.candidate.spacegroup, r1=model.r1, trials=used, seconds=seconds,
                        figure_of_merit=found.agreement[candidates.index(found.candidate)], engine="charge flipping",
                        evidence=evidence, **more)

    return solution(best, model, evidence, rho=candidate.refiner.map(model),
                    groups=tuple((other.spacegroup, figure) for other, figure in zip(candidates, best.agreement)),
                    others=tuple(sorted((solution(*other, rho=None) for other in others), key=lambda s: -s.probability)))


class Progress(NamedTuple):
    """How far a search is: starts begun, seconds, the lowest R1 so far (inf before there are atoms), and the probability that
    the best atoms are the structure (nan before one was calculated)."""

    starts: int
    seconds: float
    r1: float
    probability: float


def _prepared(reflections, elements, groups=None, predicted=None, settings=Settings(), device="cpu"):
    grid = FlippingGrid(reflections, predicted, settings, device)
    return grid, [Candidate(grid, reflections, group, elements) for group in groups or [reflections.spacegroup]]


def _flipped(grid, candidates, sf, step, looking=False):
    """Charge flipping of P1 grids (b, ...): them and their agreement (groups, b) every ROUND cycles where it is looked for,
    else after the last one alone, without it."""
    settings = grid.settings
    peaks = partial(keep_peaks, n=max(1, round(sum(candidates[0].contents.values()) * candidates[0].n_ops)))
    for cycle in range(0, settings.cycles, ROUND):
        for done in range(cycle + settings.peak_cycle, cycle + ROUND + 1, settings.peak_cycle):
            sf = grid.run(sf, step, settings.peak_cycle - 1)
            learned = settings.learned and done % settings.symmetrise == 0
            sf = grid.run(sf, grid.learned_step if learned else peaks, 1)
        last = cycle + ROUND >= settings.cycles
        averaging = (cycle + ROUND) % settings.symmetrise == 0 and not last
        agreement = shift = None
        if looking or averaging:
            agreement, shift = map(np.stack, zip(*(grid.agreement(sf, candidate.links) for candidate in candidates)))
        if looking or last:
            yield sf, agreement
        if averaging:
            obeyed = agreement.argmax(0)
            sf = torch.stack([candidates[g].symmetrised(sf[i], shift[g, i]) for i, g in enumerate(obeyed)])


@one_thread()
def begin(reflections, elements=None, trials=POOLS[0], seed=0) -> list[Chain]:
    """Chains of some random starts, as ``solve`` has them before it builds on them: for pictures and benchmarks.

    Parameters
    ----------
    reflections, elements, trials, seed : as for ``solve``
    """
    grid, candidates = _prepared(reflections, count_elements(elements or ()))
    start = grid.random_start(trials, torch.Generator().manual_seed(seed))
    (sf, _), = _flipped(grid, candidates, start, partial(flip, delta=grid.settings.thresholds(range(trials))))
    return _chains(grid, candidates, sf)


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


def _distinct(kept, best, n) -> list[Found]:
    """Of what was found the best, until there are `n` with `best`, each another structure or in another space group."""
    chosen = [best]
    for found in sorted(kept, key=Found.rank)[:MOST_COMPARED]:
        if len(chosen) >= n:
            break
        if not any(found.candidate is one.candidate and _alike(found.model, one.model, found.candidate.reflections)
                   for one in chosen):
            chosen.append(found)
    return chosen[1:]


def _alike(model, other, reflections):
    match = match_atoms(model.fract, other.fract, reflections.cell, reflections.spacegroup)
    return match.n_matched >= ALIKE * max(len(model.fract), len(other.fract))


def _refined(found, elements):
    """(Found, Model, Evidence) of atoms that were not refined to the end."""
    refiner = found.candidate.refiner
    model = refiner.least_squares(found.model, verdict.CYCLES)
    return found, model, verdict.weigh(model, refiner, elements)


def minutes_of(effort) -> float:
    """What a search may take in which starts are built on; UserError if there is no such effort."""
    if effort not in MINUTES:
        raise UserError(f"effort {effort!r} is none of {', '.join(MINUTES)}")
    return MINUTES[effort]


def _chains(grid, candidates, sf):
    """Chains from P1 grids (b, ...): in the groups worth it, from the likeliest places of their origin."""
    sf = grid.polished(sf)
    figures = np.stack([grid.agreement(sf, candidate.links)[0] for candidate in candidates])    # (groups, b)
    chains = []
    for i in range(len(sf)):
        for g in _worth_building(candidates, figures[:, i]):
            candidate = candidates[g]
            agreement, shifts = grid.origins(sf[i], candidate.links, ORIGINS)
            for shift in shifts[agreement >= NEARLY * agreement[0]]:
                start = candidate.averaged(sf[i], shift)
                if atoms := candidate.builder.start(start):
                    chains.append(Chain(candidate.builder, atoms, HALVED ** np.log2(candidate.n_ops), figures[:, i].tolist(),
                                        start))
    return chains


def _found(candidates, chain) -> Found:
    candidate = next(candidate for candidate in candidates if candidate.builder is chain.builder)
    return Found(candidate, chain.builder.model(chain.best), chain.agreement)


def _look(grid, candidates, sf, screen, certain, left) -> list[Found]:
    """Atoms from one P1 grid (1, ...), in the group where they explain most and then in others; empty if there are none.

    The likeliest group alone is refined, or the next where that has been done ``left`` (groups,) times already; but before a
    structure is believed, every group with more operators has its turn.
    """
    sf = grid.polished(sf)
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
    return sorted(built, key=Found.rank)


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

    elements : {symbol: atoms in the asymmetric unit}, from those in the group of the reflections, which may be none;
    contents : the same without hydrogen, to be looked for
    links : ``FlippingGrid.links``, n_ops : operators, centring included, n_absent : reflections left out
    """

    def __init__(self, grid, reflections, spacegroup, elements):
        present = ~np.array(spacegroup.operations().systematic_absences(reflections.hkl.astype(np.int32)), bool)
        self.spacegroup, self.grid, self.n_absent = spacegroup, grid, int((~present).sum())
        same = spacegroup.xhm() == reflections.spacegroup.xhm() and present.all()  # those in P1 already
        self.reflections = reflections if same else replace(reflections.select(present), spacegroup=spacegroup)
        self.n_ops, n_ops = (len(group.operations()) for group in (spacegroup, reflections.spacegroup))
        ratio = n_ops / self.n_ops
        self.elements = {symbol: n * ratio for symbol, n in elements.items()}
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
        """(n,) quasi-normalised amplitudes."""
        return normalised_amplitudes(self.reflections)

    def build_atoms(self, sf, shift) -> Model | None:
        """Atoms from one P1 grid in which the origin of the group lies at `shift`."""
        maps = self.refiner.maps
        model = self.refiner.model_from_map(maps.map(self.averaged(sf, shift)), self.contents)
        return model and self.refiner.recycle(model, self.contents, rounds=3)

    def averaged(self, sf, shift):
        """E with the phases of a P1 grid, averaged over the group: (n,) complex."""
        return self.E * np.exp(1j * self.grid.symmetrise(sf, shift, self.reflections.p1))

    def symmetrised(self, sf, shift):
        """A P1 grid with the symmetry of the group, its origin that of the cell."""
        on_grid = HalfGrid(self.reflections.p1, self.grid.size).coefficients(self.averaged(sf, shift))
        return torch.as_tensor(on_grid, device=self.grid.device)

    def rank(self, model) -> float:
        """Adjusted R1, which has to be lower by HALVED in a group with half the operators, and so twice the parameters."""
        return self.refiner.adjusted_r1(model) * HALVED ** np.log2(self.n_ops)


def _contents(reflections, elements):
    """{symbol: atoms in the asymmetric unit} to look for."""
    if not elements:
        return {"C": max(1.0, round(reflections.cell.volume / len(reflections.spacegroup.operations()) / ATOM_VOLUME))}
    if not (found := without_hydrogen(elements)):
        raise PhasingError("the elements given are hydrogen alone: charge flipping looks for the others")
    return found
