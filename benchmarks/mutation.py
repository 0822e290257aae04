"""Do the tests notice a change of the code? One operator or number of a room is changed at a time, and its tests are run.

Changes: a comparison (< and <=, == and !=, `is`, `in` and their opposites), + and -, * and /, & and |, also where they assign,
`and` and `or`; a `not`, ~ or minus sign that is left out; a number plus one. Numbers of a message (in an f-string), decorators,
annotations, and a number that is the same plus one (1e30) stay. They are drawn in the order of a hash, so that a change
elsewhere in the file draws no others; --n 20 15 draws 20, and then 15 that nobody has looked at when tests were written for
the first. Killed: a test fails, or none can be run, or they take three times as long. What survives is listed with its line;
whether that is a test that is missing or a change without consequence is for a reader, who writes so into the column `reason`
("no consequence: ..." or what is missing). A run takes over reasons, and rooms that it leaves out, from the rows in
benchmarks/results/mutation.csv.

Usage: python benchmarks/mutation.py [--rooms gridding metrics ...] [--n 20 15] [--seed 0] [--out FOLDER]
It writes mutation.csv and mutation.json.
"""

import argparse
import ast
import os
import shutil
import sys
import tempfile
import time
from copy import deepcopy
from hashlib import sha256
from importlib.util import cache_from_source
from multiprocessing import get_context
from pathlib import Path

import numba
import pandas as pd
import pytest

from xrd_helpers import ROOT, cli, inference  # noqa: F401, with these two all is imported that tests import
from xrd_helpers.config import run_folder, write_json
from xrd_helpers.summary import git_state, machine

TESTS = {"gridding": ["gridding"], "structure_factors": ["structure_factors"], "metrics": ["metrics"],
         "reflection_files": ["reflection_files", "shelx", "bad_input"], "phasing/refine": ["phasing_refine"]}
SELECTED = {"reflection_files": "not bad_file or reflections"}  # of the tests, those that concern the room
OPPOSITE = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.In: ast.NotIn,
            ast.Add: ast.Sub, ast.Mult: ast.Div, ast.And: ast.Or, ast.BitAnd: ast.BitOr}
OPPOSITE |= {new: old for old, new in OPPOSITE.items()}
SAME = ["room", "code", "column", "before", "after"]  # what tells one change from another


def changes(node):
    """A node changed in one respect, in all ways there are."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            if type(operator) in OPPOSITE:
                new = deepcopy(node)
                new.ops[i] = OPPOSITE[type(operator)]()
                yield new
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in OPPOSITE:
        new = deepcopy(node)
        new.op = OPPOSITE[type(node.op)]()
        yield new
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert | ast.USub):
        yield deepcopy(node.operand)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value + 1 != node.value:
        yield ast.Constant(node.value + 1)


def walk(node, text=None):
    """All nodes in which a change may matter. Those in an f-string get its place: Python 3.11 gives them none that is right."""
    text = text or (node if isinstance(node, ast.JoinedStr) else None)
    if text and hasattr(node, "lineno"):
        node.lineno, node.col_offset = text.lineno, text.col_offset
    if not (text and isinstance(node, ast.Constant)):
        yield node
    for name, value in ast.iter_fields(node):
        if name not in ("decorator_list", "annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, text)


class Change(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old, new):
        self.old, self.new = old, new

    def visit(self, node):
        return self.new if node is self.old else super().generic_visit(node)


def mutants(room, source, n, seed):
    """(row of the table, changed source) of n changes."""
    lines, found = source.splitlines(), []
    for i, node in enumerate(walk(ast.parse(source))):
        for j, new in enumerate(changes(node)):
            line = lines[node.lineno - 1]
            row = {"room": room, "line": node.lineno, "code": line.strip(),
                   "column": node.col_offset - len(line) + len(line.lstrip()), "before": ast.unparse(node),
                   "after": ast.unparse(new)}
            found.append((sha256(" ".join([str(seed), *(str(row[name]) for name in SAME)]).encode()).digest(), i, j, row))
    for _, i, j, row in sorted(found, key=lambda one: one[:3])[:n]:
        tree = ast.parse(source)
        node = list(walk(tree))[i]
        yield row, ast.unparse(ast.fix_missing_locations(Change(node, list(changes(node))[j]).visit(tree)))


def run_tests(folder, room, compiled):
    """Exit with what pytest says of a room in a copy of the repository: in a fork, which has all that others wrote imported."""
    for name in [name for name in sys.modules if name.split(".")[0] == "xrd_helpers"]:
        del sys.modules[name]
    os.chdir(folder)
    os.environ |= {"PYTHONPATH": str(folder), "XRD_REAL_DATA": "/absent", "NUMBA_CACHE_DIR": compiled}
    numba.config.CACHE_DIR = compiled
    sys.path.insert(0, str(folder))
    sys.stdout = sys.stderr = open(os.devnull, "w")
    for number in (1, 2):
        os.dup2(sys.stdout.fileno(), number)
    sys.exit(pytest.main(["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-k", SELECTED.get(room, ""),
                          *(f"tests/test_{name}.py" for name in TESTS[room])]))


def passes(folder, room, text, timeout):
    """Whether the tests of a room pass with another text in its place."""
    path = folder / "xrd_helpers" / f"{room}.py"
    path.write_text(text, encoding="utf-8")
    Path(cache_from_source(path)).unlink(missing_ok=True)  # Python looks at whole seconds and at the size
    with tempfile.TemporaryDirectory() as compiled:  # numba looks at the file of a function, not of what that calls
        child = get_context("fork").Process(target=run_tests, args=(folder, room, compiled))
        child.start()
        child.join(timeout)
        child.kill()
        child.join()
    return child.exitcode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="+", default=list(TESTS), choices=list(TESTS))
    parser.add_argument("--n", type=int, nargs="+", default=[20, 15])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    out, rows, commit = Path(args.out) if args.out else run_folder("benchmarks"), [], str(git_state())
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder) / "repository"
        left_out = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "results", "_build")
        shutil.copytree(ROOT, folder, ignore=left_out)
        for room in args.rooms:
            source = (ROOT / "xrd_helpers" / f"{room}.py").read_text(encoding="utf-8")
            began = time.perf_counter()
            if not passes(folder, room, ast.unparse(ast.parse(source)), 600):
                raise SystemExit(f"a test of {room} fails with the code as it is")
            limit = 3 * (time.perf_counter() - began) + 20
            for row, text in mutants(room, source, sum(args.n), args.seed):
                draw = next(i for i in range(len(args.n)) if sum(rest["room"] == room for rest in rows) < sum(args.n[:i + 1]))
                rows.append({"draw": draw + 1, **row, "killed": not passes(folder, room, text, limit)})
                print(*rows[-1].values(), sep=" | ", flush=True)
            (folder / "xrd_helpers" / f"{room}.py").write_text(source, encoding="utf-8")
    table, kept = pd.DataFrame(rows).assign(reason=""), ROOT / "benchmarks" / "results" / "mutation.csv"
    if kept.is_file():
        before = pd.read_csv(kept, keep_default_na=False)
        reasons = {tuple(map(str, row[SAME])): row.reason for _, row in before.iterrows()}
        table["reason"] = ["" if row.killed else reasons.get(tuple(map(str, row[SAME])), "") for _, row in table.iterrows()]
        table = pd.concat([before[~before.room.isin(args.rooms)], table])
    without = ~table.killed & table.reason.str.startswith("no consequence")
    made = table.assign(tried=1, without_consequence=without).groupby(["room", "draw"], sort=False)[
        ["killed", "tried", "without_consequence"]].sum().reset_index()
    table.to_csv(out / "mutation.csv", index=False)
    print(made.to_string(index=False))
    found = {"rows": made.to_dict("records"), "seed": args.seed, "commit": commit, "machine": machine()}
    write_json(out / "mutation.json", found)


if __name__ == "__main__":
    main()
