"""Figures and widgets: what is drawn are the numbers that were given, at the right place, with labelled axes."""

import base64
import json
import re
import shutil
import subprocess
from html import unescape
from types import SimpleNamespace

import gemmi
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection

from box_makers import recipe
from xrd_helpers import locate, viewer
from xrd_helpers.baselines import KNOW_NOTHING
from xrd_helpers.cif import read_cif
from xrd_helpers.config import UserError
from xrd_helpers.crystals import Crystal
from xrd_helpers.gridding import AmplitudeBoxes, Box
from xrd_helpers.known_molecule import from_geometry, read_molecules
from xrd_helpers.models import MODELS
from xrd_helpers.plots import (
    COLOURS,
    ELEMENTS,
    interpolate,
    plot_calibration,
    plot_cells,
    plot_conformers,
    plot_density,
    plot_extension,
    plot_film,
    plot_history,
    plot_match,
    plot_molecule,
    plot_overlay,
    plot_packing,
    plot_phasing_time,
    plot_planes,
    plot_r_by_resolution,
    plot_reciprocal_plane,
    plot_resolutions,
    plot_search,
    plot_section,
    plot_solve_rate,
    plot_solved_with,
    plot_torsions,
    plot_uncertainty,
)
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.viewer import (
    browse_layers,
    browse_resolution,
    browse_sections,
    choose_files,
    download_link,
    keep_upload,
    turn_molecules,
)

TITLES = [model.title for model in MODELS.values()]
BOX = Box("small", (-4, 0, 0), (3, 5, 6), "P 1 2/m 1")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def boxes():
    rng = np.random.default_rng(0)
    target, measured = (torch.as_tensor(rng.random((3, *BOX.shape)) < p) for p in (0.7, 0.4))
    F = torch.as_tensor(rng.random((3, *BOX.shape)), dtype=torch.float32) * target
    return AmplitudeBoxes(box=BOX, F=F, scale=torch.ones(3), measured=measured & target, target=target, absent=~target,
                          redundant=~target[0], d=torch.ones_like(F), epsilon=torch.ones_like(F))


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def panels(fig):
    """The axes that hold data, not those of a colour bar; each is checked for its labels where it is drawn."""
    fig.canvas.draw()
    return [ax for ax in fig.axes if ax.get_label() != "<colorbar>"]


def assert_nothing_is_cut_off(fig):
    fig.canvas.draw()
    inside = fig.bbox.padded(1)
    for ax in fig.axes:
        legend = ax.get_legend()
        for artist in [ax.xaxis.label, ax.yaxis.label, ax.title, *(legend.get_texts() if legend else [])]:
            box = artist.get_window_extent()
            assert not artist.get_text() or (inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)), artist


@pytest.mark.parametrize("row, l", [(0, 0), (1, 1), (2, 6)])
def test_extension_shows_one_layer_measured_predicted_and_true(row, l, boxes):
    F_pred = np.random.default_rng(5).random((3, *BOX.shape))
    fig = plot_extension(F_pred, boxes, row, l, "crystal:")
    axes = panels(fig)
    assert [ax.get_title() for ax in axes] == ["measured", "predicted", "true"]
    assert [ax.get_xlabel() for ax in axes] == ["h"] * 3 and axes[0].get_ylabel() == "k"
    assert fig.get_suptitle() == f"crystal:  l = {l}" and "|F|" in fig.axes[-1].get_ylabel()
    F, target, measured = (x[row].numpy() for x in (boxes.F, boxes.target, boxes.measured))
    top = F.max()  # of all layers
    for ax, image, inside in zip(axes, (F, F_pred[row], F), (measured, target, target)):
        drawn = ax.images[0]
        data = np.ma.filled(drawn.get_array(), np.nan)
        for h in range(-4, 4):      # the pixel that stands at (h, k) shows the amplitude there, or nothing
            for k in range(6):
                x0, x1, y0, y1 = drawn.get_extent()
                place = np.array([(k - y0) / (y1 - y0), (h - x0) / (x1 - x0)]) * data.shape
                np.testing.assert_allclose(place % 1, 0.5)  # in its middle
                value = data[tuple(place.astype(int))]
                if inside[h + 4, k, l]:
                    assert value == pytest.approx(np.sqrt(image[h + 4, k, l] / top), abs=1e-6)
                else:
                    assert np.isnan(value)
        assert drawn.get_clim() == (0, 1) and drawn.origin == "lower"
    assert_nothing_is_cut_off(fig)


def test_a_layer_with_nothing_inside_is_an_empty_picture(boxes):
    boxes.target[0, :, :, 3], boxes.measured[0, :, :, 3], boxes.F[0, :, :, 3] = False, False, 0
    fig = plot_extension(np.ones((3, *BOX.shape)), boxes, 0, 3)
    assert all(np.isnan(np.ma.filled(ax.images[0].get_array(), np.nan)).all() for ax in panels(fig))


def history(n=40):
    table = pd.DataFrame({"step": np.arange(n) + 1, "crystals": 4 * np.arange(n) + 4, "seconds": np.arange(n) * 1.0,
                          "loss": np.exp(-np.arange(n) / 10), "r_ext": np.nan, "cc_ext": np.nan})
    table.loc[[0, 19, 39], "r_ext"] = [0.6, 0.5, 0.45]
    table.loc[[0, 19, 39], "cc_ext"] = [0.4, 0.5, 0.6]
    return table


def test_history_shows_loss_and_validation():
    table = history()
    fig = plot_history(table, baseline={"r_ext": 0.47, "cc_ext": 0.41})
    left, right, last = panels(fig)
    assert left.get_xlabel() == right.get_xlabel() == last.get_xlabel() == "crystals seen" and left.get_yscale() == "log"
    assert "loss" in left.get_ylabel() and "R_{ext}" in right.get_ylabel() and "CC_{ext}" in last.get_ylabel()
    step, smooth = left.lines
    np.testing.assert_array_equal(step.get_xydata(), table[["crystals", "loss"]])
    np.testing.assert_allclose(smooth.get_ydata()[5], (table["loss"][4] + table["loss"][5]) / 2)  # a twentieth of 40
    points, line = right.lines
    np.testing.assert_array_equal(points.get_xydata(), [[4, 0.6], [80, 0.5], [160, 0.45]])
    assert set(last.lines[1].get_ydata()) == {0.41}
    np.testing.assert_array_equal(last.lines[0].get_xydata(), table.dropna(subset="r_ext")[["crystals", "cc_ext"]])
    assert set(line.get_ydata()) == {0.47} and texts(right.get_legend()) == ["validation", "shell mean, knows nothing"]
    assert_nothing_is_cut_off(fig)


def test_history_without_validation_or_with_one_step():
    assert len(panels(plot_history(history().assign(r_ext=np.nan)))[1].lines[0].get_xdata()) == 0
    assert len(panels(plot_history(history()[:1]))[0].lines[0].get_xdata()) == 1


def test_uncertainties_against_errors():
    """Errors drawn with a σ that grows with h, and stated as half of it: root mean square 2, points on twice the diagonal."""
    boxes, _ = recipe("P 1 21 1")
    sigma = np.broadcast_to(0.01 + 0.002 * np.arange(boxes.box.shape[0])[:, None, None], boxes.F.shape)
    F_pred = boxes.F.double().numpy() + sigma * np.random.default_rng(0).standard_normal(sigma.shape)
    fig = plot_uncertainty(F_pred, sigma / 2, boxes)
    left, right = panels(fig)
    points, diagonal = left.lines
    np.testing.assert_allclose(points.get_ydata(), 2 * points.get_xdata(), rtol=0.03)
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert sorted(text[:20] for text in texts(right.get_legend())) == ["normal, 1", "root mean square 2.0"]
    assert right.lines[0].get_ydata().max() == pytest.approx(1 / np.sqrt(2 * np.pi))
    assert_nothing_is_cut_off(fig)


def test_r_against_resolution_has_d_on_a_scale_of_its_inverse_square():
    curves = {name: pd.DataFrame({"d": [1.4, 1.0, 0.82], "r_ext": [0.3, 0.1 * i, 0.6]})
              for i, name in enumerate([*KNOW_NOTHING, *TITLES, "another"])}
    fig = plot_r_by_resolution(curves)
    ax, = panels(fig)
    assert ax.get_xlabel() == "d / Å" and ax.get_ylabel() == "$R_{ext}$" and texts(ax.get_legend()) == list(curves)
    ticks = dict(zip((t.get_text() for t in ax.get_xticklabels()), ax.get_xticks()))
    assert ticks["0.8"] == pytest.approx(1 / 0.64) and ticks["1.5"] == pytest.approx(1 / 2.25)
    for line, (name, curve) in zip(ax.lines, curves.items()):
        np.testing.assert_allclose(line.get_xdata(), [1 / 1.96, 1, 1 / 0.6724])
        np.testing.assert_array_equal(line.get_ydata(), curve["r_ext"])
        assert (line.get_color() == "grey") == (name in KNOW_NOTHING)
    assert COLOURS.keys() <= {*TITLES, "phase first"} and len({*COLOURS.values()}) == len(COLOURS), "each its own"
    assert [line.get_color() for line in ax.lines[3:-1]] == [COLOURS[name] for name in TITLES]
    assert ax.get_ylim()[0] == 0
    assert_nothing_is_cut_off(fig)
    assert ax.get_legend().get_window_extent().x0 > ax.get_window_extent().x1, "beside the curves, not on them"


def test_a_model_has_its_colour_without_the_others_too():
    ax, = panels(plot_r_by_resolution({"XRD_Transformer": pd.DataFrame({"d": [1.0], "r_ext": [0.3]})}))
    assert ax.lines[0].get_color() == COLOURS["XRD_Transformer"]


def test_cells_are_counted_by_whether_they_fit():
    crystals = random_crystals(30, seed=0)
    fits = [i % 3 > 0 for i in range(30)]
    fig = plot_cells(crystals, fits)
    axes = panels(fig)
    assert [ax.get_xlabel() for ax in axes] == ["V / Å³", "longest / shortest axis", "mean U / Å²"]
    assert axes[0].get_ylabel() == "crystals" and texts(axes[1].get_legend()) == ["fits the box", "does not"]
    volumes = [c.cell.volume for c in crystals]
    lengths = [(c.cell.a, c.cell.b, c.cell.c) for c in crystals]
    values = [volumes, [max(x) / min(x) for x in lengths], [sum(c.u_iso) / len(c.u_iso) for c in crystals]]
    for ax, column in zip(axes, values):
        groups = [[bar.get_height() for bar in container] for container in ax.containers]
        assert [sum(heights) for heights in groups] == [20, 10]
        ends = [bar.get_x() for bar in ax.patches] + [bar.get_x() + bar.get_width() for bar in ax.patches]
        assert (min(ends), max(ends)) == pytest.approx((min(column), max(column)))
    assert_nothing_is_cut_off(fig)


@pytest.mark.parametrize("fits", [[True] * 5, [False] * 5])
def test_cells_that_all_fit_or_do_not(fits):
    heights = [sum(bar.get_height() for bar in c) for c in panels(plot_cells(random_crystals(5, seed=0), fits))[0].containers]
    assert heights == ([5, 0] if fits[0] else [0, 5])


CELL = gemmi.UnitCell(6, 9, 12, 90, 105, 90)
POINTS = np.array([[1 / 6, 2 / 9, 3 / 4], [-0.5, 7 / 9, 1.25]])  # voxels (2, 4, 9) and (6, 14, 3) of (12, 18, 12)


def test_density_is_projected_along_each_axis_and_atoms_stand_on_it():
    rho = np.full((12, 18, 12), -0.5)
    rho[2, 4, 9], rho[6, 14, 3] = 5, 3
    fig = plot_density(rho, CELL, "two atoms", atoms=POINTS, found=POINTS[:1])
    axes, lengths = panels(fig), np.array([6, 9, 12])
    assert fig.get_suptitle() == "two atoms" and texts(axes[2].get_legend()) == ["published", "found"]
    for axis, (ax, (i, j)) in enumerate(zip(axes, [(1, 2), (0, 2), (0, 1)])):
        assert ax.get_title() == f"along {'abc'[axis]}"
        assert (ax.get_xlabel(), ax.get_ylabel()) == (f"{'abc'[i]} / Å", f"{'abc'[j]} / Å")
        assert ax.get_xlim() == (0, lengths[i]) and ax.get_ylim() == (0, lengths[j])
        places = np.mod(POINTS, 1)[:, [i, j]] * lengths[[i, j]]
        np.testing.assert_allclose(ax.lines[0].get_xydata(), places)
        np.testing.assert_allclose(ax.lines[1].get_xydata(), places[:1])
        drawn = ax.images[0]
        image, (x0, x1, y0, y1) = drawn.get_array(), drawn.get_extent()
        assert image.min() == 0 and drawn.origin == "lower"
        for (x, y), height in zip(places, (5, 3)):  # the middle of a bright pixel, to a hundredth of one
            column, row = (x - x0) / (x1 - x0) * image.shape[1], (y - y0) / (y1 - y0) * image.shape[0]
            np.testing.assert_allclose((column % 1, row % 1), 0.5, atol=0.01)
            assert image[int(row), int(column)] == height
    assert_nothing_is_cut_off(fig)


def test_density_at_the_origin_is_drawn_on_both_sides_of_the_cell():
    rho = np.zeros((6, 5, 4))
    rho[0, 0, 0] = 1
    for ax in panels(plot_density(rho, CELL)):
        image = ax.images[0].get_array()
        assert image[0, 0] == image[0, -1] == image[-1, 0] == image[-1, -1] == 1 and image.sum() == 4
        assert ax.get_legend() is None and not ax.lines


def test_published_atoms_are_drawn_where_the_solution_has_them():
    """A solution that is the crystal at another allowed origin and of the other hand: each cross stands in a circle."""
    cell, spacegroup = gemmi.UnitCell(6.1, 8.3, 9.7, 90, 104, 90), gemmi.SpaceGroup("P 1 21 1")
    fract = np.array([[0.11, 0.32, 0.21], [0.42, 0.05, 0.66], [0.73, 0.61, 0.37]])
    crystal = Crystal("chiral", cell, spacegroup, ("C", "N", "O"), fract, np.full(3, 0.03), np.ones(3))
    found = np.array([0.5, 0.3, 0]) - fract
    found[0] += 0.001  # 0.01 Å
    solution = SimpleNamespace(fract=np.vstack([found, [0.9, 0.9, 0.9]]), elements=("C", "N", "O", "H"), cell=cell, r1=0.05,
                               rho=np.ones((8, 8, 8)), spacegroup=spacegroup)  # hydrogen is not drawn
    fig = plot_match(solution, crystal)
    assert fig.get_suptitle().startswith("chiral: 3 of 3 atoms within 0.5 Å, rms 0.01 Å, R1 0.050")
    for ax in panels(fig):
        circles, crosses = (np.array(line.get_xydata()) for line in ax.get_lines())
        assert len(circles) == len(crosses) == 6, "two images of each atom"
        assert np.linalg.norm(circles[:, None] - crosses, axis=2).min(axis=1).max() < 0.05  # Å


def test_density_with_nothing_found():
    axes = panels(plot_density(np.ones((4, 4, 4)), CELL, atoms=POINTS, found=np.empty((0, 3))))
    assert texts(axes[2].get_legend()) == ["published"]


# ---- a molecule ----

class Structure:
    """Benzene with a fluorine on each of two sides, on an inversion centre; its map has a ball at each atom."""

    cell, spacegroup = gemmi.UnitCell(9, 10, 8, 82, 95, 104), gemmi.SpaceGroup("P -1")
    elements = ("C", "C", "C", "F")

    def __init__(self, far=0.0):
        angle = np.radians(60 * np.arange(4) + [0, 0, 0, -120])
        xyz = np.array([1.39, 1.39, 1.39, 2.74])[:, None] * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
        turn = np.array([[0.6, 0, 0.8], [0.64, 0.6, -0.48], [-0.48, 0.8, 0.36]])  # the plane of the ring is none of the cell's
        self.all = np.concatenate([xyz, -xyz]) @ turn
        self.fract = (self.all[:4] @ np.array(self.cell.frac.mat.tolist()).T) + far
        grid = np.stack(np.meshgrid(*[np.arange(n) / n for n in (36, 40, 32)], indexing="ij"), -1)
        orth, self.rho = np.array(self.cell.orth.mat.tolist()), np.zeros(grid.shape[:3])
        for x, z in zip(self.all @ np.array(self.cell.frac.mat.tolist()).T, (6, 6, 6, 9) * 2):
            step = (grid - x + 0.5) % 1 - 0.5
            self.rho += z * np.exp(-((step @ orth.T) ** 2).sum(-1) / 0.3)


def circles(ax):
    """(n, 2) places of the atoms and their colours."""
    atoms = [p for p in ax.patches if isinstance(p, matplotlib.patches.Circle) and p.get_edgecolor()[3]]
    return np.array([p.center for p in atoms]), [matplotlib.colors.to_hex(p.get_facecolor()) for p in atoms]


def distances(xy):
    return np.sort(np.linalg.norm(xy[:, None] - xy[None], axis=-1), axis=None)


@pytest.mark.parametrize("far", [0.0, [1, -2, 3]])
def test_a_molecule_is_drawn_whole_flat_and_in_its_true_size(far):
    structure = Structure(far)
    fig = plot_molecule(structure, "C6 F2")
    ball, contour = panels(fig)
    assert fig.get_suptitle() == "C6 F2" and "in the plane of the molecule" in contour.get_title()
    xy, colours = circles(ball)
    np.testing.assert_allclose(distances(xy), distances(structure.all), atol=1e-6)  # flat: nothing is foreshortened
    assert colours.count(ELEMENTS["F"]) == 2 and len(colours) == 8
    assert len([p for p in ball.patches if isinstance(p, matplotlib.patches.Polygon)]) == 8, "six of the ring and two to F"
    assert sorted(text.get_text() for text in ball.texts) == ["1 Å", "C1", "C2", "C3", "F1"]
    np.testing.assert_allclose(np.ptp(xy, axis=0).argmax(), 0)
    assert ball.get_xlim() == contour.get_xlim() and ball.get_ylim() == contour.get_ylim() and ball.get_aspect() == 1
    assert_nothing_is_cut_off(fig)


def test_density_of_a_molecule_lies_on_its_atoms_and_neighbours_are_left_out():
    ball, contour = panels(plot_molecule(Structure()))
    xy, colours = circles(ball)
    drawn, = contour.collections
    for i, fluorine in enumerate([colour == ELEMENTS["F"] for colour in colours]):
        around = [(path.contains_point(xy[i]), level) for level, path in zip(drawn.levels, drawn.get_paths())]
        top = max(level for inside, level in around if inside)
        assert 0.75 < top / (9 if fluorine else 6) <= 1.1
    vertices = np.concatenate([path.vertices for path in drawn.get_paths()])
    assert np.linalg.norm(vertices[:, None] - xy, axis=2).min(axis=1).max() < 1.7


def test_a_thick_molecule_is_tilted_until_every_atom_is_seen():
    crystal = read_cif(locate("data/molecules/sucrose.cif"))
    heavy = crystal.heavy
    crystal = SimpleNamespace(fract=crystal.fract[heavy], elements=tuple(np.array(crystal.elements)[heavy]),
                              cell=crystal.cell, spacegroup=crystal.spacegroup)
    fig = plot_molecule(crystal)
    ball, = panels(fig)  # without a map
    xy, _ = circles(ball)
    assert len(xy) == 23 and distances(xy)[23] > 0.5
    places = [text.get_position() for text in ball.texts if text.get_text() != "1 Å"]
    assert len(places) == 23 and distances(np.array(places))[23] > 0.25, "labels do not lie on each other"
    assert_nothing_is_cut_off(fig)


def test_several_molecules_do_not_overlap_and_the_largest_is_on_top():
    ball, = panels(plot_molecule(read_cif(locate("data/molecules/glycine_dihydrate.cif"))))
    xy, _ = circles(ball)
    groups = xy[:10], xy[10:13], xy[13:16]
    apart = [np.linalg.norm(a[:, None] - b, axis=2).min() for i, a in enumerate(groups) for b in groups[i + 1:]]
    assert min(apart) > 2 and groups[0][:, 1].min() > max(groups[1][:, 1].max(), groups[2][:, 1].max())
    ball, = panels(plot_molecule(read_cif(locate("data/molecules/glycine_dihydrate.cif")), most=1))
    assert len(circles(ball)[0]) == 10 and "2 more not drawn" in [text.get_text() for text in ball.texts]


def test_a_single_atom_is_a_picture_too():
    one = SimpleNamespace(fract=np.zeros((1, 3)), elements=("Cl",), cell=gemmi.UnitCell(6, 6, 6, 90, 90, 90),
                          spacegroup=gemmi.SpaceGroup("P m -3 m"))
    assert len(circles(panels(plot_molecule(one))[0])[0]) == 1


# ---- benchmarks ----

def benchmark():
    rows = []
    for group, atoms in (("light", 8), ("heavier", 25)):
        for i in range(4):
            for d_min in (0.8, 1.2, 1.5):
                for program, more in (("xrd_helpers", 1), ("cctbx", 0)):
                    rows.append({"set": group, "d_min": d_min, "program": program, "name": f"{group}{i}",
                                 "atoms": atoms + i % 2, "volume": 100.0 * (i + 1),
                                 "solved": i <= {0.8: 2, 1.2: 1, 1.5: 0}[d_min] + more,
                                 "claimed": True, "seconds": 0.01 * (i + 1) ** 2})
    return pd.DataFrame(rows)


def test_solve_rate_against_resolution_and_size():
    fig = plot_solve_rate(benchmark())
    left, right = panels(fig)
    assert left.get_xlabel() == "$d_{min}$ / Å" and left.get_ylabel() == "solved / %" and "non-H atoms" in right.get_xlabel()
    rates = {line.get_label(): line for line in left.lines}
    assert list(rates) == ["light, xrd_helpers (n = 4)", "light, cctbx (n = 4)", "heavier, xrd_helpers (n = 4)",
                           "heavier, cctbx (n = 4)"]
    low, high = left.collections[0].get_segments()[1][:, 1]  # 3 of 4: Wilson's middle 0.7, half of the width 1 / 5
    assert (low, high) == pytest.approx((50, 90))
    for name, line in rates.items():
        np.testing.assert_array_equal(line.get_xdata(), [0.8, 1.2, 1.5])
        np.testing.assert_array_equal(line.get_ydata(), [100, 75, 50] if "xrd" in name else [75, 50, 25])
        assert line.get_linestyle() == ("-" if "xrd" in name else ":")
        assert line.get_color() == ("C0" if "light" in name else "C1")
    np.testing.assert_array_equal(right.lines[0].get_xydata(), [[8.5, 75], [25.5, 75]])   # 1.2 Å, ours
    np.testing.assert_array_equal(right.lines[3].get_xydata(), [[8.5, 25], [25.5, 25]])   # 1.5 Å, the other's
    assert texts(right.get_legend())[0] == "1.2 Å, xrd_helpers (n = 4, 4)"
    assert_nothing_is_cut_off(fig)


def test_solve_rate_against_the_share_of_reflections():
    table = benchmark().assign(completeness=1.0)
    gaps = table[(table["set"] == "light") & (table["d_min"] == 1.2)].assign(set="gaps")
    measured = gaps.assign(set="measured", completeness=np.nan, d_min=0.77)
    fig = plot_solve_rate(pd.concat([table, gaps, gaps.assign(completeness=0.5, solved=gaps["program"] == "cctbx"), measured]))
    left, middle, right = panels(fig)
    assert len(left.lines) == 4 and 0.77 not in left.lines[0].get_xdata(), "gaps and measured data are none of the curves"
    np.testing.assert_array_equal(right.lines[0].get_xydata(), [[50, 0], [100, 75]])
    np.testing.assert_array_equal(right.lines[1].get_xydata(), [[50, 100], [100, 50]])
    assert texts(right.get_legend()) == ["xrd_helpers (n = 4, 1.2 Å)", "cctbx (n = 4, 1.2 Å)"]
    np.testing.assert_array_equal(middle.lines[0].get_xydata(), [[8.5, 75], [25.5, 75]])
    assert_nothing_is_cut_off(fig)


def test_share_solved_with_the_amplitudes_of_each_method():
    rows = [{"method": method, "light": light, "solved": i < n} for method, n in (("shell mean", 2), ("PattersonNet", 3))
            for light in (True, False) for i in range(4 if light else 3)]
    fig = plot_solved_with(pd.DataFrame([*rows, {"method": "PattersonNet", "light": True, "solved": None}]))
    ax, = panels(fig)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["shell mean", "PattersonNet"], "the best is on top"
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([50, 75, 200 / 3, 100])
    assert texts(fig.legends[0]) == ["light (4 crystals)", "heavier (3 crystals)"]
    low, high = ax.collections[0].get_segments()[0][:, 0]  # 2 of 4: Wilson's middle 0.5, half of the width 1.25 ** 0.5 / 5
    assert (low, high) == pytest.approx((50 - 22.36, 50 + 22.36), abs=0.01)
    assert_nothing_is_cut_off(fig)


def test_phasing_time_of_solved_structures_has_its_power_of_the_volume():
    table = benchmark()
    fig = plot_phasing_time(table)
    ax, = panels(fig)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_xlabel() == "cell volume / Å³" and "to 1.2 Å" in ax.get_ylabel()
    assert texts(ax.get_legend()) == ["xrd_helpers, slope 2.0", "cctbx, slope 2.0"]
    points = [line for line in ax.lines if line.get_linestyle() == "None"]
    ours = table[(table["program"] == "xrd_helpers") & table["solved"] & (table["d_min"] < 1.3)]
    np.testing.assert_array_equal(points[0].get_xydata(), ours[["volume", "seconds"]])
    assert_nothing_is_cut_off(fig)


def test_benchmark_of_one_program_or_of_nothing_solved():
    one = benchmark().query("program == 'cctbx' and d_min == 0.8")
    left, right = panels(plot_solve_rate(one))
    assert [line.get_linestyle() for line in left.lines] == [":", ":"] and not right.lines
    assert not panels(plot_phasing_time(one.assign(solved=False)))[0].lines


# ---- the calibration of phasing ----


# --- a known molecule ---


def segments(ax):
    return np.concatenate([np.array(lines.get_segments()).reshape(-1, 2, 2) for lines in ax.collections
                           if isinstance(lines, LineCollection)])


def test_conformers_are_laid_over_each_other():
    (molecule, _), = read_molecules("CC(=O)Nc1ccc(O)cc1")
    left, right = plot_conformers(molecule).axes
    assert left.get_title() == "C8H9NO2, 2 torsions to turn" and left.images[0].get_array().shape[2] in (3, 4)
    assert len(segments(right)) == 11 * len(molecule.conformers) and right.get_xlabel() == "Å"
    given = from_geometry(["C", "O"], [[0, 0, 0], [1.43, 0, 0]], "given")
    left, right = plot_conformers(given).axes
    assert not left.images and np.linalg.norm(np.diff(segments(right)[0], axis=0)) == pytest.approx(1.43)


def test_the_search_shows_each_placement_where_its_amplitudes_put_it():
    F = np.array([1.0, 2.0, 4.0, 3.0])
    made = [SimpleNamespace(amplitude=a, r1=r1, fresh=fresh) for a, r1, fresh in
            ((5 * F, 0.05, True), (F[::-1], 0.5, False), (F + 1, 0.2, True))]
    fig = plot_search([made[1:], made[:1]], F, lambda p: p.r1 < 0.1)
    points = {line.get_label(): line.get_xydata() for line in fig.axes[0].lines}
    np.testing.assert_allclose(points["the published structure, from a random start"], [[2, 1]])
    np.testing.assert_allclose(points["another one, from a random start"], [[1, 1]])
    np.testing.assert_allclose(points["another one, from a changed placement"], [[1.45, np.corrcoef(F, F[::-1])[0, 1]]])
    assert fig.axes[1].lines[0].get_ydata() == [0.05] and fig.axes[1].get_ylabel() == "R1"


def test_packing_has_every_molecule_of_the_cell_once():
    # bonds: atoms + rings - 1; the second sits on inversion centres
    for name, molecules, bonds in (("paracetamol", 4, 11 + 1 - 1), ("biphenylyl_diimine", 2, 30 + 4 - 1)):
        crystal = read_cif(locate(f"data/molecules/{name}.cif"))
        fig = plot_packing(crystal)
        for ax in fig.axes:
            assert len(segments(ax)) == molecules * bonds, name
    # a monoclinic cell seen along b: its outline has the angle and lengths of the cell
    crystal = read_cif(locate("data/molecules/paracetamol.cif"))
    along = {ax.get_title(): ax for ax in plot_packing(crystal).axes}
    x = along["along b"].lines[0].get_xydata()
    edges = x[1] - x[0], x[3] - x[0]
    assert [np.linalg.norm(e) for e in edges] == pytest.approx([crystal.cell.c, crystal.cell.a])
    cos = edges[0] @ edges[1] / crystal.cell.a / crystal.cell.c
    assert cos == pytest.approx(np.cos(np.radians(crystal.cell.beta)), abs=1e-6)


def test_the_overlay_says_how_far_each_atom_is():
    crystal = read_cif(locate("data/molecules/paracetamol.cif"))
    moved = crystal.fract.copy()
    orth = np.array(crystal.cell.orth.mat.tolist())
    moved[3] += np.linalg.inv(orth) @ [0.3, 0, 0]
    rot, tran = 1 - moved, 0.5  # in another hand and origin, which P 21/n allows
    found = SimpleNamespace(fract=rot + tran, elements=crystal.elements)
    left, right = plot_overlay(found, crystal).axes
    heights = [bar.get_height() for bar in right.patches]
    assert len(heights) == 11 and max(heights) == pytest.approx(0.3, abs=1e-3) and np.median(heights) < 1e-6
    assert right.get_ylabel().endswith("Å") and len(segments(left)) == 22


def test_success_against_torsions():
    table = pd.DataFrame({"d_min": 2.0, "torsions": [2, 2, 16, 16], "solved": [True, True, True, False],
                          "seconds": [1.0, 2.0, 30.0, 60.0]})
    left, right = plot_torsions(table).axes
    assert left.lines[0].get_xydata().tolist() == [[2, 100], [16, 50]] and left.get_xlabel() == "torsions"
    assert right.lines[0].get_ydata().tolist() == [1, 2, 30] and right.lines[1].get_xydata().tolist() == [[16, 60]]


def test_calibration_shows_shares_counts_and_thresholds():
    found = {"calibration": [{"low": 0, "high": 0.5, "n": 20, "right": 5, "mean": 0.2}, {"low": 0.5, "high": 0.9, "n": 0,
                              "right": 0, "mean": None}, {"low": 0.9, "high": 1, "n": 50, "right": 50, "mean": 0.97}],
             "histogram": {"right": [5, 50], "wrong": [15, 0], "hopeless": [9, 0]},
             "thresholds": {"not solved": 0.1, "solved": 0.9}}
    fig = plot_calibration(found)
    left, right = panels(fig)
    assert (left.get_xlabel(), left.get_ylabel()) == ("probability given", "share that was right")
    promised, points = left.lines[0], next(line for line in left.lines if line.get_marker() == "o")
    np.testing.assert_allclose(promised.get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_allclose(points.get_xydata(), [[0.2, 0.25], [0.97, 1.0]])
    assert [text.get_text() for text in left.texts] == ["20", "50"]
    bars = left.collections[0].get_segments()
    # Wilson: the middle (k + z²/2) / (n + z²), half of the width (k (n - k) / n + z²/4)^1/2 / (n + z²), z = 1
    assert [[y for _, y in bar] for bar in bars] == [pytest.approx([5.5 / 21 - 2 / 21, 5.5 / 21 + 2 / 21]),
                                                     pytest.approx([50 / 51, 1])]
    assert [text.get_text() for text in right.texts] == ["not solved", "solved"]
    assert texts(right.get_legend()) == ["right", "wrong", "hopeless"] and right.get_ylabel() == "cases"
    assert [patch.get_data().values.tolist() for patch in right.patches] == [[5, 50], [15, 0], [9, 0]]
    assert_nothing_is_cut_off(fig)


def test_the_stored_calibration_is_drawn():
    fig = plot_calibration()
    assert len(panels(fig)[0].texts) > 3
    assert_nothing_is_cut_off(fig)


# ---- the widget ----

def test_browser_draws_at_once_and_again_at_every_choice(boxes, monkeypatch):
    drawn = []

    def draw(*args):
        drawn.append((args, plot_extension(*args)))
        return drawn[-1][1]

    monkeypatch.setattr(viewer, "plot_extension", draw)
    for row, last in enumerate((5, 3, 6)):  # where the reflections of each end
        boxes.target[row, :, :, last + 1:], boxes.target[row, 0, 0, last] = False, True
        boxes.absent[row, 0, 0, last] = False
    predictions = {"UNet": np.zeros((3, *BOX.shape)), "zero fill": np.ones((3, *BOX.shape))}
    widget = browse_layers(predictions, boxes, ["first", "second", "second"])
    assert len(drawn) == 1, "without a click"
    model, crystal, l = widget.children[:3]
    assert list(model.options) == ["UNet", "zero fill"]
    assert [name for name, _ in crystal.options] == ["first", "second", "second"]
    assert (l.min, l.max) == (0, 5)
    model.value, crystal.value, l.value = "zero fill", 2, 5
    assert (l.min, l.max) == (0, 6) and bytes(widget.children[3].value[:4]) == b"\x89PNG"
    assert [(args[0] is predictions["zero fill"], args[2], args[3]) for args, _ in drawn] == [
        (False, 0, 1), (True, 0, 1), (True, 2, 1), (True, 2, 5)]
    assert all(args[1] is boxes for args, _ in drawn)
    assert drawn[-1][1].get_suptitle() == "second, zero fill:  l = 5"
    crystal.value = 1
    assert (l.value, l.max) == (3, 3), "no slide beyond its data"


def test_what_is_absent_is_not_drawn_as_measured(boxes):
    boxes.measured[0, 2, 3, 1] = boxes.target[0, 2, 3, 1] = boxes.absent[0, 2, 3, 1] = True
    for ax in panels(plot_extension(np.ones((3, *BOX.shape)), boxes, 0, 1)):
        assert np.isnan(np.ma.filled(ax.images[0].get_array(), np.nan)[3, 2])


# ---- a plane: notebooks 00 and 11 ----

BASIS = np.array([[7.0, 0], [-1.5, 5.0]])  # Å, an oblique cell
TILTED = gemmi.UnitCell(7.1, 8.3, 9.7, 81, 95, 104)


def test_a_plane_is_drawn_with_each_point_of_the_map_at_its_place():
    rho = np.zeros((10, 12))
    rho[3, 9] = 2.0
    fig = plot_planes({"first": rho, "second": rho / 2}, BASIS, "height / m", {"atoms": [[1.3, 0.75]]})
    for ax, highest in zip(fig.axes[:2], (2.0, 1.0)):
        (mesh,) = ax.collections
        values, corners = mesh.get_array(), mesh.get_coordinates()
        row = np.unravel_index(values.argmax(), values.shape)
        middle = corners[row[0]:row[0] + 2, row[1]:row[1] + 2].mean(axis=(0, 1))
        np.testing.assert_allclose(middle, [0.3 * 7 - 0.75 * 1.5, 0.75 * 5])
        assert values.max() == highest and mesh.get_clim() == (0, 2), "one scale for all maps"
        np.testing.assert_allclose(np.ravel(ax.lines[-1].get_data()), [0.3 * 7 - 0.75 * 1.5, 0.75 * 5])
        assert ax.get_aspect() == 1
    assert [ax.get_xlabel() for ax in fig.axes[:2]] == ["Å", "Å"] and fig.axes[2].get_ylabel() == "height / m"


def test_reflections_of_a_plane_stand_at_their_reciprocal_place_with_phases_on_a_circle():
    h = np.array([[0, 0], [2, 1], [-2, -1]])
    fig = plot_reciprocal_plane(h, np.array([20, 3j, -3j]), BASIS, [1.5])
    (points,) = fig.axes[0].collections
    np.testing.assert_allclose(points.get_offsets() @ BASIS.T, [[2, 1], [-2, -1]], atol=1e-12)  # s·a = h, s·b = k
    np.testing.assert_allclose(points.get_array(), [90, -90])
    assert points.get_cmap().name == "twilight" and points.get_clim() == (-180, 180)
    (circle,) = fig.axes[0].patches
    assert circle.radius == pytest.approx(1 / 1.5)


def test_a_film_says_r_and_phase_error_of_each_map():
    history = pd.DataFrame({"R": [0.5, 0.4, 0.1], "error": [80.0, 40.0, 10.0]})
    fig = plot_film({0: np.eye(8), 2: 2 * np.eye(8)}, history, BASIS)
    assert [ax.get_title() for ax in fig.axes[:2]] == ["cycle 0\nR 0.50, 80°", "cycle 2\nR 0.10, 10°"]
    assert {ax.collections[0].get_clim() for ax in fig.axes[:2]} == {(0, 2)}
    for ax, column in zip(fig.axes[2:], ("R", "error")):
        np.testing.assert_allclose(ax.lines[0].get_ydata(), history[column])
        np.testing.assert_allclose(ax.lines[1].get_xydata(), [[0, history[column][0]], [2, history[column][2]]])


def test_a_section_is_a_plane_of_the_density():
    rho = np.zeros((10, 12, 14))
    rho[3, 6, 7] = 1
    fig = plot_section(rho, TILTED, 1, 0.5)
    mesh, line = fig.axes[0].collections[0], fig.axes[0].lines[0]
    assert np.unravel_index(mesh.get_array().argmax(), (11, 15)) == (3, 7)
    a, _, c = line.get_xydata()[[1, 2, 3]]  # of the outline
    assert np.linalg.norm(a) == pytest.approx(7.1) and np.linalg.norm(c) == pytest.approx(9.7)
    assert np.degrees(np.arccos(a @ c / 7.1 / 9.7)) == pytest.approx(95)
    assert fig.axes[0].get_title() == "a and c, at y = 0.50"
    assert not plot_section(rho, TILTED, 1, 0.9).axes[0].collections[0].get_array().any()


def test_density_between_the_points_is_the_wave_that_was_sampled():
    x = np.stack(np.meshgrid(*[np.arange(n) / n for n in (24, 28, 32)], indexing="ij"), axis=-1)
    at = interpolate(np.cos(2 * np.pi * (x @ [1, -1, 2])), TILTED)
    fract = np.random.default_rng(0).random((50, 3))
    xyz = np.array([TILTED.orthogonalize(gemmi.Fractional(*f)).tolist() for f in fract])
    np.testing.assert_allclose(at(xyz), np.cos(2 * np.pi * (fract @ [1, -1, 2])), atol=2e-3)


def test_a_density_to_each_resolution_says_from_how_many_reflections():
    crystal = read_cif(locate("data/molecules/glycylglycine_high_pressure.cif"))
    fig = plot_resolutions(crystal, [2.5, 1.6])
    for ax, d_min in zip(fig.axes, (2.5, 1.6)):
        n = len(gemmi.make_miller_array(crystal.cell, crystal.spacegroup, d_min, 0, True))
        assert ax.get_title().startswith(f"$d_{{min}}$ = {d_min} Å, {n} reflections") and ax.collections
    assert fig.axes[0].get_ylabel() == "Å"


# ---- what is looked around in ----


def png(widget):
    return bytes(widget.children[-1].value)


def test_sliders_draw_at_once_and_again():
    crystal = read_cif(locate("data/molecules/glycine_alpha_high_pressure.cif"))
    widget = browse_resolution(crystal, best=1.5)
    first = png(widget)
    widget.children[0].value = 3.0
    assert first.startswith(b"\x89PNG") and png(widget).startswith(b"\x89PNG") and png(widget) != first
    rho = np.random.default_rng(0).random((8, 9, 10))
    widget = browse_sections(rho, crystal.cell)
    seen = [png(widget)]
    still = widget._repr_mimebundle_()  # what is displayed, and what a page without a kernel shows of it
    assert "application/vnd.jupyter.widget-view+json" in still and base64.b64decode(still["image/png"]) == seen[0]
    widget.children[1].value = 0.5
    seen.append(png(widget))
    widget.children[0].value = 0
    assert len({*seen, png(widget)}) == 3 and not plt.get_fignums()


def test_a_page_without_a_kernel_says_that_there_is_a_button():
    picker, shown = choose_files()
    assert shown.children == (picker,) and "button" in shown._repr_mimebundle_()["text/html"]


def shown_by(html):
    """What a page of ``turn_molecules`` draws."""
    page = unescape(re.search('srcdoc="(.*?)"></iframe>', html.data, re.DOTALL).group(1))
    assert not re.search("https?:|src=", page), "no network"
    return page, json.loads(re.search(r"const shown = (\{.*?\}), canvas", page).group(1))


def test_molecules_to_turn_keep_their_distances_and_their_hand():
    crystal = read_cif(locate("data/molecules/ornithine_hydrochloride.cif"))
    _, shown = shown_by(turn_molecules(crystal))
    number = {label: i for i, label in enumerate(shown["label"]) if label}
    assert len(shown["xyz"]) == len(crystal.elements) and len(number) == crystal.heavy.sum()
    names = [f"{e}{crystal.elements[:i].count(e) + 1}" for i, e in enumerate(crystal.elements)]
    rows = [names.index(name) for name in ("C1", "C2", "N1", "O1")]

    def volume(xyz):
        return np.linalg.det(xyz[1:] - xyz[0])
    place = np.array([shown["xyz"][number[names[i]]] for i in rows])
    xyz = np.array([crystal.cell.orthogonalize(gemmi.Fractional(*crystal.fract[i])).tolist() for i in rows])
    assert volume(place) == pytest.approx(volume(xyz), abs=0.02), "P 21 has no mirror images"
    longest = max(np.linalg.norm(np.subtract(*(shown["xyz"][k] for k in bond))) for bond in shown["bonds"])
    assert 1.4 < longest < 1.9


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_molecules_turn_as_they_are_dragged():
    """The page's own code with a canvas that counts: dragged to the right by 157 pixels, a quarter of a turn."""
    page, shown = shown_by(turn_molecules(read_cif(locate("data/molecules/hydantoin.cif"))))
    script = re.search("<script>(.*)</script>", page, re.DOTALL).group(1)
    stub = """const drawn = [];
      const brush = new Proxy({}, {get: (_, name) => (...a) => drawn.push([name, ...a]), set: () => true});
      const document = {querySelector: () => ({getContext: () => brush, setPointerCapture: () => 0})};"""
    check = """; const arcs = drawn.filter(x => x[0] == "arc").length; const before = xyz;
      canvas.onpointerdown({clientX: 0, clientY: 0}); canvas.onpointermove({clientX: 50 * Math.PI, clientY: 0});
      console.log(JSON.stringify({arcs, before, after: xyz, again: drawn.filter(x => x[0] == "arc").length}));"""
    out = json.loads(subprocess.run(["node", "-e", stub + script + check], capture_output=True, text=True, check=True).stdout)
    assert out["arcs"] == len(shown["xyz"]) and out["again"] == 2 * out["arcs"]
    x, y, z = np.array(out["before"]).T
    np.testing.assert_allclose(out["after"], np.stack([z, y, -x], axis=1), atol=1e-9)  # what was in front is at the right


def test_a_download_holds_the_file(tmp_path):
    (tmp_path / "a&b.res").write_bytes(b"TITL \xc3\xa9\n")
    html = download_link(tmp_path / "a&b.res").data
    assert 'download="a&amp;b.res"' in html
    assert base64.b64decode(re.search("base64,([^\"]*)", html).group(1)) == b"TITL \xc3\xa9\n"


def test_an_upload_is_kept_in_its_folder_only(tmp_path):
    def chosen(*names):
        return [{"name": name, "content": memoryview(name.encode())} for name in names]

    assert keep_upload(chosen("job.ins", "../../job.hkl"), tmp_path / "kept") == tmp_path / "kept" / "job.hkl"
    assert (tmp_path / "kept" / "job.hkl").read_bytes() == b"../../job.hkl"
    assert {path.name for path in tmp_path.rglob("*.*")} == {"job.ins", "job.hkl"}
    assert keep_upload(chosen("job.cif", "job.mtz"), tmp_path).name == "job.mtz"
    with pytest.raises(UserError, match="job.ins: none of these hold reflections"):
        keep_upload(chosen("job.ins"), tmp_path)
    with pytest.raises(UserError, match="several of these"):
        keep_upload(chosen("a.hkl", "b.hkl"), tmp_path)
