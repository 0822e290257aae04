"""Train a network to extend amplitudes: one function, on CPU or GPU, in the precision that the machine is fast in.

What a step does depends on the seed and the number of the step only: which crystals it takes, what is hidden from the
network, and where dropout strikes. So a training that was killed goes on as if nothing had happened, and two processes
with a batch each do what one does with both.
"""

from __future__ import annotations

import copy
import json
import math
import time
import timeit
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.rank_zero import rank_zero_only
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from .baselines import shell_mean
from .config import UserError, atomic_path, locked, shown
from .gridding import BOXES, OWN, amplitude_boxes, check_resolutions, find_box
from .metrics import score
from .models import MODELS, find_model
from .simulate import Faults
from .sources import InMemory, training_sets
from .summary import git_state, machine
from .weights import load_model, predict, save_model
from .wilson import ShellMean, Spread

WARM_UP = 0.05   # share of the training during which the learning rate rises
CLIP = 1.0       # norm of the gradient at which it is cut
COLUMNS = ["step", "crystals", "seconds", "loss", "r_ext", "cc_ext"]  # of the history
PRECISIONS = ("32-true", "bf16-mixed")


# --- how long, and on what ---


@dataclass(frozen=True)
class Budget:
    """When a training ends: whichever is reached first; 0 is no limit.

    steps : batches, each with as many crystals as all processes together take
    minutes : of all runs that a killed training took
    epochs : times that each crystal is taken, where there is an end to them
    n_crystals : crystals, each counted as often as it is taken
    """

    steps: int = 0
    minutes: float = 0.0
    epochs: int = 0
    n_crystals: int = 0

    def __bool__(self):
        return bool(self.steps or self.minutes or self.epochs or self.n_crystals)

    def in_steps(self, size, n=None) -> Budget:
        """The same in steps and minutes alone, for steps of ``size`` crystals of n, or without end; 1 epoch if empty.

        UserError if it is below 0, less than one step, or the crystals have no end and the training none either.
        """
        if min(self.steps, self.minutes, self.epochs, self.n_crystals) < 0:
            raise UserError("epochs, minutes, steps and n_crystals must not be below 0")
        if n is None and not (self.steps or self.minutes or self.n_crystals):
            raise UserError("a training on generated crystals needs an end: give minutes, steps or n_crystals")
        if self.n_crystals and self.n_crystals < size:
            raise UserError(f"n_crystals {self.n_crystals} is less than one batch of {size}")
        epochs = 0 if n is None else self.epochs if self else 1
        limits = [self.steps, self.n_crystals // size, epochs * (n // size) if epochs else 0]
        return Budget(min((limit for limit in limits if limit), default=0), self.minutes)

    def progress(self, step, seconds) -> float:
        """From 0 to 1, by steps and minutes."""
        return min(1.0, max(step / self.steps if self.steps else 0.0, seconds / (60 * self.minutes) if self.minutes else 0.0))


@dataclass(frozen=True)
class Device:
    """What a training runs on.

    kind : auto, cpu or cuda
    devices, nodes : processes a node, and nodes. More than one are started by Lightning Fabric, which runs this program
        again for each, or found where torchrun or SLURM started them.
    precision : one of PRECISIONS, or auto (``pick_precision``)
    """

    kind: str = "auto"
    devices: int = 1
    nodes: int = 1
    precision: str = "auto"

    def __post_init__(self):
        for what, value, known in (("device", self.kind, ("auto", "cpu", "cuda")),
                                   ("precision", self.precision, ("auto", *PRECISIONS))):
            if value not in known:
                raise UserError(f"there is no {what} {value!r}: choose {', '.join(known)}")

    def launch(self) -> Fabric:
        """Fabric, with this program running on all devices; UserError if they are not there."""
        try:
            fabric = Fabric(accelerator=self.kind, devices=self.devices, num_nodes=self.nodes)
            if self.devices != 1 or self.nodes > 1:
                fabric.launch()
        except (RuntimeError, ValueError, TypeError) as error:  # a device that is not there, several in a notebook
            raise UserError(f"{self.devices} x {self.kind} on {self.nodes} node(s) cannot train here: "
                            f"{' '.join(str(error).split())}") from None
        return fabric


def pick_precision(model, boxes, device="auto") -> str:
    """``bf16-mixed`` where a model's own forward and backward pass is faster in it than in float32, else ``32-true``.

    Timed with boxes (AmplitudeBoxes, the first is taken) on a CPU, where it depends on processor, layers and memory: without
    matrix units bfloat16 is emulated. A GPU that has it is faster in it. The model is left as it was, in train mode.
    """
    if device != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    one, seconds, threads = boxes[:1], {}, torch.get_num_threads()
    model.train()
    torch.set_num_threads(1)  # threads that wait for a busy core would be timed instead
    try:
        for precision in PRECISIONS:
            def step():
                with arithmetic(precision, "cpu"):  # noqa: B023, called in this round
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


# --- the training ---


def fit(model, crystals, validation, budget=Budget(), device=Device(), *, box=BOXES["monoclinic"], d_input=1.5, d_target=0.8,
        faults=Faults(), batch_size=4, lr=1e-3, weight_decay=0.01, ema=0.999, n_validations=5, seed=0, checkpoint=None,
        checkpoint_minutes=5.0, log=None, watch=None):
    """Train ``model`` in place on crystals that fit the box; amplitudes are computed while it trains.

    Parameters
    ----------
    model : an AmplitudeModel
    crystals : list of Crystal, or one of ``sources``
    validation : list of Crystal, only looked at: after the first step, then ``n_validations`` times.
    budget : when it ends, by default after an epoch. The learning rate falls to its end by then. Without minutes the same
        seed gives the same weights.
    device : where it runs; the model comes back trained in all processes.
    d_input, d_target : Å, resolution of the measured amplitudes, and of the wanted ones.
    faults : what is hidden or disturbed in the training crystals; validation is ideal.
    batch_size, lr, weight_decay : of AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101); crystals a step and process.
    ema : decay of the running mean of weights, which is validated and returned; 0 for the last weights instead. At
        step n it is at most n / (n + 9), so that the start is soon forgotten.
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
    fabric = device.launch()
    size = batch_size * fabric.world_size
    part = slice(fabric.global_rank * batch_size, (fabric.global_rank + 1) * batch_size)
    n = len(source) if hasattr(source, "__len__") else None
    if n is not None and n < size:
        raise UserError(f"{n} crystals that fit the box are fewer than one batch of {size}: generate more crystals, or lower "
                        "batch_size")
    check_resolutions(d_input, d_target)
    faults.check(d_target)
    budget = budget.in_steps(size, n)
    settings = dict(box=box, d_input=d_input, d_target=d_target)
    model.to(memory_format=torch.channels_last_3d)  # faster in both precisions; no-op for tensors of other rank
    precision = device.precision
    if precision == "auto":
        precision = _checkpointed_precision(checkpoint) or pick_precision(
            model, amplitude_boxes(source.batch(seed, 0, size, part)[:1], **settings)[0], device.kind)
    precision = fabric.broadcast(precision)
    known = None
    if validation and n_validations and fabric.is_global_zero:
        known = amplitude_boxes(validation, **settings)

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    trained, optimizer = fabric.setup(model, optimizer)
    averaged = copy.deepcopy(model).requires_grad_(False) if ema else model
    # what a checkpoint has to agree in
    order = dict(model=repr(getattr(model, "config", type(model).__name__)), crystals=source.label, box=box.name,
                 d_input=d_input, d_target=d_target, faults=repr(faults), steps=budget.steps, minutes=budget.minutes,
                 batch=size, lr=lr, weight_decay=weight_decay, ema=ema, seed=seed, precision=precision)
    history = _resume(checkpoint, order, model, averaged, optimizer) if checkpoint else []
    last = seconds = history[-1]["seconds"] if history else 0.0
    start = time.perf_counter() - seconds
    progress, n_validated = budget.progress(len(history), seconds), sum("r_ext" in row for row in history)

    batches = _batches(fabric, source, faults, settings, seed, size, part, len(history))
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


def _batches(fabric, source, faults, settings, seed, size, part, first):
    """What each step from `first` on takes: [(what the network sees, what it is compared with) of each box].

    Beside a GPU a thread makes them a step ahead, so that it need not wait; a CPU has nothing to gain from that.
    """
    def make(step):
        parts, numbers = [], iter(range(step * size, (step + 1) * size)[part])
        for boxes in amplitude_boxes(source.batch(seed, step, size, part), **settings, device=fabric.device):
            mine = [next(numbers) for _ in range(len(boxes))]
            parts.append(faults.apply(boxes, seed, mine) if faults else (boxes, boxes))
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
    """What the loss of each box counts in the mean over the processes: of crystals that share one, by its reflections (their
    mean is not the mean of the processes' means); of boxes of one crystal each, alike."""
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
    return made | dict(recipe=recipe) | seen | settings | dict(box=box.name) | scores | dict(
        n_validation=len(validation), commit=git_state(),
        machine=f"{computer['processor']}, {computer['cores']} cores, GPU {computer['gpu']}")


def train(name, out, budget=Budget(), device=Device(), *, crystals="", recipe="molecules", box=BOXES["monoclinic"], d_input=1.5,
          d_target=0.8, n_validation=32, workers=1, seed=0, start="", published=False, run="", overwrite=False,
          **options) -> dict:
    """Train a network and write its weights to `out`, with a CSV log beside it; returns what describes them.

    Parameters
    ----------
    name : one of ``models.MODELS``, or your own (``models.find_model``)
    crystals, recipe, n_validation, workers : see ``sources.training_sets``
    start : a file of weights of the same model to begin with; its crystals and minutes are counted in the description.
    published : the form in which the network was published, where it has one besides ours.
    run : name of the run, for the description.
    options : as for ``fit``; a killed training goes on from ``<out>.checkpoint`` with the same call.
    """
    out = Path(out)
    checkpoint, log = out.with_suffix(".checkpoint"), out.with_suffix(".csv")
    name = find_model(name)
    if out.suffix != ".safetensors":
        right = out.with_suffix(".safetensors").name
        raise UserError(f"weights are written as safetensors: name the file {right[:100]}, not {str(out)[:200]}")
    if out.exists() and not checkpoint.exists() and not overwrite:
        raise UserError(f"{shown(out)} is there already: choose another name, or add --overwrite")
    settings = dict(box=box, d_input=d_input, d_target=d_target)
    torch.manual_seed(seed)
    model_class = MODELS[name]
    if box is OWN and not model_class.any_box:
        raise UserError(f"{model_class.title} needs one box for all crystals: choose {', '.join(BOXES)}")
    config = model_class.config_for(box, d_target)
    if published:
        if not model_class.PUBLISHED:
            raise UserError(f"{model_class.title} has no published form besides the one here")
        config = replace(config, **model_class.PUBLISHED)
    model = model_class(config)
    before = {}
    if start:
        begun, before = load_model(start)
        if type(begun) is not model_class or begun.config != model.config:
            raise UserError(f"{shown(start)} holds weights of another model than {name} as it is trained here")
        model.load_state_dict(begun.state_dict())
    else:
        model.start_from(partial(shell_mean, **settings))
    source, validation, sample = training_sets(crystals, recipe, box, d_target, n_validation, workers)
    with closing(source), locked(out) if is_first_process() else nullcontext():
        history = fit(model, source, validation, budget, device, **settings, seed=seed, checkpoint=checkpoint, log=log,
                      **options)
    imperfect = {key: value for key, value in vars(options.get("faults", Faults())).items() if value}
    made = describe(history, validation, model, sample, **settings, **(dict(run=run) if run else {}), seed=seed, **imperfect,
                    **{key: options[key] for key in ("batch_size", "lr", "ema") if key in options})
    if validation:
        made["spread"] = spread_of(model, validation, faults=options.get("faults", Faults()), seed=seed, **settings).terms
    if before:
        made |= {key: round(made[key] + before.get(key, 0), 1) for key in ("crystals_seen", "minutes")}
        if "curve" in made:
            made["curve"] = [[n + before.get("crystals_seen", 0), r, cc] for n, r, cc in made["curve"]]
        about = ("crystals_seen", "minutes", "seed", "lr", "commit")
        made["started_from"] = {key: before[key] for key in about if key in before}
    if is_first_process():
        save_model(out, name, model, **made)
        checkpoint.unlink(missing_ok=True)
    return made


def spread_of(model, crystals, *, box=BOXES["monoclinic"], d_input=1.5, d_target=0.8, faults=Faults(), seed=0) -> Spread:
    """The uncertainty of what a network predicts, from crystals that it was not trained on; faults as in its training."""
    pairs = []
    for number, boxes in enumerate(amplitude_boxes(crystals, box, d_input, d_target)):
        seen, true = faults.apply(boxes, seed, range(number, number + len(boxes))) if faults else (boxes, boxes)
        pairs.append((predict(model, seen), true))
    return Spread.fit(pairs)


def calibrate(path, crystals) -> Spread:
    """``spread_of`` for a file of weights and crystals that fit its box, written into the file."""
    model, made = load_model(path)
    faults = Faults(*(tuple(x) if isinstance(x, list) else x for x in (made.get("d_min"), made.get("missing", 0.0),
                                                                       made.get("noise", 0.0))))
    limits = {key: made[key] for key in ("d_input", "d_target") if key in made}
    spread = spread_of(model, crystals, box=find_box(made.get("box", "monoclinic")), faults=faults, **limits)
    name = next(name for name, model_class in MODELS.items() if type(model) is model_class)
    save_model(path, name, model, **made | {"spread": spread.terms})
    return spread


def is_first_process() -> bool:
    """Whether this is the process that writes files; the only one, unless several devices train."""
    return getattr(rank_zero_only, "rank", None) in (0, None)
