"""Atoms out of half-right phases: leave some out at random, fill up from the difference map, refine with restraints.

Atoms that are wrong do not come back where they were, since the map without them does not show them; what does not bond,
clashes or melts is left out more often. The idea of random omission: Burla et al. (2000), Acta Cryst. A56, 451, and Sheldrick
(2008), A64, 112, for direct methods; that of the omit map: Bhat & Cohen (1984), J. Appl. Cryst. 17, 244.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..compiled import compiled
from .peaks import assign_elements
from .refine import U_START, Model
from .restraints import SHORTEST, RestrainedRefiner, choose_peaks, local_maxima

LEFT_OUT = 0.08, 0.45  # share of the atoms that a round leaves out
CYCLES = 3             # of least squares at the end of a round
PREFERRED = (1.0, 1.6, 2.5)  # how much higher a peak at bonding distance counts, one of these a round
APART = (0.95, 1.1)    # Å between two new atoms, one of these a round
SCATTER = 0.15         # of the logarithm of the height of a peak: no two rounds take the same
CHEMISTRY = 0.06       # R1 that a model is worth whose atoms all have sensible bonds, beside one where none has
WARMTH = 0.012         # by which a round may be worse and still be gone on from, in the mean
PATIENCE = 25          # rounds without a better model, after which the best one is gone back to


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
    """

    def __init__(self, refiner: RestrainedRefiner, contents, seed=0):
        self.refiner, self.contents, self.rng = refiner, dict(contents), np.random.default_rng(seed)
        self.restraints = refiner.restraints
        self.total = sum(self.contents.values())
        self.lightest = int(refiner.kinds([list(self.contents)[-1]])[0])
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
                                                       r.bond, r.longest, self.lightest, apart)
        if len(atoms.kind):
            weight = height * np.where(bonds > 0, prefer, 1.0) * np.where(bonds > 4, 0.5, 1.0)
            weight *= np.where((near > 1.7) & (near < 2.1), 0.8, 1.0) * np.where(near < 1.15, 0.4, 1.0)
            order = np.argsort(-weight * np.exp(SCATTER * self.rng.standard_normal(len(weight))))
        else:
            order = np.arange(len(height))
        before = np.cumsum(occ[order]) - occ[order]
        rows = order[before < n - 0.1]
        return found[rows], occ[rows]

    def start(self, phi, E) -> Atoms | None:
        """The highest peaks of the map of amplitudes E (n,) with phases phi (n,) in radians; None if there are none."""
        empty = Atoms(np.zeros((0, 3)), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
        fract, occ = self.peaks(self.refiner.density((E * np.exp(1j * phi)).astype(np.complex64)), empty, self.total, 0.95, 1.0)
        if not len(fract):
            return None
        kind = self.refiner.kinds(assign_elements(occ, self.contents))
        return self.refined(Atoms(fract, kind, np.full(len(kind), U_START), occ), CYCLES)

    def refined(self, atoms, cycles, restrained=True) -> Atoms:
        fract, u_iso, scale, r1, sf = self.refiner.fit(atoms.fract, atoms.kind, atoms.u_iso, atoms.occ, cycles, restrained)
        return atoms._replace(fract=fract, u_iso=u_iso, scale=scale, r1=r1, sf=sf)

    def renamed(self, atoms) -> Atoms:
        """Elements by the height of the 2F - Fcalc map at the atoms, the heaviest to the highest, atoms in that order."""
        if len(self.contents) == 1:
            return atoms
        F, unit = self.refiner._F / atoms.scale, atoms.sf / np.maximum(np.abs(atoms.sf), 1e-9)
        rho = self.refiner.density(np.maximum(2 * F - np.abs(atoms.sf), 0) * unit)
        order = np.argsort(-heights_at(rho, atoms.fract), kind="stable")
        kind = self.refiner.kinds(assign_elements(atoms.occ[order], self.contents))
        return Atoms(atoms.fract[order], kind, atoms.u_iso[order], atoms.occ[order], atoms.scale)

    def neighbours(self, atoms):
        r = self.restraints
        first, second, _, _, length = r.pairs(atoms.fract, atoms.occ)
        return count_neighbours(first, second, length, atoms.kind, r.shortest, r.longest, len(atoms.kind))

    def weighed(self, atoms) -> Atoms:
        """With its cost: R1, and CHEMISTRY where atoms have no bond, clash, or have too many bonds."""
        bonds, close = self.neighbours(atoms)
        strange = (bonds == 0).mean() + (close > 0).mean() + 0.5 * (bonds > self.most_bonds[atoms.kind]).mean()
        return atoms._replace(cost=atoms.r1 + CHEMISTRY * float(strange))

    def round(self, atoms) -> Atoms:
        """Leave some atoms out, fill up in two halves, rename, refine."""
        rng, n = self.rng, len(atoms.kind)
        bonds, close = self.neighbours(atoms)
        doubt = ((bonds == 0) * 1.0 + (close > 0) + (bonds > self.most_bonds[atoms.kind])
                 + 2.0 * (atoms.u_iso > 1.8 * np.median(atoms.u_iso)) + 0.15)
        drop = min(max(1, round(rng.uniform(*LEFT_OUT) * n)), n - 1)
        # of n draws without replacement with these weights
        keep = np.sort(np.argsort(rng.exponential(size=n) / doubt)[drop:])
        atoms = Atoms(atoms.fract[keep], atoms.kind[keep], atoms.u_iso[keep].clip(0.01, 0.1), atoms.occ[keep])
        apart, prefer = rng.choice(APART), rng.choice(PREFERRED)
        atoms = self.refined(atoms, 0)
        for part in (0.5, 1.0):
            n = (self.total - atoms.occ.sum()) * part
            if n < 0.4:
                continue
            unit = atoms.sf / np.maximum(np.abs(atoms.sf), 1e-9)
            rho = self.refiner.density((self.refiner._F / atoms.scale - np.abs(atoms.sf)) * unit)
            fract, occ = self.peaks(rho, atoms, max(n, 1), apart, prefer)
            if not len(fract):
                break
            atoms = Atoms(np.concatenate([atoms.fract, fract]), np.append(atoms.kind, [self.lightest] * len(fract)),
                          np.append(atoms.u_iso, [np.median(atoms.u_iso)] * len(fract)), np.append(atoms.occ, occ), atoms.scale)
            atoms = self.refined(atoms, 1 if part < 1 else 0)
        return self.weighed(self.refined(self.renamed(atoms), CYCLES))

    def build(self, atoms, rounds, enough=0.0) -> Atoms:
        """The best of some rounds that start from atoms; ends early where R1 is below `enough` and all is bonded."""
        best = now = self.weighed(self.refined(atoms, CYCLES))
        waited = 0
        for _ in range(rounds):
            new = self.round(now)
            if new.cost < now.cost + WARMTH * self.rng.exponential():
                now = new
            waited = 0 if new.cost < best.cost - 0.002 else waited + 1
            if new.cost < best.cost:
                best = new
            if best.r1 < enough and best.cost < best.r1 + 0.15 * CHEMISTRY:
                break
            if waited > PATIENCE:
                now, waited = best, 0
        return best

    def model(self, atoms) -> Model:
        """As the rest of the package has it."""
        elements = tuple(self.restraints.symbols[kind] for kind in atoms.kind)
        return Model(atoms.fract, elements, atoms.u_iso, atoms.occ, np.zeros(len(elements)), atoms.r1, atoms.scale)
