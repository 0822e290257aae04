"""Phasing beside cctbx's charge flipping: the same amplitudes, on one core.

Sets: *loose*, cells of C14 N3 O3 in P2₁/c with atoms anywhere (cctbx's random_structure); *chains*, light random
molecules of recipe ``molecules`` in P2₁/c with 15-25 non-H atoms; *light* and *heavier*, real molecules of P2₁/c, P2₁, P-1
and P2₁2₁2₁ from a folder of CIF files, with exact amplitudes; *gaps*, some of the light ones at 1.2 Å with only a part of
the reflections; *measured*, data sets of a folder with SOURCES.csv, their measured intensities. A structure is solved when
80 % of its non-H atoms are found within 0.5 Å, at the best allowed origin and hand; *claimed* is what the program itself
takes for solved. cctbx gets as many of its highest peaks as there are atoms, and three in ten more. d50 is the d_min at
which half are solved. Beside that, the time of a cycle of charge flipping: cctbx's one map at a time, ours sixteen.

A row is written as soon as it is there, and none is done twice: a run goes on where the last one stopped, and two may
share a file.

Usage: python benchmarks/phasing.py --crystals FOLDER [--measured FOLDER] [--n 60] [--cap 12] [--no-peer] [--out FOLDER]
It writes phasing.csv (a row a structure), .json and figures into --out, by default RUNS/benchmarks
"""

import argparse
import json
import os
import random
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

try:  # before torch: the other way round cctbx 2025.11 crashes on import
    from cctbx import crystal as cctbx_crystal
    from cctbx import miller, sgtbx
    from cctbx.array_family import flex
    from cctbx.development import random_structure
    from smtbx.ab_initio import charge_flipping as peer_flipping
except ImportError:
    flex = None

import gemmi
import matplotlib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from xrd_helpers.cif import read_cif
from xrd_helpers.cif_folders import read_cif_folders
from xrd_helpers.config import run_folder, write_json
from xrd_helpers.crystals import Crystal
from xrd_helpers.phasing import phase, solved
from xrd_helpers.phasing.charge_flipping import one_thread
from xrd_helpers.phasing.flipping_grid import FlippingGrid, flip
from xrd_helpers.phasing.fourier import MapGrid
from xrd_helpers.phasing.peaks import find_peaks
from xrd_helpers.plots import OURS, plot_phasing_time, plot_solve_rate
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.reflection_files import read_measured
from xrd_helpers.reflections import Reflections, expand_to_p1, unique_hkl
from xrd_helpers.structure_factors import structure_factors
from xrd_helpers.summary import git_state, machine

matplotlib.use("Agg")

RESOLUTIONS = {"loose": (0.8, 1.0, 1.2, 1.3, 1.4, 1.5), "chains": (0.8, 1.0, 1.2, 1.3, 1.4, 1.5),
               "light": (0.8, 1.0, 1.2, 1.5), "heavier": (0.8, 1.0, 1.2, 1.5), "gaps": (1.2,), "measured": (0.0,)}
REAL_GROUPS = {14, 4, 2, 19}
COMPLETE = (1.0, 0.85, 0.7, 0.55, 0.4)  # shares of the reflections of the set gaps
BATCH, CYCLES = 16, 100                 # starts at a time, and cycles, whose time is taken
PEER = "cctbx"


class Attempts(int):
    """cctbx 2025.11 multiplies its limit of iterations by 1.5 and then needs an int: this one stays an int."""

    def __mul__(self, factor):
        return Attempts(int(int(self) * factor))


def loose_atoms(seed):
    random.seed(seed)
    flex.set_random_seed(seed)
    made = random_structure.xray_structure(
        space_group_info=sgtbx.space_group_info("P21/c"), elements=["C"] * 14 + ["N"] * 3 + ["O"] * 3, volume_per_atom=18.0,
        min_distance=1.3, general_positions_only=True, use_u_iso=True, random_u_iso=True, random_u_iso_min=0.02,
        random_u_iso_scale=0.04)
    atoms = made.scatterers()
    return Crystal(f"loose{seed}", gemmi.UnitCell(*made.unit_cell().parameters()), gemmi.SpaceGroup("P 1 21/c 1"),
                   tuple(a.element_symbol() for a in atoms), np.array([a.site for a in atoms]),
                   np.array([a.u_iso for a in atoms]), np.ones(len(atoms)))


def chains(n):
    found, first = [], 0
    while len(found) < n:
        drawn = random_crystals(64, 5, ["P 1 21/c 1"], first, "molecules")
        found += [c for c in drawn if c.light and 15 <= c.heavy.sum() <= 25 and (c.occ > 0.99).all()]
        first += 64
    return found[:n]


def real(folder, n):
    """{light: n / 2 crystals, heavier: n / 2}, drawn with a fixed seed."""
    crystals, _ = read_cif_folders([folder])
    crystals = [c for c in crystals if c.spacegroup.number in REAL_GROUPS]
    order = np.random.default_rng(0).permutation(len(crystals))
    sets = {"light": [], "heavier": []}
    for i in order:
        sets["light" if crystals[i].light else "heavier"].append(crystals[i])
    return {name: part[:n // 2] for name, part in sets.items()}


def measured_sets(folder):
    """Crystals, whose `source` is the file of their reflections."""
    rows = pd.read_csv(Path(folder) / "SOURCES.csv") if folder else pd.DataFrame()
    return [replace(read_cif(Path(folder) / row.model), source=f"{folder}/{row.file}") for row in rows.itertuples()]


def data(name, crystals, d_min):
    """(crystal, Reflections, completeness) one by one."""
    for i, crystal in enumerate(crystals):
        if name == "measured":
            # the model beside it holds the symmetry, where the reflections do not
            path = Path(crystal.source)
            model = path.with_name(f"{path.stem}_model.cif")
            merged = read_measured(path, model if model.exists() else None).merge()
            yield crystal, merged, float("nan")
            continue
        hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
        F = np.abs(structure_factors(crystal, hkl))
        for share in COMPLETE if name == "gaps" else (1.0,):
            kept = np.sort(np.random.default_rng(i).permutation(len(hkl))[:round(share * len(hkl))])
            yield crystal, Reflections.of_good_data(hkl[kept], F[kept], crystal.cell, crystal.spacegroup), share


def by_us(crystal, reflections, trials):
    solution = phase(reflections, crystal.contents, trials)
    return solution and solution.fract, bool(solution and solution.accepted)


def peer_amplitudes(crystal, reflections):
    symmetry = cctbx_crystal.symmetry(unit_cell=crystal.cell.parameters, space_group_symbol=f"Hall: {crystal.spacegroup.hall}")
    indices = flex.miller_index([tuple(h) for h in reflections.hkl.tolist()])
    array = miller.set(symmetry, indices, anomalous_flag=False).array(flex.double(reflections.F))
    return array.set_observation_type_xray_amplitude().map_to_asu()


def by_peer(crystal, reflections, cap):
    """As its documentation shows, with quasi-normalised amplitudes, for `cap` seconds at most."""
    array = peer_amplitudes(crystal, reflections)
    flex.set_random_seed(1000)
    iterator = peer_flipping.weak_reflection_improved_iterator(delta=None)
    search = peer_flipping.solving_iterator(
        iterator, array, yield_during_delta_guessing=True, yield_solving_interval=5,
        normalisations_for=peer_flipping.amplitude_quasi_normalisations, max_solving_iterations=Attempts(500))
    began, in_time = time.perf_counter(), True
    try:
        for _ in search:
            if search.state is search.finished:
                break
            if time.perf_counter() - began > cap:
                in_time = False
                break
    except AssertionError:  # its normalisation fails where a shell has no intensity
        return None, False
    best, n_atoms = None, crystal.heavy.sum()
    for sf, *_ in list(search.f_calc_solutions)[:3]:
        hkl = np.array(list(sf.indices()), int)
        rho = MapGrid(expand_to_p1(hkl, crystal.spacegroup), crystal.cell, reflections.d_min / 3).map(np.array(list(sf.data())))
        fract = find_peaks(rho, crystal.cell, crystal.spacegroup, 1.3 * n_atoms, 0.9).fract
        if best is None or solved(fract, crystal):
            best = fract
    return best, bool(len(search.f_calc_solutions)) and in_time


def run(name, crystals, d_min, programs, path):
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["set", "d_min", "program", "name", "completeness"])
    done = set(zip(done["set"], done["d_min"].round(2), done["program"], done["name"], done["completeness"].fillna(0)))
    for crystal, reflections, share in data(name, crystals, d_min):
        about = {"set": name, "d_min": d_min or round(reflections.d_min, 2), "completeness": share, "name": crystal.name,
                 "atoms": int(crystal.heavy.sum()), "volume": crystal.cell.volume}
        for program, solve in programs.items():
            if (name, about["d_min"], program, crystal.name, np.nan_to_num(share)) in done:
                continue
            began = time.perf_counter()
            fract, claimed = solve(crystal, reflections)
            seconds = time.perf_counter() - began
            row = about | {"program": program, "solved": fract is not None and solved(fract, crystal), "claimed": claimed,
                           "seconds": seconds}
            pd.DataFrame([row]).to_csv(path, mode="a", header=not path.exists(), index=False)


def cycle_times(crystals, d_min=1.0):
    """Milliseconds of one cycle of one map, medians over the crystals: ours alone, ours BATCH at a time, cctbx's."""
    times = []
    for crystal, reflections, _ in data("", crystals, d_min):
        grid = FlippingGrid(reflections)
        generator, row = torch.Generator().manual_seed(0), []
        with one_thread():
            for batch in (1, BATCH):
                start, began = grid.random_start(batch, generator), time.perf_counter()
                grid.run(start, flip, CYCLES)
                row.append(1000 * (time.perf_counter() - began) / CYCLES / batch)
        p1 = peer_amplitudes(crystal, reflections).expand_to_p1()
        iterator = peer_flipping.weak_reflection_improved_iterator(delta=1.0)
        iterator.start(p1, p1.random_phases_compatible_with_phase_restrictions())
        iterator.delta = 1.1 * iterator.rho_map.sigma()
        began = time.perf_counter()
        for _ in islice(iterator, CYCLES):
            pass
        times.append([*row, 1000 * (time.perf_counter() - began) / CYCLES])
    return dict(zip((f"{OURS}, one", f"{OURS}, {BATCH}", PEER), np.median(times, axis=0).round(3).tolist()))


def d50(shares):
    """d_min where half are solved, between the resolutions that were tried (a Series by d_min); nan if never half."""
    d, share = shares.index.to_numpy(float), shares.to_numpy(float)
    below = np.flatnonzero(share < 0.5)
    if not len(below):
        return np.inf
    i = below[0]
    return np.nan if i == 0 else d[i - 1] + (share[i - 1] - 0.5) / (share[i - 1] - share[i]) * (d[i] - d[i - 1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crystals", default="data/molecules", help="folder with CIF files of real molecules")
    parser.add_argument("--measured", default="", help="folder with SOURCES.csv, reflection files and models")
    parser.add_argument("--out", default="", help="folder of the results; RUNS/benchmarks by default")
    parser.add_argument("--n", type=int, default=60, help="real molecules; a sixth of it of the made-up ones")
    parser.add_argument("--cap", type=float, default=12, help="seconds that cctbx may take for one structure")
    parser.add_argument("--trials", type=int, default=24, help="random starts of this package")
    parser.add_argument("--sets", nargs="+", default=list(RESOLUTIONS), choices=list(RESOLUTIONS))
    parser.add_argument("--no-peer", action="store_true")
    given = parser.parse_args()
    programs = {OURS: lambda crystal, reflections: by_us(crystal, reflections, given.trials)}
    if flex and not given.no_peer:
        programs[PEER] = lambda crystal, reflections: by_peer(crystal, reflections, given.cap)
    elif not flex:
        print("cctbx is not installed: its rows and the set loose are left out (`make bench` installs it)")
    few = max(2, given.n // 6)
    sets = {"loose": [loose_atoms(seed) for seed in range(few)] if flex else [], "chains": chains(few),
            **real(given.crystals, given.n), "measured": measured_sets(given.measured)}
    sets["gaps"] = sets["light"][:few]
    folder = Path(given.out) if given.out else run_folder("benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(name, d) for name in given.sets for d in RESOLUTIONS[name] if sets[name]]
    for name, d in tqdm(jobs):
        run(name, sets[name], d, programs, folder / "phasing.csv")
    report(folder, sets["light"][:few] if PEER in programs else [], given)


def report(folder, timed, given):
    """Print, draw and store what the rows of all runs say."""
    table = pd.read_csv(folder / "phasing.csv")
    exact = table[~table["set"].isin(("gaps", "measured"))]
    wrong = table["claimed"] & ~table["solved"]
    named = table.assign(**{"claimed wrongly": wrong, "d_min": table["d_min"].where(table["set"] != "measured", 0)})
    shares = named.groupby(["set", "d_min", "completeness", "program"], sort=False, dropna=False).agg(
        structures=("solved", "size"), solved=("solved", "sum"), claimed=("claimed", "sum"),
        claimed_wrongly=("claimed wrongly", "sum"))
    shares["median_s_solved"] = named[named["solved"]].groupby(["set", "d_min", "completeness", "program"], dropna=False)[
        "seconds"].median().round(3)
    print(shares.to_string())
    halves = {f"{name}, {program}": d50(part.groupby("d_min")["solved"].mean())
              for (name, program), part in exact.groupby(["set", "program"], sort=False)}
    cycles = cycle_times(timed) if timed else {}
    print("ms a cycle and map: " + ", ".join(f"{name} {value:.2f}" for name, value in cycles.items()))
    print("d50 / Å: " + ", ".join(f"{name} {value:.2f}" for name, value in halves.items()))
    plot_solve_rate(table).savefig(folder / "phasing.png", dpi=120)
    plot_phasing_time(exact).savefig(folder / "phasing_time.png", dpi=120)
    options = {name: value for name, value in vars(given).items() if name not in ("crystals", "measured", "out")}
    write_json(folder / "phasing.json", {
        "table": json.loads(shares.reset_index().to_json(orient="records")),
        "d50": {name: round(float(value), 3) if np.isfinite(value) else None for name, value in halves.items()},
        "ms_per_cycle": cycles, "commit": git_state(), "machine": machine(), "options": options})


if __name__ == "__main__":
    main()
