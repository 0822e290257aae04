"""Train a network to extend amplitudes: one function, on CPU or GPU, in the precision that the machine is fast in.

What a step does depends on the seed and the number of the step only: which crystals it takes, what is hidden from the
network, and where dropout strikes. So a training that was killed goes on as if nothing had happened, and two processes
with a batch each do what one does with both.
"""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import signal
import threading
import time
import timeit
import zlib
from collections import OrderedDict, deque
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import count
from pathlib import Path

import gemmi
import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.rank_zero import rank_zero_only
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from .config import UserError, atomic_path, shown
from .gridding import BOXES, AmplitudeBoxes, amplitude_boxes, box_named, select_fitting
from .inference import load_model, predict, save_model
from .metrics import ShellMean, score, shell_mean
from .models import MODELS, TITLES
from .random_crystals import MOLECULE_SPACEGROUPS, RECIPES, SPACEGROUPS, random_crystals
from .storage import iter_crystals, read_crystals, row_groups
from .summary import git_state, machine

WARM_UP = 0.05   # share of the training during which the learning rate rises
CLIP = 1.0       # norm of the gradient at which it is cut
SIGMA = 0.02     # part of an intensity that its σ is at least, where there is noise
COLUMNS = ["step", "crystals", "seconds", "loss", "r_ext", "cc_ext"]  # of the history


PRECISIONS = ("32-true", "bf16-mixed")


def pick_precision(model, boxes, device="auto") -> str:
    """``bf16-mixed`` where a model's own forward and backward pass is faster in it than in float32, else ``32-true``.

    Timed with boxes (AmplitudeBoxes, the first is taken) on a CPU, where it depends on processor, layers and memory: without
    matrix units bfloat16 is emulated. A GPU that has it is faster in it. The model is left as it was, in train mode.
    """
    if device in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    one, seconds, threads = boxes[:1], {}, torch.get_num_threads()
    model.train()
    torch.set_num_threads(1)  # threads that wait for a busy core would be timed instead
    try:
        for precision in PRECISIONS:
            def step():
                with arithmetic(precision, "cpu"):
                    loss = model(one, one)
                loss.backward()
            seconds[precision] = min(timeit.repeat(step, number=1, repeat=3))  # noise only adds time
    finally:
        torch.set_num_threads(threads)
        model.zero_grad(set_to_none=True)
    return min(PRECISIONS, key=seconds.get)


def arithmetic(precision, device):
    """A context in which a model works in that precision; results that it says are single precision stay so.

    Not left to Fabric, which would round the amplitudes to bfloat16 before the model sees them.
    """
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed")


def learning_rate(progress, peak):
    """Linear warm-up, then half a cosine down to a hundredth of the peak; progress from 0 to 1."""
    if progress < WARM_UP:
        return peak * (progress + 1e-3) / (WARM_UP + 1e-3)
    fraction = min((progress - WARM_UP) / (1 - WARM_UP), 1.0)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * fraction)) / 2)


# --- where the crystals are from ---


class InMemory:
    """Crystals of a list, each once an epoch, in an order that follows from the seed and the epoch."""

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
        if recipe not in RECIPES:
            raise UserError(f"there is no recipe {recipe!r}: the recipes are {' and '.join(RECIPES)}")
        shares = (dict.fromkeys(spacegroups, 1) if spacegroups else
                  MOLECULE_SPACEGROUPS if recipe == "molecules" else dict.fromkeys(SPACEGROUPS, 1))
        self.shares = {name: share for name, share in shares.items()
                       if box is None or gemmi.SpaceGroup(name).laue_str() == gemmi.SpaceGroup(box.spacegroup).laue_str()}
        if not self.shares:
            raise UserError(f"no space group of {', '.join(shares)} belongs to the {box.name} box")
        random_crystals(0, 0, list(self.shares), 0, recipe)  # a group that the recipe cannot do is an error here
        self.recipe, self.box, self.d_target, self.ahead = recipe, box, d_target, ahead
        self.label = f"recipe {recipe}, {' '.join(self.shares)}"
        self._waiting, self._pool = {}, None
        if workers:
            self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_leave_with_parent)

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
            raise UserError(f"of {Generated.TRIES} random crystals of {group} none fits, the last one: {problems[0]}")
    return crystals


def _leave_with_parent():
    """End this process when the one that started it is killed: else it would wait for work forever. Ctrl-C is that one's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


# --- what the network sees of them ---


@dataclass(frozen=True)
class Measurement:
    """How the data of a training crystal fall short of the ideal ones. Truth, against which the loss counts, stays exact.

    d_min : (low, high) in Å, or None; each crystal was measured to a resolution drawn between the two (None: d_input).
    missing : of the measured reflections of a crystal, a share drawn between 0 and this one was not measured after all.
    noise : 0 for none. Else each intensity I = F² gets a normal error with σ² = (0.02 I)² + (k ⟨I⟩)², where ⟨I⟩ is the
        mean over the crystal's measured reflections and k is drawn between 0 and ``noise``: the first term is what
        scaling and absorption leave, the second counting and background. F = sqrt(I), zero where I is negative.

    A reflection that was not measured has to be predicted. Equivalent voxels keep equal values. Amplitudes are scaled
    anew to a largest measured one of 1.
    """

    d_min: tuple[float, float] | None = None
    missing: float = 0.0
    noise: float = 0.0

    def __bool__(self):
        return bool(self.d_min or self.missing or self.noise)

    def apply(self, boxes: AmplitudeBoxes, seed, numbers):
        """(what the network sees, what it is compared with); `numbers` of the crystals in the stream decide all draws."""
        draws = [self._draw(boxes.box, seed, int(number)) for number in numbers]
        d_min, missing, k, chance, error = (torch.as_tensor(np.array(x), dtype=boxes.F.dtype, device=boxes.F.device)
                                            for x in zip(*draws))
        column, present = (-1, 1, 1, 1), ~boxes.absent
        measured = boxes.measured
        if self.d_min:
            measured = boxes.target & (boxes.d >= d_min.view(column))
        if self.missing:
            measured = measured & (chance >= missing.view(column))
        F_seen = boxes.F
        if self.noise:
            I, counted = boxes.F.square(), measured & present
            mean = (I * counted).sum(dim=(1, 2, 3)) / counted.sum(dim=(1, 2, 3)).clamp(min=1)
            sigma = ((SIGMA * I).square() + (k * mean).view(column).square()).sqrt()
            F_seen = torch.where(present & boxes.target, (I + sigma * error).clamp(min=0).sqrt(), boxes.F)
        largest = (F_seen * measured).amax(dim=(1, 2, 3)).clamp(min=1e-6)
        truth = replace(boxes, F=boxes.F / largest.view(column), scale=boxes.scale * largest, measured=measured)
        return replace(truth, F=F_seen / largest.view(column)), truth

    def _draw(self, box, seed, number):
        """d_min, missing, k and, a voxel, a chance in 0..1 and a normal number; drawn whatever is used of them."""
        rng = np.random.default_rng([seed, 2, number])
        d_min, missing, k = rng.uniform((self.d_min or (0, 0))[0], (self.d_min or (0, 0))[1]), *(rng.random(2))
        same = _representative(box)
        chance, error = rng.random(len(same), np.float32)[same], rng.standard_normal(len(same), np.float32)[same]
        return d_min, missing * self.missing, k * self.noise, chance.reshape(box.shape), error.reshape(box.shape)


@lru_cache(maxsize=8)
def _representative(box):
    """Of each voxel, the number of that equivalent one that counts in scores."""
    return box.index(box.hkl)


# --- the training ---


@dataclass(frozen=True)
class Budget:
    """When to stop: whichever is reached first; 0 is no limit."""

    steps: int       # all limits in steps, crystals or epochs
    minutes: float

    def progress(self, step, seconds) -> float:
        """From 0 to 1."""
        return min(1.0, max(step / self.steps if self.steps else 0.0, seconds / (60 * self.minutes) if self.minutes else 0.0))


def fit(model, crystals, validation, *, box=BOXES["monoclinic"], d_input=1.5, d_target=0.8, measurement=Measurement(),
        epochs=0, minutes=0.0, steps=0, n_crystals=0, batch_size=4, lr=1e-3, weight_decay=0.01, ema=0.999,
        n_validations=5, seed=0, device="auto", devices=1, nodes=1, precision="auto", checkpoint=None,
        checkpoint_minutes=5.0, log=None, watch=None):
    """Train ``model`` in place on crystals that fit the box; amplitudes are computed while it trains.

    Parameters
    ----------
    model : one of ``models.MODELS``
    crystals : list of Crystal, or ``Stored`` or ``Generated``
    validation : list of Crystal, only looked at: after the first step, then ``n_validations`` times.
    d_input, d_target : Å, resolution of the measured amplitudes, and of the wanted ones.
    measurement : what is hidden or disturbed in the training crystals (see ``Measurement``); validation is ideal.
    epochs, minutes, steps, n_crystals : whichever is reached first ends the training; 0 is no limit, and an epoch is
        the whole of it where none is given. The learning rate falls to its end either way. Minutes are those of all
        runs that a killed training took; without them the same seed gives the same weights.
    batch_size, lr, weight_decay : of AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101); crystals a step and process.
    ema : decay of the running mean of weights, which is validated and returned; 0 for the last weights instead. At
        step n it is at most n / (n + 9), so that the start is soon forgotten.
    device : "auto", "cpu" or "cuda"; precision : "auto", "32-true" or "bf16-mixed".
    devices, nodes : processes a node, and nodes. More than one are started by Lightning Fabric, which runs this program
        again for each, or found where torchrun or SLURM started them. The model comes back trained in all of them.
    checkpoint : file that is written every ``checkpoint_minutes`` and at the end; if it is there, the training goes on
        from it. It is for the caller to remove.
    log : CSV file with a line a step, of the columns of the history.
    watch : function that is called with the history after each validation, for example to draw it.

    Returns
    -------
    history : DataFrame with a row a step: crystals seen, seconds, loss; r_ext and cc_ext where validated, else NaN.

    Raises
    ------
    UserError
        If there are fewer crystals than a batch, d_input does not leave anything to predict, the checkpoint is of
        another training, or the loss or its gradient is not finite (with the step).
    """
    source = crystals if hasattr(crystals, "batch") else InMemory(crystals)
    fabric = _launch(device, devices, nodes)
    size = batch_size * fabric.world_size
    part = slice(fabric.global_rank * batch_size, (fabric.global_rank + 1) * batch_size)
    _check(source, size, d_input, d_target, measurement)
    budget = _budget(source, size, epochs, minutes, steps, n_crystals)
    settings = dict(box=box, d_input=d_input, d_target=d_target)
    model.to(memory_format=torch.channels_last_3d)  # faster in both precisions; no-op for tensors of other rank
    if precision == "auto":
        precision = _checkpointed_precision(checkpoint) or pick_precision(
            model, amplitude_boxes(source.batch(seed, 0, size, part)[:1], **settings)[0], device)
    precision = fabric.broadcast(precision)
    known = None
    if validation and n_validations and fabric.is_global_zero:
        known = amplitude_boxes(validation, **settings)

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    trained, optimizer = fabric.setup(model, optimizer)
    averaged = copy.deepcopy(model).requires_grad_(False) if ema else model
    # what a checkpoint has to agree in
    order = dict(model=repr(getattr(model, "config", type(model).__name__)), crystals=source.label, box=box.name if box else "own",
                 d_input=d_input, d_target=d_target, measurement=repr(measurement), steps=budget.steps, minutes=minutes,
                 batch=size, lr=lr, weight_decay=weight_decay, ema=ema, seed=seed, precision=precision)
    history = _resume(checkpoint, order, model, averaged, optimizer) if checkpoint else []
    last = seconds = history[-1]["seconds"] if history else 0.0
    start = time.perf_counter() - seconds
    progress, n_validated = budget.progress(len(history), seconds), sum("r_ext" in row for row in history)

    batches = _batches(fabric, source, measurement, settings, seed, size, part, len(history))
    with (_progress_bar(model, fabric) as bar, _csv(log if fabric.is_global_zero else None, history) as write,
          closing(batches)):
        while progress < 1:
            step = len(history)
            torch.manual_seed(int(np.random.SeedSequence([seed, step, fabric.global_rank]).generate_state(1)[0]))
            parts = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress, lr)
            loss = _step(fabric, trained, optimizer, precision, parts, step + 1, lr)
            if ema:
                _average(averaged, model, min(ema, (step + 1) / (step + 10)))

            seconds = _mean(fabric, time.perf_counter() - start)
            progress = budget.progress(step + 1, seconds)
            row = {"step": step + 1, "crystals": (step + 1) * size, "seconds": seconds, "loss": loss}
            validate = known is not None and (progress >= n_validated / n_validations or progress >= 1)
            if validate:
                scores = pd.concat([score(predict(averaged, boxes), boxes) for boxes in known])
                row |= scores[["r_ext", "cc_ext"]].mean().to_dict()
                n_validated += 1
            history.append(row)
            write(row)
            bar.show(history, progress)
            if checkpoint and fabric.is_global_zero and (progress >= 1 or seconds - last >= 60 * checkpoint_minutes):
                _save_checkpoint(checkpoint, order, model, averaged, optimizer, history)
                last = seconds
            if validate and watch:
                watch(pd.DataFrame(history, columns=COLUMNS))
    if ema:
        model.load_state_dict(averaged.state_dict())
    model.to("cpu").eval()
    return pd.DataFrame(history, columns=COLUMNS)


def _launch(device, devices, nodes) -> Fabric:
    """Fabric, with this program running on all devices."""
    try:
        fabric = Fabric(accelerator=device, devices=devices, num_nodes=nodes)
        if devices != 1 or nodes > 1:
            fabric.launch()
    except (RuntimeError, ValueError, TypeError) as error:  # a device that is not there, several in a notebook
        raise UserError(f"{devices} x {device} on {nodes} node(s) cannot train here: {' '.join(str(error).split())}") from None
    return fabric


def _batches(fabric, source, measurement, settings, seed, size, part, first):
    """What each step from `first` on takes: [(what the network sees, what it is compared with) of each box].

    Beside a GPU a thread makes them a step ahead, so that it need not wait; a CPU has nothing to gain from that.
    """
    def make(step):
        parts, numbers = [], iter(range(step * size, (step + 1) * size)[part])
        for boxes in amplitude_boxes(source.batch(seed, step, size, part), **settings, device=fabric.device):
            mine = [next(numbers) for _ in range(len(boxes))]
            parts.append(measurement.apply(boxes, seed, mine) if measurement else (boxes, boxes))
        return parts

    if not _ahead(fabric.device):
        yield from map(make, count(first))
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(make, step) for step in (first, first + 1))
        for step in count(first + 2):
            yield waiting.popleft().result()
            waiting.append(thread.submit(make, step))


def _ahead(device) -> bool:
    return device.type != "cpu"


def _check(source, size, d_input, d_target, measurement):
    if hasattr(source, "__len__") and len(source) < size:
        raise UserError(f"{len(source)} crystals that fit the box are fewer than one batch of {size}: "
                        "generate more crystals, or lower batch_size")
    if not 0 < d_target < d_input:
        raise UserError(f"d_target must be above 0 and below d_input, else nothing is left to predict: d_target is "
                        f"{d_target:g} Å and d_input {d_input:g} Å")
    if measurement.d_min and not d_target < measurement.d_min[0] <= measurement.d_min[1]:
        low, high = measurement.d_min
        raise UserError(f"d_min must be drawn between two resolutions beyond d_target ({d_target:g} Å), the lower number "
                        f"first, not between {low:g} and {high:g} Å")
    if not 0 <= measurement.missing < 1 or not measurement.noise >= 0:
        raise UserError(f"missing must be a share from 0 to below 1 and noise not below 0, not {measurement.missing:g} and "
                        f"{measurement.noise:g}")


def _budget(source, size, epochs, minutes, steps, n_crystals) -> Budget:
    if min(epochs, minutes, steps, n_crystals) < 0:
        raise UserError("epochs, minutes, steps and n_crystals must not be below 0")
    endless = not hasattr(source, "__len__")
    if not (epochs or minutes or steps or n_crystals):
        if endless:
            raise UserError("a training on generated crystals needs an end: give minutes, steps or n_crystals")
        epochs = 1
    if n_crystals and n_crystals < size:
        raise UserError(f"n_crystals {n_crystals} is less than one batch of {size}")
    limits = [steps, n_crystals // size, 0 if endless else epochs * (len(source) // size)]
    return Budget(min((limit for limit in limits if limit), default=0), minutes)


def _step(fabric, trained, optimizer, precision, parts, step, lr) -> float:
    """One step of the optimizer; the loss is that of the crystals of all processes together."""
    trained.train()
    optimizer.zero_grad()
    mean = torch.zeros((), device=fabric.device)
    for number, ((seen, boxes), weight) in enumerate(zip(parts, _weights(fabric, parts))):
        with fabric.no_backward_sync(trained, enabled=number + 1 < len(parts)):  # gradients are exchanged once a step
            with arithmetic(precision, fabric.device.type):
                loss = trained(seen, boxes) * weight
            fabric.backward(loss)
        mean += loss.detach()
    if fabric.world_size > 1:
        mean = fabric.all_reduce(mean, reduce_op="mean")
    norm = fabric.clip_gradients(trained, optimizer, max_norm=CLIP, error_if_nonfinite=False).item()
    if not (math.isfinite(mean.item()) and math.isfinite(norm)):
        raise UserError(f"the loss is {mean.item()}, its gradient {norm}, at step {step}: lower lr (now {lr})")
    optimizer.step()
    return mean.item()


def _weights(fabric, parts) -> list:
    """What the loss of each box counts in the mean over the processes: boxes that all crystals share, by their reflections
    (the mean over all reflections is not the mean of the processes' means); boxes of one crystal each, alike."""
    if len(parts) > 1 or fabric.world_size == 1:
        return [1 / len(parts)] * len(parts)
    count = parts[0][1].extension.sum().double()
    return [(count * fabric.world_size / fabric.all_reduce(count, reduce_op="sum")).float()]


@torch.no_grad()
def _average(averaged, model, decay):
    """Take the running mean of weights a step further."""
    torch._foreach_lerp_(list(averaged.parameters()), [p.detach() for p in model.parameters()], 1 - decay)
    for kept, new in zip(averaged.buffers(), model.buffers()):
        kept.copy_(new)


def _mean(fabric, value) -> float:
    """The mean over processes, so that all of them stop at the same step."""
    if fabric.world_size == 1:
        return value
    return float(fabric.all_reduce(torch.tensor(value, dtype=torch.float64, device=fabric.device), reduce_op="mean"))


class _progress_bar:
    """How much of the budget is used, with loss, r_ext, crystals a second and the time left."""

    def __init__(self, model, fabric):
        self.bar = tqdm(total=1.0, desc=type(model).__name__, mininterval=1, disable=not fabric.is_global_zero or None,
                        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}")
        self.r_ext, self.first = "", None

    def show(self, history, progress):
        row = history[-1]
        self.first = self.first or (row["seconds"], row["crystals"], progress)
        if "r_ext" in row:
            self.r_ext = f", r_ext {row['r_ext']:.3f}"
        seconds = row["seconds"] - self.first[0]
        rate = f", {(row['crystals'] - self.first[1]) / seconds:.3g} crystals/s" if seconds > 0 else ""
        gained = progress - self.first[2]
        left = f", {tqdm.format_interval(round(seconds * (1 - progress) / gained))} left" if gained > 0 else ""
        self.bar.set_postfix_str(f"loss {row['loss']:.2e}{self.r_ext}{rate}{left}", refresh=False)
        self.bar.update(progress - self.bar.n)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()


@contextmanager
def _csv(path, history):
    """Yield a function that adds a row to the log; rows of an earlier run that its checkpoint does not know are dropped."""
    if path is None:
        yield lambda row: None
        return
    with atomic_path(path) as temporary:
        pd.DataFrame(history, columns=COLUMNS).to_csv(temporary, index=False)
    with open(path, "a", buffering=1, encoding="utf-8") as file:
        yield lambda row: file.write(",".join(str(row.get(name, "")) for name in COLUMNS) + "\n")


# --- checkpoints ---


def _save_checkpoint(path, order, model, averaged, optimizer, history) -> None:
    """Weights, their running mean, the optimizer's state and the history in one file, written aside and renamed."""
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    if averaged is not model:
        tensors |= {f"averaged.{key}": value for key, value in averaged.state_dict().items()}
    tensors |= {f"optimizer.{number}.{key}": value for number, state in optimizer.state_dict()["state"].items()
                for key, value in state.items() if torch.is_tensor(value)}
    tensors["history"] = torch.tensor([[row.get(name, math.nan) for name in COLUMNS] for row in history], dtype=torch.float64)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save({key: value.detach().cpu().contiguous() for key, value in tensors.items()},
                                   metadata={"order": json.dumps(order)}))


def _checkpointed_precision(path):
    """That of the training which a checkpoint is of, which goes on in it; None where there is none to go on."""
    try:
        with safe_open(path or "", framework="pt") as file:
            return json.loads((file.metadata() or {})["order"]).get("precision")
    except (SafetensorError, OSError, ValueError, KeyError):
        return None  # what is wrong with it, _resume says


def _resume(path, order, model, averaged, optimizer) -> list[dict]:
    """The history of a checkpoint, whose state is taken over; [] if there is no file."""
    path = Path(path)
    if is_first_process():
        for left in path.parent.glob(f".{path.stem}.{'[0-9a-f]' * 8}{path.suffix}"):  # of a run killed while it wrote
            left.unlink(missing_ok=True)
    if not path.exists():
        return []
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})["order"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{shown(path)} is damaged or no checkpoint ({str(error).splitlines()[0]}): "
                        "delete it to begin anew") from None
    for key, value in json.loads(json.dumps(order)).items():
        if found.get(key) != value:
            raise UserError(f"{shown(path)} is of a training with {key} {found.get(key)}, not {value}: "
                            "finish it with that, or delete it to begin anew")
    for prefix, module in {"model.": model, "averaged.": averaged}.items():
        if module is not model or prefix == "model.":
            module.load_state_dict({key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)})
    state = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".")
            state.setdefault(int(number), {})[name] = value
    for number, parameter in enumerate(model.parameters()):  # in the memory layout of the weight, which is faster
        state[number] = {name: torch.empty_like(parameter, dtype=x.dtype).copy_(x) if x.shape == parameter.shape else x
                         for name, x in state.get(number, {}).items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return [{name: int(x) if name in ("step", "crystals") else x for name, x in zip(COLUMNS, row) if not math.isnan(x)}
            for row in tensors["history"].tolist()]


# --- one model, from crystals to a file of weights: what `xrd train` runs ---


def describe(history, validation, model, training=(), *, box=BOXES["monoclinic"], d_input=1.5, d_target=0.8, **made) -> dict:
    """What a file of weights says about its making, in JSON's types: `made`, what was seen, scores beside the shell mean.

    ``training`` are crystals for the mean amplitude per resolution, of which the first 200 do.
    """
    settings, computer = dict(box=box, d_input=d_input, d_target=d_target), machine()
    seen = dict(crystals_seen=int(history["crystals"].iloc[-1]), minutes=round(float(history["seconds"].iloc[-1]) / 60, 1))
    scores = {}
    if validation:
        looked_at = history.dropna(subset="r_ext")[["crystals", "r_ext", "cc_ext"]]
        scores["curve"] = [[int(n), round(r, 4), round(cc, 4)] for n, r, cc in looked_at.itertuples(index=False)]
        methods = {"": partial(predict, model)}
        if training:
            methods["shell_mean_"] = ShellMean.fit(amplitude_boxes(training[:200], **settings)).predict
        known = amplitude_boxes(validation, **settings)
        for prefix, method in methods.items():
            means = pd.concat([score(method(boxes), boxes) for boxes in known])[["r_ext", "cc_ext", "cc_e"]].mean()
            scores |= {f"{prefix}{name}": round(float(value), 4) for name, value in means.items()}
    recipe = ", ".join(sorted({c.source.removeprefix("recipe ") for c in training if c.source.startswith("recipe ")}))
    return made | dict(recipe=recipe) | seen | settings | dict(box=box.name if box else "own") | scores | dict(
        n_validation=len(validation), commit=git_state(),
        machine=f"{computer['processor']}, {computer['cores']} cores, GPU {computer['gpu']}")


def train(name, out, *, crystals="", recipe="molecules", box="monoclinic", d_input=1.5, d_target=0.8, n_validation=32,
          workers=1, seed=0, start="", run="", overwrite=False, **options) -> dict:
    """Train one of ``models.MODELS`` and write its weights to `out`, with a CSV log beside it; returns what describes them.

    Parameters
    ----------
    crystals : a file of crystals, of which the first ``n_validation`` that fit the box are for validation; else ``recipe``
        says what is generated while the network trains, by ``workers`` processes.
    start : a file of weights of the same model to begin with; its crystals and minutes are counted in the description.
    run : name of the run, for the description.
    options : as for ``fit``; a killed training goes on from ``<out>.checkpoint`` with the same call.
    """
    out = Path(out)
    checkpoint, log = out.with_suffix(".checkpoint"), out.with_suffix(".csv")
    if name not in MODELS:
        raise UserError(f"there is no model {name!r}: the models are {', '.join(MODELS)}")
    box = box_named(box)
    if out.suffix != ".safetensors":
        right = out.with_suffix(".safetensors").name
        raise UserError(f"weights are written as safetensors: name the file {right}, not {out.name}")
    if out.exists() and not checkpoint.exists() and not overwrite:
        raise UserError(f"{shown(out)} is there already: choose another name, or add --overwrite")
    settings = dict(box=box, d_input=d_input, d_target=d_target)
    torch.manual_seed(seed)
    model_class = MODELS[name]
    if box is None and not model_class.any_box:
        raise UserError(f"{TITLES[name]} needs one box for all crystals: choose {', '.join(BOXES)}")
    model = model_class(model_class.config_for(box, d_target))
    before = {}
    if start:
        begun, before = load_model(start)
        if type(begun) is not model_class or begun.config != model.config:
            raise UserError(f"{shown(start)} holds weights of another model than {name} as it is trained here")
        model.load_state_dict(begun.state_dict())
    else:
        model.start_from(partial(shell_mean, box=box.name if box else "monoclinic", d_input=d_input, d_target=d_target))
    source, validation, sample = _sets(crystals, recipe, box, d_target, n_validation, workers)
    try:
        history = fit(model, source, validation, **settings, seed=seed, checkpoint=checkpoint, log=log, **options)
    finally:
        getattr(source, "close", lambda: None)()
    imperfect = {key: value for key, value in vars(options.get("measurement", Measurement())).items() if value}
    made = describe(history, validation, model, sample, **settings, **(dict(run=run) if run else {}), seed=seed, **imperfect,
                    **{key: options[key] for key in ("batch_size", "lr", "ema") if key in options})
    if before:
        made |= {key: round(made[key] + before.get(key, 0), 1) for key in ("crystals_seen", "minutes")}
        if "curve" in made:
            made["curve"] = [[n + before.get("crystals_seen", 0), r, cc] for n, r, cc in made["curve"]]
        made["started_from"] = {key: before[key] for key in ("crystals_seen", "minutes", "seed", "lr", "commit") if key in before}
    if is_first_process():
        save_model(out, name, model, **made)
        checkpoint.unlink(missing_ok=True)
    return made


def is_first_process() -> bool:
    """Whether this is the process that writes files; the only one, unless several devices train."""
    return getattr(rank_zero_only, "rank", None) in (0, None)


def _sets(path, recipe, box, d_target, n_validation, workers):
    """(source to train on, crystals to validate with, up to 200 others for the shell mean)."""
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
        raise UserError(f"of the crystals in {shown(path)} {len(some)} fit the {box.name if box else 'own'} box, not more than the "
                        f"{n_validation} for validation")
    return Stored(path, box, d_target, start=rows[n_validation]), some[:n_validation], some[n_validation:]


# --- weights/README.md ---

README_COLUMNS = {"model": "model", "crystals_seen": "crystals seen", "minutes": "minutes", "recipe": "crystals of",
                  "r_ext": "`r_ext`", "cc_ext": "`cc_ext`", "cc_e": "`cc_e`", "shell_mean_r_ext": "shell mean `r_ext`",
                  "shell_mean_cc_ext": "shell mean `cc_ext`", "machine": "machine"}


def weights_readme(folder) -> str:
    """The text of weights/README.md: a table of the files of weights in a folder, from what they say of themselves."""
    paths = sorted(path for path in Path(folder).glob("*.safetensors") if not path.name.startswith("."))  # not half-written
    if not paths:
        raise UserError(f"there are no weights in {shown(folder)}")
    head = ["file", "parameters", *README_COLUMNS.values(), "size"]
    rows, curves = [], []
    for path in paths:
        model, made = load_model(path)
        name = next(key for key, model_class in MODELS.items() if type(model) is model_class)
        made = {"model": TITLES.get(name, name)} | made
        cells = [f"{x:,}" if isinstance(x, int) else str(x) for x in (made.get(key, "") for key in README_COLUMNS)]
        n_parameters = sum(p.numel() for p in model.parameters())
        if points := made.get("curve"):
            curves += [[f"`{path.name}`" if i == 0 else "", f"{n:,}", *map(str, scores)] for i, (n, *scores) in enumerate(points)]
        rows.append([f"`{path.name}`", f"{n_parameters:,}", *cells, f"{path.stat().st_size / 2**20:.1f} MB"])
    head_of_curves = ["file", "crystals seen", "`r_ext`", "`cc_ext`"]
    table, curve = ("\n".join("| " + " | ".join(row) + " |" for row in [names, ["---"] * len(names), *body])
                    for names, body in ((head, rows), (head_of_curves, curves)))
    return f"""# Weights

Written by `python -c "from xrd_helpers.training import write_weights_readme; write_weights_readme('weights')"` from what
the files say of themselves; change nothing here by hand.

{table}

The scores are means over the crystals that were kept aside for validation; those on real crystals stand in the project's
README. *shell mean* is the row that knows nothing about a crystal but its fall-off, on the same crystals: a model whose
`r_ext` is above it, or whose `cc_ext` is below, has learnt nothing that is of use yet.

What the running mean of the weights scored while it was trained, on the same crystals:

{curve}

Each file is safetensors in half precision. Its metadata hold the model's name and choices, and how it was made and scored:
seed, crystals seen, minutes, learning rate, commit and kind of machine. Nothing in it is unpickled:

```python
from xrd_helpers.inference import load_model
model, made = load_model("weights/unet.safetensors")
```
"""


def write_weights_readme(folder) -> None:
    with atomic_path(Path(folder) / "README.md") as temporary:
        temporary.write_text(weights_readme(folder), encoding="utf-8")
