"""Readers of reflections on bytes that a fuzzer makes up: anything but a result or a UserError is a finding, as is ten seconds.

With atheris (PyPI; no part of the project) coverage leads the changes; without it they are drawn at random. It starts from the
cases of tests/bad_input/make.py. What is found lies in RUNS/benchmarks/fuzz, and what has been found is a test.

Usage: python benchmarks/fuzz.py hkl|ins|cif [--seconds 300]
"""

import argparse
import contextlib
import hashlib
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
try:
    import atheris

    instrumented = atheris.instrument_imports(
        include=["xrd_helpers.shelx", "xrd_helpers.reflection_files", "xrd_helpers.reflections", "xrd_helpers.cif"]
    )
except ImportError:
    atheris, instrumented = None, contextlib.nullcontext()

with instrumented:
    from xrd_helpers import reflection_files, shelx

from bad_input.make import CASES, HKL, INS
from xrd_helpers.config import UserError, run_folder

SEED, LONGEST, SECONDS = 0, 20_000, 10
files = {".hkl": HKL.encode(), ".ins": INS.encode()}


def content(path):
    return files[Path(path).suffix]


def read(kind, data):
    """Read data as a file of that kind, beside good ones."""
    before, files["." + kind] = files.get("." + kind), bytes(data[:LONGEST])
    try:
        measured = reflection_files.read_measured(
            f"job.{'hkl' if kind == 'ins' else kind}", None if kind == "cif" else "job.ins"
        )
        measured.quality(measured.merge())
    except UserError as error:
        if "\n" in str(error) or "job." not in str(error):
            raise AssertionError(f"no sentence that names the file: {error}") from error
    finally:
        files["." + kind] = before


def seeds(kind, folder):
    """Short files of that kind, written to the folder; returns their bytes."""
    found = []
    for case in CASES:
        content = case.files.get(f"job.{kind}") if case.kind == "reflections" else None
        content = content.encode() if isinstance(content, str) else content
        if isinstance(content, bytes) and 0 < len(content) < LONGEST:
            found.append(content)
            (folder / hashlib.sha1(content).hexdigest()).write_bytes(content)
    return found


def changed(data, others, rng):
    """data with a few random changes."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        other = rng.choice(others)
        start = rng.randrange(len(other))
        data[place : place + rng.choice((0, 0, 1, 4, 40))] = rng.choice(
            (
                bytes([rng.randrange(256)]),
                b"9" * rng.randint(1, 40),
                b"-",
                b".",
                b"\n",
                b"nan",
                b"1e999",
                b"=",
                b";",
                b"'",
                b"\0",
                other[start : start + rng.randint(1, 60)],
            )
        )
    return bytes(data)


def late(number, frame):
    raise TimeoutError(f"more than {SECONDS} s")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("hkl", "ins", "cif"))
    parser.add_argument("--seconds", type=int, default=300)
    options = parser.parse_args()
    reflection_files.file_content = shelx.file_content = content
    folder = run_folder("benchmarks") / "fuzz" / options.kind
    folder.mkdir(parents=True, exist_ok=True)
    first = seeds(options.kind, folder)
    if atheris:
        print(f"atheris, {options.kind}, {options.seconds} s, {len(first)} files to start from", flush=True)
        atheris.Setup(
            [
                sys.argv[0],
                str(folder),
                f"-max_total_time={options.seconds}",
                f"-timeout={SECONDS}",
                "-rss_limit_mb=4096",
                f"-max_len={LONGEST}",
                f"-seed={SEED + 1}",
                f"-artifact_prefix={folder.parent}/{options.kind}-",
            ],
            lambda data: read(options.kind, data),
        )
        atheris.Fuzz()  # which ends the process
    rng, end, n, findings = random.Random(SEED), time.monotonic() + options.seconds, 0, {}
    signal.signal(signal.SIGALRM, late)
    while time.monotonic() < end:
        data, n = changed(rng.choice(first), first, rng), n + 1
        signal.alarm(SECONDS)
        try:
            read(options.kind, data)
        except Exception as error:
            where = error.__traceback__
            while where.tb_next:
                where = where.tb_next
            key = f"{type(error).__name__} in {Path(where.tb_frame.f_code.co_filename).name}, line {where.tb_lineno}"
            if key not in findings:
                findings[key] = folder.parent / f"{options.kind}-{len(findings)}"
                findings[key].write_bytes(data)
                print(f"{key}: {error}", flush=True)
        finally:
            signal.alarm(0)
    print(f"no atheris, random changes, {options.kind}: {n} files in {options.seconds} s, {len(findings)} findings")
    sys.exit(int(bool(findings)))


if __name__ == "__main__":
    main()
