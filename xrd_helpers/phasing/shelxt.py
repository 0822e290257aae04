"""SHELXT as a phasing engine: find it, run it in a folder of its own, read what it wrote.

Sheldrick (2015), Acta Cryst. A71, 3. SHELXT is free for academic use but not part of this project: see
https://shelx.uni-goettingen.de. Only the Laue group is taken from the input; SHELXT searches for the space group.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ..crystals import count_elements
from ..shelx import ShelxError, read_instructions, write_shelx
from .solution import PhasingError, Solution
from .verdict import weigh_solution

NAME = "job"          # of the files in the folder of a run
# one row of the table of solutions; Flack_x stays empty for centrosymmetric groups, Orientation may hold spaces
ROW = re.compile(r"^\s*(\d\.\d+)\s+(\d\.\d+)\s+(\d\.\d+)\s+(\d\.\d+)\s+(.+?)\s{2,}(\S+)\s+(?:(-?\d*\.\d+)\s+)?"
                 r"(\S+_[a-z])\s+(.*)$")


@dataclass(frozen=True)
class ListedSolution:
    """One row of the table at the end of a .lxt listing; `file` is the name without suffix, flack_x may be None."""

    r1: float
    r_weak: float
    alpha: float
    sys_abs: float
    orientation: str
    spacegroup: str
    flack_x: float | None
    file: str
    formula: str


def find_shelxt(configured="") -> Path | None:
    """The SHELXT program: `configured` if that is a program, else the one on PATH, else None.

    Raises
    ------
    PhasingError
        If `configured` names something that is no program: a wrong setting is not passed over in silence.
    """
    if configured:
        found = shutil.which(str(Path(configured).expanduser()))
        if found is None:
            raise PhasingError(f"config.yaml names {configured} as SHELXT, which is no program that can be started: "
                               "correct the path, or leave it empty to search PATH")
        return Path(found).resolve()
    found = shutil.which("shelxt")
    return Path(found).resolve() if found else None


def run_shelxt(reflections, elements, folder, timeout=600, executable=None, threads=2, switches=(), watch=None) -> Solution:
    """Solve a structure with SHELXT.

    Parameters
    ----------
    reflections : Reflections
    elements : {symbol: atoms in the asymmetric unit}, or a sequence of symbols; SHELXT uses the set alone
    folder : str or Path, made if absent; the files of an earlier run in it are removed first
    timeout : float, seconds. SHELXT writes its results at the end: nothing is left of a run that is stopped.
    executable : path, by default what ``find_shelxt`` finds
    threads : int, always passed on: left alone, SHELXT takes every core of the machine
    watch : function of (what SHELXT is busy with, seconds), called every second
    switches : sequence of str, more switches of the command line, for instance ``-m500``

    Returns
    -------
    Solution, the first one that SHELXT lists, perhaps in another space group or orientation than the input

    Raises
    ------
    PhasingError
        If SHELXT is absent, cannot start, runs out of time or finds no solution.
    """
    executable = Path(executable) if executable else find_shelxt()
    if executable is None:
        raise PhasingError("SHELXT was not found on PATH: get it from shelx.uni-goettingen.de and name it in "
                           "config.yaml, or use the built-in charge flipping")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{NAME}[._]*"):
        old.unlink()  # a solution of an earlier run would look like one of this run
    elements = count_elements(elements)
    write_shelx(folder / NAME, reflections, elements)
    began = time.perf_counter()
    output = folder / f"{NAME}.out"
    with open(output, "wb") as stream:
        try:
            # a session of its own, so that a time-out ends whatever the program started as well
            process = subprocess.Popen([str(executable.resolve()), f"-t{threads}", *switches, NAME], cwd=folder,
                                       stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                                       start_new_session=True)
        except OSError as error:
            raise PhasingError(f"{executable} cannot be started: {error.strerror}") from None
        try:
            _wait(process, timeout, began, watch and (lambda seconds: watch(_stage(folder), seconds)))
        except subprocess.TimeoutExpired:
            raise PhasingError(f"SHELXT did not finish within {timeout:g} s ({_stage(folder)}): raise the time limit "
                               "or use the built-in charge flipping") from None
        finally:
            _stop(process)
    seconds = time.perf_counter() - began
    listing = _text(folder / f"{NAME}.lxt")
    if "SHELXT finished at" not in listing or not (folder / f"{NAME}_a.res").exists():
        last = (listing.strip() or _text(output).strip() or "it wrote nothing").splitlines()[-1].strip()
        raise PhasingError(f"SHELXT found no solution for the data in {folder} (its last line: {last})")
    rows = read_lxt(folder / f"{NAME}.lxt")
    first = next((row for row in rows if row.file == f"{NAME}_a"), None)
    found = read_res(folder / f"{NAME}_a.res", listed=first, trials=_attempts(listing), seconds=seconds)
    return replace(found, evidence=weigh_solution(found, reflections, elements))


def _wait(process, timeout, began, watch):
    """Wait for the end, calling watch(seconds) meanwhile; subprocess.TimeoutExpired after `timeout` seconds."""
    while True:
        left = timeout - (time.perf_counter() - began)
        try:
            return process.wait(max(0, min(left, 1)))
        except subprocess.TimeoutExpired:
            if left <= 1:
                raise
        if watch:
            watch(time.perf_counter() - began)


def _stop(process):
    """End a process that is still running, and its children, which share its session."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, 9)
        except ProcessLookupError:
            pass
        process.wait()


def _stage(folder):
    """What SHELXT was busy with, from its listing so far: the search for the space group prints nothing for long."""
    listing = _text(folder / f"{NAME}.lxt")
    if "Structure solution:" in listing:
        return "it was searching for the space group"
    tries = re.findall(r"^\s*(\d+)\s+\d+\s+\d\.\d+\s", listing, re.MULTILINE)
    return f"it was at try {tries[-1]}" if tries else "it had not begun to solve"


def _attempts(listing):
    match = re.search(r"(\d+) attempts, solution\s+\d+ selected", listing)
    return int(match[1]) if match else 0


def _text(path):
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_lxt(path) -> list[ListedSolution]:
    """The table of solutions at the end of a .lxt listing, in its order; empty when there is none."""
    rows = []
    for line in _text(path).splitlines():
        if match := ROW.match(line):
            r1, r_weak, alpha, sys_abs, orientation, group, flack, file, formula = match.groups()
            rows.append(ListedSolution(float(r1), float(r_weak), float(alpha), float(sys_abs), orientation, group,
                                       float(flack) if flack else None, file, formula.strip()))
    return rows


def read_res(path, listed=None, trials=0, seconds=0.0) -> Solution:
    """Read the structure of a .res file of SHELXT; `listed` is its row of the .lxt table, used where the file says less.

    Raises
    ------
    PhasingError
        If the file has no cell, an atom line that cannot be read, or symmetry that is no space group of the tables.
    """
    try:
        found = read_instructions(path)
        atoms = found.atoms()
    except ShelxError as error:
        raise PhasingError(str(error)) from None
    if not atoms.elements:
        raise PhasingError(f"{path} holds no atoms: it is not a solution of SHELXT")
    r1, orientation = (listed.r1, listed.orientation) if listed else (float("nan"), "as input")
    for remark in found.remarks:
        if match := re.search(r"R1\s+([\d.]+),.*?Orientation\s+(.+)", remark):
            r1, orientation = float(match[1]), match[2].strip()
    return Solution(fract=atoms.fract % 1, heights=atoms.heights, elements=atoms.elements, u_iso=atoms.u_iso, occ=atoms.occ,
                    rho=None, cell=found.cell, spacegroup=found.spacegroup, r1=r1,
                    figure_of_merit=1 - listed.alpha if listed else float("nan"), trials=trials, seconds=seconds,
                    engine="SHELXT", orientation=orientation)
