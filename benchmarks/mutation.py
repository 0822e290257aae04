"""Do the tests notice a change of the code? One operator or number of a room is changed at a time, and its tests are run.

Changes: a comparison (< and <=, == and !=), an arithmetic operator (+ and -, * and /), `and` and `or`, a `not` that is left
out, a number plus one. They are drawn with a seed, --n of each room. Killed: a test fails, or none can be run, or they take
five times as long. What survives is listed with its line; whether that is a test that is missing or a change without
consequence is for a reader.

Usage: python benchmarks/mutation.py [--rooms gridding metrics ...] [--n 20] [--out FOLDER]
It writes mutation.csv and mutation.json.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd

from xrd_helpers import ROOT
from xrd_helpers.config import run_folder, write_json
from xrd_helpers.summary import git_state, machine

TESTS = {"gridding": ("gridding", "inference"), "structure_factors": ("structure_factors",), "metrics": ("metrics",),
         "reflection_files": ("reflection_files",), "phasing/refine": ("phasing_refine",)}
SWAPPED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
           ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}


def changed(node):
    """A node changed in one respect, or None if there is nothing to change."""
    new = deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        new.ops[0] = SWAPPED[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPPED:
        new.op = SWAPPED[type(node.op)]()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        new = new.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        new.value += 1
    else:
        return None
    return new


class Change(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old, new):
        self.old, self.new = old, new

    def visit(self, node):
        return self.new if node is self.old else super().generic_visit(node)


def mutants(source, n, rng):
    """(line, before, after, source) of n changes."""
    count = sum(changed(node) is not None for node in ast.walk(ast.parse(source)))
    for i in sorted(rng.permutation(count)[:n].tolist()):
        tree = ast.parse(source)
        node = [node for node in ast.walk(tree) if changed(node) is not None][i]
        new = changed(node)
        before, after = ast.unparse(node), ast.unparse(new)
        yield node.lineno, before, after, ast.unparse(ast.fix_missing_locations(Change(node, new).visit(tree)))


def passes(folder, tests, timeout):
    try:
        run = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider",
                              *(f"tests/test_{name}.py" for name in tests)], cwd=folder, timeout=timeout, capture_output=True,
                             env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "XRD_REAL_DATA": "/absent"})
    except subprocess.TimeoutExpired:
        return False
    return run.returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="+", default=list(TESTS), choices=list(TESTS))
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    out, rows = Path(args.out) if args.out else run_folder("benchmarks"), []
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder) / "repository"
        left_out = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "results", "_build")
        shutil.copytree(ROOT, folder, ignore=left_out)
        for room in args.rooms:
            path = folder / "xrd_helpers" / f"{room}.py"
            source = path.read_text(encoding="utf-8")
            began = time.perf_counter()
            if not passes(folder, TESTS[room], 600):
                raise SystemExit(f"a test of {room} fails with the code as it is")
            limit = 5 * (time.perf_counter() - began) + 30
            for line, before, after, text in mutants(source, args.n, np.random.default_rng(args.seed)):
                path.write_text(text, encoding="utf-8")
                rows.append({"room": room, "line": line, "before": before, "after": after,
                             "killed": not passes(folder, TESTS[room], limit)})
                print(rows[-1], flush=True)
            path.write_text(source, encoding="utf-8")
    table = pd.DataFrame(rows)
    table.to_csv(out / "mutation.csv", index=False)
    made = table.groupby("room").killed.agg(["sum", "size"]).rename(columns={"sum": "killed", "size": "tried"}).reset_index()
    print(made.to_string(index=False))
    write_json(out / "mutation.json", {"rows": made.to_dict("records"), "seed": args.seed, "commit": str(git_state()),
                                       "machine": str(machine())})


if __name__ == "__main__":
    main()
