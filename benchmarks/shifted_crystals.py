"""A thousand shifts of each of the 16 simple crystals beside Dans_Diffraction, which the published sample was made with.

Both compute 13 × 13 × 13 structure factors for 10 keV X-rays with f′ and f″. Dans_Diffraction is timed on three shifts of
each crystal, without reading the file; the difference of the unshifted structure factors is that of the tables of form
factors and of f′ and f″.

Usage: python benchmarks/shifted_crystals.py, which writes RUNS/benchmarks/shifted_crystals.json
"""

import contextlib
import io
import os
import time

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ["MPLBACKEND"] = "Agg"

import numpy as np
import torch

try:
    with contextlib.redirect_stdout(io.StringIO()):
        import Dans_Diffraction
except ImportError:
    Dans_Diffraction = None

from xrd_helpers import ROOT
from xrd_helpers.cif import read_cif
from xrd_helpers.cif_folders import find_cifs
from xrd_helpers.config import run_folder, write_json
from xrd_helpers.phases import ENERGY, PHASE_BOX, draw_shifts, shift_crystals
from xrd_helpers.summary import git_state, machine

N_SHIFTS, N_TIMED = 1000, 3


def dans_diffraction(path, crystal):
    """A function of the shift that gives the structure factors (13, 13, 13), the first site moved with all its copies."""
    with contextlib.redirect_stdout(io.StringIO()):
        structure = Dans_Diffraction.Crystal(str(path))
    n_first = round(crystal.occ[0] * len(crystal.spacegroup.operations()))  # copies of the first site, which come first
    u = structure.Structure.u.copy()

    def calculate(delta):
        structure.Structure.u[:n_first] = u[:n_first] + delta
        with contextlib.redirect_stdout(io.StringIO()):
            sf = structure.Scatter.structure_factor(PHASE_BOX.hkl, scattering_type="xray dispersion", energy_kev=ENERGY)
        return np.asarray(sf).reshape(PHASE_BOX.shape)
    return calculate


def main():
    torch.set_num_threads(1)
    paths = find_cifs([ROOT / "data" / "simple"])
    crystals = [read_cif(path) for path in paths]
    shifts = draw_shifts(len(crystals), N_SHIFTS)
    start = time.perf_counter()
    sample = shift_crystals(crystals, shifts, "site").sf
    ours = (time.perf_counter() - start) / len(sample)
    print(f"xrd_helpers: {len(sample)} samples in {ours * len(sample):.1f} s, {1e3 * ours:.3f} ms each")
    result = {"commit": git_state(), "machine": machine(), "samples": len(sample), "ms": 1e3 * ours}
    if Dans_Diffraction:
        unshifted, seconds, differences = shift_crystals(crystals, np.zeros((len(crystals), 1)), "site").sf.numpy(), [], {}
        for crystal, path, sf in zip(crystals, paths, unshifted):
            calculate = dans_diffraction(path, crystal)
            theirs = calculate(0.0)
            differences[crystal.name] = float(np.abs(sf - theirs).sum() / np.abs(theirs).sum())
            for delta in shifts[0, :N_TIMED]:
                start = time.perf_counter()
                calculate(delta)
                seconds.append(time.perf_counter() - start)
        result |= {"Dans_Diffraction ms": 1e3 * np.median(seconds), "ratio": np.median(seconds) / ours, "R": differences}
        print(f"Dans_Diffraction: {result['Dans_Diffraction ms']:.1f} ms each, ratio {result['ratio']:.0f}; "
              f"Σ|ΔF| / Σ|F| {min(differences.values()):.4f} to {max(differences.values()):.4f}")
        for name, difference in differences.items():
            print(f"  {name:18s} {difference:.4f}")
    write_json(run_folder("benchmarks") / "shifted_crystals.json", result)


if __name__ == "__main__":
    main()
