"""A million crystals: made by `xrd generate`, then scored as a stream, with the memory of all processes against time.

Random atoms, which cost least of all recipes. Of the file as many as --scored are scored beside the shell mean, a thousand at a
time. Memory is what the processes hold, shared pages counted once for each (RSS), looked at twice a second.

Usage: python benchmarks/million.py [--n 1000000] [--scored 20000] [--workers 2] [--out FOLDER]
It writes million.csv (stage, seconds, crystals done, GB), million.json and million.png.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import psutil

from xrd_helpers.baselines import shell_mean
from xrd_helpers.config import atomic_path, run_folder, write_json
from xrd_helpers.evaluation import evaluate
from xrd_helpers.gridding import OWN, select_fitting
from xrd_helpers.storage import iter_crystals
from xrd_helpers.summary import git_state, machine

CHUNK = 1000


def gigabytes():
    """What this process and all that it started hold."""
    total, me = 0, psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**30


class Watch(threading.Thread):
    """Rows of (stage, seconds, crystals done, GB) until it is told to stop."""

    def __init__(self):
        super().__init__(daemon=True)
        self.rows, self.stage, self.done, self.began, self.over = [], "", lambda: 0, time.monotonic(), threading.Event()

    def begin(self, stage, done):
        self.stage, self.done, self.began = stage, done, time.monotonic()

    def run(self):
        while not self.over.wait(0.5):
            self.rows.append((self.stage, round(time.monotonic() - self.began, 1), self.done(), round(gigabytes(), 3)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--scored", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    out = Path(given.out) if given.out else run_folder("benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    watch, seconds, scored, r_ext = Watch(), {}, 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "crystals.parquet")
        watch.begin("generated", lambda: sum(1 for _ in Path(f"{path}.parts").glob("[0-9]*.parquet")) * 512)
        watch.start()
        subprocess.run([sys.executable, "-m", "xrd_helpers.cli", "generate", "--n", str(given.n), "--recipe", "atoms",
                        "--workers", str(given.workers), "--out", str(path)], check=True, stderr=subprocess.DEVNULL)
        seconds["generated"], size = time.monotonic() - watch.began, path.stat().st_size / 2**30
        mean = shell_mean()
        watch.begin("scored", lambda: scored)
        stream = iter_crystals(path)
        while scored < min(given.scored, given.n) and (part := list(islice(stream, CHUNK))):
            fitting = select_fitting(part, OWN, 0.8)[0]
            r_ext += evaluate(fitting, {"shell mean": mean.predict}, OWN).table["r_ext"].sum()
            scored += len(fitting)
        seconds["scored"] = time.monotonic() - watch.began
        watch.over.set()
        watch.join()
    table = pd.DataFrame(watch.rows, columns=["stage", "seconds", "crystals", "gigabytes"])
    with atomic_path(out / "million.csv") as temporary:
        table.to_csv(temporary, index=False)
    rates = {"generated": round(given.n / seconds["generated"]), "scored": round(scored / seconds["scored"])}
    found = {"n": given.n, "scored": scored, "workers": given.workers, "file_gigabytes": round(size, 2),
             "r_ext": round(float(r_ext / scored), 4), "crystals_a_second": rates,
             "seconds": {stage: round(value) for stage, value in seconds.items()},
             "most_gigabytes": table.groupby("stage", sort=False)["gigabytes"].max().to_dict()}
    write_json(out / "million.json", found | {"commit": str(git_state()), "machine": machine()})
    print(found)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
    for ax, (stage, rows) in zip(axes, table.groupby("stage", sort=False)):
        ax.plot(rows["seconds"] / 60, rows["gigabytes"], lw=1)
        ax.set(xlabel="minutes", title=f"{given.n if stage == 'generated' else scored:,} crystals {stage}", ylim=(0, None))
    axes[0].set_ylabel("memory of all processes / GB")
    figure.savefig(out / "million.png", dpi=150)


if __name__ == "__main__":
    main()
