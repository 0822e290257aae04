"""How cc_ext grows with crystals and with the size of a network: separate trainings, each with a learning rate of its own end.

Each training sees every crystal once. The same command goes on where it was stopped: rows that are in the table are not made
again. A line is fitted to cc_ext against the logarithm of the number of crystals, and drawn on to a million.

Usage: python benchmarks/scaling.py --crystals FILE [--model fft_unet] [--n 125 500 2000] [--sizes small shipped], which
writes RUNS/benchmarks/scaling_MODEL.csv and a figure beside it. A file of 130,000: xrd generate --n 300000 --recipe molecules
--spacegroup "P 1 21/c 1" --spacegroup "P 1 21 1" --out FILE
"""

import argparse
import os
from dataclasses import replace
from itertools import islice

os.environ["TQDM_DISABLE"] = "1"

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from xrd_helpers.baselines import shell_mean
from xrd_helpers.config import atomic_path, run_folder
from xrd_helpers.gridding import BOXES, select_fitting
from xrd_helpers.models import MODELS
from xrd_helpers.storage import iter_crystals
from xrd_helpers.training import Budget, Device, fit

SIZES = {"unet": {"small": dict(widths=(8, 16), bottleneck=32), "shipped": {}, "large": dict(widths=(32, 64), bottleneck=128)},
         "xrd_transformer": {"small": dict(dim=16), "shipped": {}, "large": dict(dim=64)},
         "patterson_net": {"small": dict(channels=12), "shipped": {}, "large": dict(channels=48)}}
SIZES["fft_unet"] = {size: choices | ({"maps": maps} if choices else {})
                     for (size, choices), maps in zip(SIZES["unet"].items(), (4, 8, 16))}
BOX = BOXES["monoclinic"]


def trained(name, choices, crystals, validation, lr):
    """r_ext, cc_ext, minutes and parameters of a training that sees each crystal once."""
    torch.manual_seed(0)
    model = MODELS[name](replace(MODELS[name].config_for(BOX, 0.8), **choices))
    model.start_from(shell_mean)
    history = fit(model, crystals, validation, Budget(epochs=1), Device("auto"), lr=lr, n_validations=1)
    last = history.iloc[-1]
    return {"r_ext": last["r_ext"], "cc_ext": last["cc_ext"], "minutes": last["seconds"] / 60,
            "parameters": sum(p.numel() for p in model.parameters())}


def draw(table, name, path):
    """cc_ext against crystals, a line a size, drawn on to a million; returns what the lines say there."""
    fig, ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    words = []
    for size, part in table.groupby("size", sort=False):
        line, = ax.semilogx(part["crystals"], part["cc_ext"], "o", label=f"{size}, {part['parameters'].iloc[0]:,} parameters")
        if len(part) > 2:
            slope, start = np.polyfit(np.log10(part["crystals"]), part["cc_ext"], 1)
            rest = part["cc_ext"] - start - slope * np.log10(part["crystals"])
            x = np.array([part["crystals"].min(), 1e6])
            ax.plot(x, start + slope * np.log10(x), ":", color=line.get_color())
            words.append(f"{size}: {slope:.3f} for ten times the crystals, off the line by {rest.abs().max():.3f} at most, "
                         f"{start + 6 * slope:.3f} at a million if it went on")
    ax.set(xlabel="crystals, each seen once", ylabel="$CC_{ext}$, validation", title=MODELS[name].title)
    ax.legend(frameon=False, fontsize=8)
    fig.savefig(path, dpi=120)
    return "\n".join(words)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crystals", required=True, help="file of xrd generate")
    parser.add_argument("--model", default="fft_unet", choices=list(SIZES))
    parser.add_argument("--n", type=int, nargs="+", default=[125, 500, 2000])
    parser.add_argument("--sizes", nargs="+", default=["small", "shipped", "large"])
    parser.add_argument("--n-validation", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.002)
    given = parser.parse_args()
    path = run_folder("benchmarks") / f"scaling_{given.model}.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    fitting = (crystal for one in iter_crystals(given.crystals) for crystal in select_fitting([one], BOX, 0.8)[0])
    crystals = list(islice(fitting, given.n_validation + max(given.n)))
    validation, crystals = crystals[:given.n_validation], crystals[given.n_validation:]
    if len(crystals) < max(given.n):
        parser.error(f"{given.crystals} has {len(crystals)} crystals that fit the box, not {max(given.n)}")
    for n in sorted(given.n):
        for size in given.sizes:
            if len(table) and ((table["crystals"] == n) & (table["size"] == size)).any():
                continue
            row = {"size": size, "crystals": n} | trained(given.model, SIZES[given.model][size], crystals[:n], validation,
                                                          given.lr)
            table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
            with atomic_path(path) as temporary:
                table.to_csv(temporary, index=False)
            print(f"{size:10s} {n:8d} crystals: r_ext {row['r_ext']:.3f}, cc_ext {row['cc_ext']:.3f}, {row['minutes']:.1f} min",
                  flush=True)
    print(draw(table.sort_values(["size", "crystals"]), given.model, path.with_suffix(".png")))


if __name__ == "__main__":
    main()
