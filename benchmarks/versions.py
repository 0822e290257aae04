"""The quick tests with the oldest packages that pyproject.toml allows, and with the newest that there are.

Each set gets a fresh environment in a temporary folder. *oldest*: of every package with a lower bound the first release that
fulfils it, of the others what fits; *newest*: what pip finds today, whatever constraints.txt says. PyTorch from the package
index brings several GB of libraries for GPUs.

Usage: python benchmarks/versions.py [--oldest python3.11] [--newest python3.13] [--out FOLDER]
It writes versions.json: versions and the last line of pytest, by set; the exit code is 1 if a test failed in one.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from xrd_helpers import ROOT
from xrd_helpers.config import run_folder, write_json
from xrd_helpers.summary import git_state, machine

SHOWN = ("torch", "numpy", "pandas", "gemmi", "scipy", "numba", "rdkit", "matplotlib", "distributed")


def lowest():
    """The lower bounds of pyproject.toml as pins: numpy>=2.0 becomes numpy==2.0.*"""
    with open(ROOT / "pyproject.toml", "rb") as file:
        named = tomllib.load(file)["project"]["dependencies"]
    bounds = [re.fullmatch(r"([\w-]+)>=([\d.]+)", text) for text in named if ">=" in text]
    return [f"{bound[1]}=={bound[2]}.*" for bound in bounds]


def tested(python, pins, folder):
    """Versions and the last line of pytest with a Python and pins of packages."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    own = str(Path(folder) / "bin" / "python")
    subprocess.run([own, "-m", "pip", "install", "--quiet", "-e", f"{ROOT}[test]", *pins], check=True)
    listed = subprocess.run([own, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True).stdout
    versions = {package["name"].lower(): package["version"] for package in json.loads(listed)}
    run = subprocess.run([own, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"], cwd=ROOT, text=True,
                         capture_output=True)
    print(run.stdout[-4000:])
    python = subprocess.run([own, "-c", "import platform; print(platform.python_version())"], check=True, text=True,
                            capture_output=True).stdout.strip()
    return {"python": python, **{name: versions.get(name, "") for name in SHOWN}, "passed": run.returncode == 0,
            "tests": run.stdout.strip().splitlines()[-1].strip("= ")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oldest", default="python3.11")
    parser.add_argument("--newest", default="python3")
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    out = Path(args.out) if args.out else run_folder("benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name, python, pins in (("oldest", args.oldest, lowest()), ("newest", args.newest, [])):
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = tested(python, pins, folder)
        print(f"{name}: {rows[name]}")
        write_json(out / "versions.json", {"sets": rows, "commit": str(git_state()), "machine": str(machine())})
    sys.exit(not all(row["passed"] for row in rows.values()))


if __name__ == "__main__":
    main()
