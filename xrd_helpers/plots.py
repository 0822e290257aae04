"""Figures: axes labelled in the field's symbols, one style."""

from __future__ import annotations

from itertools import cycle, product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.patches import Circle, Polygon
from matplotlib.patheffects import withStroke
from scipy.ndimage import map_coordinates, spline_filter
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from .baselines import KNOW_NOTHING
from .bonds import covalent_radii, whole_molecules
from .crystals import all_operators
from .known_molecule import superpose
from .phasing.fourier import MapGrid
from .phasing.origin import hands, match_atoms, match_solution
from .phasing.output import labels
from .reflections import expand_to_p1, unique_hkl
from .structure_factors import structure_factors

COLOURS = {"UNet": "C0", "FFT_UNet": "C1", "XRD_Transformer": "C2", "phase first": "C3",
           "PattersonNet": "C4"}  # the same in every figure
ELEMENTS = {"H": "white", "D": "white", "B": "#f0a8a0", "C": "0.4", "N": "#3c5fd7", "O": "#d9281e", "F": "#8fce4a",
            "Si": "#c9a86a", "P": "#ee8a1d", "S": "#ecc82c", "Cl": "#35b83a", "Br": "#96341f", "I": "#7a2a9b"}
METAL = "#4fb0b5"  # and whatever else is not in ELEMENTS
LINES = dict(zip(KNOW_NOTHING, cycle((":", "-.", "--"))))  # grey


def plot_history(history, baseline=None):
    """Loss, r_ext and cc_ext against crystals seen; ``baseline`` has both scores of the shell mean, lines to leave behind."""
    fig, (left, *others) = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
    left.semilogy(history["crystals"], history["loss"], lw=0.5, alpha=0.5, label="step")
    smooth = history["loss"].rolling(max(1, len(history) // 20), min_periods=1).mean()
    left.semilogy(history["crystals"], smooth, label="running mean")
    left.set(xlabel="crystals seen", ylabel="loss")
    validated = history.dropna(subset="r_ext")
    for ax, name, label in zip(others, ("r_ext", "cc_ext"), ("$R_{ext}$", "$CC_{ext}$")):
        ax.plot(validated["crystals"], validated[name], "o-", ms=4, label="validation")
        if baseline is not None:
            ax.axhline(baseline[name], color="grey", ls=":", label="shell mean, knows nothing")
        ax.set(xlabel="crystals seen", ylabel=label)
    for ax in (left, *others):
        ax.legend(frameon=False)
    return fig


def plot_extension(F_pred, boxes, row, l=1, title=""):
    """One layer of constant l of one crystal: measured, predicted and true amplitudes, on one scale for all of its layers.

    What was not measured, is not predicted or is absent by symmetry stays white: zero is a value.
    """
    box, layer = boxes.box, l - boxes.box.low[2]
    target, measured = boxes.target & ~boxes.absent, boxes.measured & ~boxes.absent
    images = {"measured": (boxes.F, measured), "predicted": (F_pred, target), "true": (boxes.F, target)}
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained", sharey=True)
    vmax = float(boxes.F[row].max()) or 1.0
    for ax, (name, (F, inside)) in zip(axes, images.items()):
        image = np.where(inside[row, :, :, layer], np.asarray(F[row, :, :, layer], float), np.nan).T
        drawn = ax.imshow(np.sqrt(image / vmax), origin="lower", cmap="viridis", vmin=0, vmax=1, aspect="auto",
                          extent=[box.low[0] - 0.5, box.high[0] + 0.5, box.low[1] - 0.5, box.high[1] + 0.5])
        ax.set(title=name, xlabel="h")
    axes[0].set_ylabel("k")
    fig.colorbar(drawn, ax=axes, label=r"$\sqrt{|F| / |F|_{max}}$")
    fig.suptitle(f"{title}  l = {l}".strip())
    return fig


def plot_uncertainty(F_pred, sigma, boxes):
    """Errors of predicted amplitudes (B, *box.shape) against their stated sigma: by its size, and over it."""
    where = boxes.extension.numpy()
    error, sigma = np.asarray(F_pred, float)[where] - boxes.F.double().numpy()[where], np.asarray(sigma)[where]
    parts, z = np.array_split(np.argsort(sigma), 12), error / sigma
    stated, found = ([np.sqrt((x[rows] ** 2).mean()) for rows in parts] for x in (sigma, error))
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(stated, found, "o", ms=4)
    left.plot([0, max(stated)], [0, max(stated)], color="grey", ls=":", label="as stated")
    left.set(xlabel=r"stated $\sigma$ of $|F| / |F|_{max}$", ylabel="error, root mean square", xlim=(0, None), ylim=(0, None))
    x = np.linspace(-4, 4, 81)
    right.hist(z.clip(-4, 4), x[::4] - 0.2, density=True, alpha=0.6, label=f"root mean square {np.sqrt((z**2).mean()):.2f}")
    right.plot(x, np.exp(-x * x / 2) / np.sqrt(2 * np.pi), color="grey", ls=":", label="normal, 1")
    right.set(xlabel=r"error / $\sigma$", ylabel="density")
    for ax in (left, right):
        ax.legend(frameon=False, fontsize=8)
    return fig


def plot_r_by_resolution(curves, ylabel="$R_{ext}$"):
    """R against resolution: ``curves`` is {name: DataFrame with d and r_ext}; names of know-nothing rows are grey."""
    fig, ax = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    for name, curve in curves.items():
        style = dict(color="grey", ls=LINES[name]) if name in KNOW_NOTHING else dict(
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
    for axis, ax in enumerate(axes):
        _draw_projection(ax, axis, rho, cell, atoms, found)
        ax.set_title(f"along {'abc'[axis]}")
    if atoms is not None or found is not None:
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    fig.suptitle(title)
    return fig


def _draw_projection(ax, axis, rho, cell, atoms=None, found=None):
    """One picture of ``plot_density``: the view along an axis (0, 1, 2)."""
    lengths, (i, j) = cell.parameters[:3], [k for k in range(3) if k != axis]
    vmax = np.quantile(rho, 0.9995)
    half = [length / n / 2 for length, n in zip(lengths, rho.shape)]  # Å; the first voxel is centred on the origin
    rho = np.pad(np.maximum(rho, 0), (0, 1), mode="wrap")             # and drawn again on the far side of the cell
    ax.imshow(rho.max(axis=axis).T, origin="lower", cmap="Greys", vmin=0, vmax=vmax, interpolation="bilinear",
              extent=[-half[i], lengths[i] + half[i], -half[j], lengths[j] + half[j]])
    for fract, style in ((atoms, dict(marker="o", mfc="none", mec="C0", ms=7, label="published")),
                         (found, dict(marker="x", color="C3", ms=5, label="found"))):
        if fract is not None and len(fract):
            inside = np.mod(fract, 1)
            ax.plot(inside[:, i] * lengths[i], inside[:, j] * lengths[j], ls="", **style)
    ax.set(xlim=(0, lengths[i]), ylim=(0, lengths[j]), xlabel=f"{'abc'[i]} / Å", ylabel=f"{'abc'[j]} / Å")


def plot_match(solution, crystal):
    """The density of a Solution with its atoms, and over them those of the published crystal (``plot_density``).

    Both are drawn without H; the published ones are brought to the origin and hand of the solution: amplitudes leave both free.
    """
    match = match_solution(solution, crystal)
    title = (f"{crystal.name}: {match.n_matched} of {match.n_true} atoms within 0.5 Å, rms {match.rms:.2f} Å, "
             f"R1 {solution.r1:.3f}")
    published = _whole_cell(_brought_over(crystal, match), crystal.spacegroup)
    found = solution.fract[[element not in ("H", "D") for element in solution.elements]]
    return plot_density(solution.rho, solution.cell, title, published, _whole_cell(found, crystal.spacegroup))


def _brought_over(crystal, match):
    """Atoms of a published crystal without H, at the origin and in the hand of those that it was matched with."""
    published = crystal.fract[crystal.heavy] - match.shift
    return dict(hands(crystal.spacegroup))[True] - published if match.inverted else published


def _whole_cell(fract, spacegroup):
    rot, tran = all_operators(spacegroup)
    return (np.einsum("gij,nj->gni", rot, fract) + tran[:, None]).reshape(-1, 3)


def plot_building(chain, crystal):
    """How atoms are built, as a strip along the shortest axis: the map of charge flipping, the first atoms in it, those after
    random omission, and the published ones over these.

    chain : ``phasing.building.Chain`` that has been run, crystal : the published one, whose cell and group it has
    """
    builder, group = chain.builder, crystal.spacegroup
    match = match_atoms(chain.best.fract, crystal.fract[crystal.heavy], crystal.cell, group)
    right = match_atoms(chain.first.fract, crystal.fract[crystal.heavy], crystal.cell, group)
    first, best = (_whole_cell(atoms.fract, group) for atoms in (chain.first, chain.best))
    flipped, built = builder.refiner.density(chain.start.astype(np.complex64)), builder.density(chain.best)
    strip = (("phases of charge flipping", flipped, None, None),
             (f"first atoms: {right.n_matched} of {right.n_true} right, R1 {chain.first.r1:.2f}", flipped, None, first),
             (f"after omission: {match.n_matched} right, R1 {chain.best.r1:.2f}", built, None, best),
             ("published over these", built, _whole_cell(_brought_over(crystal, match), group), best))
    fig, axes = plt.subplots(1, 4, figsize=(14, 4), layout="constrained")
    axis = int(np.argmin(crystal.cell.parameters[:3]))
    for ax, (title, *drawn) in zip(axes, strip):
        _draw_projection(ax, axis, drawn[0], crystal.cell, *drawn[1:])
        ax.set_title(title, fontsize=10)
    fig.suptitle(f"{crystal.name}, data to {builder.refiner.reflections.d_min:.2f} Å, seen along {'abc'[axis]}; circles: "
                 "published, crosses: found")
    return fig


# --- a molecule (notebook 07) ---

GAP = 1.6      # Å, from the molecule to the edge of its picture, and from its atoms to where their density is drawn
APART = 0.7    # Å, a molecule is tilted until no two atoms are nearer than this in the picture
TILTS = (0, 10, -10, 20, -20, 30, -30, 40, -40)  # degrees, about both axes of the picture
LEVELS = 8     # contour lines up to the density at a typical atom


def plot_molecule(structure, title="", most=4):
    """Ball and stick, and where there is a map the density in the plane of the molecule, both seen along its least extent
    (tilted, where atoms would hide behind others).

    Molecules are completed by symmetry; atoms without a label are equivalents of labelled ones. Several molecules stand
    beside each other, the largest on top, each seen along its own least extent.

    Parameters
    ----------
    structure : Solution or Crystal: fract (n, 3), elements (n,), cell, spacegroup, and rho (nx, ny, nz) in e/Å³ or None
    most : so many molecules are drawn
    """
    molecules = whole_molecules(structure.fract, structure.elements, structure.cell, structure.spacegroup)
    views = [_View(molecule, structure.elements) for molecule in molecules[:most]]
    width, height = _arrange(views)
    rho = getattr(structure, "rho", None)
    n = 1 if rho is None else 2
    across = 1 if height < 0.45 * width else n  # pictures of long molecules stand one above the other
    inches = min(5.5 / height, (11 if across > 1 else 8) / across / width, 0.7)  # for an Å
    fig, axes = plt.subplots(n // across, across, squeeze=False, layout="constrained",
                             figsize=(across * max(4, width * inches + 0.5), n // across * (height * inches + 0.7)))
    fig.suptitle(title)
    ball, *contour = axes.flat
    for view in views:
        _draw_ball_and_stick(ball, view, np.array(labels(structure.elements)), inches)
    ball.plot([0.3 - width / 2, 1.3 - width / 2], [0.3 - height / 2] * 2, "k-", lw=2)
    ball.text(0.8 - width / 2, 0.45 - height / 2, "1 Å", ha="center", va="bottom", fontsize=8)
    if len(molecules) > most:
        ball.text(width / 2 - 0.3, 0.3 - height / 2, f"{len(molecules) - most} more not drawn", ha="right", fontsize=8)
    ball.set_axis_off()
    for ax in contour:
        _draw_density(ax, views, rho, structure.cell)
        ax.set(xlabel="Å", ylabel="Å")
    for ax in axes.flat:
        ax.set(xlim=(-width / 2, width / 2), ylim=(-height / 2, height / 2), aspect="equal")
    return fig


def _arrange(views):
    """Set the places of views in rows no wider than the widest; width and height of all, Å."""
    widest, rows = max(view.size[0] for view in views), []
    for view in views:
        if not rows or sum(other.size[0] for other in rows[-1]) + view.size[0] > widest:
            rows.append([])
        rows[-1].append(view)
    heights = [max(view.size[1] for view in row) for row in rows]
    top = sum(heights) / 2
    for row, height in zip(rows, heights):
        x = -sum(view.size[0] for view in row) / 2
        for view in row:
            view.place = np.array([x, top - height / 2]) + view.size / 2 * [1, 0] - (view.low + view.high)[:2] / 2
            x += view.size[0]
        top -= height
    return widest, sum(heights)


class _View:
    """A molecule turned so that x is its longest direction and the view is along the shortest, or tilted from there as
    little as it takes to see every atom; the hand is kept."""

    def __init__(self, molecule, elements):
        self.molecule, self.place = molecule, np.zeros(2)
        self.elements = [elements[i] for i in molecule.atom]
        self.centre = molecule.xyz.mean(axis=0)
        axes = np.linalg.svd(molecule.xyz - self.centre)[2]                  # rows, from the longest to the shortest extent
        axes[2] *= np.linalg.det(axes)
        tilted = [Rotation.from_euler("xy", tilt, degrees=True).as_matrix() @ axes
                  for tilt in sorted(product(TILTS, TILTS), key=lambda tilt: abs(tilt[0]) + abs(tilt[1]))]
        apart = [min(pdist((molecule.xyz - self.centre) @ axes[:2].T), default=APART) for axes in tilted]
        # the first that shows all atoms, else the one that does so best
        self.axes = tilted[int(np.argmax(np.minimum(apart, APART)))]
        self.xyz = (molecule.xyz - self.centre) @ self.axes.T                # (m, 3) Å, z towards the reader
        self.low, self.high = self.xyz.min(axis=0), self.xyz.max(axis=0)
        self.size = (self.high - self.low)[:2] + 2 * GAP

    @property
    def xy(self):
        """(m, 2) Å, places in the picture."""
        return self.xyz[:, :2] + self.place


def _draw_ball_and_stick(ax, view, names, inches):
    xy, z, radius = view.xy, view.xyz[:, 2], 0.12 + 0.22 * covalent_radii(view.elements)
    for i, j in view.molecule.bonds:
        side = np.array([-1, 1]) * (xy[j] - xy[i])[::-1]
        side = 0.08 * side / max(np.linalg.norm(side), 1e-9)
        ax.add_patch(Polygon([xy[i] + side, xy[j] + side, xy[j] - side, xy[i] - side], fc="0.85", ec="0.2", lw=0.6,
                             zorder=2 + _rank(min(z[i], z[j]), view)))
    for place, depth, r, element in zip(xy, z, radius, view.elements):
        order = 2 + _rank(depth, view) + 0.01
        ax.add_patch(Circle(place, r, fc=ELEMENTS.get(element, METAL), ec="0.1", lw=0.7, zorder=order))
        ax.add_patch(Circle(place + [-0.32 * r, 0.32 * r], 0.3 * r, fc="white", ec="none", alpha=0.55, zorder=order))
    # each label goes where most room is left by atoms, bonds and labels before it
    along = np.linspace(0, 1, 9)[:, None]
    taken = [xy, *(xy[i] * (1 - along) + xy[j] * along for i, j in view.molecule.bonds)]
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fontsize = float(np.clip(26 * inches, 5, 10))
    letter = fontsize / 72 / inches / 2  # Å, half the height of a letter; its width is about as much
    for i in np.flatnonzero(view.molecule.own & ~np.isin(view.elements, ["H", "D"])):
        half = letter * len(names[view.molecule.atom[i]])
        choice = xy[i] + (radius[i] + 0.2) * ring + ring * [half / 1.6, letter]
        room = np.linalg.norm(choice[:, None] - np.concatenate(taken), axis=2).min(axis=1)
        place = choice[room.argmax()]
        taken += [place[None] + [[dx, 0]] for dx in (-half / 2, 0, half / 2)]
        ax.text(*place, names[view.molecule.atom[i]], ha="center", va="center", fontsize=fontsize, zorder=4,
                path_effects=[withStroke(linewidth=2, foreground="white")])


def _rank(depth, view):
    """0 for the farthest atom, 1 for the nearest."""
    return (depth - view.low[2]) / max(view.high[2] - view.low[2], 1e-9)


def interpolate(rho, cell):
    """The function that gives the density rho (nx, ny, nz) of a cell at points (..., 3) in Å."""
    coefficients = spline_filter(np.asarray(rho, float), order=3, mode="grid-wrap")
    frac = np.array(cell.frac.mat.tolist())

    def at(xyz):
        voxel = np.moveaxis(xyz @ frac.T * rho.shape, -1, 0)
        return map_coordinates(coefficients, voxel, order=3, mode="grid-wrap", prefilter=False)
    return at


def _draw_density(ax, views, rho, cell):
    """Contours of the largest density along the line of sight between the lowest and the highest atom, as far as GAP from
    the atoms, so that neighbours are left out; bonds as thin lines."""
    at = interpolate(rho, cell)
    heavy = [view.molecule.xyz[~np.isin(view.elements, ["H", "D"])] for view in views]
    typical = np.median(at(np.concatenate(heavy if any(map(len, heavy)) else [view.molecule.xyz for view in views])))
    steps = [m * 10.0**k for k in range(-3, 3) for m in (1, 2, 5)]
    step = min(steps, key=lambda step: abs(step - typical / LEVELS))
    levels = list(step * np.arange(1, 2 * LEVELS))
    while levels[-1] < rho.max():  # at heavy atoms the lines would run together
        levels.append(2 * levels[-1])
    for view in views:
        x, y = (np.arange(low - GAP, high + GAP, 0.08) for low, high in zip(view.low[:2], view.high[:2]))
        thick, tree = view.high[2] - view.low[2], cKDTree(view.molecule.xyz)
        plane = x[:, None] * view.axes[0] + y[:, None, None] * view.axes[1] + view.centre     # (ny, nx, 3)
        section = np.full(plane.shape[:2], -np.inf)
        for z in np.linspace(view.low[2], view.high[2], int(thick / 0.3) + 2):
            layer = plane + z * view.axes[2]
            near = np.isfinite(tree.query(layer, distance_upper_bound=GAP)[0])
            section = np.maximum(section, np.where(near, at(layer), -np.inf))
        section[~np.isfinite(section)] = 0
        place = x + view.place[0], y + view.place[1]
        if section.max() > levels[2 * LEVELS - 2]:  # else the few lines above would leave a hole in a heavy atom
            ax.contourf(*place, section, [levels[2 * LEVELS - 2], np.inf], colors="C0", alpha=0.85)
        ax.contour(*place, section, levels, colors="C0", linewidths=0.6)
        for i, j in view.molecule.bonds:
            ax.plot(*view.xy[[i, j]].T, color="0.3", lw=0.8)
    what = "density in the plane of the molecule" if max(view.high[2] - view.low[2] for view in views) < 0.5 else (
        "largest density along the view")
    end = f" to {levels[2 * LEVELS - 2]:g}, then filled and doubled" if len(levels) >= 2 * LEVELS else ""
    ax.set_title(f"{what}\na line every {step:g} e/Å³{end}", fontsize=9)


# --- a known molecule (notebook 08) ---


def plot_conformers(molecule):
    """A ``KnownMolecule`` as drawn, with the names of its atoms (not, where a geometry was given), and its conformers laid over
    each other."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    fig.suptitle(molecule.name)
    left.set(title=f"{molecule.formula}, {len(molecule.torsions)} torsions to turn")
    if molecule.source is not None:
        left.imshow(_drawing(molecule))
    left.set_axis_off()
    first = molecule.conformers[0] - molecule.conformers[0].mean(0)
    axes = np.linalg.svd(first)[2]
    for k, xyz in enumerate(molecule.conformers):
        laid = (xyz - xyz.mean(0)) @ superpose(xyz, first).T @ axes.T
        _sticks(right, laid[:, :2], molecule.bonds, f"C{k % 10}", lw=1.2, alpha=0.7)
    right.set(title=f"{len(molecule.conformers)} conformers", xlabel="Å", ylabel="Å", aspect="equal")
    return fig


def _drawing(molecule):
    """The structural formula as an image (rows, columns, 4)."""
    from io import BytesIO

    from rdkit import Chem
    from rdkit.Chem.Draw import rdMolDraw2D

    mol = Chem.Mol(molecule.source)
    heavy = [atom for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
    for atom, label in zip(heavy, molecule.labels):
        atom.SetProp("atomNote", label)
    drawer = rdMolDraw2D.MolDraw2DCairo(1000, 800)
    drawer.drawOptions().annotationFontScale = 0.6
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, Chem.RemoveHs(mol))
    drawer.FinishDrawing()
    return plt.imread(BytesIO(drawer.GetDrawingText()))


def _sticks(ax, xy, bonds, color, **style):
    """Bonds (m, 2) of atoms xy (n, 2) as lines, an atom without a bond as a dot."""
    ax.add_collection(LineCollection([xy[[i, j]] for i, j in bonds], color=color, capstyle="round", **style))
    alone = np.setdiff1d(np.arange(len(xy)), np.ravel(bonds).astype(int))
    ax.plot(*xy[alone].T, "o", color=color, ms=4)
    ax.update_datalim(xy)
    ax.autoscale_view()


def plot_search(rounds, F, right):
    """How well placements explain the amplitudes, one dot each that was refined, the best of a round first.

    Parameters
    ----------
    rounds : what ``placing.Search.round`` returned, one after the other; F (n,) of the search, as in ``Search.data``
    right : function of a Placement, whether it is the published structure
    """
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    rows = [(i + 0.9 * k / len(made), np.corrcoef(p.amplitude, F)[0, 1], p.r1, bool(right(p)), p.fresh)
            for i, made in enumerate(rounds, 1) for k, p in enumerate(sorted(made, key=lambda p: p.r1))]
    x, *values, is_right, fresh = (np.array(column) for column in zip(*rows))
    for ax, y, name in zip(axes, values, ("correlation of |F|", "R1")):
        for mask, color, label in ((is_right, "C2", "the published structure"), (~is_right, "0.6", "another one")):
            for chosen, marker, how in ((fresh, "o", "from a random start"), (~fresh, "^", "from a changed placement")):
                ax.plot(x[mask & chosen], y[mask & chosen], marker, color=color, ms=4, label=f"{label}, {how}")
        ax.set(xlabel="round of the search", ylabel=name, xticks=np.arange(len(rounds)) + 1)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return fig


def plot_packing(structure, title=""):
    """All molecules of the cell, without hydrogen, seen along its two shortest axes."""
    orth, group = np.array(structure.cell.orth.mat.tolist()), structure.spacegroup
    heavy = np.flatnonzero(np.array(structure.elements) != "H")
    elements = [structure.elements[i] for i in heavy]
    rot, tran = all_operators(group)
    molecules, seen = [], set()
    for molecule in whole_molecules(structure.fract[heavy], elements, structure.cell, group):
        for images in np.einsum("gij,nj->gni", rot, molecule.xyz @ np.linalg.inv(orth).T) + tran[:, None]:
            images = images - np.floor(images.mean(0) + 1e-3)
            key = len(images), *np.round(images.mean(0), 2)
            if key not in seen:  # a molecule on a special position comes back on itself
                seen.add(key)
                molecules.append((images, molecule.bonds, [elements[i] for i in molecule.atom]))
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for ax, along in zip(axes, np.argsort(structure.cell.parameters[:3])):
        i, j = (along + 1) % 3, (along + 2) % 3
        across = orth[:, i] - orth[:, i] @ orth[:, along] * orth[:, along] / (orth[:, along] @ orth[:, along])
        x, z = across / np.linalg.norm(across), orth[:, along] / np.linalg.norm(orth[:, along])
        view = np.array([x, np.cross(z, x)]) @ orth                           # (2, 3), of fractions
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) @ view[:, [i, j]].T
        ax.plot(*corners.T, "k-", lw=0.8)
        for corner, letter in zip(corners[[1, 3]], ("abc"[i], "abc"[j])):
            ax.text(*(corner + 0.5 * corner / np.linalg.norm(corner)), letter, ha="center", va="center", style="italic",
                    path_effects=[withStroke(linewidth=3, foreground="white")])
        ax.update_datalim(1.08 * corners)
        for images, bonds, names in molecules:
            xy = images @ view.T
            _sticks(ax, xy, bonds, "0.5", lw=1.5)
            other = [k for k, e in enumerate(names) if e != "C"]
            ax.scatter(*xy[other].T, s=22, c=[ELEMENTS.get(names[k], METAL) for k in other], zorder=3)
        ax.set(title=f"along {'abc'[along]}", xlabel="Å", ylabel="Å", aspect="equal")
    there = sorted({e for *_, names in molecules for e in names} - {"C"})
    fig.legend([plt.Line2D([], [], ls="", marker="o", color=ELEMENTS.get(e, METAL)) for e in there], there,
               loc="outside right center", frameon=False)
    fig.suptitle(title)
    return fig


def plot_overlay(solution, crystal):
    """Found atoms over the published ones, seen along the least extent, and how far each is from its published place."""
    orth, heavy = np.array(crystal.cell.orth.mat.tolist()), np.flatnonzero(crystal.heavy)
    parts = whole_molecules(crystal.fract[heavy], [crystal.elements[i] for i in heavy], crystal.cell, crystal.spacegroup)
    true = np.concatenate([part.xyz[part.own] for part in parts])
    names = np.array(labels(solution.elements))[np.array(solution.elements) != "H"]
    match = match_atoms(solution.fract[np.array(solution.elements) != "H"], true @ np.linalg.inv(orth).T, crystal.cell,
                        crystal.spacegroup)
    found = match.fract @ orth.T
    axes = np.linalg.svd(true - true.mean(0))[2]
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(1, 1.3))
    for xyz, color, lw, name in ((true, "0.75", 5, "published"), (found, "C3", 1.5, "found")):
        apart = np.linalg.norm(xyz[:, None] - xyz, axis=-1)
        _sticks(left, (xyz - true.mean(0)) @ axes[:2].T, np.argwhere(np.triu((apart < 1.9) & (apart > 0.6))), color, lw=lw,
                label=name)
    left.set(xlabel="Å", ylabel="Å", aspect="equal")
    left.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.14), ncols=2)
    i, j = match.pairs.T
    away = np.linalg.norm(found[i] - true[j], axis=1)
    order = np.argsort(i)
    right.bar(names[i][order], away[order], color="C3")
    right.axhline(np.median(away), color="grey", ls="--", label=f"median {np.median(away):.2f} Å")
    right.set(ylabel="distance from the published atom / Å")
    right.tick_params(axis="x", rotation=90)
    right.legend(frameon=False)
    fig.suptitle(f"{crystal.name}: {match.n_matched} of {match.n_true} atoms within 0.5 Å, rms {match.rms:.2f} Å")
    return fig


def plot_torsions(table):
    """Share of made-up chains that were solved, with bars of one standard deviation (Wilson's interval), and the seconds each
    took, against the number of torsions.

    ``table`` is that of ``benchmarks/known_molecule.py --torsions``: a row a chain and d_min, with torsions, solved, seconds.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for i, (d_min, rows) in enumerate(table.groupby("d_min")):
        groups = rows.groupby("torsions")["solved"].agg(["sum", "size"])
        chains = "-".join(map(str, sorted({groups["size"].min(), groups["size"].max()})))
        _draw_shares(left, groups.index, groups, "o-", color=f"C{i}", label=f"{d_min:g} Å, {chains} chains each")
        for solved, marker, name in ((True, "o", "solved"), (False, "x", "not solved")):
            some = rows[rows["solved"].astype(bool) == solved]
            right.plot(some["torsions"], some["seconds"], marker, color=f"C{i}", ms=4, ls="", label=f"{d_min:g} Å, {name}")
    left.set(xlabel="torsions", ylabel="solved / %", ylim=(-3, 103))
    right.set(xlabel="torsions", ylabel="s a chain", yscale="log")
    for ax in (left, right):
        ax.legend(frameon=False, fontsize=8)
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
    middle, half = _wilson(k, n)
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


def plot_resolutions(crystal, d_mins):
    """The largest molecule of a crystal, and its true density calculated from the reflections to each d_min (Å), two in a row
    and each with contours of its own: what data of that resolution would show if all phases were known."""
    molecules = whole_molecules(crystal.fract, crystal.elements, crystal.cell, crystal.spacegroup)
    view = _View(molecules[0], crystal.elements)
    width, height = _arrange([view])
    across = min(2, len(d_mins))
    down = -(-len(d_mins) // across)
    fig, axes = plt.subplots(down, across, squeeze=False, layout="constrained",
                             figsize=(4.2 * across + 0.3, down * (3.9 * height / width + 0.9) + 0.3))
    for ax in axes.flat[len(d_mins):]:
        ax.set_axis_off()
    for ax, d_min in zip(axes.flat, d_mins):
        hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
        grid = MapGrid(expand_to_p1(hkl, crystal.spacegroup), crystal.cell, d_min / 4)
        _draw_density(ax, [view], grid.map(structure_factors(crystal, hkl)), crystal.cell)
        every = ax.get_title().split("\n")[1]
        ax.set_title(f"$d_{{min}}$ = {d_min:g} Å, {len(hkl)} reflections\n{every}", fontsize=9)
        ax.set(xlim=(-width / 2, width / 2), ylim=(-height / 2, height / 2), aspect="equal", xlabel="Å")
    for ax in axes[:, 0]:
        ax.set_ylabel("Å")
    fig.suptitle(crystal.name)
    return fig


# --- a plane (notebooks 00 and 11) ---


def plot_planes(maps, basis, label="density / e Å$^{-2}$", marks=None, across=4, most=None):
    """Maps of one cell in two dimensions side by side, on one scale; what is below zero is white.

    Parameters
    ----------
    maps : {title: (nx, ny)}, from the origin, along the axes
    basis : (2, 2) Å, its rows are the axes in the picture
    label : of the colours, with their unit
    marks : {name: (n, 2)} fractional coordinates, drawn in each map inside the cell
    most : what is black, by default the largest value
    """
    basis = np.asarray(basis, float)
    across = min(across, len(maps))
    down = -(-len(maps) // across)
    size = np.abs(basis).sum(axis=0)
    fig, axes = plt.subplots(down, across, squeeze=False, sharex=True, sharey=True, layout="constrained",
                             figsize=(3 * across + 1.2, down * (2.5 * size[1] / size[0] + 0.75) + 0.6))
    vmax = most or max(rho.max() for rho in maps.values())
    for ax, (title, rho) in zip(axes.flat, maps.items()):
        drawn = _draw_plane(ax, rho, basis, vmax, marks)
        ax.set_title(title, fontsize=9)
    for ax in axes.flat[len(maps):]:
        ax.set_axis_off()
    for ax in axes[-1]:
        ax.set_xlabel("Å")
    for ax in axes[:, 0]:
        ax.set_ylabel("Å")
    fig.colorbar(drawn, ax=axes, label=label, shrink=0.8)
    if marks:
        handles, names = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, names, frameon=False, loc="outside lower center", ncols=len(names))
    return fig


def plot_section(rho, cell, axis, height):
    """A section through the density rho (nx, ny, nz), e/Å³, of a cell: at `height` (0 to 1) along the axis 0, 1 or 2."""
    i, j = (k for k in range(3) if k != axis)
    a, b, angle = cell.parameters[i], cell.parameters[j], np.radians(cell.parameters[3 + axis])
    row = round(height * rho.shape[axis]) % rho.shape[axis]
    title = f"{'abc'[i]} and {'abc'[j]}, at {'xyz'[axis]} = {row / rho.shape[axis]:.2f}"
    return plot_planes({title: np.take(rho, row, axis)}, [[a, 0], [b * np.cos(angle), b * np.sin(angle)]],
                       "density / e Å$^{-3}$", most=np.quantile(rho, 0.9995))


MARKS = (dict(marker="o", mfc="none", mec="C3", ms=9), dict(marker="x", color="C0", ms=6))


def _draw_plane(ax, rho, basis, vmax, marks=None):
    """One map of ``plot_planes``, with the outline of its cell."""
    x, y = (np.arange(n + 2) / n - 0.5 / n for n in rho.shape)  # a point more, the first of the next cell
    corners = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1) @ basis
    drawn = ax.pcolormesh(corners[..., 0], corners[..., 1], np.pad(rho, (0, 1), mode="wrap"), cmap="Greys", vmin=0, vmax=vmax,
                          rasterized=True)
    ax.plot(*(np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) @ basis).T, color="C0", lw=0.8)
    for (name, fract), style in zip((marks or {}).items(), MARKS):
        ax.plot(*(np.mod(fract, 1) @ basis).T, ls="", label=name, **style)
    ax.set_aspect("equal")
    return drawn


def plot_reciprocal_plane(h, sf, basis, circles=(), title=""):
    """A point a reflection in two dimensions: its area is the amplitude, its colour the phase; circles at some d (Å).

    h : (n, 2) int; sf : (n,) complex, electrons; basis : (2, 2) Å, its rows are the axes
    """
    at = np.asarray(h) @ np.linalg.inv(basis).T  # (n, 2) 1/Å
    F, there = np.abs(sf), np.any(h, axis=1)      # F(0), the number of electrons, is not measured
    fig, ax = plt.subplots(figsize=(6.2, 5), layout="constrained")
    drawn = ax.scatter(*at[there].T, s=150 * F[there] / F[there].max(), c=np.degrees(np.angle(sf[there])), cmap="twilight",
                       vmin=-180, vmax=180, edgecolors="0.5", linewidths=0.4)
    for d in circles:
        ax.add_patch(Circle((0, 0), 1 / d, fc="none", ec="C3", lw=0.8, ls="--"))
        ax.annotate(f"d = {d:g} Å", (0, -1 / d), (0, -2), textcoords="offset points", ha="center", va="top", color="C3",
                    fontsize=8, bbox=dict(fc="white", ec="none", alpha=0.8, pad=0.5))
    ax.set(xlabel="Å$^{-1}$", ylabel="Å$^{-1}$", aspect="equal", title=title)
    ax.margins(0.08)
    fig.colorbar(drawn, ax=ax, label="φ / °", ticks=[-180, -90, 0, 90, 180])
    return fig


def plot_film(frames, history, basis, marks=None):
    """How a map comes about: some of its states, with R and the phase error of each, and both against the cycle.

    Parameters
    ----------
    frames : {cycle: (nx, ny)}
    history : DataFrame with R and error (degrees), a row a cycle, the number of the cycle its index
    basis, marks : as for ``plot_planes``
    """
    size = np.abs(basis).sum(axis=0)
    across = min(3, len(frames))
    down = -(-len(frames) // across)
    height = down * (2.6 * size[1] / size[0] + 0.8)
    fig = plt.figure(figsize=(max(3 * across, 6), height + 2.5), layout="constrained")
    above, below = fig.subfigures(2, 1, height_ratios=[height, 2.5])
    vmax = max(rho.max() for rho in frames.values())
    axes = above.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(frames):]:
        ax.set_axis_off()
    for ax, (number, rho) in zip(axes.flat, frames.items()):
        _draw_plane(ax, rho, np.asarray(basis, float), vmax, marks)
        ax.set_title(f"cycle {number}\nR {history['R'][number]:.2f}, {history['error'][number]:.0f}°", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("Å")
    for ax in axes[:, 0]:
        ax.set_ylabel("Å")
    for ax, column, name in zip(below.subplots(1, 2), ("R", "error"), ("R", "phase error / °")):
        ax.plot(history.index, history[column], color="0.3")
        ax.plot(list(frames), history[column][list(frames)], "o", ms=5, color="C3", label="the maps above")
        ax.set(xlabel="cycle", ylabel=name, ylim=(0, None))
    ax.legend(frameon=False)
    return fig


UNITS = {"volume per atom": "Å³", "beta": "°", "nearest": "Å", "second nearest": "Å", "U": "Å²", "Wilson B": "Å²"}


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
        ax.set_title(f"{column} / {UNITS[column]}" if column in UNITS else column, fontsize=9)
        ax.tick_params(labelsize=8)
    for ax in axes.flat[len(columns):]:
        ax.axis("off")
    axes.flat[0].legend(frameon=False, fontsize=8)
    return fig


# --- benchmarks of phasing (notebook 07, benchmarks/phasing.py) ---

OURS = "xrd_helpers"  # drawn as a solid line; other programs are dotted
SIZES = (0, 10, 15, 20, 30, 45, 70, 10**6)  # edges of the classes of non-H atoms
AT = (1.2, 1.5)       # Å, the resolutions at which size is looked at


def plot_solve_rate(table):
    """Share of structures solved against d_min, a colour a set; against the number of atoms at d_min of AT, all sets
    together; and against the share of the reflections that was there, where it varies. Solid lines are ours, dotted ones
    another program's; bars are one standard deviation (Wilson's interval).

    ``table`` has a row a structure, d_min and program, with columns set, d_min (Å), program, atoms (non-H), solved (bool)
    and, if it varies, completeness (share of the reflections; nan where it was not chosen).
    """
    complete = table.get("completeness", pd.Series(1.0, table.index))
    gaps = table["set"].isin(table["set"][complete < 1])
    whole = table[~gaps & complete.notna()]
    n = 3 if gaps.any() else 2
    fig, (left, middle, *last) = plt.subplots(1, n, figsize=(4.4 * n + 1.5, 4.8), layout="constrained", sharey=True)
    for i, (name, part) in enumerate(whole.groupby("set", sort=False)):
        for program, rows in part.groupby("program", sort=False):
            solved = rows.groupby("d_min")["solved"].agg(["sum", "size"])
            _draw_shares(left, solved.index, solved, _line(program), color=f"C{i}",
                         label=f"{name}, {program} (n = {solved['size'].max()})")
    left.set(xlabel="$d_{min}$ / Å", ylabel="solved / %", ylim=(-3, 103))
    size = np.digitize(whole["atoms"], SIZES, right=True)
    for i, d_min in enumerate(AT):
        at = np.isclose(whole["d_min"], d_min)
        for program, rows in whole[at].groupby("program", sort=False):
            classes = rows.groupby(size[at & (whole["program"] == program)])
            solved = classes["solved"].agg(["sum", "size"])
            _draw_shares(middle, classes["atoms"].median(), solved, _line(program), color=("k", "C3")[i],
                         label=f"{d_min:g} Å, {program} (n = {', '.join(map(str, solved['size']))})")
    middle.set(xlabel="non-H atoms in the asymmetric unit")
    for ax in last:
        for program, rows in table[gaps].groupby("program", sort=False):
            solved = rows.groupby("completeness")["solved"].agg(["sum", "size"])
            _draw_shares(ax, 100 * solved.index, solved, _line(program), color="C4",
                         label=f"{program} (n = {rows['name'].nunique()}, {rows['d_min'].iloc[0]:g} Å)")
        ax.set(xlabel="reflections measured / %")
    for ax in (left, middle, *last):
        if ax.lines:
            ax.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2 if ax is left else 1)
    return fig


def plot_solved_with(table):
    """Share of crystals solved from what was measured, guided by each method's amplitudes, light and heavier ones apart; bars
    of one standard deviation (Wilson's interval).

    ``table`` is that of ``evaluation.evaluate``: a row a crystal and method, with light (bool) and solved, nan if not phased.
    """
    table = table[table["solved"].notna() & (table["method"] != "zero fill")]  # that is nothing added
    table = table.assign(solved=table["solved"].astype(bool))
    order = table.groupby("method")["solved"].mean().sort_values(kind="stable").index
    fig, ax = plt.subplots(figsize=(7.5, 0.45 * len(order) + 1.4), layout="constrained")
    for shift, colour, name, rows in ((0.2, "C0", "light", table["light"]), (-0.2, "C1", "heavier", ~table["light"])):
        if not rows.any():
            continue
        counts = table[rows].groupby("method")["solved"].agg(["sum", "size"]).reindex(order, fill_value=0)
        k, n = counts.to_numpy(float).T
        middle, half = _wilson(k, n)
        ax.barh(np.arange(len(order)) + shift, 100 * k / n, 0.36, color=colour, label=f"{name} ({int(n.max())} crystals)",
                xerr=100 * np.maximum([k / n - middle + half, middle + half - k / n], 0), ecolor="0.3", capsize=2)
    ax.set(yticks=range(len(order)), yticklabels=order, xlabel="solved / %", xlim=(0, 100))
    fig.legend(frameon=False, loc="outside upper center", ncols=2)
    return fig


def _draw_shares(ax, x, counts, fmt, **style):
    """Shares in % of counts, a table with sum and size, with bars of one standard deviation (Wilson's interval)."""
    k, n = counts[["sum", "size"]].to_numpy(float).T
    middle, half = _wilson(k, n)
    line, = ax.plot(x, 100 * k / n, fmt, ms=4, **style)
    ax.vlines(x, 100 * np.minimum(middle - half, k / n), 100 * np.maximum(middle + half, k / n), color=line.get_color(), lw=0.8)


def _wilson(k, n):
    """Middle and half width of the interval of one standard deviation for a share of k in n (Wilson, 1927)."""
    return (k + 0.5) / (n + 1), np.sqrt(k * (n - k) / n + 0.25) / (n + 1)


def plot_phasing_time(table, to=1.2):
    """Seconds of solved structures against the volume of the cell, for d_min up to ``to`` Å, with a power law for each
    program; columns as for ``plot_solve_rate``, and volume (Å³), seconds."""
    fig, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    solved = table[table["solved"].astype(bool) & (table["d_min"] <= to)]
    for i, (program, part) in enumerate(solved.groupby("program", sort=False)):
        label, colour = program, f"C{i}"
        if part["volume"].nunique() > 2:
            slope, offset = np.polyfit(np.log(part["volume"]), np.log(part["seconds"]), 1)
            ends = np.array([part["volume"].min(), part["volume"].max()])
            ax.plot(ends, np.exp(offset) * ends**slope, color=colour)
            label = f"{program}, slope {slope:.1f}"
        ax.plot(part["volume"], part["seconds"], ".", color=colour, label=label)
    ax.set(xscale="log", yscale="log", xlabel="cell volume / Å³", ylabel=f"s for a solved structure, to {to:g} Å")
    low, high = ax.get_xlim()  # less than a power of ten, as a rule: labels of every digit would collide
    ax.set_xticks([m * 10**k for k in range(1, 6) for m in (1, 2, 5) if low <= m * 10**k <= high])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    if len(solved):
        ax.legend(frameon=False, fontsize=8)
    return fig


def _line(program):
    return "-o" if program == OURS else ":s"


# --- shifted crystals and their phases (notebooks 09 and 10) ---


def plot_reflections_3d(sf, title=""):
    """A point a reflection of one box (13, 13, 13) in the space of h, k, l: size is amplitude, colour is phase."""
    sf = np.asarray(sf)
    F, index = np.abs(sf), np.arange(sf.shape[0]) - sf.shape[0] // 2
    h, k, l = np.meshgrid(index, index, index, indexing="ij")
    there = F > 1e-3 * F.max()
    fig = plt.figure(figsize=(6, 5), layout="constrained")
    ax = fig.add_subplot(projection="3d")
    drawn = ax.scatter(h[there], k[there], l[there], s=60 * F[there] / F.max(), c=np.degrees(np.angle(sf[there])),
                       cmap="twilight", vmin=-180, vmax=180, edgecolors="0.5", lw=0.3, depthshade=False)
    ax.set(xlabel="h", ylabel="k", zlabel="l", title=title)
    fig.colorbar(drawn, ax=ax, label="φ / °", shrink=0.6, pad=0.1, ticks=[-180, -90, 0, 90, 180])
    return fig


def plot_tiling(boxes):
    """Layers of constant l side by side, h down and k along: ``boxes`` is {name: sf (13, 13, 13)}, a pair of rows each, and of
    two of them what changes from the first to the second. White, or grey among phases, is what has no amplitude."""
    boxes = {name: np.asarray(sf) for name, sf in boxes.items()}
    side = len(next(iter(boxes.values())))
    tiles = {name: sf.transpose(0, 2, 1).reshape(side, side**2) for name, sf in boxes.items()}  # (h, l, k)
    largest = max(np.abs(sf).max() for sf in tiles.values())
    there = {name: np.abs(sf) > 1e-3 * largest for name, sf in tiles.items()}
    circle, pairs = dict(cmap="twilight", vmin=-180, vmax=180), {}
    for name, sf in tiles.items():
        pairs[name] = {r"$\sqrt{|F| / |F|_{max}}$": (np.sqrt(np.abs(sf) / largest), dict(cmap="viridis", vmin=0, vmax=1)),
                       "φ / °": (np.degrees(np.angle(sf)), circle)}
    if len(tiles) == 2:
        before, after = tiles.values()
        there["change"] = np.logical_and(*there.values())
        change = {r"$\Delta|F| / |F|_{max}$": (np.abs(after) - np.abs(before)) / largest,
                  "Δφ / °": np.degrees(np.angle(after * before.conj()))}
        most = {name: max(np.abs(of)[there["change"]].max(initial=0), 1e-9) for name, of in change.items()}
        pairs["change"] = {name: (of, dict(cmap="RdBu_r", vmin=-most[name], vmax=most[name])) for name, of in change.items()}
    fig, axes = plt.subplots(2 * len(pairs), 1, figsize=(11, 2.3 * len(pairs)), layout="constrained", sharex=True)
    for pair, (name, images) in zip(axes.reshape(-1, 2), pairs.items()):
        for ax, (label, (image, style)) in zip(pair, images.items()):
            drawn = ax.imshow(np.where(there[name], image, np.nan), aspect="auto", interpolation="nearest", **style)
            fig.colorbar(drawn, ax=ax, label=label, pad=0.01, ticks=[-180, 0, 180] if style is circle else None)
            ax.set(yticks=[0, side // 2, side - 1], yticklabels=[-(side // 2), 0, side // 2], ylabel="h", xticks=[],
                   facecolor="0.6" if style is circle else "w")  # 180° is nearly white
            for edge in np.arange(1, side) * side - 0.5:
                ax.axvline(edge, color="0.7", lw=0.6)
        pair[0].set_title(name, loc="left", fontsize=10)
    axes[-1].set_xticks(np.arange(side) * side + side // 2, [f"l = {l}" for l in np.arange(side) - side // 2], fontsize=8)
    axes[-1].set_xlabel(f"k, from {-(side // 2)} to {side // 2} in each layer")
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


def plot_isosurfaces(maps, share=0.2, together=2):
    """Surfaces of constant density above, a slice below; ``maps`` is {title: rho (n, n, n)} over a cell.

    The surface stands at ``share`` of the largest density of the first map, the cell is drawn from -1/4 to 3/4. The slice is
    that of the highest density of the first of so many maps that belong ``together``: atoms need not lie at z = 0.
    """
    from skimage.measure import marching_cubes  # half a second of import

    first = next(iter(maps.values()))
    level, n = share * first.max(), len(first)
    fig = plt.figure(figsize=(3 * len(maps), 5.6), layout="constrained")
    slices = []
    for i, (title, rho) in enumerate(maps.items()):
        if i % together == 0:
            z = int(np.unravel_index(rho.argmax(), rho.shape)[2])
        rho = np.pad(np.roll(rho, n // 4, (0, 1, 2)), (0, 1), mode="wrap")
        ax = fig.add_subplot(2, len(maps), i + 1, projection="3d")
        if rho.min() < level < rho.max():
            corners, faces, _, _ = marching_cubes(rho, level)
            corners = corners / n - 0.25
            ax.plot_trisurf(*corners.T[:2], faces, corners.T[2], color="C0", lw=0)
        ax.set(**{f"{axis}lim": (-0.25, 0.75) for axis in "xyz"}, **{f"{axis}ticks": [0, 0.5] for axis in "xyz"},
               **{f"{axis}label": f"{axis} / {edge}" for axis, edge in zip("xyz", "abc")})
        ax.set_title(title, fontsize=9)
        ax = fig.add_subplot(2, len(maps), len(maps) + i + 1)
        drawn = ax.imshow(rho[:, :, (z + n // 4) % n].T / first.max(), origin="lower", cmap="Greys", vmin=0, vmax=0.6,
                          interpolation="bilinear", extent=[-0.25 - 0.5 / n, 0.75 + 0.5 / n] * 2)
        ax.set(xlabel="x / a", ylabel="y / b" if i == 0 else "", xticks=[0, 0.5], yticks=[0, 0.5], title=f"z = {z / n:.2f}")
        slices.append(ax)
    fig.colorbar(drawn, ax=slices, label="density / highest", extend="both", shrink=0.8)
    return fig
