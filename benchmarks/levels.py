"""How bright real crystals are beyond 1.5 Å beside random ones, and where the two differ.

Of crystals that fit the monoclinic box: the sum of the true amplitudes over that of the expected ones (the shell mean with the
formula, ε and centric reflections), light and heavier ones apart; the factor on the expected ones at which R is least, which is
below 1 even where their mean is right, since R asks for the median; the mean of ln(true / expected) in shells, each crystal
fitted over all its reflections; and how often two atoms besides hydrogen lie so far apart, beside a random arrangement.

Usage: python benchmarks/levels.py --crystals FOLDER [--n 600] [--seed 555] [--out FOLDER]
It writes levels.json.
"""

import argparse
from pathlib import Path

import numpy as np

from xrd_helpers.baselines import shell_mean
from xrd_helpers.cif_folders import read_cif_folders
from xrd_helpers.config import run_folder, write_json
from xrd_helpers.crystals import all_operators
from xrd_helpers.gridding import BOXES, AmplitudeBoxes, select_fitting, to_box_setting
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.summary import git_state, machine
from xrd_helpers.wilson import Expected

BOX, FACTORS = BOXES["monoclinic"], np.linspace(0.5, 1.5, 101)
EDGES = np.array([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.444, 0.55, 0.65, 0.75, 0.85, 0.95, 1.1, 1.25, 1.4, 1.5626])  # Å⁻²
APART = np.array([2.7, 2.9, 3.1, 3.3, 3.5, 3.7, 3.9, 4.1, 4.3, 4.5])  # Å


def level(crystal, mean):
    """(Σ true / Σ expected, the factor at which R is least) beyond 1.5 Å."""
    boxes = AmplitudeBoxes.from_crystals([crystal], BOX, 1.5, 0.8)
    expected = Expected.of(boxes, 0, mean)
    F = boxes.F[0].flatten().double().numpy()[expected.voxels]
    return F.sum() / expected.F.sum(), FACTORS[np.argmin([np.abs(x * expected.F - F).sum() for x in FACTORS])]


def wave(crystal, mean):
    """(shells,) ln(true / expected), nan where there are few reflections."""
    boxes = AmplitudeBoxes.from_crystals([crystal], BOX, 0.8, 0.8)
    use = boxes.known[0].numpy()
    F, d = boxes.F[0].double().numpy()[use], boxes.d[0].double().numpy()[use]
    expected, shell = mean.at(F, d, d, crystal.contents), np.digitize(d**-2, EDGES)
    count, true, found = (np.bincount(shell, x, minlength=len(EDGES) + 1)[1:-1] for x in (None, F, expected))
    return np.where(count > 3, np.log(np.maximum(true, 1e-9) / np.maximum(found, 1e-9)), np.nan)


def neighbours(crystal):
    """(bins,) pairs of atoms besides hydrogen that far apart, over those of as many atoms anywhere in the cell."""
    x, orth = crystal.fract[crystal.heavy], np.array(crystal.cell.orth.mat.tolist())
    every = np.concatenate([x @ rot.T + tran for rot, tran in zip(*all_operators(crystal.spacegroup))])
    between = x[:, None] - every[None]
    between -= np.round(between)
    count = sum(np.histogram(np.linalg.norm((between + step) @ orth.T, axis=-1), APART)[0]
                for step in np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), -1).reshape(-1, 3))
    return count / len(x) / (4 / 3 * np.pi * np.diff(APART**3)) / (len(every) / crystal.cell.volume)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crystals", required=True, help="folder with CIF files of real crystals")
    parser.add_argument("--n", type=int, default=600, help="random crystals, before those that do not fit are left out")
    parser.add_argument("--seed", type=int, default=555)
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    groups = ["P 1 21/c 1", "P 1 21/n 1", "P 1 21 1", "C 1 2/c 1"]
    kinds = {"real": read_cif_folders([given.crystals])[0],
             "random": random_crystals(given.n, given.seed, groups, recipe="molecules")}
    mean, rows = shell_mean(1000), {}
    for kind, crystals in kinds.items():
        for name, light in (("light", True), ("heavier", False)):
            part = [to_box_setting(c) for c in select_fitting(crystals, BOX, 0.8)[0] if c.light == light]
            ratio, best = np.array([level(c, mean) for c in part]).T
            rows[f"{kind}, {name}"] = {
                "crystals": len(part), "true over expected, median": round(float(np.median(ratio)), 3),
                "spread of its logarithm": round(float(np.log(ratio).std()), 3),
                "best factor, median": round(float(np.median(best)), 3),
                "ln(true / expected) in shells": np.nanmean([wave(c, mean) for c in part], axis=0).round(3).tolist(),
                "neighbours": np.mean([neighbours(c) for c in part], axis=0).round(2).tolist()}
            print(f"{kind}, {name}:", rows[f"{kind}, {name}"], flush=True)
    write_json((Path(given.out) if given.out else run_folder("benchmarks")) / "levels.json", {
        "rows": rows, "shells": EDGES.tolist(), "apart": APART.tolist(), "seed": given.seed, "commit": str(git_state()),
        "machine": machine()})


if __name__ == "__main__":
    main()
