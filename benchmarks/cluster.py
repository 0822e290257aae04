"""One command on one, two and four workers, on a scheduler that was started by hand, and with a worker killed in the middle.

Commands: `xrd generate` (random molecules), `xrd solve` of several files (formula known), and the same with the molecule
known. Seconds are by the clock and hold the start of the workers. efficiency: that of one worker over these, divided by the
number of workers, or of cores where these are fewer. same: whether the crystals are the same bytes, the table the same rows.

Usage: python benchmarks/cluster.py [--n 2000] [--files 16] [--workers 1 2 4] [--out FOLDER]
It writes cluster.csv and cluster.json.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import pandas as pd

from xrd_helpers import ROOT
from xrd_helpers.cif import read_cif
from xrd_helpers.config import run_folder, write_json
from xrd_helpers.phasing.output import write_shelx_files
from xrd_helpers.reflections import unique_hkl
from xrd_helpers.structure_factors import structure_factors
from xrd_helpers.summary import git_state, machine

XRD = [sys.executable, "-m", "xrd_helpers.cli"]
KILLED = 0.5  # of the seconds that the command took undisturbed, after which a worker is killed


def write_files(folder, n):
    """n files of paracetamol to 0.9 Å, with errors of 3 % that differ."""
    crystal = read_cif(ROOT / "data" / "molecules" / "paracetamol.cif")
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, 0.9)
    I = np.abs(structure_factors(crystal, hkl)) ** 2
    names = []
    for i in range(n):
        sigma = 0.03 * I + 0.01 * I.mean()
        noisy = I + sigma * np.random.default_rng(i).normal(size=len(I))
        write_shelx_files(folder / f"{i:02d}", hkl, noisy, sigma, 1, crystal.cell, crystal.spacegroup, crystal.contents)
        names.append(f"{i:02d}.hkl")
    return names


@contextmanager
def by_hand(folder, workers):
    """Address of a scheduler and the processes of its workers, each started as on another machine."""
    dask = [sys.executable, "-m", "dask"]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    known = folder / "scheduler.json"
    scheduler = subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                                  "--scheduler-file", str(known)], **quiet)
    worker = [*dask, "worker", "--scheduler-file", str(known), "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    made = [subprocess.Popen(worker, **quiet) for _ in range(workers)]
    try:
        while not known.exists() or not known.stat().st_size:
            time.sleep(0.1)
        time.sleep(3)  # for the workers to be there
        yield pd.read_json(known, typ="series")["address"], made
    finally:
        for process in (*made, scheduler):
            process.kill()
        for process in (*made, scheduler):
            process.wait()
        known.unlink(missing_ok=True)


def timed(command, out, how, kill=None):
    """(seconds, what was made) of a command; kill : (process, seconds) of a worker that ends in the middle."""
    began = time.perf_counter()
    run = subprocess.Popen([*XRD, *command, *how], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=out.parent)
    if kill:
        time.sleep(kill[1])
        kill[0].send_signal(signal.SIGKILL)
    error = run.communicate()[1].decode()
    seconds = time.perf_counter() - began
    if run.returncode:
        print(f"exit code {run.returncode}: {error[-500:]}", file=sys.stderr)
    made = out.read_bytes() if out.suffix == ".parquet" else pd.read_csv(out).sort_values("file")[["file", "verdict"]]
    out.unlink()
    return seconds, made if isinstance(made, bytes) else made.to_csv(index=False).encode()


def measured(name, command, out, workers):
    """Rows of one command in every way."""
    rows, made = [], []

    def add(how, n, options, kill=None):
        seconds, content = timed(command, out, options, kill)
        made.append(content)
        one = rows[0]["seconds"] * rows[0]["workers"] if rows else seconds * n
        rows.append({"command": name, "how": how, "workers": n, "seconds": seconds, "same": content == made[0],
                     "efficiency": one / seconds / min(n, os.cpu_count())})
        print(rows[-1], flush=True)

    for n in workers:
        add("on this machine", n, ["--workers", str(n)])
    with by_hand(out.parent, 2) as (address, _):
        add("scheduler by hand", 2, ["--scheduler", address])
    with by_hand(out.parent, 2) as (address, processes):
        add("scheduler by hand, a worker killed", 2, ["--scheduler", address], (processes[0], KILLED * rows[-1]["seconds"]))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000, help="crystals")
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    target = Path(args.out) if args.out else run_folder("benchmarks")
    target.mkdir(parents=True, exist_ok=True)
    target, rows = target.resolve(), []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        files = write_files(folder, args.files)
        solve = ["solve", *files, "--engine", "charge_flipping", "--overwrite", "--table", "solved.csv"]
        commands = {"generate": (["generate", "--n", str(args.n), "--recipe", "molecules", "--seed", "1", "--out", "c.parquet"],
                                 "c.parquet"),
                    "solve": ([*solve, "--effort", "quick"], "solved.csv"),
                    "solve, molecule known": ([*solve, "--molecule", "CC(=O)Nc1ccc(O)cc1", "--d-min", "2"], "solved.csv")}
        for name, (command, made) in commands.items():
            rows += measured(name, command, folder / made, args.workers)
    table = pd.DataFrame(rows)
    table.to_csv(target / "cluster.csv", index=False)
    print(table.to_string(index=False, float_format=lambda x: f"{x:.2f}"))
    write_json(target / "cluster.json", {"rows": rows, "crystals": args.n, "files": args.files, "commit": str(git_state()),
                                         "machine": str(machine())})


if __name__ == "__main__":
    main()
