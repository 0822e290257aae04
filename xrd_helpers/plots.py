"""Figures: axes labelled in the field's symbols, one style."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

COLOURS = {"UNet": "C0", "FFT_UNet": "C1", "XRD_Transformer": "C2", "phase first": "C3"}  # the same in every figure
KNOW_NOTHING = {"shell mean": ":", "shell permuted": "-.", "zero fill": "--"}  # grey lines


def plot_history(history, baseline=None):
    """Loss and r_ext against crystals seen; ``baseline`` is r_ext of the shell mean, a line to get below."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.semilogy(history["crystals"], history["loss"], lw=0.5, alpha=0.5, label="step")
    smooth = history["loss"].rolling(max(1, len(history) // 20), min_periods=1).mean()
    left.semilogy(history["crystals"], smooth, label="running mean")
    left.set(xlabel="crystals seen", ylabel="loss: MSE of scaled |F|")
    left.legend(frameon=False)
    validated = history.dropna(subset="r_ext")
    right.plot(validated["crystals"], validated["r_ext"], "o-", ms=4, label="validation")
    if baseline is not None:
        right.axhline(baseline, color="grey", ls=":", label="shell mean, knows nothing")
    right.set(xlabel="crystals seen", ylabel="$R_{ext}$")
    right.legend(frameon=False)
    return fig


def plot_extension(F_pred, boxes, row, l=1, title=""):
    """One layer of constant l of one crystal: measured, predicted and true amplitudes on one scale."""
    box, layer = boxes.box, l - boxes.box.low[2]
    images = {"measured": (boxes.F, boxes.measured), "predicted": (F_pred, boxes.target), "true": (boxes.F, boxes.target)}
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained", sharey=True)
    vmax = float(boxes.F[row, :, :, layer].max()) or 1.0
    for ax, (name, (F, inside)) in zip(axes, images.items()):
        # not measured or outside d_target stays white: zero is a value
        image = np.where(inside[row, :, :, layer], np.asarray(F[row, :, :, layer], float), np.nan).T
        drawn = ax.imshow(np.sqrt(image / vmax), origin="lower", cmap="viridis", vmin=0, vmax=1, aspect="auto",
                          extent=[box.low[0] - 0.5, box.high[0] + 0.5, box.low[1] - 0.5, box.high[1] + 0.5])
        ax.set(title=name, xlabel="h")
    axes[0].set_ylabel("k")
    fig.colorbar(drawn, ax=axes, label=r"$\sqrt{|F| / |F|_{max}}$")
    fig.suptitle(f"{title}  l = {l}".strip())
    return fig


def plot_r_by_resolution(curves, ylabel="$R_{ext}$"):
    """R against resolution: ``curves`` is {name: DataFrame with d and r_ext}; names of know-nothing rows are grey."""
    fig, ax = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    for name, curve in curves.items():
        style = dict(color="grey", ls=KNOW_NOTHING[name]) if name in KNOW_NOTHING else dict(
            color=COLOURS.get(name), marker="o", ms=4)
        ax.plot(1 / curve["d"] ** 2, curve["r_ext"], label=name, **style)
    ticks = np.array([1.5, 1.2, 1.0, 0.9, 0.8])
    ax.set_xticks(1 / ticks**2, [f"{d:.1f}" for d in ticks])
    ax.set(xlabel="d / Å", ylabel=ylabel, ylim=(0, None))
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))  # beside the curves: they may be anywhere
    return fig


def plot_cells(crystals, fits):
    """What was drawn: cell volume, ratio of the axes, and U, of crystals that fit the box and of those that do not."""
    fits = np.asarray(fits, bool)
    columns = {"V / Å³": [c.cell.volume for c in crystals],
               "longest / shortest axis": [max(c.cell.parameters[:3]) / min(c.cell.parameters[:3]) for c in crystals],
               "mean U / Å²": [float(np.mean(c.u_iso)) for c in crystals]}
    fig, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
    for ax, (name, values) in zip(axes, columns.items()):
        values = np.array(values)
        ax.hist([values[fits], values[~fits]], bins=25, stacked=True, label=["fits the box", "does not"])
        ax.set(xlabel=name)
    axes[0].set_ylabel("crystals")
    axes[1].legend(frameon=False)  # where the bars leave room
    return fig


def plot_density(rho, cell, title="", atoms=None, found=None):
    """Density projected along each axis: the maximum over the axis; dots are published atoms, crosses found ones.

    rho is (nx, ny, nz) over the cell; ``atoms`` and ``found`` are (n, 3) fractional coordinates, drawn inside the cell.
    """
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    lengths, letters = cell.parameters[:3], "abc"
    vmax = np.quantile(rho, 0.9995)
    half = [length / n / 2 for length, n in zip(lengths, rho.shape)]  # Å; the first voxel is centred on the origin
    rho = np.pad(np.maximum(rho, 0), (0, 1), mode="wrap")             # and drawn again on the far side of the cell
    for axis, ax in enumerate(axes):
        i, j = [k for k in range(3) if k != axis]
        ax.imshow(rho.max(axis=axis).T, origin="lower", cmap="Greys", vmin=0, vmax=vmax, interpolation="bilinear",
                  extent=[-half[i], lengths[i] + half[i], -half[j], lengths[j] + half[j]])
        for fract, style in ((atoms, dict(marker="o", mfc="none", mec="C0", ms=7, label="published")),
                             (found, dict(marker="x", color="C3", ms=5, label="found"))):
            if fract is not None and len(fract):
                inside = np.mod(fract, 1)
                ax.plot(inside[:, i] * lengths[i], inside[:, j] * lengths[j], ls="", **style)
        ax.set(xlim=(0, lengths[i]), ylim=(0, lengths[j]), xlabel=f"{letters[i]} / Å", ylabel=f"{letters[j]} / Å",
               title=f"along {letters[axis]}")
    if atoms is not None or found is not None:
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    fig.suptitle(title)
    return fig


def plot_distributions(tables):
    """Histograms of every column of tables {name: DataFrame}, one panel a column; each table has the area one."""
    columns = list(next(iter(tables.values())))
    n = 5
    fig, axes = plt.subplots(-(-len(columns) // n), n, figsize=(13, 2.0 * -(-len(columns) // n)), layout="constrained")
    for ax, column in zip(axes.flat, columns):
        values = {name: table[column].dropna() for name, table in tables.items()}
        low, high = np.quantile(np.concatenate(list(values.values())), [0.005, 0.995])
        bins = np.linspace(low, high if high > low else low + 1, 25)
        for i, (name, value) in enumerate(values.items()):
            ax.hist(np.clip(value, low, high), bins, density=True, label=name, lw=1.5,
                    **({"histtype": "step", "color": f"C{i}"} if i else {"histtype": "stepfilled", "color": "0.8"}))
        ax.set(yticks=[])
        ax.set_title(column, fontsize=9)
        ax.tick_params(labelsize=8)
    for ax in axes.flat[len(columns):]:
        ax.axis("off")
    axes.flat[0].legend(frameon=False, fontsize=8)
    return fig
