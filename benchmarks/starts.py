"""Which part of the phasing engine does what: the share of random starts whose phases come right, without building atoms.

Light real molecules of P2₁/c, P2₁, P-1 and P2₁2₁2₁, others than those of benchmarks/phasing.py; exact amplitudes to --d-min,
16 starts of 400 cycles each. A start is right when Σ E² cos Δφ / Σ E² of its phases and the true ones is above 0.6 at the
best origin and hand (1 is perfect, 0.1-0.4 what wrong maps have). Variants: *plain* charge flipping; reflections that were
not measured *float*; now and then *peaks* alone are kept; the *group* is averaged over (the engine); *relaxed* averaged
alternating reflections (Luke, 2005, Inverse Problems 21, 37) with beta 0.75 and 0.9 and the *difference map* (Elser, 2003,
J. Opt. Soc. Am. A20, 40), beta 1, all three with the reflector of charge flipping. With --fit, all light crystals that fit the
monoclinic box: the engine guided by amplitudes of *PattersonNet*, or by equal ones.

Usage: python benchmarks/starts.py --crystals FOLDER [--d-min 1.5] [--n 20] [--fit]
It writes starts_<d_min>.json into --out, by default RUNS/benchmarks; --fit: crystals that fit the box, and guides
"""

import argparse
import os
import time
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

from phasing import real  # first, since it imports cctbx, which crashes after torch

# isort: split
import numpy as np
import torch
from scipy.stats import wilcoxon

from xrd_helpers import locate
from xrd_helpers.cif_folders import read_cif_folders
from xrd_helpers.config import run_folder, write_json
from xrd_helpers.gridding import BOXES, AmplitudeBoxes, select_fitting, to_box_setting
from xrd_helpers.phasing import Settings
from xrd_helpers.phasing.charge_flipping import Candidate, one_thread
from xrd_helpers.phasing.flipping_grid import FlippingGrid, eliminate_low_density, flip, keep_peaks
from xrd_helpers.phasing.peaks import without_hydrogen
from xrd_helpers.reflections import Reflections, unique_hkl
from xrd_helpers.structure_factors import structure_factors
from xrd_helpers.summary import git_state, machine
from xrd_helpers.weights import load_model, predict

SET_APART = 40  # the first light ones are those of benchmarks/phasing.py
STARTS, RIGHT = 16, 0.6
NOT_FLOATING = Settings(free_to=99.0, free_least=1.0)


def crystals_of(folder, n, fit):
    if not fit:
        return real(folder, 2 * (SET_APART + n))["light"][SET_APART:]
    read, _ = read_cif_folders([folder])
    return [to_box_setting(c) for c in select_fitting(read, BOXES["monoclinic"], 0.8)[0] if c.light][:n]


def agreement_with_truth(grid, sf, crystal):
    """(b,) Σ E² cos Δφ / Σ E² at the best shift and hand."""
    true = np.exp(-1j * np.angle(structure_factors(crystal, grid.p1.hkl)))
    E2, best = grid.E[grid.p1.index] ** 2, []
    for one in np.exp(1j * np.angle(grid.sphere(sf))):
        tops = []
        for phases in (one, one.conj()):
            series = np.zeros(grid.size, complex)
            series[tuple((grid.p1.hkl % grid.size).T)] = E2 * phases * true
            tops.append(np.fft.fftn(series).real.max() / E2.sum())
        best.append(max(tops))
    return np.array(best)


def flipped(grid, reflections, crystal, peaks=False, group=False):
    """The cycles of ``charge_flipping.solve``, all of them."""
    settings, generator = grid.settings, torch.Generator().manual_seed(0)
    step, sf = partial(flip, delta=settings.thresholds(range(STARTS))), grid.random_start(STARTS, generator)
    candidate = Candidate(grid, reflections, crystal.spacegroup, crystal.contents)
    n = round(sum(without_hydrogen(crystal.contents).values()) * candidate.n_ops)
    for cycle in range(settings.peak_cycle, settings.cycles + 1, settings.peak_cycle):
        sf = grid.run(sf, step, settings.peak_cycle - 1)
        sf = grid.run(sf, partial(keep_peaks, n=n) if peaks else step, 1)
        if group and cycle % settings.symmetrise == 0 and cycle < settings.cycles:
            shifts = grid.agreement(sf, candidate.links)[1]
            sf = torch.stack([candidate.symmetrised(*pair) for pair in zip(sf, shifts)])
    return sf


def relaxed(grid, reflections, crystal, beta=0.9):
    """x -> beta/2 (R_S R_M x + x) + (1 - beta) P_M x; R_S changes the sign below 0, P_M gives the measured amplitudes."""
    def transform(rho):
        return torch.fft.rfftn(rho, dim=(1, 2, 3))

    def back(sf):
        return torch.fft.irfftn(sf, s=grid.size, dim=(1, 2, 3))

    x = back(grid.random_start(STARTS, torch.Generator().manual_seed(0)))
    for _ in range(grid.settings.cycles):
        measured = grid.run(transform(x), lambda rho: rho, 1)
        rho = back(measured)
        x = beta / 2 * (flip(2 * rho - x) + x) + (1 - beta) * rho
    return measured


def guide(boxes, i, F, crystal, equal):
    """Predicted reflections of one crystal; all alike if `equal`, but for the fall-off, which E takes away."""
    hkl, F = boxes.reflections(i, F[i])
    beyond = boxes.reflections(i, boxes.measured[i])[1] == 0
    F = np.ones(beyond.sum()) if equal else F[beyond]
    return Reflections.of_good_data(hkl[beyond], F, crystal.cell, crystal.spacegroup)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crystals", default="data/molecules", help="folder with CIF files of real molecules")
    parser.add_argument("--d-min", type=float, default=1.5)
    parser.add_argument("--n", type=int, default=20, help="crystals")
    parser.add_argument("--fit", action="store_true", help="crystals that fit the monoclinic box to 0.8 Å, and guides")
    parser.add_argument("--out", default="", help="folder of the result; RUNS/benchmarks by default")
    given = parser.parse_args()
    crystals, guides = crystals_of(given.crystals, given.n, given.fit), {"engine": None}
    if not crystals:
        raise SystemExit(f"{given.crystals} holds no crystal to try: without --fit it has to hold more than {SET_APART} light "
                         "ones of P21/c, P21, P-1 or P212121")
    if given.fit:
        network, _ = load_model(locate("weights/patterson_net.safetensors"))
        boxes = AmplitudeBoxes.from_crystals(crystals, BOXES["monoclinic"], given.d_min, 0.8)
        F = predict(network, boxes)
        guides |= {"engine, guided by equal E": True, "engine, guided by PattersonNet": False}
        variants = {name: (partial(flipped, peaks=True, group=True), Settings()) for name in guides}
    else:
        variants = {"plain": (flipped, NOT_FLOATING), "float": (flipped, Settings()),
                    "float, peaks": (partial(flipped, peaks=True), Settings()),
                    "float, peaks, group: the engine": (partial(flipped, peaks=True, group=True), Settings()),
                    **{name: (partial(relaxed, beta=beta), NOT_FLOATING)
                       for name, beta in (("relaxed, 0.75", 0.75), ("relaxed, 0.9", 0.9), ("difference map", 1.0))}}
    rows, right = {}, {}
    for name, (search, settings) in variants.items():
        began, counts = time.perf_counter(), []
        for i, crystal in enumerate(crystals):
            hkl = unique_hkl(crystal.cell, crystal.spacegroup, given.d_min)
            F_true = np.abs(structure_factors(crystal, hkl))
            reflections = Reflections.of_good_data(hkl, F_true, crystal.cell, crystal.spacegroup)
            predicted = None if guides.get(name) is None else guide(boxes, i, F, crystal, guides[name])
            with one_thread():
                grid = FlippingGrid(reflections, predicted, settings)
                sf = grid.run(search(grid, reflections, crystal), eliminate_low_density, settings.polish)
            counts.append(int((agreement_with_truth(grid, sf, crystal) > RIGHT).sum()))
        right[name] = counts
        rows[name] = {"crystals": len(crystals), "some start right": int(np.count_nonzero(counts)),
                      "starts right": round(sum(counts) / len(counts) / STARTS, 3),
                      "seconds": round(time.perf_counter() - began)}
        print(f"{given.d_min:g} Å  {name:<32} {rows[name]}", flush=True)
    result = {"table": rows, "right": right, "d_min": given.d_min, "starts": STARTS, "cycles": Settings().cycles,
              "commit": git_state(), "machine": machine()}
    if given.fit:
        result["p"] = {name: float(wilcoxon(right[name], right["engine"]).pvalue) for name in rows if name != "engine"}
        result["p"]["PattersonNet against equal E"] = float(wilcoxon(*(right[name] for name in list(rows)[1:])).pvalue)
        print(result["p"])
    folder = Path(given.out) if given.out else run_folder("benchmarks")
    write_json(folder / f"starts_{'guided_' if given.fit else ''}{given.d_min:g}.json", result)


if __name__ == "__main__":
    main()
