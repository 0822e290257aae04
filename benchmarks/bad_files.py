"""Every command on every bad or odd file of tests/bad_input/make.py: what survives, in how much time and memory.

Survived is: one sentence that names the file and exit code 2, or an answer where the file is odd but right; no traceback, no
new file under a final name, none hidden, no more than 4 GB, no more than 30 s of a processor. Each runs in a process of its
own, a fork of this one, which has imported what commands import; it is killed after five minutes.

Usage: python benchmarks/bad_files.py [WORDS ...], a few minutes; with words, the cases whose kind and name
hold them; their rows replace those in benchmarks/results.
"""

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a process with threads cannot be forked
os.environ["TQDM_DISABLE"] = "1"

import gemmi  # noqa: F401
import pandas as pd
import rdkit.Chem.AllChem  # noqa: F401
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import xrd_helpers.evaluation
import xrd_helpers.inference
import xrd_helpers.phasing.job
import xrd_helpers.training  # noqa: F401
from bad_input.make import CASES, complaint, present
from structure_factors import provenance
from xrd_helpers import ROOT, cli, pipeline
from xrd_helpers.config import atomic_path, write_json

WALL, GIGABYTES = 300, 4
RESULTS = ROOT / "benchmarks" / "results"


def run(case, arguments, folder):
    """(exit code, output, errors, seconds of a processor, GB) of a command in the folder; code None if it did not end."""
    out, err = folder.parent / "out", folder.parent / "err"
    child = os.fork()
    if not child:
        try:
            os.setsid()
            for number, path in ((0, os.devnull), (1, out), (2, err)):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))
            resource.setrlimit(resource.RLIMIT_DATA, ((GIGABYTES + 1) * 2**30,) * 2)
            os.chdir(folder)
            if case.kind == "config":
                pipeline.run = partial(pipeline.run, config=folder / "config.yaml", runs=folder / "runs")
            if case.kind == "set":
                pipeline.run = partial(pipeline.run, runs=folder / "runs")
            sys.argv = ["xrd", *arguments]
            cli.main()
            code = 0
        except SystemExit as left:
            code = left.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    end = time.monotonic() + WALL
    ended, status, usage = os.wait4(child, os.WNOHANG)
    while not ended and time.monotonic() < end:
        time.sleep(0.005)
        ended, status, usage = os.wait4(child, os.WNOHANG)
    if not ended:
        os.killpg(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status) if ended else None
    words = [path.read_text(encoding="utf-8", errors="replace") for path in (out, err)]
    return code, *words, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def main():
    torch.set_num_threads(1)
    words = sys.argv[1:]
    rows, tried, survived = [], Counter(), Counter()
    for case in CASES:
        if any(word not in f"{case.kind} {case.name}" for word in words):
            continue
        for command, arguments in case.commands.items():
            with tempfile.TemporaryDirectory() as temporary:
                folder = case.write(Path(temporary, "folder"))
                before = present(folder)
                code, out, err, seconds, gigabytes = run(case, arguments, folder)
                why = complaint(case, code, out, err, seconds, gigabytes, before, present(folder))
            tried[command] += 1
            survived[command] += not why
            last = (err.strip().splitlines() or [""])[-1].replace(temporary, "").replace(f"{ROOT}/", "")
            rows.append(
                dict(
                    kind=case.kind,
                    case=case.name,
                    command=command,
                    survived=int(not why),
                    code=code,
                    seconds=round(seconds, 1),
                    gigabytes=round(gigabytes, 2),
                    why=why.replace(temporary, ""),
                    message=last[:300],
                )
            )
            if why:
                print(f"{case.kind} | {case.name} | {command}: {why}", flush=True)
    for command in tried:
        print(f"{command:<10} survived {survived[command]} of {tried[command]}")
    print(
        f"{'all':<10} survived {sum(survived.values())} of {sum(tried.values())}, {len({r['kind'] + r['case'] for r in rows})} "
        f"cases; at most {max(r['seconds'] for r in rows):.1f} s and {max(r['gigabytes'] for r in rows):.1f} GB"
    )
    table, path = pd.DataFrame(rows).drop(columns="seconds"), RESULTS / "bad_files.csv"
    if words and path.exists():  # the others as they were
        before = pd.read_csv(path, keep_default_na=False)
        names = set(zip(table["kind"], table["case"]))
        others = [row not in names for row in zip(before["kind"], before["case"])]
        table = pd.concat([before[others], table])
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
    counts = table.groupby("command", sort=False)["survived"].agg(["sum", "size"])
    counts = {command: [int(n) for n in row] for command, row in zip(counts.index, counts.to_numpy())}
    write_json(RESULTS / "bad_files.json", {"cases": len(CASES), "survived_of": counts} | provenance())
    sys.exit(int(sum(tried.values()) > sum(survived.values())))


if __name__ == "__main__":
    main()
