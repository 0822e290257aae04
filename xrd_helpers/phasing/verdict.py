"""Is this the structure? A few properties of found atoms, and how often atoms with such properties were right.

R1 alone does not tell: a heavy atom explains much by itself, and where there are three reflections for each parameter
wrong atoms can be fitted to them. So the atoms are also asked for reflections that they were not fitted to (the idea
of Brünger, 1992, Nature 355, 472) and for chemical sense. A logistic function of these ``features``, fitted by
``benchmarks/verdict.py`` to many searches whose answer is known and kept in verdict.json, gives the probability.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import gemmi
import numpy as np

from ..bonds import covalent_radii, neighbours
from ..crystals import count_elements
from ..reflections import merge
from .origin import allowed_origins, same_lattice_bases
from .peaks import without_hydrogen
from .refine import U_MIN, Model, Refiner
from .restraints import RestrainedRefiner

FILE = Path(__file__).with_name("verdict.json")
WORDS = ("not solved", "uncertain", "solved")
FOLDS = 5              # parts of the reflections, each left out once
SHAKEN = 0.1           # Å, in every direction: what the atoms know of the reflections left out is to be forgotten
NEAR = 0.15            # Å from where it was, as far as an atom may come back to count as held by the data
CYCLES = 6             # of least squares without them
SHORTEST = 1.1         # Å, of a bond between atoms that are not hydrogen (C≡N is 1.14 Å)
LOOSE = 0.2            # Å by which a bond may be longer than the sum of the covalent radii
LEAST_R = 0.01         # what is below it, calculated amplitudes alone give
BY_CHANCE = 0.6        # share of atoms with bonds that wrong ones reach: to have fewer, as ions do, counts no more than that
MELTING = 0.15         # Å², above the U of nearly all atoms of molecules


@dataclass(frozen=True)
class Evidence:
    """What speaks for or against a model.

    r1 : adjusted for the number of parameters; expected : R1 of a right model without hydrogen (``certain_r1``)
    r_free : of reflections left out of the refinement in turn; nan where it was not calculated
    held : share of the atoms that come back when moved (``left_out``); nan as r_free
    bonded : share of the atoms with another one at the length of a bond
    steady : share of the atoms whose U is neither at its lower limit nor above MELTING
    probability : that at least 80 % of the atoms are within 0.5 Å of true ones; nan without r_free
    """

    r1: float
    expected: float
    r_free: float
    held: float
    bonded: float
    steady: float
    probability: float = float("nan")


def certain_r1(elements, reflections) -> float:
    """R1 of a model that lacks nothing but hydrogen: 0.05 + 0.8 Σ sigF / Σ F + (n_H / Σ Z²)^1/2, an upper estimate.

    Beside a heavy atom even wrong light atoms give a low R1, and so does a right model: 0.2 is no proof there. As
    many H as C atoms are assumed where no hydrogen is listed. elements : {symbol: atoms in the asymmetric unit}
    """
    hydrogen = elements.get("H", 0) + elements.get("D", 0) or elements.get("C", 0)
    noise = 0.8 * reflections.sigF.sum() / max(reflections.F.sum(), 1e-30)
    heavy = sum(n * gemmi.Element(symbol).atomic_number ** 2 for symbol, n in without_hydrogen(elements).items())
    return float(0.05 + noise + np.sqrt(hydrogen / heavy))


def left_out(refiner: Refiner, model: Model, seed=0, folds=FOLDS, shaken=SHAKEN, cycles=CYCLES):
    """Refinements in turn without one part of the reflections, from atoms moved a little.

    The atoms are moved by a normal deviate of `shaken` Å along each axis, U is set to one value, and they are refined
    against the other parts of the reflections. Of random atoms r_free is 0.5 to 0.8 (Wilson, 1950, Acta Cryst. 3, 397:
    0.586 without and 0.828 with a centre of symmetry, less what a fitted scale gains). An atom that the data do not
    hold comes back elsewhere, even beside a heavy one which alone gives a low r_free.

    Returns
    -------
    r_free : Σ |F - |Fcalc|| / Σ F over all reflections, each where it was left out; nan of fewer than four
    away : (n,) root mean square distance in Å between each atom and where it came back
    """
    reflections, rng = refiner.reflections, np.random.default_rng(seed)
    folds = min(folds, len(reflections) // 2)
    if folds < 2:
        return np.nan, np.full(len(model.fract), np.nan)
    part = rng.permutation(np.arange(len(reflections)) % folds)
    polar = refiner.orth @ allowed_origins(reflections.spacegroup)[1].T       # (3, k) Å, along which all may move
    error, squared = 0.0, np.zeros(len(model.fract))
    for fold in range(folds):
        move = rng.normal(0, shaken, model.fract.shape) @ np.linalg.inv(refiner.orth).T
        start = replace(model, fract=np.where(model.occ[:, None] > 0.99, model.fract + move, model.fract),
                        u_iso=np.full(len(model.fract), np.median(model.u_iso)))
        refined = refiner.select(part != fold).least_squares(start, cycles)
        rest = refiner.select(part == fold)
        error += np.abs(rest.reflections.F - refined.scale * np.abs(rest.structure_factors(refined))).sum()
        moved = (refined.fract - model.fract) @ refiner.orth.T                # (n, 3) Å
        along = np.median(np.linalg.lstsq(polar, moved.T, rcond=None)[0], axis=1)
        squared += ((moved - polar @ along) ** 2).sum(1) / folds
    return float(error / reflections.F.sum()), np.sqrt(squared)


def bonded(model, cell, spacegroup) -> float:
    """Share of the atoms that have another one, or an image, at the length of a bond.

    That is SHORTEST to the sum of the covalent radii (Cordero et al., 2008, Dalton Trans., 2832, as in gemmi) and LOOSE.
    Of wrong atoms in a cell as full as that of a molecule a third to a half have one. Ions and water have none: what a
    salt lacks here, its r_free has to make up for.
    """
    radius = covalent_radii(model.elements)
    found = neighbours(model.fract, cell, spacegroup, 2 * radius.max() + LOOSE)
    bond = (found.length > SHORTEST) & (found.length < radius[found.i] + radius[found.j] + LOOSE)
    return float(np.isin(np.arange(len(radius)), found.i[bond]).mean())


def weigh(model, refiner, elements, least=0.0) -> Evidence:
    """Evidence for a Model; the costly part, r_free and held, is left out where even with r_free as low as R1 and all
    atoms held the probability would be below `least`: it is then that upper limit."""
    reflections = refiner.reflections
    evidence = Evidence(r1=float(refiner.adjusted_r1(model)), expected=certain_r1(elements, reflections), r_free=float("nan"),
                        held=float("nan"), bonded=bonded(model, reflections.cell, reflections.spacegroup),
                        steady=float(((model.u_iso > 1.2 * U_MIN) & (model.u_iso < MELTING)).mean()))
    most = probability(replace(evidence, r_free=model.r1, held=1.0))
    if most < least:
        return replace(evidence, probability=most)
    r_free, away = left_out(refiner, model)
    evidence = replace(evidence, r_free=r_free, held=float((away < NEAR).mean()))
    return replace(evidence, probability=probability(evidence))


def on_axes_of(solution, reflections):
    """Data brought to the cell and group of a Solution: of the ways the axes allow, the one that its atoms explain best.

    Returns
    -------
    (basis, Model, Refiner) : rows of basis (3, 3) are the axes of the solution in those of the data, so that indices go
    over by hkl @ basis.T; None if the solution is of another lattice
    """
    fits = []
    for basis in same_lattice_bases(reflections.cell, solution.cell):
        hkl = np.round(reflections.hkl @ basis.T).astype(int)
        intensity, sigma = reflections.intensities()
        moved = merge(hkl, intensity, sigma + 1e-9, solution.cell, solution.spacegroup)
        refiner = RestrainedRefiner(moved, sorted(set(solution.elements)))
        model = refiner.score(Model(solution.fract, solution.elements, solution.u_iso, solution.occ, solution.heights))
        fits.append((basis, model, refiner))
    return min(fits, key=lambda fit: fit[1].r1, default=None)


def weigh_solution(solution, reflections, elements) -> Evidence:
    """Evidence for the Solution of any engine, refined first; the reflections are brought to its setting and group."""
    fit = on_axes_of(solution, reflections)
    if fit is None:
        return Evidence(*[float("nan")] * 7)
    _, model, refiner = fit
    if sum(without_hydrogen(elements).values()) < 0.6 * model.occ.sum():  # kinds of atoms rather than a formula
        elements = count_elements(model.elements, model.occ)
    return weigh(refiner.least_squares(model, CYCLES), refiner, elements)


def features(evidence: Evidence) -> dict[str, float]:
    """What the logistic function sees: ln expected / r_free, and shares; more of each is better."""
    return {"free": float(np.log(evidence.expected / max(evidence.r_free, LEAST_R))), "held": evidence.held,
            "bonded": max(evidence.bonded, BY_CHANCE), "steady": evidence.steady}


@lru_cache
def calibration() -> dict:
    """What ``benchmarks/verdict.py`` found: the function, its thresholds, and how often it was right."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def probability(evidence: Evidence, fitted=None) -> float:
    """Logistic function of the features, each held inside the range in which it was calibrated; nan if one is nan.

    It stays 1 / (cases + 2) away from 0 and 1: so many cases cannot promise more.
    """
    fitted, values = fitted or calibration(), features(evidence)
    total = fitted["intercept"] + sum(f["weight"] * np.clip(values[f["name"]], f["low"], f["high"])
                                      for f in fitted["features"])
    limit = fitted["limit"]
    return float(np.clip(1 / (1 + np.exp(-total)), limit, 1 - limit))


def word(p, fitted=None) -> str:
    """One of WORDS for a probability; uncertain where it is unknown (nan)."""
    thresholds = (fitted or calibration())["thresholds"]
    return WORDS[2] if p >= thresholds["solved"] else WORDS[0] if p < thresholds["not solved"] else WORDS[1]


def in_words(evidence: Evidence) -> str:
    """How often results with such a probability were right, and what speaks for this one."""
    if not isinstance(evidence, Evidence):  # of a known molecule
        return evidence.in_words()
    p = evidence.probability
    if np.isnan(p):
        return "How far it can be trusted could not be calculated: its cell is not that of the data"
    row = next((row for row in reversed(calibration()["calibration"]) if row["low"] <= p <= row["high"] and row["n"]), None)
    record = f" ({row['right']} of {row['n']} such results were right in calibration)" if row else ""
    free = f", {evidence.r_free:.3f} for reflections left out of it" if np.isfinite(evidence.r_free) else ""
    held = f"{100 * evidence.held:.0f} % of the atoms return when they are moved, " if np.isfinite(evidence.held) else ""
    return (f"Probability {p:.3f}{record}: R1 {evidence.r1:.3f}, corrected for the number of parameters{free}, where a right "
            f"structure without hydrogen has at most about {evidence.expected:.3f}; {held}{100 * evidence.bonded:.0f} % "
            "have another one at the length of a bond")
