"""Structure factors to 0.8 Å of random P2₁/c crystals with 20 atoms: this package beside gemmi and cctbx, in one run.

One thread each. Times vary with the machine; the ratios are what to quote. Usage: python benchmarks/structure_factors.py
"""

import os
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"

try:  # before torch: the other way round cctbx 2025.11 crashes on import
    from cctbx import crystal as cctbx_crystal
    from cctbx import miller, xray
    from cctbx.array_family import flex
except ImportError:
    flex = None

import gemmi  # noqa: E402  the thread count must be set before torch is imported
import numpy as np  # noqa: E402
import torch  # noqa: E402

from xrd_helpers.random_crystals import random_crystals  # noqa: E402
from xrd_helpers.structure_factors import CrystalBatch  # noqa: E402

N_CRYSTALS, REPEATS, D_MIN = 32, 5, 0.8


def median_ms(function):
    """Median milliseconds of a call, and its last result; one call before is not counted."""
    function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = function()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times), result


def gemmi_direct(crystal, hkl):
    """gemmi's direct summation, a Python loop over reflections."""
    small = crystal.small_structure()
    calculator = gemmi.StructureFactorCalculatorX(small.cell)  # this cell carries the symmetry images
    indices = hkl.tolist()
    return lambda: np.array([calculator.calculate_sf_from_small_structure(small, h) for h in indices])


def cctbx_fcalc(crystal, hkl, algorithm):
    """cctbx ``structure_factors_from_scatterers``, direct or fft."""
    symmetry = cctbx_crystal.symmetry(unit_cell=crystal.cell.parameters, space_group_symbol="Hall: " + crystal.spacegroup.hall)
    structure = xray.structure(crystal_symmetry=symmetry)
    for element, fract, u_iso in zip(crystal.elements, crystal.fract, crystal.u_iso):
        structure.add_scatterer(xray.scatterer(element, site=tuple(fract), u=float(u_iso)))
    structure.scattering_type_registry(table="it1992")
    indices = miller.set(symmetry, flex.miller_index([tuple(h) for h in hkl.tolist()]), anomalous_flag=False)
    return lambda: np.array(indices.structure_factors_from_scatterers(structure, algorithm=algorithm).f_calc().data())


def main():
    torch.set_num_threads(1)
    crystals = [c for c in random_crystals(4000, 0, ("P 1 21/c 1",)) if len(c.elements) == 20][:N_CRYSTALS]
    hkl = gemmi.make_miller_array(crystals[0].cell, crystals[0].spacegroup, D_MIN)
    print(f"{len(hkl)} reflections, {len(crystals)} crystals of 20 atoms, P 1 21/c 1, one thread")
    batch = CrystalBatch.from_crystals(crystals, dtype=torch.float32)
    indices = torch.as_tensor(hkl)
    milliseconds, F = median_ms(lambda: batch.structure_factors(indices))
    rows = {f"xrd_helpers, batch of {len(crystals)}, float32": (milliseconds / len(crystals), F[0].numpy())}
    rows["gemmi direct"] = median_ms(gemmi_direct(crystals[0], hkl))
    for algorithm in ("direct", "fft") if flex else ():
        rows[f"cctbx {algorithm}"] = median_ms(cctbx_fcalc(crystals[0], hkl, algorithm))
    if not flex:
        print("cctbx is not installed: its rows are left out (`make bench` installs it)")
    ours, reference = next(iter(rows.values()))[0], rows["gemmi direct"][1]
    print(f"{'method':44s} {'ms/crystal':>10s} {'ratio':>7s} {'R against gemmi direct':>24s}")
    for name, (milliseconds, F) in rows.items():
        r = np.abs(np.abs(F) - np.abs(reference)).sum() / np.abs(reference).sum()
        print(f"{name:44s} {milliseconds:10.2f} {milliseconds / ours:7.1f} {r:24.1e}")


if __name__ == "__main__":
    main()
