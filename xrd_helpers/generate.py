"""Make random crystals by the million, on this machine or on a cluster, and go on where it stopped.

Each finished row group is a file in the folder ``<path>.parts``. When all are there, they are joined to `path` and the
folder is removed. Each of these files states what it was made with, so that nothing else has to be remembered.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from . import __version__
from .config import UserError, atomic_path, locked, no_interrupt, shown
from .crystals import CrystalError
from .random_crystals import random_crystals
from .storage import ROWS, join_parts, parts_folder, read_crystals, read_metadata, to_bytes
from .summary import git_state

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def generate(path, n, seed, recipe="atoms", spacegroups=None, scheduler="", workers=None, overwrite=False,
             rows=ROWS) -> bool:
    """Write n random crystals to a parquet file; the same call again goes on where an interrupted one stopped.

    The file does not depend on where, and in how many runs, its crystals were made.

    Parameters
    ----------
    path : str or Path
        The file, for example ``crystals.parquet``.
    n, seed, recipe, spacegroups
        As for ``random_crystals``.
    scheduler : str
        Address of a dask scheduler, such as ``tcp://host:8786``, whose workers have this version of the package.
        Without one, processes on this machine do the work.
    workers : int, optional
        Number of these processes, by default one a core; 0 makes all crystals in the calling one.
    overwrite : bool
        Replace a file of other crystals, once the new ones are all there.
    rows : int
        Crystals a row group, best a multiple of 64: what each process loses at most when the run is killed.

    Returns
    -------
    made : bool
        False if the finished file was there before.

    Raises
    ------
    UserError
        If an argument is wrong, if the file is there with other crystals than those asked for, or if the cluster
        fails. Finished row groups stay.
    """
    for what, value, least in (("n", n, 1), ("the seed", seed, 0), ("the number of workers", workers or 0, 0)):
        if value < least:
            raise UserError(f"{what} must be at least {least}, not {value}")
    if scheduler and workers is not None:
        raise UserError("a scheduler has workers of its own: give their number or its address, not both")
    order = {"recipe": recipe, "seed": seed, "n": n, "spacegroups": list(spacegroups) if spacegroups else None,
             "rows": rows, "version": __version__}
    _crystals(order, first=0, n=0)  # an unknown recipe is told before anything is started
    path = Path(path)
    folder = parts_folder(path)
    if _is_complete(path, order, overwrite):
        shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed in its last moment
        return False
    with locked(folder):
        try:
            if _is_complete(path, order, overwrite):  # by a process that has just given the lock back
                return False
            finished = _finished(folder, order, overwrite)
            _make_missing_parts(folder, order, finished, scheduler, workers, path.name)
            _join(folder, order, path)
            return True
        finally:
            if not _parts(folder):
                shutil.rmtree(folder, ignore_errors=True)


def make_part(order, first):
    """What a worker does: the row group that begins with crystal `first`, as a parquet file."""
    if order["version"] != __version__:
        raise UserError(f"a worker has xrd_helpers {__version__}, this process {order['version']}: they must be the same")
    return to_bytes(_crystals(order, first, min(order["rows"], order["n"] - first)), order)


def _crystals(order, first, n):
    return random_crystals(n, order["seed"], spacegroups=order["spacegroups"], first=first, recipe=order["recipe"])


def _make_missing_parts(folder, order, finished, scheduler, workers, title):
    n, rows = order["n"], order["rows"]
    missing = sorted(set(range(0, n, rows)) - finished)
    n_missing = sum(min(rows, n - first) for first in missing)
    make = partial(make_part, order | {"commit": git_state()})
    with cluster(scheduler, workers if missing else 0) as results, \
            tqdm(total=n, initial=n - n_missing, desc=title, unit=" crystals", smoothing=0.1) as bar:
        for first, content in results(make, missing, _give_up):
            with atomic_path(folder / f"{first:09d}.parquet") as temporary, open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave the name without the content
            bar.update(min(rows, n - first))


def _join(folder, order, path):
    parts = _parts(folder)
    commits = sorted({read_metadata(part)["commit"] for part in parts})
    joined = folder / ".joined.parquet"  # in here, so that an interrupted one is removed with the folder
    join_parts(parts, joined, order | {"commit": ", ".join(commits)})
    os.replace(joined, path)
    shutil.rmtree(folder, ignore_errors=True)


# --- what is there already ---


def _parts(folder):
    return sorted(folder.glob("[0-9]*.parquet"))  # one being written begins with a dot


def _is_complete(path, order, overwrite):
    if not path.exists():
        return False
    if path.is_dir():
        raise UserError(f"{shown(path)} is a folder: name a file, such as crystals.parquet")
    difference = _difference(read_metadata(path), order)
    if difference and not overwrite:
        raise UserError(f"{shown(path)} was {difference}: name another file, or add --overwrite")
    return not difference


def _finished(folder, order, overwrite):
    """The first numbers of the parts that are there and whole. One that a power cut has damaged is made again."""
    finished = set()
    for part in _parts(folder):
        try:
            difference = _difference(read_metadata(part), order)
            read_crystals(part)
        except CrystalError:
            part.unlink()
            continue
        if not difference:
            finished.add(int(part.stem))
        elif overwrite:
            part.unlink()
        else:
            raise UserError(f"{shown(folder)} was {difference}: finish it with that, or add --overwrite")
    return finished


def _difference(found, order):
    """What tells a file with the metadata `found` from the one that is asked for; "" if nothing."""
    if "recipe" not in found:
        return "not made by xrd generate"
    for key, value in order.items():
        if found.get(key) != value:
            return f"made with {key} {found.get(key)}, not {value}"
    return ""


# --- who makes the crystals ---


def _give_up(first, error):
    what = " ".join(f"{type(error).__name__}: {error}".split())
    raise UserError(f"the cluster failed, finished row groups are kept: {what}") from error


@contextmanager
def cluster(scheduler="", workers=None, deaths=3):
    """Yield a function of (function, tasks, failed) that gives pairs (task, function(task)), in any order.

    Errors of the user (UserError, ValueError) are raised; for any other, such as that of a worker that died, there is what
    failed(task, error) returns in place of the result.

    Parameters
    ----------
    scheduler, workers : as for ``generate``
    deaths : workers that a task may outlive, of those on this machine
    """
    if workers == 0:
        yield lambda function, tasks, failed: ((task, function(task)) for task in tasks)
        return
    if scheduler:
        from distributed.utils import silence_logging_cmgr

        with _held_back() as check, silence_logging_cmgr(logging.CRITICAL), _connect(scheduler) as client:
            yield partial(_results, client, check)
        return
    import dask
    from distributed import LocalCluster  # a second of import, so only here

    # one thread a process; and not dask's own setting of malloc, which gives each array back to the system at once and
    # makes crystals at two thirds of the speed
    with _held_back() as check:
        with no_interrupt(), dask.config.set({"distributed.nanny.pre-spawn-environ": dict.fromkeys(THREADS, 1),
                                               "distributed.scheduler.allowed-failures": deaths}):
            local = LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, silence_logs=logging.CRITICAL,
                                 dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False})
        try:
            with _connect(local) as client:
                yield partial(_results, client, check)
        finally:
            with no_interrupt():
                local.close()


@contextmanager
def _held_back():
    """Yield a function that raises KeyboardInterrupt if Ctrl-C or SIGTERM came since: dask, interrupted somewhere, would hang.

    A third one ends the process where it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    caught = []

    def note(number, frame):
        caught.append(number)
        if len(caught) > 2:
            os._exit(128 + number)

    before = {number: handler for number in (signal.SIGINT, signal.SIGTERM) if callable(handler := signal.getsignal(number))}

    def check():
        if caught:
            before[caught[0]](caught[0], None)

    for number in before:
        signal.signal(number, note)
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    check()


def _connect(where):
    from distributed import Client
    from distributed.comm import resolve_address

    try:
        if isinstance(where, str):
            resolve_address(where)  # a Client that is told nonsense prints a traceback when it is thrown away
        client = Client(where, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(f"no dask scheduler answers at {where}: {str(error).splitlines()[0]}") from None
    try:
        client.wait_for_workers(1, timeout=60)
    except TimeoutError:
        client.close()
        raise UserError(f"the dask scheduler at {where} has had no worker for a minute") from None
    return client


def _results(client, check, function, tasks, failed):
    """See ``cluster``; two tasks a thread are under way: the memory stays flat."""
    from distributed import as_completed

    waiting, under_way, task_of = iter(tasks), as_completed(loop=client.loop), {}

    def submit_more():
        n_threads = sum(client.nthreads().values())  # asked again, because clusters grow and shrink
        for task in islice(waiting, max(0, 2 * max(1, n_threads) - under_way.count())):
            future = client.submit(function, task, pure=False)
            task_of[future.key] = task
            under_way.add(future)

    submit_more()
    while under_way.count():  # tasks of a worker that dies are given to another one by dask
        while not under_way.has_ready():
            check()
            time.sleep(0.01)
        check()
        future = next(under_way)
        task = task_of.pop(future.key)
        try:
            result = future.result()
        except (UserError, ValueError):
            raise
        except Exception as error:  # the worker's own or dask's: of any type
            result = failed(task, error)
        submit_more()
        yield task, result
