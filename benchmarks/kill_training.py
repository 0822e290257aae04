"""A training that is killed with `kill -9` at random moments goes on from its checkpoint to the same loss curve.

One training runs undisturbed, its twin is killed N_KILLS times, a third of them aimed at a moment when a checkpoint is
being written, and started again until it is done. Both train the same small network with dropout on crystals of
which a part is hidden at random, for as many steps; then their losses, scores and weights are compared number by number.

Usage: python benchmarks/kill_training.py, which takes two or three minutes and writes RUNS/benchmarks/kill_training.json
"""

import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import pandas as pd
import torch

from structure_factors import provenance
from xrd_helpers import gridding
from xrd_helpers.config import run_folder, write_json
from xrd_helpers.models import XRDTransformer
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.simulate import Faults
from xrd_helpers.training import Budget, Device, fit

N_KILLS, STEPS, SEED = 20, 1000, 0
BOX = gridding.Box("tiny", (-6, 0, 0), (6, 8, 10), "P 1 2/m 1")  # crystals to 1.8 Å
COLUMNS = ["step", "crystals", "loss", "r_ext", "cc_ext"]  # all of the history but the time


def train(folder):
    """One whole training, or the rest of it; the history and the weights are left in the folder."""
    torch.set_num_threads(1)
    crystals, _ = gridding.select_fitting(random_crystals(60, SEED), BOX, 1.8)
    torch.manual_seed(SEED)
    model = XRDTransformer(XRDTransformer.Config(shape=BOX.shape, dim=64, depth=2, n_heads=2, dropout=0.2))
    history = fit(model, crystals[4:], crystals[:4], Budget(STEPS), Device("cpu", precision="32-true"), box=BOX, d_input=3.0,
                  d_target=1.8, faults=Faults((2.4, 3.0), 0.15, 0.05), batch_size=2, lr=1e-3, n_validations=40, seed=SEED,
                  checkpoint=folder / "a.checkpoint", checkpoint_minutes=0.2 / 60, log=folder / "a.csv")
    history.to_csv(folder / "history.csv", index=False)
    np.save(folder / "weights.npy", torch.cat([p.detach().flatten() for p in model.parameters()]).numpy())
    (folder / "finished").touch()


def start(folder):
    # fork: the child has everything imported and begins at once; this process computes nothing that has threads
    process = multiprocessing.get_context("fork").Process(target=train, args=(folder,))
    process.start()
    return process


def half_written(folder):
    return list(folder.glob(".a.*.checkpoint"))


def kill(process, folder, rng, seconds):
    """Kill a training at a random moment; (whether it lived until then, whether it was writing a checkpoint)."""
    left = set(half_written(folder))  # by the kill before; the training removes it
    deadline, aimed = time.perf_counter() + rng.uniform(0.2, 2 * seconds), rng.random() < 1 / 3
    while process.is_alive() and (time.perf_counter() < deadline or aimed and not set(half_written(folder)) - left):
        time.sleep(0.0002)
    if not process.is_alive():
        return 0, 0
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return 1, int(bool(set(half_written(folder)) - left))


def compare(whole, killed):
    """Largest difference of each column, of the log and of the weights between two finished trainings."""
    a, b = (pd.read_csv(folder / "history.csv") for folder in (whole, killed))
    largest = {name: float(np.nanmax(np.abs(a[name] - b[name]))) for name in COLUMNS}
    largest["log"] = float(np.nanmax(np.abs(pd.read_csv(killed / "a.csv")["loss"] - a["loss"])))
    largest["weights"] = float(np.abs(np.subtract(*(np.load(folder / "weights.npy") for folder in (whole, killed)))).max())
    return largest


def main():
    rng = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary, "whole")
        whole.mkdir()
        began = time.perf_counter()
        process = start(whole)
        process.join()
        assert process.exitcode == 0
        seconds = time.perf_counter() - began
        print(f"undisturbed: {STEPS} steps in {seconds:.1f} s")

        kills, writing, starts, largest, complete = 0, 0, 0, {}, True
        while kills < N_KILLS:  # a training that is done before is followed by another one
            killed = Path(temporary, f"killed_{starts}")
            killed.mkdir()
            while not (killed / "finished").exists():
                process, starts = start(killed), starts + 1
                if kills < N_KILLS:
                    was_killed, was_writing = kill(process, killed, rng, seconds / N_KILLS)
                    kills, writing = kills + was_killed, writing + was_writing
                process.join()
                if process.exitcode not in (0, -signal.SIGKILL):
                    raise SystemExit(f"after {kills} kills the training could not go on")
            for name, value in compare(whole, killed).items():
                largest[name] = max(value, largest.get(name, 0))
            complete &= len(pd.read_csv(killed / "a.csv")) == STEPS and not half_written(killed)
    print(f"{kills} times killed, {writing} of these while a checkpoint was written, {starts} starts")
    print("largest difference: " + ", ".join(f"{name} {value:.3g}" for name, value in largest.items()))
    write_json(run_folder("benchmarks") / "kill_training.json",
               dict(kills=kills, while_writing=writing, starts=starts, steps=STEPS, largest_difference=largest) | provenance())
    if not complete or any(largest.values()):
        raise SystemExit("the resumed training differs from the undisturbed one")


if __name__ == "__main__":
    main()
