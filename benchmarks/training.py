"""Crystals a second in training and in prediction, beside the published loop, in one run.

The published loop, written from its description (github.com/blackwood168/xrd_phase_ml): float32 in the default memory
layout, Adam, a pair of amplitude grids a crystal in an npz file that a DataLoader reads; the transformer has a token for
each of the 10,764 voxels, measured or not. It is given the benefit of the doubt: the networks are ours where the two are
equal, the files are in the cache of the system, attention is the fused kernel, nothing is validated. Ours is what ``fit``
does, crystals included: their amplitudes are computed anew at each step.

Then each network as it is here, PattersonNet too, in both precisions: crystals a second of ``fit`` and of ``predict``, and the
share of the machine's peak, which is measured with a large matrix product in that precision. Transforms are not counted.

Times vary with the machine, ratios less; on one without matrix units for bfloat16 both multiply in float32, and little of
the goal can be reached.

Usage: python benchmarks/training.py [--device cuda] [--batch 4] [--seconds 20] [--threads 1] [--models patterson_net], which
writes RUNS/benchmarks/training.json
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from torch.nn import functional as nnf
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from structure_factors import provenance
from xrd_helpers.config import run_folder, write_json
from xrd_helpers.gridding import BOXES, AmplitudeBoxes, select_fitting
from xrd_helpers.models import MODELS
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.training import PRECISIONS, Budget, Device, arithmetic, fit, pick_precision
from xrd_helpers.weights import predict

GOALS = {"unet": 10, "fft_unet": 10, "xrd_transformer": 20}
N_FILES = 64


def build(name, published=False):
    """An untrained network for the monoclinic box."""
    torch.manual_seed(0)
    config = MODELS[name].config_for(BOXES["monoclinic"], 0.8)
    return MODELS[name](replace(config, **MODELS[name].PUBLISHED) if published else config)


class Grids(Dataset):
    """Pairs of grids, one npz file a crystal."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        with np.load(self.paths[i]) as file:
            return file["input"], file["output"]


class EveryVoxelIsAToken(torch.nn.Module):
    """The transformer as published: value and position of each voxel of the box, whether a reflection is there or not."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, F_in):
        model = self.model
        every = torch.ones_like(F_in, dtype=torch.bool).nonzero()[:, 1:].unbind(1)
        index = torch.cat([layer.weight.t()[i] + layer.bias for layer, i in zip(model.index, every)], dim=-1)
        x = model.value(F_in.reshape(-1, 1)) + index
        lengths = [F_in[0].numel()] * len(F_in)
        for block in model.blocks:
            x = block(x, lengths)
        return nnf.softplus(model.head(model.norm(x))).view_as(F_in)


def published(name, folder, batch, seconds, device):
    """Crystals a second of the published loop."""
    model = build(name, True).to(device)
    network = EveryVoxelIsAToken(model) if name == "xrd_transformer" else None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(Grids(sorted(folder.glob("*.npz"))), batch, shuffle=True, drop_last=True)
    no, yes = (torch.full((batch, 26, 18, 23), value, device=device) for value in (False, True))

    def steps():
        while True:
            yield from loader

    def step(pair):
        F_in, F = (x.to(device) for x in pair)
        F_out = network(F_in) if network else model(SimpleNamespace(F_in=F_in, measured=no, target=yes, absent=no, box=None))
        loss = (F_out - F).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return batch * rate(step, steps(), seconds, warm=name != "xrd_transformer" or device.type != "cpu")


def rate(step, items, seconds, warm=True):
    """Steps a second; the first is not counted where ``warm``. Each ends with a number on the CPU, so none is under way."""
    if warm:
        step(next(items))
    n, start = 0, time.perf_counter()
    while n < 1 or time.perf_counter() - start < seconds:
        step(next(items))
        n += 1
    return n / (time.perf_counter() - start)


def ours(model, crystals, batch, seconds, device, precision="auto"):
    """Crystals a second of ``fit``, from the second step on."""
    history = fit(model, crystals, None, Budget(minutes=seconds / 60), Device(device.type, precision=precision),
                  batch_size=batch)
    seconds = history["seconds"].to_numpy()
    if len(seconds) < 3:
        return batch * len(seconds) / seconds[-1]
    return batch * (len(seconds) - 1) / (seconds[-1] - seconds[0])


def predicted(model, boxes, batch, seconds, device, precision):
    """Crystals a second of ``predict``, from amplitude boxes on."""
    model = model.to(device, memory_format=torch.channels_last_3d)

    def step(part):
        with arithmetic(precision, device.type):
            return predict(model, part, batch)
    return batch * rate(step, iter(lambda: boxes[:batch], None), seconds)


def work(model, boxes, device):
    """Operations of a training step, of convolutions, matrix products and attention, for each crystal of boxes."""
    model, boxes = model.to(device), boxes.to(device)
    with FlopCounterMode(display=False) as counter:
        model(boxes, boxes).backward()
    return counter.get_total_flops() / len(boxes)


def peak(precision, device):
    """Operations a second of a large matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16-mixed" else torch.float32)

    def step(b):
        return (b @ b)[0, 0].item()
    return 2 * n**3 * rate(step, iter(lambda: a, None), 2)


def write_grids(crystals, folder):
    boxes = AmplitudeBoxes.from_crystals(crystals)
    for i in range(len(boxes)):
        np.savez(folder / f"{i:05d}.npz", input=boxes.F_in[i].numpy(), output=boxes.F[i].numpy())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=4, help="crystals a step, of both loops")
    parser.add_argument("--seconds", type=float, default=20, help="for each number")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device, rows = torch.device(given.device), {}
    crystals = select_fitting(random_crystals(200, 0, recipe="molecules"), BOXES["monoclinic"], 0.8)[0][:N_FILES]
    boxes = AmplitudeBoxes.from_crystals(crystals)
    compared = [name for name in given.models if name in GOALS]
    precision = {name: pick_precision(build(name, True), boxes, given.device) for name in compared}
    print(f"{given.device}, {given.batch} crystals a step; crystals a second, each network in its published form:")
    print(f"{'model':16s} {'published':>10s} {'fit':>10s} {'ratio':>7s} {'goal':>5s}")
    with tempfile.TemporaryDirectory() as temporary:
        write_grids(crystals, Path(temporary))
        for name in compared:
            # a step of the published transformer takes a minute a crystal on a core
            peer_batch = 1 if name == "xrd_transformer" and device.type == "cpu" else given.batch
            row = {"published": published(name, Path(temporary), peer_batch, given.seconds, device),
                   "fit": ours(build(name, True), crystals, given.batch, given.seconds, device, precision[name])}
            row["ratio"] = row["fit"] / row["published"]
            rows[name] = row
            print(f"{MODELS[name].title:16s} {row['published']:10.3g} {row['fit']:10.3g} {row['ratio']:7.1f} {GOALS[name]:5d}  "
                  f"{precision[name]}", flush=True)
    peaks = {bits: peak(bits, device) for bits in PRECISIONS}
    print("\nas they are here; share of " + ", ".join(f"{x / 1e12:.3g} TFLOP/s in {bits}" for bits, x in peaks.items()))
    print(f"{'model':16s} {'precision':>12s} {'fit':>10s} {'of peak':>8s} {'predict':>10s} {'of peak':>8s}")
    for name in given.models:
        per_crystal = work(build(name), boxes[:1], device)
        rows.setdefault(name, {})["operations"] = per_crystal
        for bits in PRECISIONS:
            row = {"fit": ours(build(name), crystals, given.batch, given.seconds, device, bits),
                   "predict": predicted(build(name), boxes, 8, given.seconds / 4, device, bits)}
            # a step is a prediction and about twice that for the gradient
            row |= {"fit_share": row["fit"] * per_crystal / peaks[bits],
                    "predict_share": row["predict"] * per_crystal / 3 / peaks[bits]}
            rows[name][bits] = row
            print(f"{MODELS[name].title:16s} {bits:>12s} {row['fit']:10.3g} {row['fit_share']:8.1%} {row['predict']:10.3g} "
                  f"{row['predict_share']:8.1%}", flush=True)
    write_json(run_folder("benchmarks") / "training.json",
               {"rows": rows, "goals": GOALS, "device": given.device, "peak": peaks, "precision": precision,
                "batch": given.batch, "threads": given.threads} | provenance())


if __name__ == "__main__":
    main()
