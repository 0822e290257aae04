"""A learned step inside phasing: does a small network, called a few times by charge flipping, bring more starts right?

The network is that of ``xrd_helpers.phasing.learned_step``. It is trained on states that charge flipping visits: of random
light molecules (recipe *molecules*), amplitudes to 1.4-2.1 Å, some cycles before the map is replaced by its peaks. The loss is
that of the phases, Σ E² cos Δφ / Σ E² at the shift and hand that fit what the network says best, and the correlation with the
true map down to where reflections float.

Usage: python benchmarks/learned_step.py states --minutes 12 --seed 1 --out STATES [--weights W]
       python benchmarks/learned_step.py train --states STATES ... --minutes 22 --weights W [--start W]
       python benchmarks/learned_step.py oracle [--weights W]
       python benchmarks/learned_step.py judge --crystals FOLDER [--weights W] [--part report]
*states* with --weights has the network in the loop; *oracle* says what a call is worth on states it has not seen, with the
shipped weights by default; *judge* writes learned_step.csv, .json and .png into --out, by default RUNS/benchmarks: starts of
real light crystals, by the engine alone, guided by PattersonNet, and each with the learned step, by processor seconds.
"""

import argparse
import json
import os
import time
from functools import partial
from math import comb
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

from starts import RIGHT, agreement_with_truth, guide  # first, since it imports cctbx, which crashes after torch

# isort: split
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import wilcoxon
from torch import nn

from xrd_helpers import locate
from xrd_helpers.cif_folders import read_cif_folders
from xrd_helpers.config import atomic_path, run_folder, write_json
from xrd_helpers.gridding import OWN, amplitude_boxes
from xrd_helpers.phasing import Settings
from xrd_helpers.phasing.charge_flipping import Candidate, one_thread
from xrd_helpers.phasing.flipping_grid import FlippingGrid, eliminate_low_density, flip, keep_peaks, normalised_amplitudes
from xrd_helpers.phasing.fourier import HalfGrid
from xrd_helpers.phasing.learned_step import FILE, LearnedStep, Network, channels, even, numbers_of, read_network, resized
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.reflections import Reflections, unique_hkl
from xrd_helpers.structure_factors import structure_factors
from xrd_helpers.summary import git_state, machine
from xrd_helpers.weights import load_model, predict

GROUPS = ["P 1 21/c 1", "P 1 21/n 1", "P -1", "P 1 21 1", "P 21 21 21"]
D_MIN = 1.4, 2.1
STARTS = 4        # of each crystal that is trained on
TRIED = 16        # of each that is judged by
FOLLOWED = {"before": (0, 0), "one cycle": (0, 1), "20 cycles": (0, 20), "the step": (1, 0), "the step, 20 cycles": (1, 20),
            "six steps": (6, 0)}  # steps and cycles after them
CLEARLY_RIGHT = 0.7
VARIANTS = ["0:400:0", "0:200:0", "0:200:2", "0:400:2", "100:400:2", "0:400:0:guided", "0:400:2:guided"]
COLUMNS = ["d_min", "crystal", "variant", "right", "seconds", "clearly_right", "agreement"]
LOOPED = 200      # cycles with the learned step among them
LARGEST = 24_000  # points of a map that is trained on


# --- the cycles of the engine ---

def prepared(crystal, d_min, predicted=None):
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
    F = np.abs(structure_factors(crystal, hkl))
    reflections = Reflections.of_good_data(hkl, F, crystal.cell, crystal.spacegroup)
    grid = FlippingGrid(reflections, predicted)
    return grid, Candidate(grid, reflections, crystal.spacegroup, crystal.contents)


def search(grid, candidate, starts, generator, learned=None, at=(), cycles=None, seen=None):
    """The cycles of ``charge_flipping.solve``, from random starts; instead of peaks the learned step at some of them.

    seen : function of the cycle and the grids before the peaks are taken
    """
    settings = grid.settings
    deltas = settings.thresholds(range(starts))
    peaks = partial(keep_peaks, n=round(sum(candidate.contents.values()) * candidate.n_ops))
    sf = grid.random_start(starts, generator)
    cycles = cycles or settings.cycles
    for cycle in range(settings.peak_cycle, cycles + 1, settings.peak_cycle):
        sf = grid.run(sf, partial(flip, delta=deltas), settings.peak_cycle - 1)
        if seen:
            seen(cycle, sf)
        sf = grid.run(sf, learned if cycle in at else peaks, 1)
        if cycle % settings.symmetrise == 0 and cycle < cycles:
            shifts = grid.agreement(sf, candidate.links)[1]
            sf = torch.stack([candidate.symmetrised(*pair) for pair in zip(sf, shifts)])
    return sf


# --- states ---

def truth(crystal, grid, free_to):
    """Half grid of E with the true phases, of what was not measured too, to free_to (Å)."""
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, free_to)
    sf = structure_factors(crystal, hkl)
    full = Reflections.of_good_data(hkl, np.abs(sf), crystal.cell, crystal.spacegroup)
    E = normalised_amplitudes(full) * np.exp(1j * np.angle(sf))
    inside = (2 * np.abs(full.p1.hkl) < grid.size).all(1)
    half = HalfGrid(full.p1, grid.size)
    if not inside.all():
        raise ValueError("the grid is too small")
    found = torch.as_tensor(half.coefficients(E))
    return torch.where(grid.amplitude > 0, found / found.abs().clamp_min(1e-9) * grid.amplitude,
                       torch.where(grid.factor.abs() > 0, found, 0))


def one_states(crystal, d_min, rng, generator, network, times):
    """{name: tensor} of a crystal: maps in half precision of even sizes."""
    grid, candidate = prepared(crystal, d_min)
    if np.prod(grid.size) > LARGEST:
        return None
    step, cycles = network and LearnedStep(grid, network), LOOPED if network else grid.settings.cycles
    size, wanted, maps = even(grid.size), set(rng.choice(np.arange(20, cycles + 1, 10), times, replace=False).tolist()), []

    def on_even(sf):
        rho = torch.fft.irfftn(resized(sf, grid.size, size), s=size, dim=(1, 2, 3))
        return (rho / rho.std(dim=(1, 2, 3), keepdim=True)).half()

    def seen(cycle, sf):
        if cycle in wanted:
            maps.append(on_even(sf))

    settings = grid.settings
    free_to = max(settings.free_least * d_min, min(settings.free_to, d_min))
    target = truth(crystal, grid, free_to)
    if step:
        every = int(rng.choice([10, 20, 50]))
        sf = search(grid, candidate, STARTS, generator, step, range(every, cycles + 1, every), cycles, seen)
        sf = grid.run(sf, eliminate_low_density, grid.settings.polish)
        for _ in range(times):
            maps.append(on_even(sf))
            sf = grid.run(sf, step, 1)
    else:
        search(grid, candidate, STARTS, generator, seen=seen)
    amplitude = resized(grid.amplitude[None], grid.size, size)[0].numpy()
    full = np.zeros(size, np.float32)
    k = size[2] // 2
    full[:, :, :k + 1] = amplitude
    rest = amplitude[:, :, 1:k][:, :, ::-1]
    full[:, :, k + 1:] = np.roll(rest[::-1, ::-1], (1, 1), (0, 1))
    rho = torch.fft.irfftn(resized(target[None], grid.size, size), s=size, dim=(1, 2, 3))
    return {"maps": torch.stack(maps), "truth": (rho / rho.std())[0].half(), "amplitude": torch.as_tensor(full).half(),
            "numbers": numbers_of(crystal.cell, size, d_min)}


def states(given):
    network = given.weights and read_network(given.weights)
    until, rng, kept, first = time.monotonic() + 60 * given.minutes, np.random.default_rng(given.seed), {}, 0
    generator, n = torch.Generator().manual_seed(given.seed), 0
    with one_thread():
        while time.monotonic() < until:
            for crystal in random_crystals(20, given.seed, GROUPS, first=first, recipe="molecules"):
                if crystal.light and (found := one_states(crystal, rng.uniform(*D_MIN), rng, generator, network, given.times)):
                    kept |= {f"{n}.{name}": value for name, value in found.items()}
                    n += 1
            first += 20
    save_file(kept, given.out)
    print(f"{n} of {first} crystals, {n * given.times * STARTS} states", flush=True)


# --- training ---

def read_states(paths):
    found = []
    for path in paths:
        tensors = load_file(path)
        for i in range(1 + max(int(name.split(".")[0]) for name in tensors)):
            found.append({name: tensors[f"{i}.{name}"] for name in ("maps", "truth", "amplitude", "numbers")})
    return found


def turned(one, maps, rng):
    """Maps, truth, amplitude and numbers with axes changed at random, and inverted or not."""
    axes = list(rng.permutation(3))
    other = [*axes, *(3 + axis for axis in axes), 6]
    truth, amplitude = (one[name].float().permute(*axes) for name in ("truth", "amplitude"))
    maps = maps.float().permute(0, *(1 + axis for axis in axes))
    if rng.random() < 0.5:
        maps = maps.flip(1, 2, 3).roll((1, 1, 1), (1, 2, 3))
    amplitude = amplitude[:, :, :amplitude.shape[2] // 2 + 1]
    return maps.contiguous(), truth.contiguous(), amplitude.contiguous(), one["numbers"][other]


def phase_scores(rho, truth, amplitude):
    """(b,) Σ E² cos Δφ / Σ E² of densities, and their correlation with the truth, |E| put in, at the best shift and hand."""
    n = truth.shape
    twice = torch.full((n[2] // 2 + 1,), 2.0)
    twice[[0, -1]] = 1
    T, F = torch.fft.rfftn(truth), torch.fft.rfftn(rho, dim=(1, 2, 3))
    known, size = amplitude > 0, T.abs()
    there = size > 1e-2 * size.mean()
    there[0, 0, 0] = False
    scale = (twice * amplitude * size).sum() / (twice * amplitude.square()).sum()
    F2 = F.real.square() + F.imag.square()
    unit = F * (F2 + 1e-3 * F2.mean((1, 2, 3), keepdim=True)).rsqrt()
    with torch.no_grad():
        true = torch.where(known, T / size.clamp_min(1e-9) * amplitude * scale, T * there)
        true = torch.stack([_moved(true, amplitude * one, n) for one in unit])
    agreement = (twice * amplitude * (unit * true.conj()).real * known).sum((1, 2, 3)) / (
        scale * (twice * amplitude.square()).sum())
    # on the scale of the truth
    F = F * there * ((twice * amplitude * size * scale).sum() /
                     (twice * amplitude * F.detach().abs()).sum((1, 2, 3), keepdim=True).clamp_min(1e-9))
    mixed = torch.where(known, unit * amplitude * scale, F)
    product = (twice * (mixed * true.conj()).real).sum((1, 2, 3))
    norms = [(twice * (x.real.square() + x.imag.square())).sum((1, 2, 3)) for x in (mixed, true)]
    return agreement, product * (norms[0] * norms[1]).rsqrt()


def _moved(true, F, n):
    """The half grid `true`, of that hand and at that shift where it fits F best."""
    hands = torch.stack([true, true.conj()])
    sums = torch.fft.irfftn(F * hands.conj(), s=n, dim=(1, 2, 3))
    hand, *u = np.unravel_index(int(sums.argmax()), sums.shape)
    moved = hands[hand]
    for axis in range(3):
        below, top, above = (float(sums[(hand, *((x + step * (i == axis)) % n[i] for i, x in enumerate(u)))])
                             for step in (-1, 0, 1))
        at = u[axis] + (0.5 * (below - above) / (below - 2 * top + above) if top > max(below, above) else 0)
        h = torch.fft.fftfreq(n[axis], 1 / n[axis]) if axis < 2 else torch.arange(n[2] // 2 + 1)
        moved = moved * torch.exp(-2j * torch.pi * h * at / n[axis]).view([-1 if i == axis else 1 for i in range(3)])
    return moved


def train(given):
    torch.set_num_threads(1)
    data, rng = read_states(given.states), np.random.default_rng(given.seed)
    print(len(data), "crystals", flush=True)
    network = read_network(given.start) if given.start else Network(given.c, given.blocks)
    network.train().to(memory_format=torch.channels_last_3d)
    print(sum(p.numel() for p in network.parameters()), "parameters", flush=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=given.lr, weight_decay=1e-4, betas=(0.9, 0.98))
    began, step, told, log = time.monotonic(), 0, [], []
    average = {name: p.detach().clone() for name, p in network.state_dict().items()}
    while (share := (time.monotonic() - began) / 60 / given.minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = given.lr * min(1, share / 0.02 + 1e-3) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * share)))
        optimizer.zero_grad()
        for i in rng.integers(len(data), size=given.batch):
            maps = data[i]["maps"]
            maps, true, amplitude, numbers = turned(data[i], maps[rng.integers(len(maps))], rng)
            seen = channels(maps, amplitude)
            with torch.autocast("cpu", torch.bfloat16):
                out = network(seen, numbers)
            agreement, cc = phase_scores(out, true, amplitude)
            loss = ((1 - agreement) + 0.5 * (1 - cc)).mean() / given.batch
            loss.backward()
            with torch.no_grad():
                told.append([float(phase_scores(maps, true, amplitude)[0].mean()) if step % 8 == 0 else np.nan,
                             float(agreement.mean()), float(cc.mean())])
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            keep = min(0.998, 1 - 1 / (step + 1))
            for name, p in network.state_dict().items():
                average[name].lerp_(p, 1 - keep)
        if step % 100 == 0:
            log.append([step, time.monotonic() - began, *np.nanmean(told, 0)])
            print("step {} {:.0f} s: agreement before {:.3f}, after {:.3f}; cc {:.3f}".format(*log[-1]), flush=True)
            told = []
            save(average, given, step, log)
    save(average, given, step, log)


def save(weights, given, step, log):
    save_file({name: value.half().contiguous() for name, value in weights.items()}, given.weights,
              {"c": str(given.c), "blocks": str(given.blocks), "steps": str(step), "log": json.dumps(log[-1:])})


def oracle(given):
    """Agreement with the truth of states of crystals that were not trained on, and what becomes of it."""
    network, rng = read_network(given.weights), np.random.default_rng(given.seed)
    generator, rows, seconds = torch.Generator().manual_seed(given.seed), [], dict.fromkeys(FOLLOWED, 0.0)
    crystals = [c for c in random_crystals(2 * given.n, given.seed, GROUPS, recipe="molecules") if c.light][:given.n]
    with one_thread():
        for crystal in crystals:
            d_min, states = rng.uniform(*D_MIN), {}
            grid, candidate = prepared(crystal, d_min)
            step = LearnedStep(grid, network)
            search(grid, candidate, STARTS, generator, seen=states.__setitem__)
            for sf in map(states.get, (90, 190, 290)):
                found = []
                for name, (steps, cycles) in FOLLOWED.items():
                    began = time.process_time()
                    new = on(grid, candidate, grid.run(sf, step, steps), cycles)
                    seconds[name] += time.process_time() - began
                    found.append(agreement_with_truth(grid, new, crystal))
                rows += [(d_min, *one) for one in zip(*found)]
    rows = pd.DataFrame(rows, columns=["d_min", *FOLLOWED])
    for low, high in ((1.4, 2.1), (1.4, 1.6), (1.6, 1.85), (1.85, 2.1)):
        part = rows[rows["d_min"].between(low, high)]
        for least, most in ((0, 1), (0, 0.3), (0.3, 0.45), (0.45, 0.6), (0.6, 1)):
            band = part[part["before"].between(least, most)]
            print(f"{low}-{high} Å, {least}-{most}: {len(band)} states; " + ", ".join(
                f"{name} {band[name].mean():.3f} ({100 * (band[name] > RIGHT).mean():.0f} %)" for name in FOLLOWED), flush=True)
    print({name: f"{1e3 * s / len(rows):.2f} ms" for name, s in seconds.items()})


def on(grid, candidate, sf, cycles):
    """So many cycles more, a multiple of ten, or one."""
    peaks = partial(keep_peaks, n=round(sum(candidate.contents.values()) * candidate.n_ops))
    if cycles < grid.settings.peak_cycle:
        return grid.run(sf, flip, cycles)
    for _ in range(0, cycles, grid.settings.peak_cycle):
        sf = grid.run(grid.run(sf, flip, grid.settings.peak_cycle - 1), peaks, 1)
    return sf


# --- the judgement ---

def crystals_of(folder, part, n):
    """Light real crystals of one part of the split, in an order of chance."""
    split = pd.read_csv(Path(folder) / "SPLIT.csv")
    names = {Path(name).stem for name in split[split["part"] == part]["file"]}
    crystals = [c for c in read_cif_folders([folder])[0] if c.light and Path(c.source or c.name).stem in names]
    return [crystals[i] for i in np.random.default_rng(0).permutation(len(crystals))[:n]]


def guide_of(crystal, d_min, patterson_net):
    boxes, = amplitude_boxes([crystal], OWN, d_min, 0.8)
    return guide(boxes, 0, predict(patterson_net, boxes), crystal, equal=False)


class Variant(NamedTuple):
    """What is tried: calls every so many cycles (0: none), cycles, calls at the end, whether guided by PattersonNet."""

    every: int
    cycles: int
    last: int
    guided: bool = False

    @classmethod
    def of(cls, name):
        """Of "every:cycles:last", with ":guided" or without."""
        numbers = name.split(":")
        return cls(*map(int, numbers[:3]), guided="guided" in numbers)

    @property
    def title(self):
        parts = [f"every {self.every} cycles"] * bool(self.every) + [f"{self.last} times at the end"] * bool(self.last)
        return ("learned step " + " and ".join(parts) if parts else "engine") + (
            f", {self.cycles} cycles" if self.cycles != Settings().cycles else "") + (", guided" if self.guided else "")


def judge(given):
    network = read_network(given.weights)
    patterson_net, _ = load_model(locate("weights/patterson_net.safetensors"))
    crystals, rows = crystals_of(given.crystals, given.part, given.n), []
    folder = Path(given.out) if given.out else run_folder("benchmarks")
    for number, crystal in enumerate(crystals, 1):
        for d_min in given.d_min:
            with one_thread():
                wanted = any(Variant.of(name).guided for name in given.variants)
                predicted = guide_of(crystal, d_min, patterson_net) if wanted else None
                for name in given.variants:
                    every, cycles, last, guided = Variant.of(name)
                    began = time.process_time()
                    grid, candidate = prepared(crystal, d_min, predicted if guided else None)
                    step = LearnedStep(grid, network) if every or last else None
                    at = range(every, cycles + 1, every) if every else ()
                    sf = search(grid, candidate, TRIED, torch.Generator().manual_seed(0), step, at, cycles)
                    sf = grid.run(sf, eliminate_low_density, grid.settings.polish)
                    sf = grid.run(sf, step, last)
                    seconds = time.process_time() - began
                    found = agreement_with_truth(grid, sf, crystal)
                    rows.append((d_min, crystal.name, name, int((found > RIGHT).sum()), round(seconds, 3),
                                 int((found > CLEARLY_RIGHT).sum()), round(float(found.mean()), 3)))
        if number % 2 == 0 or number == len(crystals):
            table = write(folder, pd.DataFrame(rows, columns=COLUMNS), given.part)
            print(f"{number} crystals", flush=True)
            for d_min, figures in table.items():
                print("\n".join(f"  {d_min} {name:16s} {row}" for name, row in figures.items()), flush=True)


def write(folder, rows, part):
    """learned_step.csv, .json, .png in a folder -> the table."""
    with atomic_path(folder / "learned_step.csv") as temporary:
        rows.to_csv(temporary, index=False)
    table = tables(rows)
    write_json(folder / "learned_step.json", {"table": table, "part": part, "crystals": rows["crystal"].nunique(),
                                              "starts": TRIED, "commit": git_state(), "machine": machine()})
    fig = figure(rows)
    fig.savefig(folder / "learned_step.png", dpi=120)
    plt.close(fig)
    return table


def tables(rows):
    """{d_min: {variant: figures}}; the time of engine starts that each variant has is that of the first one."""
    result = {}
    for d_min, part in rows.groupby("d_min"):
        right, seconds = (part.pivot(index="crystal", columns="variant", values=value) for value in ("right", "seconds"))
        first = part["variant"].iloc[0]
        result[f"{d_min:g}"] = {name: {
            "starts right": round(float(right[name].mean() / TRIED), 3),
            f"above {CLEARLY_RIGHT}": round(float(part[part["variant"] == name]["clearly_right"].mean() / TRIED), 3),
            "seconds a start": round(float(seconds[name].mean() / TRIED), 3),
            "right in the time of one": round(float((right[name] / TRIED * seconds[first] / seconds[name]).mean()), 3),
            "crystals in the time of": {n: round(float(np.mean([some_right(r, n * t / s) for r, t, s in zip(
                right[name], seconds[first], seconds[name])])), 3) for n in (1, 4, 8)},
            "p": float(wilcoxon(right[name], right[first]).pvalue) if (right[name] != right[first]).sum() > 1 else None}
            for name in dict.fromkeys(part["variant"])}
    return result


def some_right(right, starts):
    """Probability that of so many starts, drawn from TRIED of which `right` are, some one is; between whole numbers linear."""
    n = np.arange(TRIED + 1)
    none = [comb(TRIED - right, k) / comb(TRIED, k) for k in n]
    return 1 - np.interp(starts, n, none)


def figure(rows):
    """Share of crystals with a right start against processor seconds, a panel for each resolution."""
    resolutions = sorted(rows["d_min"].unique())
    fig, axes = plt.subplots(1, len(resolutions), figsize=(12, 4.2), sharey=True, layout="constrained", squeeze=False)
    for ax, d_min in zip(axes[0], resolutions):
        for name, part in rows[rows["d_min"] == d_min].groupby("variant", sort=False):
            tried = Variant.of(name)
            t = np.geomspace(0.03, np.median(part["seconds"]), 60)  # where half of the crystals have starts left
            share = [np.mean([some_right(r, x * TRIED / s) for r, s in zip(part["right"], part["seconds"])]) for x in t]
            colour = "C4" if tried.guided else "C1" if tried.every else "C0" if tried.last else "0.4"
            ax.plot(t, 100 * np.array(share), color=colour,
                    ls=":" if tried.cycles < Settings().cycles else "--" if tried.guided and tried.last else "-",
                    label=tried.title)
        ax.set(xscale="log", title=f"{d_min:g} Å", xlabel="processor seconds a crystal")
        ax.set_xticks([0.03, 0.1, 0.3, 1], ["0.03", "0.1", "0.3", "1"])
        ax.minorticks_off()
    axes[0, 0].set_ylabel("crystals with a right start / %")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return fig


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("states")
    one.add_argument("--minutes", type=float, default=12)
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--times", type=int, default=3, help="states of each start")
    one.add_argument("--weights", default="", help="of a network that is in the loop")
    one.add_argument("--out", required=True)
    one = commands.add_parser("train")
    one.add_argument("--states", nargs="+", required=True)
    one.add_argument("--start", default="", help="weights to go on from")
    one.add_argument("--weights", required=True)
    one.add_argument("--minutes", type=float, default=30)
    one.add_argument("--lr", type=float, default=2e-3)
    one.add_argument("--batch", type=int, default=4, help="crystals a step, four maps of each")
    one.add_argument("--c", type=int, default=32)
    one.add_argument("--blocks", type=int, default=4)
    one.add_argument("--seed", type=int, default=0)
    one = commands.add_parser("oracle")
    one.add_argument("--n", type=int, default=60, help="random crystals")
    one.add_argument("--seed", type=int, default=9, help="another than that of the states")
    one.add_argument("--weights", default=FILE)
    one = commands.add_parser("judge")
    one.add_argument("--crystals", required=True, help="folder with CIF files and SPLIT.csv")
    one.add_argument("--weights", default=FILE)
    one.add_argument("--part", default="report")
    one.add_argument("--n", type=int, default=40)
    one.add_argument("--d-min", type=float, nargs="+", default=[1.5, 1.75, 2.0])
    one.add_argument("--variants", nargs="+", default=VARIANTS,
                     help="calls every so many cycles:cycles:calls at the end, and :guided")
    one.add_argument("--out", default="", help="folder of the result; RUNS/benchmarks by default")
    given = parser.parse_args()
    {"states": states, "train": train, "oracle": oracle, "judge": judge}[given.command](given)


if __name__ == "__main__":
    main()
