"""How far a claim can be trusted: many searches with a known answer, and the probability fitted to them.

A case is a crystal, real (CIF files of a folder, of its part `tune` where SPLIT.csv tells; salts and metals of another
one) or made up (recipe ``molecules``), with amplitudes to 0.8-2.2 Å, errors of 0-10 %, up to 30 % of the reflections missing,
the right formula, elements alone or an incomplete formula, and up to SECONDS of processor time. Some are looked for in
another space group of their Laue class. HOPELESS cases have amplitudes that no structure explains. Of each
a row of a CSV file says what was found, which share of the non-H atoms is right (within 0.5 Å; 80 % is solved) and how
the features stand; other features that were thought of are written beside them. Cases are numbered: the same number and
seed is the same case, and a run goes on where the last one stopped.

Usage: python benchmarks/verdict.py --crystals FOLDER [--simple FOLDER] --minutes 60 [--seed 1] [--csv FILE]     collect
       python benchmarks/verdict.py --fit [--csv FILE]             write xrd_helpers/phasing/verdict.json and a figure
Both may be given at once. The cases of the verdict that is shipped, two runs of 22 minutes with seeds 2 and 3, are in
benchmarks/results/verdict.csv.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import gemmi
import matplotlib
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from tqdm import tqdm

from xrd_helpers.cif import read_cif
from xrd_helpers.cif_folders import read_cif_folders
from xrd_helpers.config import UserError, run_folder, write_json
from xrd_helpers.metrics import correlation
from xrd_helpers.phasing import match_solution, phase, verdict
from xrd_helpers.phasing.flipping_grid import normalised_amplitudes
from xrd_helpers.phasing.refine import Model
from xrd_helpers.phasing.restraints import RestrainedRefiner
from xrd_helpers.phasing.spacegroups import laue_group
from xrd_helpers.plots import plot_calibration
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.reflections import Reflections, unique_hkl
from xrd_helpers.structure_factors import structure_factors
from xrd_helpers.summary import git_state, machine

matplotlib.use("Agg")

FEATURES = ("free", "held", "bonded", "steady")   # of verdict.features, those that are used
HOPELESS = ("shuffled", "shuffled in shells", "scaled axes", "permuted axes", "another crystal", "cut at 2.5 Å")
SECONDS = (3, 10, 30)              # of processor time, one of these a case
FEWEST = 20                        # reflections of a case
MOST_ATOMS = 40                    # non-H atoms: larger ones take long and teach no more
MOST_IN_P1 = 100                   # atoms in the cell, where the answer is compared in P1
SYNTHETIC_GROUPS = ["P 1 21/c 1", "P -1", "P 1 21 1", "P 21 21 21", "C 1 2/c 1", "P b c a", "P 1", "C 1 2 1"]
FOLDS = 10                         # of crystals, in cross-validation
RIDGE = 1.0                        # on weights of standardised features: of the order of one case
SURE, NEVER = 0.01, 0.1            # wrong share among "solved", at most; probability below which it is "not solved"
LEAST = 0.9                        # probability of "solved", at least: that of many sure ones must not hide doubtful ones
BINS = (0, 0.02, 0.1, 0.3, 0.7, 0.9, 0.98, 0.995, 1.0)


# --- cases ---


class Crystals:
    """Real ones by name, and made-up ones by number."""

    def __init__(self, folder, simple, seed):
        split = Path(folder) / "SPLIT.csv"
        if split.exists():
            table, read = pd.read_csv(split), []
            for name in table["file"][table["part"] == "tune"]:
                try:
                    read.append(read_cif(Path(folder) / name))
                except UserError:
                    continue
        else:
            read, _ = read_cif_folders([folder])
        self.real, self.seed = [c for c in read if c.heavy.sum() <= MOST_ATOMS], seed
        self.simple = read_cif_folders([simple])[0] if simple else []

    def draw(self, rng):
        while True:
            kind = rng.random()
            if kind < 0.08 and self.simple:
                return self.simple[rng.integers(len(self.simple))]
            if kind < 0.65:
                return self.real[rng.integers(len(self.real))]
            group = SYNTHETIC_GROUPS[rng.integers(len(SYNTHETIC_GROUPS))]
            crystal = random_crystals(1, 1000 + self.seed, [group], int(rng.integers(10**6)), "molecules")[0]
            if crystal.heavy.sum() <= MOST_ATOMS:
                return replace(crystal, name=f"made {crystal.name}")


def formula(rng, crystal):
    """(what is said of the formula, elements as ``phase`` takes them)."""
    contents = dict(crystal.contents)
    kind = rng.choice(["right", "no H", "kinds", "unknown", "one missing", "numbers wrong"], p=[0.35, 0.1, 0.25, 0.1, 0.1, 0.1])
    heavy = [symbol for symbol in contents if symbol not in ("H", "D", "C")]
    if kind == "no H":
        contents = {symbol: n for symbol, n in contents.items() if symbol not in ("H", "D")}
    elif kind == "kinds":
        contents = dict.fromkeys(contents, 1.0)
    elif kind == "unknown":
        contents = {}
    elif kind == "one missing" and heavy:
        contents.pop(heavy[rng.integers(len(heavy))])
    elif kind == "numbers wrong":
        contents = {symbol: max(1.0, round(n * rng.uniform(0.75, 1.25))) for symbol, n in contents.items()}
    return kind, contents


def measured(rng, crystal, d_min, hkl=None, F=None):
    """Amplitudes with errors and gaps -> (Reflections, noise, share missing)."""
    if hkl is None:
        hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
        F = np.abs(structure_factors(crystal, hkl))
    noise, missing = rng.choice([0, rng.uniform(0, 0.1)], p=[0.2, 0.8]), rng.choice([0, rng.uniform(0, 0.3)])
    sigma = noise * F + (0.01 + noise / 4) * F.mean()
    keep = rng.random(len(F)) >= missing
    keep[:20] = True
    F = np.abs(F + (noise > 0) * sigma * rng.standard_normal(len(F)))
    return Reflections(hkl[keep], F[keep], sigma[keep], crystal.cell, crystal.spacegroup), noise, missing


def hopeless(rng, kind, crystals, crystal, d_min):
    """Reflections that lie, and the crystal that would be the answer all the same, or None."""
    if kind == "cut at 2.5 Å":
        return measured(rng, crystal, 2.5), crystal
    if kind == "scaled axes":  # the same amplitudes in a wrong cell: its answer is the molecule, distorted
        right = measured(rng, crystal, d_min)
        lengths = np.array(crystal.cell.parameters[:3]) * (1 + rng.choice([-1, 1], 3) * rng.uniform(0.05, 0.15, 3))
        cell = gemmi.UnitCell(*lengths, *crystal.cell.parameters[3:])
        data = right[0]
        return (Reflections(data.hkl, data.F, data.sigF, cell, data.spacegroup), *right[1:]), replace(crystal, cell=cell)
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
    if kind == "another crystal":
        other = crystals.draw(rng)
        same = other.spacegroup.xhm() == crystal.spacegroup.xhm()
        return measured(rng, crystal, d_min, hkl, np.abs(structure_factors(other, hkl)) + 1e-3), (
            replace(other, cell=crystal.cell) if same else None)
    if kind == "permuted axes":
        F = np.abs(structure_factors(crystal, hkl[:, [1, 2, 0]])) + 1e-3
        return measured(rng, crystal, d_min, hkl, F), replace(crystal, fract=crystal.fract[:, [2, 0, 1]])
    F = np.abs(structure_factors(crystal, hkl))
    order = np.argsort(crystal.cell.calculate_d_array(hkl.astype(np.int32)))
    shells = np.array_split(order, max(1, len(order) // 50)) if kind == "shuffled in shells" else [order]
    for rows in shells:
        F[rows] = F[rng.permutation(rows)]
    return measured(rng, crystal, d_min, hkl, F), None


def regroup(rng, reflections):
    """The same reflections in another group of their Laue class in which none of them but weak ones is absent."""
    group = reflections.spacegroup
    centring = group.operations().find_centering()
    others = [other for other in gemmi.spacegroup_table() if other.number != group.number and other.ext != "1"
              and laue_group(other) == laue_group(group) and other.operations().find_centering() == centring]
    rng.shuffle(others)
    for other in others:
        absent = np.array(other.operations().systematic_absences(reflections.hkl.astype(np.int32)), bool)
        if (absent & (reflections.F > 3 * reflections.sigF)).sum() == 0:
            part = reflections.select(~absent)
            return Reflections(part.hkl, part.F, part.sigF, part.cell, other)
    return reflections


def case(number, seed, crystals) -> dict | None:
    """Row of one case; None where no start gave any atoms."""
    rng = np.random.default_rng([seed, number])
    crystal = crystals.draw(rng)
    kind = HOPELESS[number // 4 % len(HOPELESS)] if number % 4 == 3 else "normal"
    if number % 8 == 1 and crystal.heavy.sum() * len(crystal.spacegroup.operations()) <= MOST_IN_P1:
        kind = "other group"
    d_min = rng.uniform(0.8, 1.2) if rng.random() < 0.25 else rng.uniform(1.2, 2.2)
    if len(unique_hkl(crystal.cell, crystal.spacegroup, 2.5 if kind == "cut at 2.5 Å" else d_min)) < FEWEST:
        return None
    said, elements = formula(rng, crystal)
    seconds_most, answer = SECONDS[rng.integers(len(SECONDS))], crystal
    if kind in HOPELESS:
        (data, noise, missing), answer = hopeless(rng, kind, crystals, crystal, d_min)
    else:
        data, noise, missing = measured(rng, crystal, d_min)
    if kind == "other group":
        data = regroup(rng, data)
    began = time.process_time()
    with mock.patch.object(time, "perf_counter", time.process_time):
        found = phase(data, elements, seed=number, minutes=seconds_most / 60)
    seconds = time.process_time() - began
    row = {"number": number, "name": crystal.name, "group": crystal.spacegroup.xhm(), "in": data.spacegroup.xhm(),
           "light": crystal.light, "atoms": int(crystal.heavy.sum()), "kind": kind, "d_min": data.d_min, "noise": noise,
           "missing": missing, "formula": said, "trials": found.trials if found else 0, "seconds": seconds,
           "reflections": len(data)}
    if found is None:
        return row
    match = answer and match_solution(found, answer)
    evidence = found.evidence
    return row | {"matched": match.n_matched / match.n_true if match else 0.0, "r1": evidence.r1, "r_free": evidence.r_free,
                  "expected": evidence.expected, "probability": evidence.probability, **verdict.features(evidence),
                  **others(found, data)}


def others(found, data) -> dict:
    """Features that were tried beside those of ``verdict.features``, more of each for right atoms."""
    refiner = RestrainedRefiner(data, sorted(set(found.elements)))
    model = refiner.score(Model(found.fract, found.elements, found.u_iso, found.occ, found.heights))
    Fc = model.scale * np.abs(refiner.structure_factors(model))
    E, Ec = normalised_amplitudes(data), normalised_amplitudes(replace(data, F=Fc))
    high = data.d < np.quantile(data.d, 0.3)
    difference = refiner.map(model, difference=True)
    away = verdict.left_out(refiner, model)[1]
    ratio = len(data) / (4 * len(found.fract) + 1)
    return {"fit": float(np.log(found.evidence.expected / min(found.evidence.r1, 10))), "data": float(np.log(ratio)),
            "agreement": found.figure_of_merit, "cc_E": correlation(E, Ec), "cc_high": correlation(data.F[high], Fc[high]),
            "u_spread": float(np.log(model.u_iso).std()), "u_mean": float(model.u_iso.mean()),
            "residue": float(difference.max() / difference.std()), "lowest_atom": float(np.nanmin(found.heights)),
            "u_limits": float(((model.u_iso < 0.006) | (model.u_iso > 0.15)).mean()),
            "residual": float(-np.log(difference.std() / refiner.map(model).std())), "away": float(-np.log(away + 1e-3).mean()),
            "held_10": float((away < 0.1).mean()), "held_20": float((away < 0.2).mean()), "held_30": float((away < 0.3).mean())}


def collect(path, folder, simple, seed, minutes, most):
    rows = pd.read_csv(path)["number"].tolist() if path.exists() else []
    crystals, end = Crystals(folder, simple, seed), time.monotonic() + 60 * minutes
    numbers = tqdm(range(max(rows, default=-1) + 1, most))
    for number in numbers:
        if time.monotonic() > end:
            break
        row = case(number, seed, crystals)
        if row is None:
            continue
        table = pd.DataFrame([row]).reindex(columns=COLUMNS)
        table.to_csv(path, mode="a", header=not path.exists(), index=False)
        numbers.set_postfix(kind=row["kind"])


COLUMNS = ["number", "name", "group", "in", "light", "atoms", "kind", "d_min", "noise", "missing", "formula", "trials",
           "seconds", "reflections", "matched", "r1", "r_free", "expected", "probability", *FEATURES, "fit",
           "data", "agreement", "cc_E", "cc_high", "residue", "lowest_atom", "residual", "away",
           "held_10", "held_20", "held_30"]


# --- the fit ---


def fit_logistic(X, y) -> np.ndarray:
    """Weights (k + 1,), the constant last, that maximise the likelihood of y (n,) bool given X (n, k), standardised and with
    a ridge; a feature that would count against itself gets weight 0."""
    mean, scale = X.mean(0), X.std(0) + 1e-9
    Z, used = (X - mean) / scale, np.ones(X.shape[1], bool)
    while True:
        fitted = LogisticRegression(C=1 / RIDGE, solver="newton-cholesky", tol=1e-10, max_iter=100).fit(Z[:, used], y)
        w = fitted.coef_[0]
        if (w >= 0).all():
            break
        used[np.flatnonzero(used)[w.argmin()]] = False
    weights = np.zeros(X.shape[1])
    weights[used] = w / scale[used]
    return np.append(weights, fitted.intercept_[0] - weights @ mean)


def clipped(table, names, low=None, high=None):
    """Features (n, k) inside the range of those fitted -> X, low, high."""
    X = table[list(names)].to_numpy(float)
    if low is None:
        finite = np.where(np.isfinite(X), X, np.nan)
        low, high = np.nanmin(finite, axis=0), np.nanmax(finite, axis=0)
    return np.clip(X, low, high), low, high


def held_out(table, names):
    """Probability (n,) of each row by a function fitted without its crystals."""
    fold, p = table["fold"].to_numpy(), np.full(len(table), np.nan)
    for i in range(FOLDS):
        train = table[(fold != i) & table["fitted"]]
        X, low, high = clipped(train, names)
        w = fit_logistic(X, train["right"].to_numpy(bool))
        p[fold == i] = 1 / (1 + np.exp(-clipped(table[fold == i], names, low, high)[0] @ w[:-1] - w[-1]))
    return p


def auc(score, right):
    """Share of the pairs of a right and a wrong one that the score puts in order; rows without a score come last."""
    return float(roc_auc_score(right, pd.Series(score).fillna(-np.inf).rank()))


def threshold(p, right, lost):
    """The lowest probability from which fewer than SURE are wrong, half a case added to the wrong ones: above a
    threshold with none at all, some may be. The odds are e times those of the most convincing of the hopeless."""
    order = np.argsort(-p)
    order = order[~lost[order]]
    share = (np.cumsum(~right[order]) + 0.5) / (np.arange(len(order)) + 1)
    fits = np.flatnonzero(share < SURE)
    least = p[order][fits[-1]] if len(fits) else 1.0
    most = np.clip(p[lost].max(initial=0.0), 0, 0.999)
    return float(max(least, LEAST, most * np.e / (1 - most + most * np.e)))


def prepared(path):
    """Rows with atoms. Hopeless data which gave half of an answer all the same, the molecule distorted in a wrong cell,
    are neither right nor hopeless: they are left out."""
    table = pd.read_csv(path).dropna(subset=["matched", *FEATURES])
    lost, cut = table["kind"].isin(HOPELESS), table["kind"] == HOPELESS[-1]
    table["right"] = table["matched"] >= 0.8
    table["hopeless"] = lost & (table["matched"] < 0.5)
    table = table[~lost | table["hopeless"] | cut].copy()
    # a crystal is in one fold with everything made of it
    table["fold"] = [sum(map(ord, name)) % FOLDS for name in table["name"]]
    table["fitted"] = ~table["hopeless"] | (table["number"] // 24 % 2 == 0)
    return table.reset_index(drop=True)


def fit(path, seed):
    table = prepared(path)
    right, lost, used = (table[name].to_numpy(bool) for name in ("right", "hopeless", "fitted"))
    tried = single_features(table)
    print(f"{len(table)} cases of {table['name'].nunique()} crystals, {right.sum()} right, {lost.sum()} hopeless")
    old = (table["r1"] < np.minimum(0.2, table["expected"] + 0.03)).to_numpy()
    print(f"R1 below 0.20 and the expected one + 0.03: {old.sum()} claims, {(old & ~right).sum()} wrong, "
          f"{(old & lost).sum()} of them of hopeless data")
    best_first = sorted(tried.items(), key=lambda x: -x[1])
    print("AUC of single features: " + ", ".join(f"{name} {value:.3f}" for name, value in best_first))
    without_one = [tuple(f for f in FEATURES if f != left) for left in FEATURES]
    for names in (("fit",), FEATURES[:1], FEATURES[2:3], *without_one, FEATURES,
                  *((*FEATURES, more) for more in OTHERS)):
        p = held_out(table, names)[~lost]
        print(f"  {' + '.join(names):<45} log loss {log_loss(right[~lost], p):.4f}  AUC {auc(p, right[~lost]):.4f}")
    p = held_out(table, FEATURES)
    limit = 1 / (used.sum() + 2)  # no calibration can promise more
    p = np.clip(p, limit, 1 - limit)
    sure = threshold(p, right, lost)
    if sure >= 1 - limit:
        raise SystemExit(f"no threshold has fewer than {100 * SURE:.0f} % wrong above it: collect more cases")
    claims, wrong = 0, 0  # with the threshold, too, chosen without the crystals it is applied to
    for i in range(FOLDS):
        inside = (table["fold"] == i).to_numpy()
        above = inside & (p >= threshold(p[~inside], right[~inside], lost[~inside])) & ~lost
        claims, wrong = claims + int(above.sum()), wrong + int((above & ~right).sum())
    X, low, high = clipped(table[used], FEATURES)
    w = fit_logistic(X, right[used])
    edges = np.array(BINS)
    inside = np.digitize(p, edges[1:-1])
    rows = [{"low": low_p, "high": high_p, "n": int(here.sum()), "right": int((here & right).sum()),
             "mean": float(p[here].mean()) if here.any() else None}
            for k, (low_p, high_p) in enumerate(zip(edges[:-1], edges[1:])) for here in [(inside == k) & ~lost]]
    counts = {name: np.histogram(p[rows_], np.linspace(0, 1, 21))[0]
              for name, rows_ in (("right", right), ("wrong", ~right & ~lost), ("hopeless", lost))}
    summary = {
        "intercept": w[-1], "features": [{"name": name, "weight": weight, "low": a, "high": b}
                                         for name, weight, a, b in zip(FEATURES, w, low, high)],
        "limit": limit, "thresholds": {"not solved": NEVER, "solved": sure}, "calibration": rows, "histogram": counts,
        "held_out": {"cases": len(table), "crystals": int(table["name"].nunique()), "right": int(right.sum()),
                     "auc": auc(p[~lost], right[~lost]), "log_loss": float(log_loss(right[~lost], p[~lost])), "solved": claims,
                     "wrongly": wrong, "missed": int((right & (p < sure)).sum()),
                     "hopeless": {kind: {"n": int((lost & (table["kind"] == kind)).sum()),
                                         "solved": int((lost & (table["kind"] == kind) & (p >= sure)).sum())}
                                  for kind in HOPELESS},
                     "highest_hopeless": float(p[lost].max(initial=0.0))},
        "auc_of_single_features": tried, "seed": seed, "commit": git_state(), "machine": machine(),
        "data": "real molecules of the test folder (at most 40 non-H atoms) and random_crystals, recipe molecules; "
                "amplitudes to 0.8-2.2 Å with errors, gaps and incomplete formulas"}
    write_json(verdict.FILE, summary)
    print(summary["held_out"], summary["thresholds"], pd.DataFrame(rows).to_string(), sep="\n")
    verdict.calibration.cache_clear()
    plot_calibration().savefig(path.with_suffix(".png"), dpi=120)


OTHERS = tuple(COLUMNS[COLUMNS.index("fit"):])


def single_features(table):
    """{feature: AUC by itself}, hopeless cases left out."""
    part = table[~table["hopeless"]]
    return {name: round(auc(part[name], part["right"].to_numpy(bool)), 4) for name in (*FEATURES, *OTHERS)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crystals", default="data/molecules", help="folder with CIF files of real molecules")
    parser.add_argument("--simple", default="", help="folder with CIF files of salts, metals and elements")
    parser.add_argument("--minutes", type=float, default=0, help="for collecting cases")
    parser.add_argument("--most", type=int, default=10**6, help="cases, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--csv", type=Path, default=None, help="by default RUNS/benchmarks/verdict.csv")
    parser.add_argument("--fit", action="store_true")
    given = parser.parse_args()
    path = given.csv or run_folder("benchmarks") / "verdict.csv"
    if given.minutes:
        collect(path, given.crystals, given.simple, given.seed, given.minutes, given.most)
    if given.fit:
        fit(path, given.seed)
