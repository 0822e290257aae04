"""Crystals read from folders of CIF files, by the thousand, and what is set aside among them: one reason for each."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
from collections import Counter, defaultdict, deque
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
from tqdm import tqdm

from .cif import DEFAULT_U, REASONS, CifEntry, CifError, read_cif_file
from .config import atomic_path, leave_with_parent, no_interrupt
from .crystals import Crystal, CrystalError

SAME_CELL = 0.02  # relative: one crystal between 100 K and 300 K grows by up to 2 % in a direction


@dataclass(frozen=True)
class Collected:
    """What ``collect`` found: crystals, those left out (CifEntry without a crystal), and the rows (label, number) of a
    table that accounts for every file."""

    crystals: list[Crystal]
    left_out: list[CifEntry]
    rows: list[tuple[str, int]]

    @property
    def n_files(self) -> int:
        return dict(self.rows)["files"]


def collect(sources, box=None, d_target=0.8, keep_disordered=False, workers=None, progress=False) -> Collected:
    """Crystals that can be used from folders of CIF files and from files of crystals, and why the others cannot.

    Of CIF files each crystal is taken once, the first in the order of folder and name (``set_aside_duplicates``);
    files of crystals are taken as they are.

    Parameters
    ----------
    sources : paths of folders, searched with all folders below them, and of ``.parquet`` files (storage.write_crystals)
    box : gridding.Box, optional
        Only crystals that fit it to `d_target` are kept; by default it is counted how many fit which box.
    d_target : float, Å
    keep_disordered, workers : see ``read_cifs``
    progress : bool, whether to show a bar

    Raises
    ------
    CrystalError
        If a folder does not exist or holds no CIF file, or a file of crystals cannot be read. Nothing that a CIF file
        holds raises.
    """
    stored = [source for source in map(str, sources) if source.endswith(".parquet")]
    paths = find_cifs([source for source in map(str, sources) if source not in stored])
    read = tqdm(read_cifs(paths, keep_disordered, workers), total=len(paths), unit=" files", disable=not progress)
    place = {str(path): i for i, path in enumerate(paths)}
    entries = set_aside_duplicates(sorted(read, key=lambda entry: place[entry.path]))
    if stored:
        from .storage import iter_crystals  # processes that read CIF files need no pyarrow

        for path in stored:
            if not (found := [CifEntry(path, crystal.name, crystal) for crystal in iter_crystals(path)]):
                raise CrystalError(f"{path} holds no crystals")
            entries += found
    if box:
        entries = set_aside_unfit(entries, box, d_target)
    rows = summarise(entries)
    if not box:
        rows += [(f"read, fit the {name} box to {d_target:g} Å", n) for name, n in count_fitting(entries, d_target).items()]
    return Collected([e.crystal for e in entries if e.crystal], [e for e in entries if not e.crystal], rows)


def find_cifs(folders) -> list[Path]:
    """The ``.cif`` files (upper or lower case) in folders and all folders below them, sorted within each folder named.

    Raises
    ------
    CrystalError
        If a folder does not exist or holds no CIF file.
    """
    paths = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise CrystalError(f"{folder}, which should hold CIF files, is no folder")
        # a name that starts with a dot is a file that is being written
        found = sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names
                       if name.lower().endswith(".cif") and not name.startswith("."))
        if not found:
            raise CrystalError(f"{folder}, which should hold CIF files, holds no .cif file")
        paths += found
    return list(dict.fromkeys(paths))


def read_cif_folders(folders):
    """Read the CIF files of a few folders in this process, disordered crystals too; for thousands see ``read_cifs``.

    Returns
    -------
    crystals : list of Crystal, in the order of folder and file name
    problems : list of str, one sentence for each file (or structure in one) that could not be used

    Raises
    ------
    CrystalError
        If a folder does not exist or holds no CIF file; nothing has been read then.
    """
    entries = list(read_cifs(find_cifs(folders), keep_disordered=True, workers=0))
    return [e.crystal for e in entries if e.crystal], [e.message for e in entries if not e.crystal]


def read_cifs(paths, keep_disordered=False, workers=None, seconds=60.0):
    """Read CIF files, in several processes (a script has to call it below ``if __name__ == "__main__":``).

    A file on which the reader crashes, or stays for longer than `seconds`, is an entry of its own ("stopped the
    reader"): it ends the process that reads it and no other.

    Parameters
    ----------
    paths : list of Path
    keep_disordered : bool
        See ``read_cif_file``.
    workers : int, optional
        Number of processes, by default as many as there are cores; 0 reads in this one, without that protection.
    seconds : float
        For one file; not on Windows, which has no alarm.

    Yields
    ------
    entry : CifEntry
        At least one for each file, in no particular order if there are workers.
    """
    if workers == 0:
        for path in paths:
            yield from read_cif_file(path, keep_disordered)
    else:
        yield from _read_in_processes(paths, keep_disordered, workers or os.cpu_count(), seconds, chunk=32)


def _read_in_processes(paths, keep_disordered, workers, seconds, chunk):
    queue = deque(paths[i:i + chunk] for i in range(0, len(paths), chunk))
    # a few chunks at a time: a pool that breaks does not say on which, and loses all that were handed in
    at_once = 1 if chunk == 1 else workers + 2
    while queue:
        running, others = {}, set(multiprocessing.active_children())
        # spawned, because a fork of a process with threads may hang
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), leave_with_parent)
        try:
            while queue or running:
                while queue and len(running) < at_once:
                    with no_interrupt(signal.SIGTERM):  # processes begin here
                        running[pool.submit(_read_chunk, queue[0], keep_disordered, seconds)] = queue[0]
                    queue.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    entries = future.result()
                    del running[future]
                    yield from entries
        except BrokenProcessPool:
            pass
        except BaseException:  # Ctrl-C, or nobody wants the rest: what is under way is not waited for
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C may have left a lock of the pool taken
            raise
        pool.shutdown()
        suspects = [path for part in running.values() for path in part]
        if chunk > 1:
            yield from _read_in_processes(suspects, keep_disordered, 1, seconds, chunk=1)
        else:
            for path in map(Path, suspects):
                yield CifEntry(str(path), path.stem, None, "stopped the reader",
                               f"{path}: reading it crashed, or took longer than {seconds:g} s")


def _read_chunk(paths, keep_disordered, seconds):
    entries = []
    for path in paths:
        if hasattr(signal, "setitimer"):  # when it rings, the process ends: in C++ no Python code could stop it
            signal.setitimer(signal.ITIMER_REAL, seconds)
        entries += read_cif_file(path, keep_disordered)
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    return entries


# --- What is set aside among crystals that can be read ---


def set_aside_duplicates(entries) -> list[CifEntry]:
    """The entries, those that repeat the crystal of an earlier one set aside as "duplicate".

    Two crystals are the same if their primitive cells hold the same atoms (hydrogen left out, which one file may list
    and another not) and their lattices agree within SAME_CELL in the lengths of the seven Voronoi vectors.
    """
    seen, result = defaultdict(list), []
    for entry in entries:
        if entry.crystal:
            lengths = _voronoi_lengths(entry.crystal)
            same = seen[_content(entry.crystal)]
            first = next((e for e, known in same if np.allclose(lengths, known, rtol=SAME_CELL, atol=0)), None)
            if first:
                message = f"{entry.path}: {entry.name} has the reduced cell and the formula of {first.name} ({first.path})"
                entry = replace(entry, crystal=None, reason="duplicate", message=message)
            else:
                same.append((entry, lengths))
        result.append(entry)
    return result


def _content(crystal):
    """Atoms in the primitive cell, hydrogen left out: a tuple of (element, number), sorted."""
    content = Counter()
    for element, occ, heavy in zip(crystal.elements, crystal.occ, crystal.heavy):
        if heavy:
            content[element] += occ * len(crystal.spacegroup.operations().sym_ops)
    return tuple(sorted((element, round(n)) for element, n in content.items()))


def _voronoi_lengths(crystal):
    """(7,) Å, sorted: lengths of the vectors that bound the Voronoi cell of the lattice.

    They follow from the Selling-reduced cell and change smoothly with the lattice, whereas the angles of a Niggli cell
    jump from acute to obtuse at 90° (Conway & Sloane, 1992, Proc. R. Soc. A 436, 55).
    """
    selling = gemmi.GruberVector(crystal.cell, crystal.spacegroup).selling()
    selling.reduce()
    bc, ac, ab, ad, bd, cd = selling.parameters  # products of a, b, c and d = -a-b-c
    squares = [ab + ac + ad, ab + bc + bd, ac + bc + cd, ad + bd + cd,  # a, b, c, d
               ac + ad + bc + bd, ab + ad + bc + cd, ab + ac + bd + cd]  # a+b, a+c, b+c
    return np.sqrt(np.sort(-np.array(squares)))


def set_aside_unfit(entries, box, d_target) -> list[CifEntry]:
    """The entries, those whose crystal does not fit `box` (gridding.Box) to d_target in Å set aside."""
    result = []
    for entry in entries:
        if entry.crystal and (problem := _misfit(entry.crystal, box, d_target)):
            entry = replace(entry, crystal=None, reason=problem.reason, message=f"{entry.path}: {problem}")
        result.append(entry)
    return result


def count_fitting(entries, d_target) -> dict[str, int]:
    """How many of the crystals fit each box of gridding.BOXES to d_target in Å."""
    from .gridding import BOXES  # it needs torch, which takes seconds to import in each process that reads

    crystals = [entry.crystal for entry in entries if entry.crystal]
    return {name: sum(_misfit(crystal, box, d_target) is None for crystal in crystals) for name, box in BOXES.items()}


def _misfit(crystal, box, d_target):
    """None, or a CifError that says why the crystal does not fit the box."""
    from .gridding import check_fit, to_box_setting

    crystal = to_box_setting(crystal)
    for d, reason in ((1e3, "not of the box"), (d_target, "too big for the box")):  # no cell has reflections at 1000 Å
        try:
            check_fit(crystal, box, d)
        except CrystalError as error:
            return CifError(str(error), reason)
    return None


def write_left_out(path, entries):
    """Write the entries without a crystal as CSV: path, name, reason and the sentence that says why."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "name", "reason", "message"))
        table.writerows((e.path, e.name, e.reason, e.message) for e in entries if not e.crystal)


def summarise(entries) -> list[tuple[str, int]]:
    """Rows (label, number) of a table: what was read and what was left out, by reason."""
    read = [entry for entry in entries if entry.crystal]
    without_u = [entry.without_u for entry in read if entry.without_u]
    reasons = Counter(entry.reason for entry in entries if not entry.crystal)
    return [("files", len({entry.path for entry in entries})), ("structures in them", len(entries)), ("read", len(read)),
            *((f"left out: {reason}", reasons[reason]) for reason in REASONS if reasons[reason]),
            (f"read, with sites that got U = {DEFAULT_U} Å²", len(without_u)), ("  such sites", sum(without_u)),
            ("read, with a symbol of another space group", sum(entry.other_symbol for entry in read))]
