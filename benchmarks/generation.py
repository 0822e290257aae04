"""Random crystals with their amplitudes to 0.8 Å beside the published route, in one run on one core.

The published route (github.com/blackwood168/xrd_phase_ml) is cctbx: ``random_structure`` with 10-29 atoms of C, N, O and
Cl in 14-22 Å³ each, then ``f_calc``. Ours is recipe ``atoms``, which draws the same kind of crystal, and recipe
``molecules``, whose amplitudes are those of all reflections that any crystal of the batch has; and both without amplitudes.
Seconds are of processor time. They vary with the machine; the ratios are what to quote.

Usage: python benchmarks/generation.py, which writes RUNS/benchmarks/generation.json
"""

import os
import random
import time

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

try:  # before torch: the other way round cctbx 2025.11 crashes on import
    from cctbx import sgtbx
    from cctbx.array_family import flex
    from cctbx.development import random_structure
except ImportError:
    flex = None

import numpy as np
import torch

from structure_factors import provenance
from xrd_helpers.config import run_folder, write_json
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.structure_factors import CrystalBatch

N, N_PEER, BATCH, D_MIN, GOAL = 512, 40, 64, 0.8, 20
GROUPS = ("P 1 21/c 1", "P 1 21 1", "C 1 2 1")  # of the published recipe


def drawn(recipe, n):
    """Crystals a second, in all groups of the recipe."""
    random_crystals(16, 1, recipe=recipe)  # compiles what is compiled
    start = time.process_time()
    random_crystals(n, 0, recipe=recipe)
    return n / (time.process_time() - start)


def ours(recipe, n):
    """Crystals a second, with the amplitudes."""
    random_crystals(4, 1, GROUPS, recipe=recipe)  # compiles what is compiled
    start = time.process_time()
    for first in range(0, n, BATCH):
        crystals = random_crystals(BATCH, 0, GROUPS, first, recipe)
        # the reflections of any crystal of the batch, half of the sphere
        reach = np.max([(c.cell.a, c.cell.b, c.cell.c) for c in crystals], axis=0).astype(int) * 10 // int(10 * D_MIN)
        hkl = np.stack(np.meshgrid(np.arange(-reach[0], reach[0] + 1), np.arange(reach[1] + 1), np.arange(reach[2] + 1),
                                   indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int32)
        inverse_d2 = np.min([crystal.cell.calculate_1_d2_array(hkl) for crystal in crystals], axis=0)
        hkl = torch.as_tensor(hkl[inverse_d2 <= D_MIN**-2])
        CrystalBatch.from_crystals(crystals, dtype=torch.float32).structure_factors(hkl).abs()
    return n / (time.process_time() - start)


def published(n):
    """Crystals a second by cctbx, with the amplitudes of all unique reflections (the faster of its two algorithms)."""
    random.seed(0)
    flex.set_random_seed(0)
    start = time.process_time()
    for _ in range(n):
        structure = random_structure.xray_structure(
            space_group_info=sgtbx.space_group_info(random.choice(GROUPS)), volume_per_atom=random.uniform(14, 22),
            elements=[random.choice(["C", "N", "O", "Cl"]) for _ in range(random.randint(10, 29))], min_distance=1.3,
            general_positions_only=True, use_u_iso=True, random_u_iso=True)
        structure.scattering_type_registry(table="it1992")
        structure.structure_factors(d_min=D_MIN, algorithm="fft").f_calc()
    return n / (time.process_time() - start)


def main():
    torch.set_num_threads(1)
    rates = {f"xrd_helpers, recipe {recipe}": ours(recipe, N) for recipe in ("atoms", "molecules")}
    rates |= {f"  without amplitudes, recipe {recipe}": drawn(recipe, N) for recipe in ("atoms", "molecules")}
    if flex:
        rates["cctbx random_structure + f_calc"] = published(N_PEER)
    else:
        print("cctbx is not installed: its row is left out (`make bench` installs it)")
    peer = rates.get("cctbx random_structure + f_calc")
    print(f"{'route':38s} {'crystals/s':>10s} {'ratio to cctbx':>15s} {'goal':>5s}")
    for name, rate in rates.items():
        ratio = f"{rate / peer:15.1f}" if peer else f"{'':15s}"
        print(f"{name:38s} {rate:10.1f} {ratio} {GOAL if name.startswith('xrd') and name.endswith('atoms') else '':>5}")
    write_json(run_folder("benchmarks") / "generation.json", {"crystals_per_second": rates, "goal": GOAL} | provenance())


if __name__ == "__main__":
    main()
