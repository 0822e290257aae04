"""Known molecules placed in a cell by a search over conformer, rotation, translation and torsions.

Many random placements are scored at 4 Å; the best ones climb the correlation of |F| while the resolution rises from 4 Å to
that of the data (``climbing``); the best of these are refined with the distances that torsions leave alone (``distances``),
which brings right ones to R1 0.03-0.15 and leaves wrong ones at 0.25 and more at 2 Å. Each round begins half anew and half
with changes of the best placements so far, until the answer is certain or the time is used up.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np
from scipy.optimize import linear_sum_assignment

from ..bonds import whole_molecules
from ..compiled import compiled
from ..config import UserError
from ..crystals import all_operators
from ..known_molecule import with_hydrogen, with_more_conformers
from .charge_flipping import Progress, one_thread
from .climbing import Joints, add_waves, climb, data_of, draw, mutate, r_factors, score
from .distances import SIGMAS, Distances, distances_of, refine, rigid_distances
from .origin import match_atoms
from .peaks import without_hydrogen
from .refine import Model, Refiner
from .solution import Solution
from .verdict import certain_r1, weigh

FILE = Path(__file__).with_name("placing.json")
VOLUME = 18.0                  # Å³ for each atom that is not hydrogen; 15-22 in most crystals
FULL = 0.72, 1.35              # volume of the atoms over that of the cell, beyond which nothing is tried
U_START = 0.045                # Å²
FROM = 4.0                     # Å, where the climb begins
DRAWN, CLIMBING, FOLLOWED, REFINED = 4096, 384, 128, 48  # placements a round: scored, begun with, followed to d_min, refined
LEAST = 30                     # reflections, of lowest resolution, that always count
STEPS = 32, 45                 # of the climb at rising resolution, and at d_min
ELITE = 24                     # placements that changes are made of
# R between calculated amplitudes of placements that are the same; and where there are few reflections, MANY or less, which
# differing structures can share
SAME, SAME_FEW, MANY = 0.10, 0.04, 60
MOST_COMPARED = 32             # placements whose atoms are compared with those of the best
RANDOM_R1 = 0.59               # of random atoms without a centre of symmetry (Wilson, 1950, Acta Cryst. 3, 397)
NEAREST = 2.5                  # Å, between atoms of two molecules; hydrogen bonds are not shorter
CERTAIN_R1, CERTAIN_FREE, CERTAIN_CONTACT = 0.16, 0.28, 2.2  # what ends a search early; Å
DOUBT = 1.6                    # of R1: structures that are not further apart are not told apart
FEW, LEAST_ROUNDS = 4, 4       # reflections for each thing that moves, below which so many rounds are made
MOST_FINISHED = 4              # placements that are taken to the end on special positions
ROUND = 2.5                    # s that a round should not exceed
ASTRAY = 1.2                   # Å between an atom and the image that should be it
STRAY_COST = 0.01              # added to R1 for each atom that is astray
SMALL, MOSTLY = 5, 0.6         # atoms of a small molecule; share of all atoms that the large ones have, so that they go first
BASE_ROUNDS, GROW = 6, 64      # rounds of the large ones alone; places that are tried for a small one
BEFORE_MORE, MORE_CONFORMERS = 4, 24  # rounds after which conformers are added, and how many
FOLDS = 5
RESTRAINED = 1.2               # Å, data that end beyond are refined with restraints
TOLD_APART = 0.95              # probability above which one of several molecules is named alone


class PlacingError(UserError):
    """Molecules that cannot be placed in this cell, and why."""


class Part(NamedTuple):
    """One molecule of the asymmetric unit: row in the list of molecules, order of its site symmetry (1: anywhere)."""

    molecule: int
    order: int


@dataclass(frozen=True)
class Arrangement:
    """Molecules of an asymmetric unit; z : formula units in it; volume : Å³ for each atom that is not hydrogen."""

    parts: tuple[Part, ...]
    z: Fraction
    volume: float

    def describe(self, molecules) -> str:
        names = []
        for part in dict.fromkeys(self.parts):
            n = self.parts.count(part)
            where = "" if part.order == 1 else f" on a special position of order {part.order}"
            names.append(f"{n} {molecules[part.molecule].formula}{where}")
        return f"{', '.join(names)} in the asymmetric unit, {self.volume:.1f} Å³ for each non-H atom"


@dataclass(frozen=True)
class Evidence:
    """What speaks for molecules as they were placed.

    r1 : of all atoms with hydrogen; r_free : of reflections left out of the refinement in turn
    found : random starts that led to the same amplitudes, of `tried` placements that climbed, changed ones included
    next_r1 : of the best placement that is another structure
    strain : mean square of the deviations of distances from those of the conformer, in their standard deviations
    contact : Å, the shortest distance between atoms of two molecules
    contents : what is in the asymmetric unit, in words
    probability : that at least 80 % of the atoms are within 0.5 Å of true ones (``probability``)
    """

    r1: float
    r_free: float
    found: int
    tried: int
    next_r1: float
    strain: float
    contact: float
    contents: str
    probability: float = float("nan")

    def in_words(self) -> str:
        found = f"{self.found} random starts led to it" if self.found else "changes of other placements led to it"
        return (f"{self.contents}; R1 {self.r_free:.3f} for reflections left out of it; {found}, and the best of the "
                f"placements that differ has R1 {self.next_r1:.3f}; the shortest distance between molecules is "
                f"{self.contact:.2f} Å; probability {self.probability:.3f} that the atoms are where they are. An isomer or a "
                "homologue may fit as well: place it, too (--or), and compare R1")


class Placement(NamedTuple):
    """xyz and refined (n, 3) Å, free (m, 3, 3) as in ``climbing.climb``; u : Å² beside U_START; amplitude (n_hkl,);
    cost : what it is ranked by; chosen (m,) conformers; fresh : whether it comes from a random start"""

    xyz: np.ndarray
    refined: np.ndarray
    free: np.ndarray
    u: float
    r1: float
    strain: float
    cost: float
    amplitude: np.ndarray
    chosen: np.ndarray
    contact: float
    fresh: bool


def arrangements(molecules, counts, cell, spacegroup) -> list[Arrangement]:
    """What may be in the asymmetric unit by its volume, the likeliest first.

    Parameters
    ----------
    molecules : sequence of KnownMolecule; counts : (m,) how many of each in a formula unit

    Raises
    ------
    PlacingError
        If the charges do not add up, or no number of formula units fits the cell.
    """
    charge = sum(n * molecule.charge for molecule, n in zip(molecules, counts))
    if charge:
        raise PlacingError(f"the molecules have a charge of {charge:+d} together: name the counter-ion too, with its count")
    n_ops, atoms = len(spacegroup.operations()), sum(n * len(molecule) for molecule, n in zip(molecules, counts))
    asu, expected = cell.volume / n_ops, sum(n * molecule.volume for molecule, n in zip(molecules, counts))
    found = []
    for z in sorted({Fraction(1, m) for m in (2, 3, 4, 6, 8, 12)} | {Fraction(n, 2) for n in range(2, 17)}):
        volume, fill = asu / float(z * atoms), float(z * expected) / asu
        # several formula units are rarer than one, and one and a half are rarer still
        rare = 0.05 * (z >= 2) + 0.1 * (z > 1 and z.denominator > 1)
        if FULL[0] <= fill <= FULL[1]:
            for parts in _parts(molecules, counts, z, spacegroup):
                halves = sum(part.order > 1 for part in parts) - (z.denominator > 1)
                found.append((abs(np.log(fill)) + rare + 0.02 * halves, Arrangement(parts, z, volume)))
    if not found:
        names = " + ".join(f"{n} {molecule.formula}" if n > 1 else molecule.formula for molecule, n in zip(molecules, counts))
        raise PlacingError(f"the asymmetric unit of {asu:.0f} Å³ in {spacegroup.xhm()} holds about {asu / VOLUME:.0f} non-H "
                           f"atoms, and {names} has {atoms}: no number of them fills it, so the molecule, what crystallised "
                           "with it, the cell or the space group is not right")
    return [arrangement for _, arrangement in sorted(found, key=lambda pair: pair[0])]


def _parts(molecules, counts, z, spacegroup):
    """The tuples of Part that z formula units may be: molecules anywhere, the rest of one on a special position."""
    fixed, choices = [], []
    for row, (molecule, n) in enumerate(zip(molecules, counts)):
        amount = z * n
        whole, rest = int(amount), amount - int(amount)
        if rest and (rest.numerator != 1 or not len(sites_for(molecule, rest.denominator, spacegroup))):
            return []
        fixed += [Part(row, 1)] * whole + ([Part(row, rest.denominator)] if rest else [])
        if whole and not rest and len(molecule) > 1 and len(sites_for(molecule, 2, spacegroup)):
            choices.append(row)
    made = [tuple(fixed)]
    for row in choices[:1]:  # one anywhere, or two halves
        other = list(fixed)
        other.remove(Part(row, 1))
        made.append(tuple(sorted(other + [Part(row, 2)] * 2, key=lambda part: (part.molecule, part.order))))
    return made


def sites_for(molecule, order, spacegroup) -> np.ndarray:
    """``special_sites`` on which a molecule can be by its bonds; a mirror plane can leave every atom of a flat one in place."""
    sites = special_sites(spacegroup, order)
    if len(molecule.symmetry) >= order:
        return sites
    on_mirror = np.trace(sites[:, 3:].reshape(-1, 3, 3), axis1=1, axis2=2) > 1.5
    return sites[on_mirror if order == 2 else np.full(len(sites), 2 * len(molecule.symmetry) >= order)]


def special_sites(spacegroup, order) -> np.ndarray:
    """Special positions of an order, those that differ by lattice translations once: (s, 12), a point in fractions of the
    cell and the projection (3, 3) on what is free around it. Of order 1: everywhere."""
    if order == 1:
        return np.concatenate([np.zeros(3), np.eye(3).ravel()])[None]
    return np.array([np.concatenate([point, projection.ravel()]) for point, projection in _sites(spacegroup, order)]
                    ).reshape(-1, 12)


def _sites(spacegroup, order):
    rot, tran = all_operators(spacegroup)
    spaces = {}

    def add(matrix, shift):
        point, *_ = np.linalg.lstsq(matrix, shift, rcond=None)
        if np.abs(matrix @ point - shift).max() > 1e-6:
            return
        _, size, vt = np.linalg.svd(matrix)
        null = vt[(np.concatenate([size, np.zeros(3)])[:3] < 1e-9)]
        generic = point + null.T @ np.array([0.2137, 0.3519, 0.1173])[:len(null)]
        moved = np.einsum("gij,j->gi", rot, generic) + tran - generic
        fixing = np.abs(moved - np.round(moved)).max(1) < 1e-6
        projection = rot[fixing].mean(0)
        rest = (point - projection @ point)
        key = tuple(np.round(rest % 1, 4) % 1), tuple(np.round(projection, 4).ravel())
        spaces.setdefault(key, (matrix, shift, point % 1 if not len(null) else point, projection, int(fixing.sum())))

    for r, t in zip(rot, tran):
        if not (r == np.eye(3)).all():
            for cell in product((-1, 0, 1), repeat=3):
                add((r - np.eye(3)).astype(float), -(t + cell))
    if not any(space[4] == order for space in spaces.values()):
        for a, b in combinations(list(spaces.values())[:60], 2):
            add(np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]]))
    return [(point, projection) for _, _, point, projection, n in spaces.values() if n == order]


class Search:
    """One arrangement of molecules to be placed against one set of reflections."""

    def __init__(self, refiner, molecules, arrangement):
        self.refiner, self.arrangement, self.known = refiner, arrangement, molecules
        self.molecules = [molecules[part.molecule] for part in arrangement.parts]
        self.elements = [e for m in self.molecules for e in m.elements]
        self.occ = np.concatenate([np.full(len(m), 1 / part.order) for m, part in zip(self.molecules, arrangement.parts)])
        hydrogen = np.concatenate([m.n_hydrogen for m in self.molecules])
        self.data, self.d = data_of(refiner, self.elements, hydrogen, self.occ, U_START)
        order = np.argsort(-refiner.reflections.d, kind="stable")
        self.sigma = refiner.reflections.sigF[order]
        self.joints = _joints(self.molecules)
        self.rows = rigid_distances(self.molecules)
        self.conformers = self._side_by_side()
        sites = [sites_for(m, part.order, refiner.reflections.spacegroup)
                 for m, part in zip(self.molecules, arrangement.parts)]
        most = max(map(len, sites))
        self.sites = np.array([s[np.arange(most) % len(s)] for s in sites])
        self.rot, self.tran = (np.asarray(x, float) for x in all_operators(refiner.reflections.spacegroup))
        self.pool: list[Placement] = []
        self.found, self.tried, self.rounds, self.cost_of_step = 0, 0, 0, None
        self._next = self._free = None
        # water and small ions do not find their places before the large molecules have theirs
        large = tuple(p for p in arrangement.parts if len(molecules[p.molecule]) > SMALL)
        atoms = sum(len(molecules[p.molecule]) / p.order for p in large)
        self.base = None
        if 0 < len(large) < len(arrangement.parts) and atoms > MOSTLY * self.occ.sum():
            self.base = Search(refiner, molecules, Arrangement(large, arrangement.z, arrangement.volume))
            self.order = sorted(range(len(self.molecules)), key=lambda c: len(self.molecules[c]) <= SMALL)
        self.same = SAME if len(self.d) > MANY else SAME_FEW

    def _side_by_side(self):
        """Conformers (k, atoms, 3) of all molecules, each centred; those of a molecule with fewer are repeated."""
        n = max(len(m.conformers) for m in self.molecules)
        return np.concatenate([(m.conformers - m.conformers.mean(1, keepdims=True))[np.arange(n) % len(m.conformers)]
                               for m in self.molecules], 1).astype(np.float32)

    def more_conformers(self, seed):
        """Rings that are not shaped as in the crystal are what a search fails for: other conformers of every molecule."""
        self.molecules = [with_more_conformers(m, MORE_CONFORMERS, seed) for m in self.molecules]
        self.conformers = self._side_by_side()

    def round(self, rng, deadline, tell=lambda: None):
        """Draw, climb, refine; what is found goes into the pool. tell : is called between these. Returns what was refined."""
        tell()
        if self.rounds and self.rounds % BEFORE_MORE == 0 and deadline - time.perf_counter() > 10:
            self.more_conformers(int(rng.integers(2**31)))
        data, n_hkl = self.data, len(self.d)
        begun = self._affordable(CLIMBING, sum(STEPS), deadline)
        fresh = begun if not self.pool else begun // 2
        exchanged = (begun - fresh) // 2 if len(self.molecules) > 1 else 0
        grown = 0
        if self.base:
            if self.rounds < BASE_ROUNDS:
                self.base.round(rng, deadline, tell)
            grown = fresh // 2
        starts = [self._drawn(DRAWN, fresh - grown, rng)]
        if grown:
            starts.append(self._grown(grown, rng))
        if exchanged:
            starts.append(self._exchanged(exchanged, rng))
        if begun > fresh + exchanged:
            starts.append(self._changed(begun - fresh - exchanged, rng))
        xyz, free, chosen = (np.concatenate(part) for part in zip(*starts))
        origin = np.arange(begun) < fresh - grown
        d_min, (rising, steady) = float(self.d[-1]), STEPS
        middle = max(d_min, min(FROM, d_min + 0.3))
        cuts = np.linspace(max(FROM, d_min), middle, rising)
        began = time.perf_counter()
        cc = climb(xyz, free, data, self.joints, np.array([self._count(d) for d in cuts]), np.ones(rising, np.float32))
        keep = np.argsort(-cc)[:max(8, begun * FOLLOWED // CLIMBING)]
        xyz, free, chosen, origin = xyz[keep], free[keep], chosen[keep], origin[keep]
        counts = np.array([self._count(d) for d in np.concatenate([np.linspace(middle, d_min, steady // 3),
                                                                   np.full(steady - steady // 3, d_min)])])
        tell()
        climb(xyz, free, data, self.joints, counts, np.linspace(1, 0.2, steady).astype(np.float32))
        tell()
        r = r_factors(xyz, data, n_hkl)
        self.cost_of_step = (time.perf_counter() - began) / begun / sum(STEPS)
        made = []
        for i in np.argsort(r)[:max(8, begun * REFINED // CLIMBING)]:
            made.append(self.refined(xyz[i], free[i], chosen[i], bool(origin[i])))
            if time.perf_counter() > deadline and len(made) > 3:
                break
        self.tried, self.rounds = self.tried + begun, self.rounds + 1
        self._pool(made)
        return made

    def _drawn(self, n, best, rng):
        """(xyz, free, chosen) of the best of n random placements at FROM Å."""
        m = len(self.molecules)
        xyz, free = np.empty((n, len(self.elements), 3), np.float32), np.empty((n, m, 3, 3), np.float32)
        chosen = rng.integers(len(self.conformers), size=(n, m))
        draw(xyz, free, self.conformers, chosen, self.joints, self.sites, self.refiner.orth, 1.0, int(rng.integers(2**31)))
        rows = np.argsort(-score(xyz, self.data, self._count(FROM)))[:best]
        return xyz[rows], free[rows], chosen[rows]

    def _parents(self, n, rng):
        """n of the best placements so far, the better ones more often."""
        parents = self.pool[:ELITE]
        return [parents[i] for i in np.minimum(rng.exponential(len(parents) / 3, n).astype(int), len(parents) - 1)]

    def _changed(self, n, rng):
        """The best placements, each changed in one respect."""
        parents = self._parents(n, rng)
        xyz, free = np.array([p.xyz for p in parents]), np.array([p.free for p in parents])
        chosen = rng.integers(len(self.conformers), size=(n, len(self.molecules)))
        mutate(xyz, free, self.conformers, chosen, self.joints, self.sites, self.refiner.orth, int(rng.integers(2**31)))
        return xyz, free, chosen

    def _grown(self, n, rng):
        """Placements of the large molecules, the small ones added one after the other, each at the best of several places."""
        xyz, free, chosen = self._drawn(n * GROW, n * GROW, rng)
        rows = np.arange(n) * GROW                                            # what is returned
        parents, counted = self.base._parents(n, rng), self._count(max(self.d[-1], 3.0))
        slices = [slice(self.joints.first[c], self.joints.first[c + 1]) for c in range(len(self.molecules))]
        there = []
        for step, c in enumerate(self.order):
            if len(self.molecules[c]) > SMALL:
                i, j = self.base.joints.first[step], self.base.joints.first[step + 1]
                for k, parent in enumerate(parents):
                    mine = slice(k * GROW, (k + 1) * GROW)
                    xyz[mine, slices[c]] = parent.xyz[i:j]
                    free[mine, c], chosen[mine, c] = parent.free[step], parent.chosen[step]
                there.append(c)
                continue
            there.append(c)
            atoms = np.concatenate([np.arange(slices[e].start, slices[e].stop) for e in there])
            data = self.data._replace(kind=self.data.kind[atoms])
            best = score(np.ascontiguousarray(xyz[:, atoms]), data, counted).reshape(n, GROW).argmax(1) + rows
            for array in (free, chosen):
                array[:, c] = np.repeat(array[best, c], GROW, axis=0)
            xyz[:, slices[c]] = np.repeat(xyz[best, slices[c]], GROW, axis=0)
        return xyz[rows], free[rows], chosen[rows]

    def _exchanged(self, n, rng):
        """The best placements, each with one molecule anew: the best of several that are drawn, at 3 Å or d_min."""
        made = []
        times = DRAWN // 16
        for parent in self._parents(-(-n // 4), rng):
            xyz, free, chosen = self._drawn(times, times, rng)
            c = rng.integers(len(self.molecules))
            kept = np.ones(xyz.shape[1], bool)
            kept[self.joints.first[c]:self.joints.first[c + 1]] = False
            xyz[:, kept] = parent.xyz[kept]
            others = np.arange(len(self.molecules)) != c
            free[:, others], chosen[:, others] = parent.free[others], parent.chosen[others]
            rows = np.argsort(-score(xyz, self.data, self._count(max(self.d[-1], 3.0))))[:4]
            made.append((xyz[rows], free[rows], chosen[rows]))
        return tuple(np.concatenate(part)[:n] for part in zip(*made))

    def _affordable(self, wanted, steps, deadline):
        if self.cost_of_step is None:
            work = len(self.elements) * len(self.d) * len(self.data.shift) * 4e-9
        else:
            work = self.cost_of_step
        seconds = min(ROUND, max(0.2, deadline - time.perf_counter()))
        return int(np.clip(seconds / (steps * work), 32, wanted))

    def _count(self, d):
        return min(len(self.d), max(LEAST, int((self.d >= d - 1e-6).sum())))

    def refined(self, xyz, free, chosen, fresh, cycles=8) -> Placement:
        moved, u, r1, strain = refine(xyz.astype(float), self.data, self.refiner, self.sigma,
                                      distances_of(self.rows, xyz.astype(float)), cycles)
        shortest, bump = contacts(moved, self.joints.first, self.refiner.orth, self.rot, self.tran, NEAREST)
        amplitude = self.amplitude(moved, u)
        cost = r1 * (1 + 0.02 * strain) + 0.02 * bump
        for c, part in enumerate(self.arrangement.parts):
            if part.order > 1:
                cost += STRAY_COST * (self.symmetric(c, moved)[3]).sum()
        return Placement(xyz, moved, free, u, r1, strain, cost, amplitude, chosen, shortest, fresh)

    def symmetric(self, c, xyz):
        """``symmetric`` of molecule c of all atoms xyz."""
        return symmetric(xyz[self.joints.first[c]:self.joints.first[c + 1]], self.molecules[c].elements,
                         self.arrangement.parts[c].order, self.refiner.orth, self.rot, self.tran)

    def amplitude(self, xyz, u):
        """|Fcalc| (n,) in the order of d, on the scale of F."""
        re, im = amplitudes_of(xyz.astype(np.float32), self.data)
        a = np.hypot(re, im) * np.exp(-8 * np.pi**2 * u * 0.25 / self.d**2)
        return a * (a @ self.data.F) / (a @ a)

    def _pool(self, made):
        """Placements of different amplitudes, the best first; how often the best was found from random starts."""
        pool, found = [], 0
        for new in sorted([*self.pool, *made], key=lambda p: p.cost):
            if any(r_between(new.amplitude, old.amplitude) < self.same for old in pool):
                continue
            pool.append(new)
        if self.pool and r_between(pool[0].amplitude, self.pool[0].amplitude) < self.same:
            found = self.found
        self.found = found + sum(p.fresh and r_between(p.amplitude, pool[0].amplitude) < self.same for p in made)
        self.pool = pool[:2 * ELITE]

    def next_r1(self) -> float:
        """R1 of the best placement that is another structure than the best: fewer than 80 % of its atoms match. That of random
        atoms where there is none."""
        best, frac = self.pool[0], np.linalg.inv(self.refiner.orth)
        if self._next and self._next[0] is best and (self._next[1] is None or any(p is self._next[1] for p in self.pool)):
            return self._next[1].r1 if self._next[1] else RANDOM_R1
        reflections, other = self.refiner.reflections, None
        for placement in self.pool[1:MOST_COMPARED]:
            match = match_atoms(placement.refined @ frac.T, best.refined @ frac.T, reflections.cell, reflections.spacegroup)
            if match.n_matched < 0.8 * match.n_true:
                other = placement
                break
        self._next = best, other
        return other.r1 if other else RANDOM_R1

    def gap(self) -> float:
        return self.next_r1() / max(self.pool[0].r1, 0.01)

    def r_free(self) -> float:
        """``left_out`` of the best placement."""
        best = self.pool[0]
        if not (self._free and self._free[0] is best):
            self._free = best, left_out(self, best.refined, best.u, distances_of(self.rows, best.xyz.astype(float)))
        return self._free[1]


def r_between(a, b) -> float:
    return float(np.abs(a - b).sum() / a.sum())


@compiled(error_model="numpy")
def _sum_all(fract, data, re, im):
    from_form = data.form
    for i in range(len(fract)):
        add_waves(fract[i, 0], fract[i, 1], fract[i, 2], from_form[data.kind[i]], data, len(re), re, im)



def amplitudes_of(xyz, data):
    """Real and imaginary part (n,) of the structure factors of atoms xyz (atoms, 3) float32 Å."""
    n = len(data.F)
    re, im = np.zeros(n, np.float32), np.zeros(n, np.float32)
    _sum_all((xyz @ data.frac.T).astype(np.float32), data, re, im)
    return re, im


@compiled(fastmath=False, error_model="numpy")
def contacts(xyz, first, orth, rot, tran, nearest):
    """(shortest distance in Å, Σ ((nearest - distance) / 0.2)² of shorter ones) between atoms of different molecules.

    xyz (n, 3) Å, those of molecule c from first[c] to first[c + 1]; rot (g, 3, 3), tran (g, 3) all operators. An image whose
    centre lies within 1 Å of that of the molecule itself is the molecule, on a special position.
    """
    frac = np.linalg.inv(orth)
    m, shortest, bump = len(first) - 1, 99.0, 0.0
    x = xyz @ frac.T
    inside = np.zeros(3)
    for c in range(m):
        for e in range(c, m):
            for g in range(len(rot)):
                image = np.zeros((first[e + 1] - first[e], 3))
                for i in range(len(image)):
                    for k in range(3):
                        image[i, k] = tran[g, k]
                        for q in range(3):
                            image[i, k] += rot[g, k, q] * x[first[e] + i, q]
                for k in range(3):
                    inside[k] = x[first[c]:first[c + 1], k].mean() - image[:, k].mean()
                for u in range(-1, 2):
                    for v in range(-1, 2):
                        for w in range(-1, 2):
                            off = np.round(inside)
                            off[0] += u
                            off[1] += v
                            off[2] += w
                            away = orth @ (inside - off)
                            if c == e and np.sqrt((away * away).sum()) < 1.0:
                                continue
                            for i in range(len(image)):
                                for j in range(first[c], first[c + 1]):
                                    s = 0.0
                                    for k in range(3):
                                        f = 0.0
                                        for q in range(3):
                                            f += orth[k, q] * (image[i, q] + off[q] - x[j, q])
                                        s += f * f
                                    if s < shortest * shortest:
                                        shortest = np.sqrt(s)
                                    if s < nearest * nearest:
                                        bump += ((nearest - np.sqrt(s)) / 0.2) ** 2
    return shortest, bump


def _joints(molecules):
    first = np.cumsum([0] + [len(m) for m in molecules])
    a, b, side, start, linked = [], [], [], [0], [0]
    for molecule, offset in zip(molecules, first):
        for torsion in molecule.torsions:
            a.append(torsion.a + offset)
            b.append(torsion.b + offset)
            side += (torsion.side + offset).tolist()
            start.append(len(side))
        linked.append(len(a))
    return Joints(*(np.array(x, np.int64) for x in (first, a, b, side, start, linked)))


def features(evidence: Evidence) -> dict[str, float]:
    """What the logistic function of the probability sees; more of each is better."""
    # R1 itself says no more than these two
    return {"gap": float(np.log(evidence.next_r1 / max(evidence.r1, 0.01))), "free": -float(np.log(max(evidence.r_free, 0.01)))}


@lru_cache
def calibration() -> dict | None:
    """What ``benchmarks/known_molecule_verdict.py`` found; None as long as it has not been run."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else None


def probability(evidence: Evidence) -> float:
    """That 80 % of the atoms are within 0.5 Å of true ones: as ``verdict.probability``; nan if that is unknown.

    It does not say that the molecule is the right one: an isomer or a homologue can take its place.
    """
    if not (fitted := calibration()):
        return float("nan")
    values = features(evidence)
    total = fitted["intercept"] + sum(f["weight"] * np.clip(values[f["name"]], f["low"], f["high"])
                                      for f in fitted["features"])
    # where another structure explains the data nearly as well, or molecules collide, nothing is claimed
    doubtful = evidence.next_r1 < DOUBT * evidence.r1 or evidence.contact < CERTAIN_CONTACT
    return float(np.clip(1 / (1 + np.exp(-total)), fitted["limit"], 0.5 if doubtful else 1 - fitted["limit"]))


def preferences(solutions) -> np.ndarray:
    """Probability (n,) that each of several molecules placed in the same data is the right one, if one of them is.

    Between two of them it is a logistic function of ln of the ratio of their R1 (``benchmarks/known_molecule_verdict.py
    --pairs``), and no nearer to 0 and 1 than the number of pairs in it allows.
    """
    fitted = calibration()["pairs"]
    likely = np.log(np.maximum([solution.r1 for solution in solutions], 0.005)) * -fitted["weight"]
    p = np.exp(likely - likely.max())
    limit = fitted["limit"]
    return limit / len(p) + (1 - limit) * p / p.sum()


def is_certain(search) -> bool:
    """Whether to stop looking: the best placement is good, was found again, and the next different one is far off."""
    if not search.pool:
        return False
    best, reflections = search.pool[0], search.refiner.reflections
    noise = 0.8 * reflections.sigF.sum() / reflections.F.sum()                # as in ``verdict.certain_r1``
    if best.r1 > CERTAIN_R1 + noise or best.contact < CERTAIN_CONTACT:
        return False
    if len(search.d) < FEW * (6 * len(search.molecules) + len(search.joints.a)) and search.rounds < LEAST_ROUNDS:
        return False
    return search.gap() > (DOUBT if search.found >= 3 else 2.2) and search.r_free() < CERTAIN_FREE + noise


@one_thread()
def place(reflections, molecules, counts=None, *, minutes=1.0, seed=0, groups=None, chosen=None, several=1,
          watch=None) -> Solution:
    """Find known molecules in a cell.

    Parameters
    ----------
    reflections : Reflections
    molecules : sequence of KnownMolecule; counts : of each in a formula unit, one by default
    minutes : when to give up; the search ends before that when its answer is certain (``is_certain``)
    groups : sequence of gemmi.SpaceGroup in which the structure may be, as for ``charge_flipping.solve``
    chosen : Arrangement, by default those that the volume allows
    several : solutions that are wanted, the best one and its ``others``
    watch : function that is called now and then with a Progress

    Returns
    -------
    Solution, hydrogen included, with ``Evidence`` of this module

    Raises
    ------
    PlacingError
        If the molecules cannot fill the cell in any of the groups.
    """
    began = time.perf_counter()
    deadline, rng = began + 60 * minutes, np.random.default_rng(seed)
    counts, options, refused = counts or [1] * len(molecules), [], None
    for group in groups or [reflections.spacegroup]:
        try:
            fitting = [chosen] if chosen else arrangements(molecules, counts, reflections.cell, group)
        except PlacingError as error:
            refused = refused or error
            continue
        present = ~np.array(group.operations().systematic_absences(reflections.hkl.astype(np.int32)), bool)
        refiner = Refiner(replace(reflections.select(present), spacegroup=group))
        options += [(rank, len(options), refiner, arrangement) for rank, arrangement in enumerate(fitting)]
    if not options:
        raise refused
    options.sort(key=lambda option: option[:2])  # the likeliest of each group first
    searches, best = [], None

    def tell():
        if watch:
            watch(Progress(sum(search.tried for search in searches), time.perf_counter() - began,
                           best.pool[0].r1 if best else np.inf, np.nan))

    # whatever the time, two rounds: compiling may have used it up
    while time.perf_counter() < deadline or (best is None or best.rounds < 2):
        # every option once or twice, then the best one two times of three
        rounds = [search.rounds for search in searches]
        if best and len(options) > 1 and (best.rounds < 2 or sum(rounds) % 3):
            search = best
        elif len(searches) < len(options) and (not best or sum(rounds) >= 3 * len(searches)):
            searches.append(search := Search(options[len(searches)][2], molecules, options[len(searches)][3]))
        else:
            search = searches[int(np.argmin(rounds))]
        search.round(rng, deadline, tell)
        best = min((s for s in searches if s.pool), key=lambda s: s.pool[0].cost, default=None)
        tell()
        if best and is_certain(best):
            break
    solution = solution_of(best, time.perf_counter() - began)
    return replace(solution, others=_others(searches, best, several))


def solution_of(search, seconds) -> Solution:
    """The best placement of a search as a Solution: refined to the end, symmetric on special positions, with hydrogen."""
    special = any(part.order > 1 for part in search.arrangement.parts)
    # what is brought to the symmetry of its site may lose by it, and another placement win
    finished = [_finished(search, placement) for placement in search.pool[:MOST_FINISHED if special else 1]]
    best = min(finished, key=lambda one: one[1].r1)
    search.pool = [best[0], *(p for p in search.pool if p is not best[0])]
    return _weighed(search, best, search.found, search.next_r1(), seconds)


def _weighed(search, finished, found, next_r1, seconds) -> Solution:
    """What ``_finished`` gives as a Solution with Evidence."""
    (best, model, xyz, u, strain), refiner = finished, search.refiner
    reflections, distances = refiner.reflections, distances_of(search.rows, best.xyz.astype(float))
    evidence = Evidence(model.r1, left_out(search, xyz, u, distances), found, search.tried, next_r1, strain, best.contact,
                        search.arrangement.describe(search.known))
    evidence = replace(evidence, probability=probability(evidence))
    return Solution(fract=model.fract, heights=model.heights, elements=model.elements, u_iso=model.u_iso, occ=model.occ,
                    rho=refiner.map(model), cell=reflections.cell, spacegroup=reflections.spacegroup, r1=model.r1,
                    figure_of_merit=float("nan"), trials=search.tried, seconds=seconds, engine="known molecule",
                    evidence=evidence)


def _others(searches, chosen, several) -> tuple[Solution, ...]:
    """The best placements that are other structures than the best one of `chosen`, or in other space groups, until there are
    `several` with it."""
    kept = [(chosen, chosen.pool[0])]
    rest = sorted(((s, p) for s in searches for p in s.pool[:MOST_COMPARED]), key=lambda pair: pair[1].cost)
    for search, placement in rest[:MOST_COMPARED]:
        if len(kept) < several and not any(_alike(placement, one, search, other) for other, one in kept):
            kept.append((search, placement))
    made = [_weighed(search, _finished(search, placement), 0, chosen.pool[0].r1, 0.0) for search, placement in kept[1:]]
    return tuple(sorted(made, key=lambda solution: -solution.probability))


def _alike(placement, other, search, search_of_other):
    """Whether most atoms of two placements match."""
    frac, reflections = np.linalg.inv(search.refiner.orth), search.refiner.reflections
    if reflections.spacegroup.xhm() != search_of_other.refiner.reflections.spacegroup.xhm():
        return False
    match = match_atoms(placement.refined @ frac.T, other.refined @ frac.T, reflections.cell, reflections.spacegroup)
    return match.n_matched >= 0.8 * max(len(placement.refined), match.n_true)


def _finished(search, best):
    """(best, Model with hydrogen, xyz (n, 3) Å, u, strain) of a Placement."""
    refiner = search.refiner
    distances = distances_of(search.rows, best.xyz.astype(float))
    xyz, u, _, strain = refine(best.refined, search.data, refiner, search.sigma, distances, 15, best.u)
    special = [c for c, part in enumerate(search.arrangement.parts) if part.order > 1]
    kept, occ = np.ones(len(xyz), bool), search.occ.copy()
    for cycles in (8, 0) if special else ():
        for c in special:
            rows = slice(search.joints.first[c], search.joints.first[c + 1])
            xyz[rows], kept[rows], occ[rows], _ = search.symmetric(c, xyz)
        if cycles:
            xyz, u, _, strain = refine(xyz, search.data, refiner, search.sigma, distances, cycles, u)
    hydrogen, parents = [], []
    for c, molecule in enumerate(search.molecules):
        i, j = search.joints.first[c], search.joints.first[c + 1]
        h = with_hydrogen(molecule, xyz[i:j], int(best.chosen[c]) % len(molecule.conformers))
        mine = kept[i:j][molecule.parents]
        hydrogen.append(h[mine])
        parents.append(molecule.parents[mine] + i)
    parents = np.concatenate(parents)
    fract = np.concatenate([xyz[kept], *hydrogen]) @ np.linalg.inv(refiner.orth).T
    elements = (*[e for e, k in zip(search.elements, kept) if k], *["H"] * len(parents))
    u_iso = (U_START + u) * np.where(np.array(elements) == "H", 1.2, 1.0)
    model = refiner.score(Model(fract % 1, elements, u_iso, np.concatenate([occ[kept], occ[parents]]),
                                np.full(len(fract), np.nan)))
    return best, model, xyz, u, strain


def symmetric(xyz, elements, order, orth, rot, tran):
    """A molecule brought to the symmetry of its site: the operators that move its centre least.

    Each atom is averaged with the atoms of its element that the operators bring nearest to it, pair by pair; where these are
    further than ASTRAY off the molecule is disordered over the site there, and the atom stays as it is.

    Returns
    -------
    xyz (n, 3) Å, kept (n,) bool: one atom of each set that symmetry makes equal, occ (n,): crystallographic occupancy,
    disordered (n,) bool
    """
    frac = np.linalg.inv(orth)
    fract = xyz @ frac.T
    centre = fract.mean(0)
    moved = np.einsum("gij,j->gi", rot, centre) + tran - centre
    site = np.argsort(np.linalg.norm((moved - np.round(moved)) @ orth.T, axis=1), kind="stable")[:order]
    shift = tran[site] - np.round(moved[site])
    images = (np.einsum("gij,nj->gni", rot[site], fract) + shift[:, None]) @ orth.T      # (order, n, 3) Å
    other = np.array(elements)[:, None] != np.array(elements)
    partner, apart = [], []
    for image in images:
        squared = ((xyz[:, None] - image) ** 2).sum(-1)
        rows, columns = linear_sum_assignment(np.where(other, 1e6, squared))
        partner.append(columns)
        apart.append(np.sqrt(squared[rows, columns]))
    partner, apart = np.array(partner), np.array(apart)
    near = (apart < ASTRAY).all(0)
    made = np.where(near[:, None], images[np.arange(order)[:, None], partner].mean(0), xyz)
    kept, occ = np.zeros(len(xyz), bool), np.full(len(xyz), 1 / order)
    for i in range(len(xyz)):
        orbit = set(partner[:, i].tolist()) | {i} if near[i] else {i}
        kept[i] = not near[i] or i == min(orbit)
        occ[i] = len(orbit) / order
    return made, kept, occ, ~near


def completed(solution: Solution, reflections, elements) -> Solution:
    """A placed fragment with the other atoms from maps (``Refiner.complete``), weighed as what charge flipping finds.

    elements : {symbol: atoms in the asymmetric unit}; nothing is added where they are unknown
    """
    refiner, contents = Refiner(reflections), without_hydrogen(elements)
    heavy = np.flatnonzero(np.array(solution.elements) != "H")
    model = refiner.score(Model(solution.fract[heavy], tuple(solution.elements[i] for i in heavy), solution.u_iso[heavy],
                                solution.occ[heavy], solution.heights[heavy]))
    if sum(contents.values()) > model.occ.sum() + 0.5:
        contents = dict(sorted(contents.items(), key=lambda pair: -gemmi.Element(pair[0]).atomic_number))
        filled = refiner.rename(refiner.least_squares(refiner._add_peaks(model, contents), 4), contents)
        model = min(filled, refiner.complete(filled, contents, certain_r1(elements, reflections)), key=lambda m: m.r1)
    evidence = weigh(model, refiner, elements or model.elements)
    return replace(solution, fract=model.fract % 1, heights=model.heights, elements=model.elements, u_iso=model.u_iso,
                   occ=model.occ, rho=refiner.map(model), r1=model.r1, engine="known fragment", evidence=evidence)


def shelx_restraints(solution: Solution, names, d_min) -> list[str]:
    """DFIX of the bonds and DANG of the distances across one angle, as lines for SHELXL; none for data beyond RESTRAINED Å.

    Distances are those of the atoms as placed, which were held to those of the molecule. Pairs of which one atom is an
    equivalent of one in the list are left out.

    Parameters
    ----------
    names : (n,) of the atoms; d_min : Å, of the data
    """
    pairs = {"DFIX": {}, "DANG": {}}
    for molecule in whole_molecules(solution.fract, solution.elements, solution.cell, solution.spacegroup):
        near, bonds = [set() for _ in molecule.atom], set(map(tuple, molecule.bonds.tolist()))
        for a, b in bonds:
            near[a].add(b)
            near[b].add(a)
        across = {pair for around in near for pair in combinations(sorted(around), 2)} - bonds
        for kind, some in (("DFIX", sorted(bonds)), ("DANG", sorted(across))):
            for a, b in some:
                if molecule.own[[a, b]].all():
                    length = f"{np.linalg.norm(molecule.xyz[a] - molecule.xyz[b]):.3f}"
                    pairs[kind].setdefault(length, []).append(f"{names[molecule.atom[a]]} {names[molecule.atom[b]]}")
    lines = []
    for kind, sigma in (("DFIX", SIGMAS[0]), ("DANG", 2 * SIGMAS[0])):
        for length, named in sorted(pairs[kind].items()):
            lines += [f"{kind} {length} {sigma:g} {' '.join(named[i:i + 6])}" for i in range(0, len(named), 6)]
    return lines if d_min > RESTRAINED else []


def left_out(search, xyz, u, distances: Distances, seed=0) -> float:
    """Σ |F - |Fcalc|| / Σ F over all reflections, each where it was left out of the refinement from atoms moved by 0.1 Å."""
    rng = np.random.default_rng(seed)
    part = rng.permutation(np.arange(len(search.d)) % FOLDS)
    F, error = search.data.F.astype(float), 0.0
    for fold in range(FOLDS):
        out = part == fold
        sigma = np.where(out, 1e9, search.sigma)                              # weight nearly none
        moved, u2, *_ = refine(xyz + rng.normal(0, 0.1, xyz.shape), search.data, search.refiner, sigma, distances, 8, u)
        re, im = amplitudes_of(moved.astype(np.float32), search.data)
        a = np.hypot(re, im) * np.exp(-8 * np.pi**2 * u2 * 0.25 / search.d**2)
        k = (a[~out] @ F[~out]) / (a[~out] @ a[~out])
        error += np.abs(F - k * a)[out].sum()
    return float(error / F.sum())
