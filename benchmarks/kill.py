"""Commands that are killed at random moments, run into a full disk or may not write: what is left, and how they go on.

Each command runs undisturbed once. Then it is disturbed N times by SIGKILL, N by Ctrl-C and N by SIGTERM at a random moment of
its work, and started again; every few disturbances it may finish. Survived is: no half file under a final name at any time, no
process left after ten seconds, no traceback; at the end the undisturbed result, to the byte, and nothing besides it. Ctrl-C
goes to the process alone or, as from a terminal, to all that it started. A full disk is a small tmpfs, which only root can
make.

Commands run in forks of this process, which has imported what they import, so that the moments fall into their work; "the
start" is the Python program itself in its first two seconds.

Usage: python benchmarks/kill.py [--n 30] [--jobs train,extend,...]
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a process with threads cannot be forked
os.environ["TQDM_DISABLE"] = "1"

import pandas as pd
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import distributed  # noqa: F401

import xrd_helpers.evaluation
import xrd_helpers.inference
import xrd_helpers.phasing.job
import xrd_helpers.training  # noqa: F401
from bad_input.make import HKL, INS
from cif_makers import cif
from makers import make_notebook
from structure_factors import provenance
from xrd_helpers import ROOT, cli, pipeline
from xrd_helpers.config import atomic_path, write_json
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.storage import read_crystals, write_crystals

SEED, CHAIN, PATIENCE = 0, 5, 120  # disturbances before a job may finish; seconds for what should have ended long ago
SIGNALS = {"SIGKILL": signal.SIGKILL, "Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}
CODES = {"SIGKILL": (-9,), "Ctrl-C": (130,), "SIGTERM": (143, -15)}
RESULTS = ROOT / "benchmarks" / "results"
WEIGHTS = ROOT / "weights" / "xrd_transformer.safetensors"


def measured(folder):
    for name in ("a", "b"):
        (folder / f"{name}.hkl").write_text(HKL)
        (folder / f"{name}.ins").write_text(INS)


def cifs(folder, n=250):
    (folder / "cifs").mkdir()
    for i in range(n):
        (folder / "cifs" / f"{i:03}.cif").write_text(cif((8 + i / 20, 6.3, 9.2, 90, 104, 90)))


def crystals(folder):
    write_crystals(folder / "c.parquet", random_crystals(60, 1, ["P 1 21/c 1"]))


def notebooks(folder):
    """Two small notebooks, and a config.yaml for them."""
    for number in (1, 2):
        text = (
            "from xrd_helpers.config import run_folder, write_result\n"
            f"from xrd_helpers.random_crystals import random_crystals\nmade = random_crystals(20, seed + {number})\n"
            f'write_result(profile, "0{number}_part", volume=sum(c.cell.volume for c in made))'
        )
        make_notebook(folder / "notebooks", f"0{number}_part", text, parameters='profile = "quick"\nseed = 0')
    (folder / "config.yaml").write_text("smoke:\n  01_part: {seed: 7}\n")


def without(*columns):
    """What a table holds besides times."""
    return lambda path: pd.read_csv(path).drop(columns=list(columns), errors="ignore").to_csv(index=False).encode()


def tensors(path):
    return {name: value.numpy().tobytes() for name, value in load_file(path).items()}


@dataclass(frozen=True)
class Job:
    """A command, what has to be there, and {its files: how they are compared}; all others are left out of the comparison."""

    command: str
    make: object
    files: dict
    megabytes: float = 0.0  # of a disk that is too small


JOBS = {
    "generate": Job(
        "generate --n 1100 --seed 7 --workers 2 --out c.parquet", lambda folder: None, {"c.parquet": Path.read_bytes}, 0.3
    ),
    "read-cifs": Job(
        "read-cifs cifs --workers 2 --out c.parquet",
        cifs,
        {"c.parquet": Path.read_bytes, "c.left_out.csv": Path.read_bytes},
        0.02,
    ),
    "train": Job(
        f"train --model xrd_transformer --start {WEIGHTS} --crystals c.parquet --steps 12 --batch-size 1 --n-validation 2 "
        "--n-validations 2 --workers 0 --device cpu --precision 32-true --checkpoint-minutes 0.005 --out w.safetensors "
        "--overwrite",
        crystals,
        {"w.safetensors": tensors, "w.csv": without("seconds")},
        0.3,
    ),
    "extend": Job(
        "extend a.hkl --model xrd_transformer --csv --mtz --cif --overwrite",
        measured,
        {f"a_extended.{suffix}": Path.read_bytes for suffix in ("hkl", "ins", "csv", "mtz", "cif")},
        0.1,
    ),
    "solve": Job(
        "solve a.hkl b.hkl --engine charge_flipping --trials 1 --effort quick --workers 2 --overwrite",
        measured,
        {
            "solved.csv": without("seconds"),
            **{
                f"{name}_xrd/{name}_unsolved.{suffix}": Path.read_bytes
                for name in "ab"
                for suffix in ("hkl", "ins", "res", "cif")
            },
        },
        0.1,
    ),
    "run": Job(
        "run --profile smoke --resume",
        notebooks,
        {f"runs/smoke/results/0{number}_part.json": Path.read_bytes for number in (1, 2)},
        0.01,
    ),
    "evaluate": Job(
        "evaluate c.parquet --model xrd_transformer --curve 20 --workers 0 --out table.csv",
        crystals,
        {"table.csv": Path.read_bytes},
        0.004,
    ),
}


def start(job, folder):
    """A fork in a session of its own that runs the command in the folder; its errors go to a file beside it."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        signal.signal(signal.SIGINT, cli._leave)
        for number, path in ((0, os.devnull), (1, os.devnull), (2, f"{folder}.err")):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))
        here = sys.modules["__main__"]  # processes that the command spawns shall not import this file
        here.__spec__ = None
        del here.__file__
        os.chdir(folder)
        cli.PROGRAM = True
        places = dict(runs=folder / "runs", config=folder / "config.yaml", notebooks=folder / "notebooks")
        pipeline.run = partial(pipeline.run, **places)
        sys.argv = ["xrd", *job.command.split()]
        cli.main()
        code = 0
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def ended(child, seconds):
    """The exit code of a fork within so many seconds; None if it runs on."""
    end = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.001)


def of_session(session):
    """Processes of a session that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(own) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def orphans(session):
    """Processes of it that are still there after a while, which are then ended."""
    end = time.monotonic() + 10
    while (left := of_session(session)) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def half(job, folder, whole):
    """Files under a final name that are not what they should be."""
    wrong = [
        name
        for name, read in job.files.items()
        if (folder / name).exists() and compared(read, folder / name) != whole[name] and name not in ("w.csv", "solved.csv")
    ]  # a log that grows, and a table that says how far it got
    for part in folder.glob("*.parts/[0-9]*.parquet"):
        try:
            read_crystals(part)
        except Exception:
            wrong.append(part.name)
    return wrong


def compared(read, path):
    try:
        return read(path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def finished(job, folder, whole, expected):
    """What is wrong with the result of a job that may finish at last; "" if nothing."""
    child = start(job, folder)
    code = ended(child, PATIENCE)
    if code is None:
        os.kill(child, signal.SIGKILL)
        ended(child, 10), orphans(child)
        return "did not finish when started again"
    said = Path(f"{folder}.err").read_text(encoding="utf-8")
    if code not in (0, 1) or "Traceback" in said:
        return f"started again: exit code {code}, {said[-200:]}"
    if wrong := [name for name, read in job.files.items() if compared(read, folder / name) != whole.get(name)]:
        return f"another result: {wrong}"
    if extra := files(folder) - expected:
        return f"left behind: {sorted(extra)}"
    return ""


def disturb(name, job, how, n, whole, expected, seconds, rng, base, rows):
    """Disturb a job n times; a row for each."""
    done = 0
    while done < n:
        folder = Path(tempfile.mkdtemp(dir=base))
        job.make(folder)
        chain = []
        for _ in range(min(CHAIN, n - done)):
            for _ in range(50):
                child, wait = start(job, folder), 0.02 + rng.uniform(0, seconds)
                code, group = ended(child, wait), how == "Ctrl-C" and rng.random() < 0.5
                if code is None:
                    (os.killpg if group else os.kill)(child, SIGNALS[how])
                    code = ended(child, 30)
                if code not in (0, 1):
                    break
                shutil.rmtree(folder)  # it had finished, and was not disturbed
                folder.mkdir()
                job.make(folder)
            else:
                raise SystemExit(f"{name} is too fast to be disturbed")
            why = "" if code in CODES[how] else f"exit code {code}"
            if code is None:
                why = "did not end within 30 s"
                os.kill(child, signal.SIGKILL)
                ended(child, 10)
            said = Path(f"{folder}.err").read_text(encoding="utf-8")
            if "Traceback" in said:
                why = why or f"traceback: {said.strip().splitlines()[-1][:150]}"
            if left := orphans(child):
                why = why or f"{len(left)} processes left"
            if wrong := half(job, folder, whole):
                why = why or f"half files: {wrong}"
            if how == "Ctrl-C" and (
                hidden := [f for f in files(folder) if Path(f).name.startswith(".") and ".parts/" not in f]
            ):
                why = why or f"hidden files: {hidden}"
            chain.append(dict(job=name, how=how + (" to all" if group else ""), after=round(wait, 2), code=code, why=why))
        if why := finished(job, folder, whole, expected):
            chain[-1]["why"] = chain[-1]["why"] or why
        rows += chain
        done += len(chain)
        for row in chain:
            if row["why"]:
                print(f"  {row['job']}, {row['how']} after {row['after']} s: {row['why']}", flush=True)
        shutil.rmtree(folder)


def small_disk(name, job, whole, expected, base, rows):
    """A disk that is too small, then one that may not be written to; both let it finish later."""
    for how, later in (("full disk", "remount,size=64m"), ("read-only", "remount,rw")):
        folder = Path(tempfile.mkdtemp(dir=base))
        folder.rmdir(), folder.mkdir()
        if (
            os.geteuid()
            or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True).returncode
        ):
            print(f"  {name}, {how}: skipped, which only root can try")
            return
        try:
            job.make(folder)
            used = sum(path.stat().st_blocks for path in folder.rglob("*")) * 512
            room = f"size={used + int(job.megabytes * 2**20)}" if how == "full disk" else "ro"
            subprocess.run(["mount", "-o", f"remount,{room}", folder], check=True)
            child = start(job, folder)
            code, why = ended(child, PATIENCE), ""
            said = Path(f"{folder}.err").read_text(encoding="utf-8").strip()
            last = (said.splitlines() or [""])[-1]
            if code not in ((2, 1) if name == "solve" else (2,)) or "Traceback" in said:
                why = f"exit code {code}: {last[:150]}"
            elif code == 2 and not last.startswith("xrd: "):
                why = f"no sentence: {last[:150]}"
            if code is None:
                os.kill(child, signal.SIGKILL)
                ended(child, 10)
            why = why or ", ".join(half(job, folder, whole))
            if orphans(child):
                why = why or "processes left"
            subprocess.run(["mount", "-o", later, folder], check=True)
            why = why or finished(job, folder, whole, expected)
            rows.append(dict(job=name, how=how, after=0, code=code, why=why, message=last[:200].replace(str(folder), "FOLDER")))
            print(f"  {name}, {how}: {why or 'survived: ' + last[:150]}", flush=True)
        finally:
            subprocess.run(["umount", "-l", folder], check=False)


def the_start(n, rng, rows):
    """Ctrl-C while Python is still importing."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            command = [
                "generate --n 9 --workers 0 --out c.parquet",
                "read-cifs . --out c.parquet",
                "evaluate . --out t.csv",
                "extend a.hkl",
                "train --model unet --steps 1 --out w.safetensors",
                "solve a.hkl",
                "run --profile none",
            ][i % 7]
            wait = rng.uniform(0.05, 2)
            process = subprocess.Popen(
                [sys.executable, "-m", "xrd_helpers.cli", *command.split()],
                cwd=folder,
                text=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            time.sleep(wait)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=60)[1]
            why = (
                "traceback"
                if "Traceback" in said
                else ""
                if process.returncode in (130, -signal.SIGINT, 2, 0)  # -2: while the interpreter was already leaving
                else f"exit code {process.returncode}"
            )
            rows.append(dict(job="the start", how="Ctrl-C", after=round(wait, 2), code=process.returncode, why=why))
            if why:
                print(f"  the start, {command.split()[0]}, Ctrl-C after {wait:.2f} s: {why} {said[-150:]!r}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=30)
    parser.add_argument("--jobs", default=",".join([*JOBS, "the start"]))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, rows = random.Random(SEED), []
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    wanted = options.jobs.split(",")
    with tempfile.TemporaryDirectory() as base:
        for name in [name for name in JOBS if name in wanted]:
            job, folder = JOBS[name], Path(base, name)
            for _ in range(2):  # the first may compile
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                job.make(folder)
                began = time.monotonic()
                child = start(job, folder)
                if (code := ended(child, 600)) not in (0, 1):
                    raise SystemExit(f"{name} itself: exit code {code}\n{Path(f'{folder}.err').read_text()[-2000:]}")
                seconds = time.monotonic() - began
            whole = {file: read(folder / file) for file, read in job.files.items()}
            print(f"{name}: undisturbed in {seconds:.1f} s", flush=True)
            for how in ("SIGKILL", "Ctrl-C", "SIGTERM"):
                disturb(name, job, how, options.n, whole, files(folder), seconds, rng, base, rows)
            small_disk(name, job, whole, files(folder), base, rows)
    if "the start" in wanted:
        the_start(options.n, rng, rows)
    tried, survived = Counter(), Counter()
    for row in rows:
        key = row["job"], row["how"].removesuffix(" to all")
        tried[key] += 1
        survived[key] += not row["why"]
    for key in tried:
        print(f"{key[0]:<10} {key[1]:<10} survived {survived[key]} of {tried[key]}")
    print(f"all survived {survived.total()} of {tried.total()}")
    table, path = pd.DataFrame(rows), RESULTS / "kill.csv"
    if path.exists() and len(wanted) < len(JOBS) + 1:  # the others as they were
        before = pd.read_csv(path)
        table = pd.concat([before[~before["job"].isin(table["job"])], table])
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
    counts = table.assign(kind=table["how"].str.removesuffix(" to all"), ok=table["why"].isna() | (table["why"] == ""))
    counts = counts.groupby(["job", "kind"], sort=False)["ok"].agg(["sum", "size"])
    write_json(
        RESULTS / "kill.json",
        {"seed": SEED, "survived": [[job, kind, int(row["sum"]), int(row["size"])] for (job, kind), row in counts.iterrows()]}
        | provenance(),
    )
    sys.exit(int(survived.total() < tried.total()))


if __name__ == "__main__":
    main()
