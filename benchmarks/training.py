"""Crystals a second in training and in prediction, beside the published loop, in one run.

The published loop, written from its description (github.com/blackwood168/xrd_phase_ml): float32 in the default memory
layout, Adam, a pair of amplitude grids a crystal in an npz file that a DataLoader reads; the transformer has a token for
each of the 10,764 voxels, measured or not. It is given the benefit of the doubt: the networks are ours where the two are
equal, the files are in the cache of the system, attention is the fused kernel, nothing is validated. Ours is what ``fit``
does, crystals included: their amplitudes are computed anew at each step.

Times vary with the machine, ratios less; on one without matrix units for bfloat16 both multiply in float32, and little of
the goal can be reached. On a GPU the share of its bfloat16 matrix peak is given too, the peak as measured here.

Usage: python benchmarks/training.py [--device cuda] [--batch 4] [--seconds 20] [--threads 1], which writes
RUNS/benchmarks/training.json
"""

import argparse
import os
import tempfile
import time
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
from xrd_helpers.models import FFTUNet, UNet, XRDTransformer
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.training import Budget, Device, fit, pick_precision
from xrd_helpers.weights import predict

MODELS = {"unet": UNet, "fft_unet": FFTUNet, "xrd_transformer": XRDTransformer}
GOALS = {"unet": 10, "fft_unet": 10, "xrd_transformer": 20}
N_FILES = 64


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
    torch.manual_seed(0)
    model = MODELS[name]().to(device)
    network = EveryVoxelIsAToken(model) if name == "xrd_transformer" else None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(Grids(sorted(folder.glob("*.npz"))), batch, shuffle=True, drop_last=True)
    no, yes = (torch.full((batch, 26, 18, 23), value, device=device) for value in (False, True))

    def steps():
        while True:
            yield from loader

    def step(pair):
        F_in, F = (x.to(device) for x in pair)
        F_out = network(F_in) if network else model(SimpleNamespace(F_in=F_in, measured=no, target=yes, absent=no))
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


def ours(name, crystals, batch, seconds, device):
    """Crystals a second of ``fit``, from the second step on, without the last one."""
    torch.manual_seed(0)
    history = fit(MODELS[name](), crystals, None, Budget(minutes=seconds / 60), Device(device.type), batch_size=batch)
    seconds = history["seconds"].to_numpy()
    if len(seconds) < 3:
        return batch * len(seconds) / seconds[-1]
    return batch * (len(seconds) - 1) / (seconds[-1] - seconds[0])


def predicted(name, boxes, batch, seconds, device):
    """Crystals a second of ``predict``, from amplitude boxes on."""
    model = MODELS[name]().to(device, memory_format=torch.channels_last_3d)
    return batch * rate(lambda part: predict(model, part, batch), iter(lambda: boxes[:batch], None), seconds)


def share_of_peak(name, crystals, batch, crystals_per_second, device):
    """What a step multiplies a second, as a share of the largest bfloat16 matrix product that this GPU can do."""
    model = MODELS[name]().to(device)
    boxes = AmplitudeBoxes.from_crystals(crystals[:batch], device=device)
    with FlopCounterMode(display=False) as counter:
        model(boxes, boxes).backward()
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    for n in (5, 50):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(n):
            a @ a
        torch.cuda.synchronize()
        peak = n * 2 * 8192**3 / (time.perf_counter() - start)
    return counter.get_total_flops() / batch * crystals_per_second / peak


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
    crystals = select_fitting(random_crystals(200, 0), BOXES["monoclinic"], 0.8)[0][:N_FILES]
    boxes = AmplitudeBoxes.from_crystals(crystals)
    precision = {name: pick_precision(MODELS[name](), boxes, given.device) for name in given.models}
    how = ", ".join(f"{name} {bits}" for name, bits in precision.items())
    print(f"{given.device}, {how}, {given.batch} crystals a step; crystals a second:")
    print(f"{'model':16s} {'published':>10s} {'fit':>10s} {'ratio':>7s} {'goal':>5s} {'predict':>10s}  of the peak")
    with tempfile.TemporaryDirectory() as temporary:
        write_grids(crystals, Path(temporary))
        for name in given.models:
            # a step of the published transformer takes a minute a crystal on a core
            peer_batch = 1 if name == "xrd_transformer" and device.type == "cpu" else given.batch
            row = {"published": published(name, Path(temporary), peer_batch, given.seconds, device),
                   "fit": ours(name, crystals, given.batch, given.seconds, device),
                   "predict": predicted(name, boxes, 8, given.seconds / 4, device)}
            row["ratio"] = row["fit"] / row["published"]
            on_gpu = device.type == "cuda"
            row["share_of_peak"] = share_of_peak(name, crystals, given.batch, row["fit"], device) if on_gpu else None
            rows[name] = row
            share = f"{row['share_of_peak']:.1%}" if row["share_of_peak"] else ""
            print(f"{MODELS[name].title:16s} {row['published']:10.3g} {row['fit']:10.3g} {row['ratio']:7.1f} {GOALS[name]:5d} "
                  f"{row['predict']:10.3g}  {share}", flush=True)
    write_json(run_folder("benchmarks") / "training.json",
               {"rows": rows, "goals": GOALS, "device": given.device, "precision": precision, "batch": given.batch,
                "threads": given.threads} | provenance())


if __name__ == "__main__":
    main()
