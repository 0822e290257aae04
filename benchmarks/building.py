"""What building by omission finds at which resolution, what its parts are worth, and how long a round takes.

Real molecules of P2₁/c, P2₁, P-1 and P2₁2₁2₁ of one part of SPLIT.csv, exact amplitudes, formula known, --seconds of
processor time a crystal at most (the engine's clock is set to that, so that other work on the machine does not count). A
structure is solved when 80 % of its non-H atoms are found within 0.5 Å at the best allowed origin and hand. Variants: the
*engine*; *no omission*, starts completed from difference maps alone (effort quick); *no restraints*; *one origin* for each
start; *no guide*, the phases of a start make its first atoms alone; *no hydrogen*, none is put
onto the atoms found; *elements only*, no numbers of atoms. cc_ext is the correlation of the amplitudes to 0.8 Å that were not
given with the true ones.

A row is written as soon as it is there, and none is done twice: a run goes on where the last one stopped.

Usage: python benchmarks/building.py --crystals FOLDER [--part report] [--kind light] [--d-min 1.5 1.75] [--n 20]
           [--variants engine "no omission"] [--seconds 30] [--out FOLDER]
It writes building.csv, a row a structure, and building.json into --out, by default RUNS/benchmarks.
"""

import argparse
import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
from tqdm import tqdm

from xrd_helpers.cif import read_cif
from xrd_helpers.config import UserError, run_folder, write_json
from xrd_helpers.phasing import charge_flipping, phase
from xrd_helpers.phasing.building import Atoms, Builder, Chain
from xrd_helpers.phasing.origin import match_solution
from xrd_helpers.phasing.restraints import RestrainedRefiner
from xrd_helpers.reflections import Reflections, unique_hkl
from xrd_helpers.structure_factors import structure_factors
from xrd_helpers.summary import git_state, machine

GROUPS = {14, 4, 2, 19}
VARIANTS = ("engine", "no omission", "no restraints", "one origin", "no guide", "no hydrogen", "elements only")
TRIALS = {"no omission": 24}   # what the engine used before it built
ROUNDS = 50                    # whose time is taken


def crystals_of(folder, part, kind, n):
    """The first `n` of one part and class, in an order drawn with a fixed seed."""
    names, found = pd.read_csv(Path(folder) / "SPLIT.csv"), []
    for name in names["file"][names["part"] == part]:
        try:
            crystal = read_cif(Path(folder) / name)
        except UserError:
            continue
        if crystal.spacegroup.number in GROUPS and crystal.light == (kind == "light"):
            found.append((name, crystal))
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:n]]


def data_of(crystal, d_min):
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
    return Reflections.of_good_data(hkl, np.abs(structure_factors(crystal, hkl)), crystal.cell, crystal.spacegroup)


def search(crystal, data, variant, seconds):
    """(Solution or None, seconds of processor time)"""
    elements = dict.fromkeys(crystal.contents, 1.0) if variant == "elements only" else crystal.contents
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(time, "perf_counter", time.process_time))
        if variant == "no restraints":
            stack.enter_context(mock.patch.object(RestrainedRefiner, "fit", unrestrained(RestrainedRefiner.fit)))
        if variant == "one origin":
            stack.enter_context(mock.patch.object(charge_flipping, "ORIGINS", 1))
        if variant == "no guide":
            stack.enter_context(mock.patch.object(Chain, "follow", lambda self, until: None))
        if variant == "no hydrogen":
            stack.enter_context(mock.patch.object(charge_flipping, "with_hydrogen", lambda refiner, model, most: model))
        began = time.process_time()
        minutes = 0 if variant == "no omission" else seconds / 60
        found = phase(data, elements, TRIALS.get(variant), minutes=minutes)
        return found, time.process_time() - began


def cc_ext(solution, crystal, d_min, d_target=0.8):
    """Correlation with the true amplitudes from d_min to d_target of those of a solution."""
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_target)
    hkl = hkl[crystal.cell.calculate_d_array(hkl.astype(np.int32)) < d_min]
    found, true = (np.abs(structure_factors(one, hkl)) for one in (solution.as_crystal(), crystal))
    return float(np.corrcoef(found, true)[0, 1]) if len(hkl) > 1 else np.nan


def unrestrained(fit):
    return lambda self, fract, kind, u_iso, occ, cycles, restrained=True, extra=None: fit(self, fract, kind, u_iso, occ, cycles,
                                                                                          False, extra)


def round_ms(crystal, d_min=1.5):
    """Milliseconds of one round of omission, filling and refinement, from the true atoms."""
    data = data_of(crystal, d_min)
    contents = {symbol: n for symbol, n in crystal.contents.items() if symbol not in ("H", "D")}
    builder = Builder(RestrainedRefiner(data, list(contents)), contents)
    kind = builder.refiner.kinds(np.array(crystal.elements)[crystal.heavy])
    n = len(kind)
    atoms = builder.weighed(builder.refined(Atoms(crystal.fract[crystal.heavy], kind, np.full(n, 0.04),
                                                  crystal.occ[crystal.heavy]), 3))
    times = []
    with charge_flipping.one_thread():
        for _ in range(ROUNDS):
            began = time.process_time()
            builder.round(atoms)
            times.append(1000 * (time.process_time() - began))
    return {"name": crystal.name, "group": crystal.spacegroup.xhm(), "atoms": n, "reflections": len(data),
            "ms_per_round": round(float(np.median(times)), 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crystals", required=True, help="folder with CIF files and SPLIT.csv")
    parser.add_argument("--part", default="report")
    parser.add_argument("--kind", nargs="+", default=["light", "heavier"])
    parser.add_argument("--d-min", nargs="+", type=float, default=[0.8, 1.0, 1.2, 1.5, 1.75, 2.0])
    parser.add_argument("--n", type=int, default=20, help="crystals of each kind")
    parser.add_argument("--variants", nargs="+", default=["engine"], choices=VARIANTS)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--out", default="", help="folder of the results; RUNS/benchmarks by default")
    given = parser.parse_args()
    folder = Path(given.out) if given.out else run_folder("benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "building.csv"
    keys = ["variant", "part", "kind", "d_min", "file"]
    done = set(pd.read_csv(path)[keys].itertuples(index=False, name=None)) if path.exists() else set()
    crystals = {kind: crystals_of(given.crystals, given.part, kind, given.n) for kind in given.kind}
    jobs = [(variant, given.part, kind, d, name, crystal) for variant in given.variants for d in given.d_min
            for kind in given.kind for name, crystal in crystals[kind]]
    for *about, crystal in tqdm([job for job in jobs if job[:5] not in done]):
        variant, _, _, d_min, _ = about
        data = data_of(crystal, d_min)
        found, seconds = search(crystal, data, variant, given.seconds)
        match = match_solution(found, crystal)
        row = dict(zip(keys, about)) | {
            "group": crystal.spacegroup.xhm(), "atoms": int(crystal.heavy.sum()), "reflections": len(data),
            "found": sum(element != "H" for element in found.elements) if found else 0,
            "matched": match.n_matched / match.n_true if match else 0.0,
            "solved": bool(match and match.n_matched >= 0.8 * match.n_true), "claimed": bool(found and found.accepted),
            "r1": found.r1 if found else np.nan, "r_free": found.evidence.r_free if found else np.nan,
            "held": found.evidence.held if found else np.nan, "expected": found.evidence.expected if found else np.nan,
            "probability": found.probability if found else 0.0, "trials": found.trials if found else 0, "seconds": seconds,
            "hydrogen": found.elements.count("H") if found else 0,
            "cc_ext": cc_ext(found, crystal, d_min) if found else np.nan}
        pd.DataFrame([row]).to_csv(path, mode="a", header=not path.exists(), index=False)
    report(path, crystals, given)


def report(path, crystals, given):
    table = pd.read_csv(path)
    table["wrong claim"] = table["claimed"] & ~table["solved"]
    shares = table.groupby(["variant", "part", "kind", "d_min"]).agg(
        crystals=("solved", "size"), solved=("solved", "sum"), claimed=("claimed", "sum"), wrong_claims=("wrong claim", "sum"),
        seconds=("seconds", "mean"))
    print(shares.round(2).to_string())
    near = [crystal for part in crystals.values() for _, crystal in part
            if crystal.spacegroup.number == 14 and 15 <= crystal.heavy.sum() <= 25]
    rounds = [round_ms(crystal) for crystal in near[:5]]
    print(pd.DataFrame(rounds).to_string(index=False))
    options = {name: value for name, value in vars(given).items() if name not in ("crystals", "out")}
    write_json(path.with_suffix(".json"), {
        "table": json.loads(shares.reset_index().to_json(orient="records")), "rounds": rounds, "commit": git_state(),
        "machine": machine(), "options": options})


if __name__ == "__main__":
    main()
