"""Atoms out of half-right phases: leave some out at random, fill up from the difference map, refine with restraints.

Atoms that are wrong do not come back where they were, since the map without them does not show them; what does not bond,
clashes or melts is left out more often. The idea of random omission: Burla et al. (2000), Acta Cryst. A56, 451, and Sheldrick
(2008), A64, 112, for direct methods; that of the omit map: Bhat & Cohen (1984), J. Appl. Cryst. 17, 244.
"""

from __future__ import annotations

import time
from math import ceil
from typing import NamedTuple

import gemmi
import numpy as np

from ..compiled import compiled
from .peaks import assign_elements
from .refine import U_START, Model
from .restraints import RestrainedRefiner, choose_peaks, local_maxima

LEFT_OUT = 0.08, 0.45  # share of the atoms that a round leaves out
CYCLES = 3             # of least squares at the end of a round
PREFERRED = (1.0, 1.6, 2.5)  # how much higher a peak at bonding distance counts, one of these a round
APART = (0.95, 1.1)    # Å between two new atoms, one of these a round
SCATTER = 0.15         # of the logarithm of the height of a peak: no two rounds take the same
CHEMISTRY = 0.06       # R1 that a model is worth whose atoms all have sensible bonds, beside one where none has
WARMTH = 0.012         # by which a round may be worse and still be gone on from, in the mean
PATIENCE = 25          # rounds without a better model, after which the best one is gone back to
GUIDED = 8             # rounds that follow the phases of the start, before those of the atoms alone count
SETTLED = 12           # the same of a model whose R1 is that of a right one, after which it is done
WORTH = 0.25           # of what an atom should add to R1² where it is missing, at least
MORE, TRIED = 4, 3     # atoms that are built to see if some are missing; times, and atoms, tried in vain before the end
NAMING = 0.01          # of R1, by which another element has to be better
# Share of the chains that go on, the best ones, and for how many rounds. A few rounds tell right phases from wrong ones: of
# 64 starts of light molecules at 1.75 Å the best one is among the first tenth after four or twelve.
STAGES = ((1, 4), (1 / 3, 8), (1 / 6, 16), (1 / 16, 60), (1 / 32, 120))


class Atoms(NamedTuple):
    """Atoms of the asymmetric unit while they are built: fract (n, 3), kind (n,) rows of the restraints, u_iso (n,) Å²,
    occ (n,); scale, r1 and Fcalc sf, and cost: R1 and CHEMISTRY."""

    fract: np.ndarray
    kind: np.ndarray
    u_iso: np.ndarray
    occ: np.ndarray
    scale: float = 1.0
    r1: float = np.nan
    sf: np.ndarray | None = None
    cost: float = np.inf


@compiled
def count_neighbours(first, second, length, kind, shortest, longest, n):
    """Bonds (n,) of each atom, and other atoms (n,) that are nearer than a bond."""
    bonds, close = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for m in range(len(first)):
        i, j = first[m], second[m]
        if length[m] < shortest[kind[i], kind[j]]:
            close[i] += 1
            if i != j:
                close[j] += 1
        elif length[m] < longest[kind[i], kind[j]]:
            bonds[i] += 1
            if i != j:
                bonds[j] += 1
    return bonds, close


@compiled
def heights_at(rho, fract):
    """Values (n,) of a periodic map at fract (n, 3), linear between its points."""
    found, size = np.zeros(len(fract)), np.array(rho.shape)
    low, part = np.empty((2, 3), np.int64), np.empty((2, 3))
    for i in range(len(fract)):
        for c in range(3):
            x = (fract[i, c] - np.floor(fract[i, c])) * size[c]
            low[0, c] = int(x) % size[c]
            low[1, c] = (low[0, c] + 1) % size[c]
            part[1, c] = x - int(x)
            part[0, c] = 1 - part[1, c]
        for a in range(2):
            for b in range(2):
                for c in range(2):
                    found[i] += part[a, 0] * part[b, 1] * part[c, 2] * rho[low[a, 0], low[b, 1], low[c, 2]]
    return found


class Builder:
    """Builds atoms against one set of reflections.

    refiner : RestrainedRefiner; contents : {symbol: atoms in the asymmetric unit}, the heaviest first
    enough : R1 of a right model, below which a search may end
    """

    def __init__(self, refiner: RestrainedRefiner, contents, enough=0.0, seed=0):
        self.enough = enough
        self.refiner, self.contents, self.rng = refiner, dict(contents), np.random.default_rng(seed)
        self.restraints = refiner.restraints
        self.total = sum(self.contents.values())
        self.common = int(refiner.kinds([max(self.contents, key=self.contents.get)])[0])
        self.electrons = np.array([gemmi.Element(symbol).atomic_number for symbol in self.restraints.symbols], float)
        self.most_bonds = np.where([symbol in ("C", "N", "O", "F", "B") for symbol in self.restraints.symbols], 4, 99)

    def peaks(self, rho, atoms, n, apart, prefer):
        """Atoms, `n` in the asymmetric unit, at peaks of a map, those at bonding distance from atoms there are preferred."""
        r = self.restraints
        voxel, value = local_maxima(rho, 0.0)
        order = np.argsort(-value)
        most = int(3 * n) + 4
        if len(order) > most * 3 * len(r.rot):
            order = order[:most * 3 * len(r.rot)]
        found, height, occ, bonds, near = choose_peaks(rho, voxel, order, most, atoms.fract, atoms.kind, r.rot, r.tran, r.orth,
                                                       r.bond, r.longest, self.common, apart)
        if len(atoms.kind):
            weight = height * np.where(bonds > 0, prefer, 1.0) * np.where(bonds > 4, 0.5, 1.0)
            weight *= np.where((near > 1.7) & (near < 2.1), 0.8, 1.0) * np.where(near < 1.15, 0.4, 1.0)
            order = np.argsort(-weight * np.exp(SCATTER * self.rng.standard_normal(len(weight))))
        else:
            order = np.arange(len(height))
        before = np.cumsum(occ[order]) - occ[order]
        rows = order[before < n - 0.1]
        return found[rows], occ[rows]

    def start(self, coefficients) -> Atoms | None:
        """The highest peaks of the map of complex coefficients (n,), E with phases; None if there are none."""
        empty = Atoms(np.zeros((0, 3)), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
        fract, occ = self.peaks(self.refiner.density(coefficients.astype(np.complex64)), empty, self.total, 0.95, 1.0)
        if not len(fract):
            return None
        kind = self.refiner.kinds(assign_elements(occ, self.contents))
        return self.refined(Atoms(fract, kind, np.full(len(kind), U_START), occ), CYCLES)

    def refined(self, atoms, cycles, restrained=True) -> Atoms:
        fract, u_iso, scale, r1, sf = self.refiner.fit(atoms.fract, atoms.kind, atoms.u_iso, atoms.occ, cycles, restrained)
        return atoms._replace(fract=fract, u_iso=u_iso, scale=scale, r1=r1, sf=sf)

    def density(self, atoms, difference=False, guide=None):
        """Map 2F - Fcalc, or F - Fcalc, with the phases of atoms, or those of guide (n,) for F, on the scale of Fcalc but for
        the volume."""
        size, F = np.abs(atoms.sf), self.refiner._F / atoms.scale
        if guide is not None:
            return self.refiner.density((F if difference else 2 * F) * guide - atoms.sf)
        amplitude = F - size if difference else np.maximum(2 * F - size, 0)
        return self.refiner.density(amplitude * (atoms.sf / np.maximum(size, 1e-9)))

    def renamed(self, atoms, guide=None) -> Atoms:
        """Elements by the height of the 2F - Fcalc map at the atoms, the heaviest to the highest, atoms in that order."""
        if len(self.contents) == 1:
            return atoms
        order = np.argsort(-heights_at(self.density(atoms, guide=guide), atoms.fract), kind="stable")
        kind = self.refiner.kinds(assign_elements(atoms.occ[order], self.contents))
        return Atoms(atoms.fract[order], kind, atoms.u_iso[order], atoms.occ[order], atoms.scale)

    def neighbours(self, atoms):
        r = self.restraints
        first, second, _, _, length = r.pairs(atoms.fract, atoms.occ)
        return count_neighbours(first, second, length, atoms.kind, r.shortest, r.longest, len(atoms.kind))

    def weighed(self, atoms, guide=None) -> Atoms:
        """With its cost: R1, and CHEMISTRY where atoms have no bond, clash, or have too many bonds.

        With the phases of a guide it is not R1 but Σ |F exp(iφ) - Fcalc| / Σ F.
        """
        bonds, close = self.neighbours(atoms)
        strange = (bonds == 0).mean() + (close > 0).mean() + 0.5 * (bonds > self.most_bonds[atoms.kind]).mean()
        F, misfit = self.refiner._F, atoms.r1
        if guide is not None:
            misfit = float(np.abs(F * guide - np.float32(atoms.scale) * atoms.sf).sum() / F.sum())
        return atoms._replace(cost=misfit + CHEMISTRY * float(strange))

    def round(self, atoms, total=None, share=LEFT_OUT, guide=None) -> Atoms:
        """Leave some atoms out, fill up to `total` in two halves, rename, refine; guide (n,) : phases exp(iφ) of the maps."""
        total = total or self.total
        rng, n = self.rng, len(atoms.kind)
        bonds, close = self.neighbours(atoms)
        doubt = ((bonds == 0) * 1.0 + (close > 0) + (bonds > self.most_bonds[atoms.kind])
                 + 2.0 * (atoms.u_iso > 1.8 * np.median(atoms.u_iso)) + 0.15)
        drop = min(max(1, round(rng.uniform(*share) * n)), n - 1)
        # of n draws without replacement with these weights
        keep = np.sort(np.argsort(rng.exponential(size=n) / doubt)[drop:])
        atoms = Atoms(atoms.fract[keep], atoms.kind[keep], atoms.u_iso[keep].clip(0.01, 0.1), atoms.occ[keep])
        apart, prefer = rng.choice(APART), rng.choice(PREFERRED)
        atoms = self.refined(atoms, 0)
        for part in (0.5, 1.0):
            n = (total - atoms.occ.sum()) * part
            if n < 0.4:
                continue
            fract, occ = self.peaks(self.density(atoms, True, guide), atoms, max(n, 1), apart, prefer)
            if not len(fract):
                break
            atoms = self.refined(self.with_more(atoms, fract, occ), 1 if part < 1 else 0)
        return self.weighed(self.refined(self.renamed(atoms, guide), CYCLES), guide)

    def with_more(self, atoms, fract, occ) -> Atoms:
        """Atoms and some of the commonest element at fract (m, 3)."""
        m = len(fract)
        return Atoms(np.concatenate([atoms.fract, fract]), np.append(atoms.kind, [self.common] * m),
                     np.append(atoms.u_iso, [np.median(atoms.u_iso)] * m), np.append(atoms.occ, occ), atoms.scale)

    def settled(self, atoms) -> Atoms:
        """With atoms added, dropped and named otherwise as long as R1 says so: a formula is a hypothesis.

        An atom of Z electrons adds Z² / Σ Z² to the mean intensity, and so to R1² where it is missing. One is added that
        takes WORTH of that away, and one is dropped that does not: MORE are built, and those with the least density for
        their element are tried.
        """
        atoms = self._without_needless(self.weighed(self.refined(atoms, CYCLES)))
        failed = 0
        while failed < TRIED:
            more = self._without_needless(self.round(atoms, atoms.occ.sum() + MORE, (0, 0.1 * failed)))
            added = more.occ.sum() - atoms.occ.sum()
            better = atoms.r1 ** 2 - more.r1 ** 2 > self._worth(more, self.common, max(added, 0)) and more.cost < atoms.cost
            atoms, failed = (more, 0) if better else (atoms, failed + 1)
        return self.named(atoms)

    def _without_needless(self, atoms):
        while (less := self._one_less(atoms)) is not None:
            atoms = less
        return atoms

    def _worth(self, atoms, kind, occ):
        return WORTH * occ * self.electrons[kind] ** 2 / (atoms.occ * self.electrons[atoms.kind] ** 2).sum()

    def _one_less(self, atoms):
        seen = heights_at(self.density(atoms), atoms.fract) / self.electrons[atoms.kind]
        for i in np.argsort(seen)[:TRIED]:
            if len(seen) > 1 and seen[i] < 0.6 * np.median(seen):
                keep = np.arange(len(seen)) != i
                less = self.weighed(self.refined(Atoms(*(part[keep] for part in atoms[:4])), CYCLES))
                if less.r1 ** 2 - atoms.r1 ** 2 < self._worth(atoms, atoms.kind[i], atoms.occ[i]):
                    return less

    def named(self, atoms) -> Atoms:
        """Atoms that have more or less density than their element explains get the next one, where R1 falls by NAMING."""
        order = np.argsort(self.electrons)
        for _ in range(2 * len(atoms.kind)):
            seen = heights_at(self.density(atoms), atoms.fract) / self.electrons[atoms.kind]
            seen, better = seen / np.median(seen), None
            for i in np.argsort(-np.abs(np.log(np.maximum(seen, 0.1)))):
                place = int(np.flatnonzero(order == atoms.kind[i])[0]) + (1 if seen[i] > 1 else -1)
                if 0 <= place < len(order):
                    kind = atoms.kind.copy()
                    kind[i] = order[place]
                    new = self.weighed(self.refined(atoms._replace(kind=kind), 2))
                    if new.r1 < (1 - NAMING) * atoms.r1:
                        better = new
                        break
            if better is None:
                return atoms
            atoms = better
        return atoms

    def atoms(self, model) -> Atoms:
        """Those of a Model."""
        return Atoms(np.asarray(model.fract, float), self.refiner.kinds(model.elements), np.asarray(model.u_iso, float),
                     model.occ)

    def model(self, atoms) -> Model:
        """As the rest of the package has it."""
        elements = tuple(self.restraints.symbols[kind] for kind in atoms.kind)
        rho = self.density(atoms)
        heights = heights_at(rho, atoms.fract) / rho.std()
        return Model(atoms.fract, elements, atoms.u_iso, atoms.occ, heights, atoms.r1, atoms.scale)


class Chain:
    """One start on its way: the atoms now, the best ones so far, and the rounds since these were found.

    start : complex coefficients (n,) of the map that it begins with, E with phases; first : the atoms of that map
    guided : rounds that follow the phases of the start. A map to 1.5 Å and worse does not resolve bonded atoms, so that its
        highest peaks lie between them: their phases are worse than those of the map, and lead away from it.
    weight : of its cost beside that of chains in other space groups; agreement : of its phases with each of these
    """

    def __init__(self, builder, atoms, weight=1.0, agreement=(np.nan,), start=None, guided=GUIDED):
        self.builder, self.weight, self.agreement, self.waited, self.start = builder, weight, agreement, 0, start
        self.first = self.now = self.best = builder.weighed(atoms)
        self.guided = 0 if start is None else guided

    @property
    def rank(self):
        return self.best.cost * self.weight

    @property
    def done(self):
        """Atoms that explain what a right model does, and get no better."""
        return self.waited > SETTLED and self.best.r1 < self.builder.enough

    def run(self, rounds, until=np.inf):
        if self.guided:
            self.follow(until)
        for _ in range(rounds):
            new = self.builder.round(self.now)
            if new.cost < self.now.cost + WARMTH * self.builder.rng.exponential():
                self.now = new
            self.waited = 0 if new.cost < self.best.cost - 0.002 else self.waited + 1
            if new.cost < self.best.cost:
                self.best = new
            if self.done or time.perf_counter() > until:
                break
            if self.waited > PATIENCE:
                self.now, self.waited = self.best, 0

    def follow(self, until=np.inf):
        """The rounds that follow the phases of the start."""
        guide = (self.start / np.maximum(np.abs(self.start), 1e-9)).astype(np.complex64)
        now = best = self.builder.weighed(self.now, guide)
        for _ in range(self.guided):
            new = self.builder.round(now, guide=guide)
            if new.cost < now.cost + WARMTH * self.builder.rng.exponential():
                now = new
            best = min(best, new, key=lambda atoms: atoms.cost)
            if time.perf_counter() > until:
                break
        self.now = self.best = self.builder.weighed(best)
        self.guided = 0


def build(chains, until=np.inf, stages=STAGES, watch=None):
    """Run chains by successive halving: a few rounds for all, more for the best of them; the best one comes first.

    until : time.perf_counter() at which it ends; it ends, too, when one is done. stages : ((share of the chains, rounds), ...)
    watch : function that is called with R1 of each chain that has had its rounds
    """
    for share, rounds in stages:
        chains = sorted(chains, key=lambda chain: chain.rank)
        for chain in chains[:ceil(share * len(chains))]:
            chain.run(rounds, until)
            if watch:
                watch(chain.best.r1)
            if chain.done or time.perf_counter() > until:
                return sorted(chains, key=lambda chain: chain.rank)
    return sorted(chains, key=lambda chain: chain.rank)
