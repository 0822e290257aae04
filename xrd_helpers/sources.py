"""Where the crystals of a training are from: a list, a file of any size, or random ones made while it goes on."""

from __future__ import annotations

import multiprocessing
import signal
import zlib
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from .config import UserError, leave_with_parent, no_interrupt, shown
from .gridding import BOXES, Box, select_fitting
from .random_crystals import mixture, random_crystals
from .storage import iter_crystals, read_crystals, row_groups


class InMemory:
    """Crystals of a list, each once an epoch, in an order that follows from the seed and the epoch.

    A source has ``batch`` and ``label``, which tells it from others; one with an end has a length, and ``close`` stops what
    it has started.
    """

    def __init__(self, crystals):
        self.crystals = list(crystals)
        self.label = f"{len(self.crystals)} crystals {zlib.crc32(' '.join(c.name for c in self.crystals).encode()):08x}"
        self._epoch = None, None

    def __len__(self):
        return len(self.crystals)

    def batch(self, seed, step, size, part):
        """Of the `size` crystals of a step (from 0) those of the slice `part`: the share of one process."""
        epoch, place = divmod(step, len(self) // size)
        if self._epoch[0] != (seed, epoch):
            self._epoch = (seed, epoch), self._order(np.random.default_rng([seed, epoch]))
        return self._get(self._epoch[1][place * size:(place + 1) * size][part])

    def close(self):
        """Nothing was started."""

    def _order(self, rng):
        return rng.permutation(len(self))

    def _get(self, numbers):
        return [self.crystals[i] for i in numbers]


class Stored(InMemory):
    """Crystals of a file of any size (see ``storage``) that fit the box, from row `start` on.

    A few row groups are in memory at a time: an epoch takes them in random order and mixes the crystals of MIXED.
    """

    MIXED = 8

    def __init__(self, path, box=BOXES["monoclinic"], d_target=0.8, start=0):
        self.path, self.box, self.d_target = Path(path), box, d_target
        self.groups, self._cache = row_groups(path), OrderedDict()
        rows = [row for row, crystal in enumerate(iter_crystals(path, start), start)
                if select_fitting([crystal], box, d_target)[0]]
        self.rows = np.array(rows, int)
        self.group = np.searchsorted([stop for _, stop in self.groups], self.rows, side="right")
        self.label = f"{len(rows)} crystals of {self.path.name}, {self.path.stat().st_size} bytes"
        self._epoch = None, None

    def __len__(self):
        return len(self.rows)

    def _order(self, rng):
        groups = rng.permutation(len(self.groups))
        mixed = [np.flatnonzero(np.isin(self.group, groups[i:i + self.MIXED])) for i in range(0, len(groups), self.MIXED)]
        return np.concatenate([rng.permutation(part) for part in mixed])

    def _get(self, numbers):
        found = []
        for number in numbers:
            group = int(self.group[number])
            if group not in self._cache:
                self._cache[group] = read_crystals(self.path, *self.groups[group])
                while len(self._cache) > self.MIXED + 1:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(group)
            found.append(self._cache[group][self.rows[number] - self.groups[group][0]])
        return select_fitting(found, self.box, self.d_target)[0]


class Generated:
    """Random crystals of a recipe without end, none twice, made by other processes while the network trains.

    The n-th crystal depends on the seed of the training and on n alone: one that does not fit the box is replaced by
    the next try for the same n. None is one of ``random_crystals(n, seed)`` with fewer than a thousand million: sets
    for tests and validation are made with those.

    Parameters
    ----------
    recipe, spacegroups : as for ``random_crystals``; None is those groups of the recipe that belong to the box.
    workers : int
        Processes; 0 makes the crystals in this one when they are asked for.
    ahead : int
        Steps whose crystals are made in advance, at most.
    """

    OFFSET, TRIES = 10**9, 1000

    def __init__(self, recipe="molecules", box=BOXES["monoclinic"], d_target=0.8, spacegroups=None, workers=1, ahead=8):
        shares = dict.fromkeys(spacegroups, 1.0) if spacegroups else mixture(recipe)
        self.shares = {name: shares[name] for name in box.groups(shares)}
        if not self.shares:
            raise UserError(f"no space group of {', '.join(shares)} belongs to the {box.name} box")
        random_crystals(0, 0, list(self.shares), 0, recipe)  # a group that the recipe cannot do is an error here
        self.recipe, self.box, self.d_target, self.ahead = recipe, box, d_target, ahead
        self.label = f"recipe {recipe}, {' '.join(self.shares)}"
        self._waiting, self._pool = {}, None
        if workers:
            self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), leave_with_parent,
                                             (signal.SIG_IGN,))

    def batch(self, seed, step, size, part):
        """The crystals of a step, as ``InMemory.batch`` gives them; those of the next steps are begun."""
        if self._pool is None:
            return _make(self._order(seed), self._numbers(step, size, part))
        wanted = [(seed, coming, size, part.start, part.stop) for coming in range(step, step + self.ahead)]
        try:
            self._waiting = {key: self._waiting.get(key) or self._submit(seed, key[1], size, part) for key in wanted}
            return self._waiting.pop(wanted[0]).result()
        except BrokenProcessPool:
            raise UserError("a process that makes crystals ended: memory is short, or the program is a script without "
                            "`if __name__ == '__main__':`") from None

    def close(self):
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _order(self, seed):
        return self.recipe, seed, tuple(self.shares.items()), self.box, self.d_target

    def _submit(self, seed, step, size, part):
        with no_interrupt(signal.SIGTERM):  # the first begins the processes
            return self._pool.submit(_make, self._order(seed), self._numbers(step, size, part))

    @staticmethod
    def _numbers(step, size, part):
        return range(step * size, (step + 1) * size)[part]


def _make(order, numbers):
    """The crystals with these numbers of a stream; `order` says which stream."""
    recipe, seed, shares, box, d_target = order
    names, odds = zip(*shares)
    crystals = []
    for number in numbers:
        group = names[np.random.default_rng([seed, 1, number]).choice(len(names), p=np.array(odds) / sum(odds))]
        for attempt in range(1, Generated.TRIES):
            fitting, problems = select_fitting(
                random_crystals(1, seed, [group], Generated.OFFSET * attempt + number, recipe), box, d_target)
            if fitting:
                crystals += fitting
                break
        else:
            raise UserError(f"of {Generated.TRIES} random crystals of {group} none fits the {box.name} box, the last one: "
                            f"{problems[0]}")
    return crystals


def training_sets(path, recipe, box: Box, d_target, n_validation, workers):
    """(source to train on, crystals to validate with, up to 200 others for the shell mean).

    Parameters
    ----------
    path : a file of crystals, of which the first ``n_validation`` that fit the box are for validation; if empty,
    recipe : says what is generated while the network trains, by ``workers`` processes.

    Raises
    ------
    UserError
        If there is no such recipe, or too few crystals of the file fit.
    """
    if not path:
        with Generated(recipe, box, d_target, workers=0) as apart:  # a stretch of the stream that no training gets to
            some = _make(apart._order(0), range(9 * 10**8, 9 * 10**8 + n_validation + 100))
        return Generated(recipe, box, d_target, workers=workers), some[:n_validation], some[n_validation:]
    some, rows = [], []
    for row, crystal in enumerate(iter_crystals(path)):
        fitting, _ = select_fitting([crystal], box, d_target)
        some, rows = some + fitting, rows + [row] * len(fitting)
        if len(some) == n_validation + 200:
            break
    if len(some) <= n_validation:
        raise UserError(f"of the crystals in {shown(path)} {len(some)} fit the {box.name} box, not more than the "
                        f"{n_validation} for validation")
    return Stored(path, box, d_target, start=rows[n_validation]), some[:n_validation], some[n_validation:]
