"""Structure factors beside gemmi, cctbx and Dans_Diffraction, in one run on one core.

The workload: crystals of P2₁/c with 20 atoms in 1440 Å³ and all unique reflections to 0.8 Å. A batch of 256 of them is
timed for this package, one crystal for the others, which take one at a time; building their objects is not counted.
Times vary with the machine; the ratios are what to quote. A figure shows the cost against atoms and reflections.

Usage: python benchmarks/structure_factors.py, which writes RUNS/benchmarks/structure_factors.json and .png
"""

import contextlib
import io
import os
import statistics
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

try:  # before torch: the other way round cctbx 2025.11 crashes on import
    from cctbx import crystal as cctbx_crystal
    from cctbx import miller, xray
    from cctbx.array_family import flex
except ImportError:
    flex = None
try:
    with contextlib.redirect_stdout(io.StringIO()):  # it greets
        import Dans_Diffraction
except ImportError:
    Dans_Diffraction = None

import gemmi
import matplotlib
import numpy as np
import torch

from xrd_helpers.config import run_folder, write_json
from xrd_helpers.crystals import Crystal
from xrd_helpers.structure_factors import CrystalBatch
from xrd_helpers.summary import git_state, machine

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BATCH, REPEATS, D_MIN, VOLUME, N_ATOMS = 256, 5, 0.8, 1440, 20
OURS = f"xrd_helpers, batch of {BATCH}, float32"
GOALS = {"cctbx direct": 20, "cctbx FFT": 5, "gemmi density + FFT": 40, "Dans_Diffraction": 1000}
ATOMS, D_MINS = (5, 10, 20, 40, 80), (2.0, 1.5, 1.2, 1.0, 0.8, 0.7)  # of the figure


def make_crystals(n, n_atoms=N_ATOMS):
    """n crystals of P2₁/c: C, N and O at random places (places do not matter to the time) of random monoclinic cells."""
    rng = np.random.default_rng(n_atoms)
    elements = tuple("CNO"[number] for number in sorted(i % 20 // 14 + i % 20 // 17 for i in range(n_atoms)))  # 14 : 3 : 3
    crystals = []
    for i in range(n):
        edges, beta = np.exp(rng.normal(0, 0.2, 3)), rng.uniform(90, 116)
        edges *= (VOLUME / gemmi.UnitCell(*edges, 90, beta, 90).volume) ** (1 / 3)
        crystals.append(Crystal(str(i), gemmi.UnitCell(*edges, 90, beta, 90), gemmi.SpaceGroup("P 1 21/c 1"), elements,
                                rng.random((n_atoms, 3)), rng.uniform(0.02, 0.06, n_atoms), np.ones(n_atoms)))
    return crystals


def ours(crystals, hkl):
    batch, indices = CrystalBatch.from_crystals(crystals, dtype=torch.float32), torch.as_tensor(hkl)
    return lambda: batch.structure_factors(indices)[0].numpy()


def gemmi_direct(crystal, hkl):
    """gemmi's direct summation, a Python loop over reflections."""
    small = crystal.small_structure()
    calculator = gemmi.StructureFactorCalculatorX(small.cell)  # this cell carries the symmetry images
    indices = hkl.tolist()
    return lambda: np.array([calculator.calculate_sf_from_small_structure(small, h) for h in indices])


def gemmi_fft(crystal, hkl):
    """gemmi's density of a model on a grid of its own choice, and the transform of that."""
    residue = gemmi.Residue()
    for element, fract, u_iso in zip(crystal.elements, crystal.fract, crystal.u_iso):
        atom = gemmi.Atom()
        atom.element, atom.b_iso, atom.occ = gemmi.Element(element), 8 * np.pi**2 * u_iso, 1
        atom.pos = crystal.cell.orthogonalize(gemmi.Fractional(*fract))
        residue.add_atom(atom)
    chain, model = gemmi.Chain("A"), gemmi.Model(1)
    chain.add_residue(residue)
    model.add_chain(chain)
    d_min = crystal.cell.calculate_d_array(hkl).min()

    def calculate():
        density = gemmi.DensityCalculatorX()
        density.d_min = d_min
        density.grid.unit_cell, density.grid.spacegroup = crystal.cell, crystal.spacegroup
        density.put_model_density_on_grid(model)
        return gemmi.transform_map_to_f_phi(density.grid, half_l=True).get_value_by_hkl(hkl)
    return calculate


def cctbx_fcalc(algorithm):
    """cctbx ``structure_factors_from_scatterers``, direct or fft."""
    def prepare(crystal, hkl):
        symmetry = cctbx_crystal.symmetry(unit_cell=crystal.cell.parameters,
                                          space_group_symbol="Hall: " + crystal.spacegroup.hall)
        structure = xray.structure(crystal_symmetry=symmetry)
        for element, fract, u_iso in zip(crystal.elements, crystal.fract, crystal.u_iso):
            structure.add_scatterer(xray.scatterer(element, site=tuple(fract), u=float(u_iso)))
        structure.scattering_type_registry(table="it1992")
        indices = miller.set(symmetry, flex.miller_index([tuple(h) for h in hkl.tolist()]), anomalous_flag=False)
        return lambda: np.array(indices.structure_factors_from_scatterers(structure, algorithm=algorithm).f_calc().data())
    return prepare


def dans_diffraction(crystal, hkl):
    """Dans_Diffraction, which reads its crystal from a CIF file."""
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = ["data_bench", *(f"_cell_{name} {value:.8f}" for name, value in zip(names, crystal.cell.parameters)),
             f"_cell_volume {crystal.cell.volume:.6f}", f"_space_group_name_H-M_alt '{crystal.spacegroup.xhm()}'",
             f"_space_group_IT_number {crystal.spacegroup.number}", "loop_", "_symmetry_equiv_pos_as_xyz",
             *(f"'{op.triplet()}'" for op in crystal.spacegroup.operations()), "loop_",
             *(f"_atom_site_{name}" for name in ("label", "type_symbol", "fract_x", "fract_y", "fract_z",
                                                 "U_iso_or_equiv", "occupancy")),
             *(f"{element}{i + 1} {element} {x:.10f} {y:.10f} {z:.10f} {u:.10f} 1.0" for i, (element, (x, y, z), u)
               in enumerate(zip(crystal.elements, crystal.fract, crystal.u_iso)))]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "bench.cif"
        path.write_text("\n".join(lines) + "\n")
        structure = Dans_Diffraction.Crystal(str(path))
        structure.Scatter.setup_scatter(scattering_type="x-ray", output=False)

    def calculate():
        with contextlib.redirect_stdout(io.StringIO()):
            return np.asarray(structure.Scatter.structure_factor(hkl)).ravel()
    return calculate


PEERS = {"gemmi direct": gemmi_direct, "gemmi density + FFT": gemmi_fft}
if flex:
    PEERS |= {"cctbx direct": cctbx_fcalc("direct"), "cctbx FFT": cctbx_fcalc("fft")}
if Dans_Diffraction:
    PEERS["Dans_Diffraction"] = dans_diffraction


def median_ms(functions, repeats):
    """Median milliseconds of each function and its last result.

    They take turns, so that a busy machine slows down all; a call before each one that counts brings back the memory
    and the caches that the others have used.
    """
    results = {}
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            function()
            start = time.perf_counter()
            results[name] = function()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}, results


def compare():
    """The workload: a row for each package."""
    crystals = make_crystals(BATCH)
    hkl = gemmi.make_miller_array(crystals[0].cell, crystals[0].spacegroup, D_MIN)
    print(f"{len(hkl)} reflections, {N_ATOMS} atoms, P 1 21/c 1, {VOLUME} Å³, one thread; {machine()['processor']}")
    functions = {name: prepare(crystals[0], hkl) for name, prepare in PEERS.items()}
    with_building = f"{OURS}, from_crystals included"
    functions = {OURS: ours(crystals, hkl), with_building: lambda: ours(crystals, hkl)(), **functions}
    milliseconds, F = median_ms(functions, REPEATS)
    for name in (OURS, with_building):
        milliseconds[name] /= BATCH
    reference, rows = np.abs(F["gemmi direct"]), []
    print(f"{'method':64s} {'ms/crystal':>10s} {'ratio':>7s} {'goal':>5s} {'R against gemmi direct':>23s}")
    for name in milliseconds:
        row = {"method": name, "ms": milliseconds[name], "ratio": milliseconds[name] / milliseconds[OURS],
               "goal": GOALS.get(name), "r": np.abs(np.abs(F[name]) - reference).sum() / reference.sum()}
        print(f"{name:64s} {row['ms']:10.3f} {row['ratio']:7.1f} {row['goal'] or '':>5} {row['r']:23.1e}")
        rows.append(row)
    for name in GOALS.keys() - PEERS.keys():
        print(f"{name} is left out: the package is not installed (`make bench` installs it)")
    return rows


def curves():
    """Milliseconds a crystal against the number of atoms (to 0.8 Å) and of reflections (20 atoms)."""
    methods = [name for name in ("cctbx FFT", "gemmi density + FFT") if name in PEERS]
    points = []
    for n_atoms, d_min in [(n, D_MIN) for n in ATOMS] + [(N_ATOMS, d) for d in D_MINS]:
        crystals = make_crystals(BATCH, n_atoms)
        hkl = gemmi.make_miller_array(crystals[0].cell, crystals[0].spacegroup, d_min)
        milliseconds, _ = median_ms({OURS: ours(crystals, hkl),
                                     **{name: PEERS[name](crystals[0], hkl) for name in methods}}, 3)
        milliseconds[OURS] /= BATCH
        points.append({"n_atoms": n_atoms, "d_min": d_min, "n_reflections": len(hkl), "ms": milliseconds})
    return points


def draw(points, path):
    """Two panels on logarithmic axes."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    against_atoms, against_reflections = points[:len(ATOMS)], points[len(ATOMS):]
    for axis, part, key, label in ((axes[0], against_atoms, "n_atoms", "atoms of the asymmetric unit"),
                                   (axes[1], against_reflections, "n_reflections", "unique reflections")):
        for name in part[0]["ms"]:
            axis.plot([point[key] for point in part], [point["ms"][name] for point in part], "o-", label=name)
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.set_xticks([point[key] for point in part], [str(point[key]) for point in part])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="ms per crystal, one core", title=f"P2₁/c, {VOLUME} Å³, to {D_MIN} Å")
    axes[1].set(title=f"P2₁/c, {VOLUME} Å³, {N_ATOMS} atoms, {D_MINS[0]} to {D_MINS[-1]} Å")
    axes[1].legend(loc="upper left")
    figure.savefig(path, dpi=150)


def provenance():
    """Commit, machine kind and the versions of what is compared, None for one that is not installed."""
    versions = {}
    for name in ("gemmi", "cctbx-base", "Dans-Diffraction"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {"commit": git_state(), "machine": machine(), "versions": versions}


def main():
    torch.set_num_threads(1)
    folder = run_folder("benchmarks")
    rows, points = compare(), curves()
    draw(points, folder / "structure_factors.png")
    write_json(folder / "structure_factors.json", {**provenance(), "table": rows, "curves": points})
    print(f"written: {folder / 'structure_factors.json'} and .png")


if __name__ == "__main__":
    main()
