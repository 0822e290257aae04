"""Figures: axes labelled in the field's symbols, one style."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

COLOURS = {"UNet": "C0", "FFT_UNet": "C1", "XRD_Transformer": "C2", "phase first": "C3",
           "PattersonNet": "C4"}  # the same in every figure
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


def plot_calibration(found=None):
    """How often phasing was right against the probability it gave, and how the probabilities are spread.

    ``found`` is the content of phasing/verdict.json, by default that of the package. Bars are one standard deviation of
    the share (Wilson's interval); beside each point stands how many cases it is of.
    """
    if found is None:
        from .phasing.verdict import calibration
        found = calibration()
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    rows = [row for row in found["calibration"] if row["n"]]
    p, n, k = (np.array([row[name] for row in rows], float) for name in ("mean", "n", "right"))
    middle, half = (k + 0.5) / (n + 1), np.sqrt(k * (n - k) / n + 0.25) / (n + 1)
    left.plot([0, 1], [0, 1], color="grey", ls=":", label="as promised")
    left.errorbar(p, k / n, yerr=[np.maximum(k / n - middle + half, 0), np.maximum(middle + half - k / n, 0)], fmt="o", ms=4,
                  capsize=2, label="held-out crystals")
    for i, (x, y, count) in enumerate(zip(p, k / n, n)):  # steps, since the best of them stand close together
        step = -10 - 9 * (i % 3) if y > 0.5 else 4 + 9 * (i % 3)
        left.annotate(f"{count:.0f}", (x, y), (5, step), textcoords="offset points", fontsize=8)
    left.set(xlabel="probability given", ylabel="share that was right", xlim=(-0.05, 1.1), ylim=(-0.05, 1.1))
    left.legend(frameon=False, loc="upper left")
    edges = np.linspace(0, 1, len(found["histogram"]["right"]) + 1)
    for (name, counts), colour in zip(found["histogram"].items(), ("C0", "C1", "C3")):
        right.stairs(counts, edges, color=colour, label=name, lw=1.5)
    for name, value in found["thresholds"].items():
        right.axvline(value, color="grey", ls="--", lw=0.8)
        right.annotate(name, (value, 0.98), (-3, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
                       ha="right", va="top", rotation=90, fontsize=8)
    right.set(xlabel="probability given", ylabel="cases", yscale="symlog", xlim=(0, 1), ylim=(0, None))
    right.legend(frameon=False, loc="upper center")
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


# --- shifted crystals and their phases (notebooks 07 and 08) ---


def plot_reflections_3d(sf, title=""):
    """A point a reflection of one box (13, 13, 13) in the space of h, k, l: size is amplitude, colour is phase."""
    sf = np.asarray(sf)
    F, index = np.abs(sf), np.arange(sf.shape[0]) - sf.shape[0] // 2
    h, k, l = np.meshgrid(index, index, index, indexing="ij")
    there = F > 1e-3 * F.max()
    fig = plt.figure(figsize=(6, 5), layout="constrained")
    ax = fig.add_subplot(projection="3d")
    drawn = ax.scatter(h[there], k[there], l[there], s=60 * F[there] / F.max(), c=np.degrees(np.angle(sf[there])),
                       cmap="hsv", vmin=-180, vmax=180, lw=0, depthshade=False)
    ax.set(xlabel="h", ylabel="k", zlabel="l", title=title)
    fig.colorbar(drawn, ax=ax, label="φ / °", shrink=0.6, pad=0.1, ticks=[-180, -90, 0, 90, 180])
    return fig


def plot_tiling(boxes):
    """Layers of constant l side by side, h down and k along: ``boxes`` is {name: sf (13, 13, 13)}, a pair of rows each."""
    fig, axes = plt.subplots(2 * len(boxes), 1, figsize=(11, 2.3 * len(boxes)), layout="constrained", sharex=True)
    largest = max(np.abs(np.asarray(sf)).max() for sf in boxes.values())
    for pair, (name, sf) in zip(axes.reshape(-1, 2), boxes.items()):
        sf = np.asarray(sf)
        side = len(sf)
        tiles = sf.transpose(0, 2, 1).reshape(side, side**2)  # (h, l, k)
        phi = np.where(np.abs(tiles) > 1e-3 * largest, np.degrees(np.angle(tiles)), np.nan)  # no amplitude, no phase
        images = {"$\\sqrt{|F|}$": (np.sqrt(np.abs(tiles) / largest), dict(cmap="viridis", vmin=0, vmax=1)),
                  "φ / °": (phi, dict(cmap="hsv", vmin=-180, vmax=180))}
        for ax, (label, (image, style)) in zip(pair, images.items()):
            drawn = ax.imshow(image, aspect="auto", interpolation="nearest", **style)
            fig.colorbar(drawn, ax=ax, label=label, pad=0.01)
            ax.set(yticks=[0, side // 2, side - 1], yticklabels=[-(side // 2), 0, side // 2], ylabel="h", xticks=[])
        pair[0].set_title(name, loc="left", fontsize=10)
    axes[-1].set_xticks(np.arange(side) * side + side // 2, [f"l = {l}" for l in np.arange(side) - side // 2], fontsize=8)
    return fig


def plot_shifts(shifts, sigma):
    """What was drawn, beside the normal distribution that it was drawn from; shifts in fractions of a."""
    fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
    ax.hist(np.ravel(shifts), 60, density=True, color="0.8", label="drawn")
    x = np.linspace(-4 * sigma, 4 * sigma, 200)
    ax.plot(x, np.exp(-x**2 / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi)), label=f"normal, σ = {sigma:g}")
    ax.set(xlabel="shift along a / a", ylabel="density")
    ax.legend(frameon=False)
    return fig


def plot_phase_training(histories, baseline=None):
    """Loss of training (thin) and validation against samples seen; ``histories`` is {name: history of ``fit_phases``}."""
    fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for i, (name, history) in enumerate(histories.items()):
        smooth = history["loss"].rolling(max(1, len(history) // 20), min_periods=1).mean()
        ax.semilogy(history["samples"], smooth, color=f"C{i}", lw=0.8, ls="--", label=f"{name}, training")
        validated = history.dropna(subset="validation")
        ax.semilogy(validated["samples"], validated["validation"], "o-", color=f"C{i}", ms=3, label=f"{name}, validation")
    if baseline is not None:
        ax.axhline(baseline, color="grey", ls=":", label="linear regression")
    ax.set(xlabel="samples seen", ylabel="Σ (1 − cos Δφ) a sample")
    ax.legend(frameon=False, fontsize=8)
    return fig


def plot_overfitting(curve, variants):
    """Left: training and test loss per reflection against the number of crystals; right: the same for regularisations.

    ``curve`` has columns crystals, training, test; ``variants`` variant, training, test.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", width_ratios=[1, 1.3])
    for column, style in (("training", "o--"), ("test", "o-")):
        left.plot(curve["crystals"], curve[column], style, label=column.replace("test", "four unseen crystals"))
    left.axhline(1, color="grey", ls=":", label="random phases")
    left.set(xscale="log", xlabel="crystals in the training set", ylabel="1 − cos Δφ, mean over reflections",
             ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    place = np.arange(len(variants))
    right.barh(place + 0.2, variants["training"], 0.4, color="C0", label="training")
    right.barh(place - 0.2, variants["test"], 0.4, color="C1", label="four unseen crystals")
    right.axvline(1, color="grey", ls=":")
    right.set(yticks=place, yticklabels=variants["variant"], xlabel="1 − cos Δφ, mean over reflections")
    right.invert_yaxis()
    right.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return fig


def plot_isosurfaces(maps, share=0.2):
    """Surfaces of constant density above, a slice through the origin below; ``maps`` is {title: rho (n, n, n)} over a cell.

    The surface stands at ``share`` of the largest density of the first map, the cell is drawn from -1/4 to 3/4.
    """
    from skimage.measure import marching_cubes  # half a second of import

    first = next(iter(maps.values()))
    level, n = share * first.max(), len(first)
    fig = plt.figure(figsize=(3 * len(maps), 5.6), layout="constrained")
    for i, (title, rho) in enumerate(maps.items()):
        rho = np.pad(np.roll(rho, n // 4, (0, 1, 2)), (0, 1), mode="wrap")
        ax = fig.add_subplot(2, len(maps), i + 1, projection="3d")
        if rho.min() < level < rho.max():
            corners, faces, _, _ = marching_cubes(rho, level)
            corners = corners / n - 0.25
            ax.plot_trisurf(*corners.T[:2], faces, corners.T[2], color="C0", lw=0)
        ax.set(**{f"{axis}lim": (-0.25, 0.75) for axis in "xyz"}, **{f"{axis}ticks": [0, 0.5] for axis in "xyz"})
        ax.set_title(title, fontsize=9)
        ax = fig.add_subplot(2, len(maps), len(maps) + i + 1)
        ax.imshow(rho[:, :, n // 4].T, origin="lower", cmap="Greys", vmin=0, vmax=0.6 * first.max(),
                  interpolation="bilinear", extent=[-0.25 - 0.5 / n, 0.75 + 0.5 / n] * 2)
        ax.set(xlabel="x / a", ylabel="y / b", title="z = 0")
    return fig
