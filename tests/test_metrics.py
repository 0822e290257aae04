"""Scores by hand on a box of a few reflections, and in closed form by Wilson statistics."""

from math import erfc, exp, pi, sqrt

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from box_makers import recipe, simulated
from xrd_helpers import baselines, metrics, wilson
from xrd_helpers.gridding import AmplitudeBoxes

# hand-worked box: voxel -> (true F, what is predicted, kind); 7 voxels an axis, the least that SSIM takes
SHAPE = (7, 7, 7)
HAND = {(1, 0, 0): (1.0, 0.3, "measured"), (0, 2, 1): (0.8, 9.0, "measured"),
        (3, 0, 2): (0.4, 0.3, "extension"), (4, 3, 3): (0.2, 0.5, "extension"), (5, 1, 6): (0.6, 0.5, "extension"),
        (2, 4, 0): (0.4, 7.0, "redundant"), (6, 6, 1): (0.0, 0.1, "absent"), (6, 6, 6): (0.0, 0.3, "beyond d_target")}


def hand_boxes():
    F, pred, d = np.zeros((1, *SHAPE)), np.zeros((1, *SHAPE)), np.full((1, *SHAPE), 0.5)
    mask = {kind: np.zeros((1, *SHAPE), bool) for kind in ("measured", "extension", "redundant", "absent", "beyond d_target")}
    for i, (voxel, (true, predicted, kind)) in enumerate(HAND.items()):
        F[0][voxel], pred[0][voxel], mask[kind][0][voxel] = true, predicted, True
        d[0][voxel] = {"measured": 2.0, "beyond d_target": 0.7}.get(kind, 1.0) + 0.01 * i
    tensor = torch.as_tensor
    return pred, AmplitudeBoxes(
        box=None, F=tensor(F), scale=torch.ones(1), measured=tensor(mask["measured"]), target=tensor(d >= 0.8),
        absent=tensor(mask["absent"]), redundant=tensor(mask["redundant"][0]), d=tensor(d),
        epsilon=torch.ones(1, *SHAPE, dtype=torch.float64))


@pytest.fixture
def p21c():
    return recipe("P 1 21/c 1")


def test_scores_by_hand():
    """Extension: true .4 .2 .6, predicted .3 .5 .5. Other errors: absent .1, beyond .3. Wrong measured and redundant
    predictions cost nothing."""
    pred, boxes = hand_boxes()
    row = metrics.score(pred, boxes).iloc[0]
    assert tuple(row.index) == metrics.SCORES
    # 343 voxels less the redundant one
    assert row.mse_box == pytest.approx((0.1**2 + 0.3**2 + 0.1**2 + 0.1**2 + 0.3**2) / 342, rel=1e-12)
    # the box without its redundant 0.4: 1 + .8 + .4 + .2 + .6
    assert row.r_all == pytest.approx((0.1 + 0.3 + 0.1 + 0.1 + 0.3) / 3.0, rel=1e-12)
    assert row.r_ext == pytest.approx((0.1 + 0.3 + 0.1) / 1.2, rel=1e-12)
    # deviations from the means .4 and .4333: (0, -.2, .2) and (-.1333, .0667, .0667)
    assert row.cc_ext == pytest.approx(0, abs=1e-12)


def test_correlation_by_hand():
    """Deviations (-1, 0, 1) and (-4, -1, 5) / 3: 9 / 3 / sqrt(2 · 42 / 9)."""
    pred, boxes = hand_boxes()
    assert metrics.correlation(np.array([1.0, 2, 3]), np.array([0.0, 1, 3])) == pytest.approx(3 / sqrt(2 * 42 / 9))
    for value, expected in ((0.6, 3 / sqrt(2 * 42 / 9)), (-0.6, -3 / sqrt(2 * 42 / 9))):
        for voxel, x in zip(((4, 3, 3), (3, 0, 2), (5, 1, 6)), (0, 1, 3)):  # true .2 .4 .6
            pred[0][voxel] = 2 + value * x
        assert metrics.score(pred, boxes).cc_ext[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e-3, 7.3])
def test_a_constant_correlates_with_nothing(constant):
    x = np.random.default_rng(0).random(1000)
    assert metrics.correlation(np.full(1000, constant), x) == metrics.correlation(x, np.full(1000, constant)) == 0


def test_the_truth_scores_perfectly():
    _, boxes = hand_boxes()
    row = metrics.score(boxes.F.numpy(), boxes).iloc[0]
    assert row.mse_box == row.r_all == row.r_ext == 0
    assert row.cc_ext == pytest.approx(1) and row.ssim == pytest.approx(1)


def test_measured_and_redundant_predictions_count_nowhere_absent_ones_in_the_box_only():
    pred, boxes = hand_boxes()
    before = metrics.score(pred, boxes).iloc[0]
    for kind in ("measured", "redundant"):
        other = pred.copy()
        for voxel, (_, _, its_kind) in HAND.items():
            other[0][voxel] += 5 * (its_kind == kind)
        assert metrics.score(other, boxes).iloc[0].equals(before), kind
    for kind in ("absent", "beyond d_target"):
        other = pred.copy()
        for voxel, (_, _, its_kind) in HAND.items():
            other[0][voxel] += 5 * (its_kind == kind)
        after = metrics.score(other, boxes).iloc[0]
        assert after.mse_box > before.mse_box and after.r_all > before.r_all and after.ssim < before.ssim
        assert after[["r_ext", "cc_ext", "cc_e"]].equals(before[["r_ext", "cc_ext", "cc_e"]]), kind


def test_ssim_is_that_of_scikit_image_on_the_box(p21c):
    _, boxes = p21c
    pred = boxes.F.double().numpy() * np.random.default_rng(0).uniform(0.5, 1.5, boxes.F.shape)
    pred[:, boxes.redundant.numpy()] = 3
    scores = metrics.score(pred, boxes)
    for i in range(3):
        true, given = boxes.F[i].double().numpy(), pred[i].copy()
        keep = (boxes.measured[i] | boxes.redundant).numpy()
        given[keep] = true[keep]
        assert scores.ssim[i] == pytest.approx(structural_similarity(given, true, data_range=1.0), rel=1e-12)


@pytest.mark.parametrize("side, window", [(5, 5), (6, 5), (7, 7), (8, 7), (9, 7)])
def test_the_window_of_ssim_is_odd_and_fits_the_box(side, window):
    """Of 7 voxels as scikit-image has it by default, or the largest odd number that a small cell's box has room for."""
    rng = np.random.default_rng(side)
    F, pred = rng.random((2, 1, side, 10, 11))
    none = torch.zeros(F.shape, dtype=torch.bool)
    boxes = AmplitudeBoxes(box=None, F=torch.as_tensor(F), scale=torch.ones(1), measured=none, target=~none, absent=none,
                           redundant=none[0], d=torch.as_tensor(rng.uniform(0.8, 1.5, F.shape)), epsilon=torch.ones(F.shape))
    assert metrics.score(pred, boxes).ssim[0] == pytest.approx(
        structural_similarity(pred[0], F[0], data_range=1.0, win_size=window), rel=1e-12)


def test_score_takes_tensors_and_gives_a_row_a_crystal(p21c):
    _, boxes = p21c
    table = metrics.score(boxes.F_in, boxes)
    assert len(table) == len(boxes) and table.notna().all(axis=None)
    assert table.r_ext.to_numpy() == pytest.approx(1) and (table.cc_ext == 0).all() and (table.cc_e == 0).all()


def test_cc_e_tells_the_truth_from_a_fall_off(p21c):
    _, boxes = p21c
    true, d = boxes.F.double().numpy(), boxes.d.double().numpy()
    with np.errstate(divide="ignore"):
        fall_off = np.exp(-3 / d**2)
    assert metrics.score(true, boxes).cc_e.to_numpy() == pytest.approx(1, abs=1e-9)
    # Wilson-like scale and fall-off on the truth change no E
    assert metrics.score(true * 3 * fall_off, boxes).cc_e.min() > 0.98
    row = metrics.score(fall_off, boxes)
    assert abs(row.cc_e.mean()) < 0.03 and row.cc_e.abs().max() < 0.15  # 1 / sqrt(1000 reflections) a crystal is 0.03
    assert row.cc_ext.mean() > 0.3                                  # which the plain correlation takes for knowledge
    # strong where the truth is weak
    opposite = np.zeros_like(true)
    for i in range(len(boxes)):
        extension = boxes.extension[i].numpy()
        E = wilson.normalize(true[i][extension], d[i][extension], boxes.epsilon[i].double().numpy()[extension])
        opposite[i][extension] = fall_off[i][extension] * np.clip(4 - E, 0, None)
    assert metrics.score(opposite, boxes).cc_e.max() < -0.85


def test_r_by_resolution_is_r_of_each_shell(p21c):
    _, boxes = p21c
    pred = baselines.shell_permuted(boxes, seed=3)
    table = metrics.r_by_resolution(pred, boxes, 4)
    extension = boxes.extension.numpy()
    d, F, G = (x[extension].astype(float) for x in (boxes.d.numpy(), boxes.F.numpy(), pred))
    parts = np.array_split(np.argsort(-d, kind="stable"), 4)
    for (_, row), part in zip(table.iterrows(), parts):
        # the ends of the shells may differ by one reflection in ten thousand
        assert row.r_ext == pytest.approx(np.abs(F - G)[part].sum() / F[part].sum(), rel=1e-3)
        assert row.d == pytest.approx(np.mean(d[part] ** -2.0) ** -0.5, rel=1e-4)
    assert table.d.is_monotonic_decreasing and len(table) == 4


def test_the_best_constant_has_the_r_of_wilson_statistics():
    """R of the mean: 2 erfc(√π/2) = 0.420 for acentric, 2 (exp(-1/π) - erfc(1/√π)) = 0.605 for centric amplitudes."""
    for kind, expected in (("acentric", 2 * erfc(sqrt(pi) / 2)), ("centric", 2 * (exp(-1 / pi) - erfc(1 / sqrt(pi))))):
        d, mean, intensity = simulated(kind)
        F = np.sqrt(intensity / mean)
        assert metrics.r_factor(np.full(len(F), F.mean()), F) == pytest.approx(expected, abs=0.01)
    assert metrics.r_factor(np.array([3.0, 1.0]), np.array([1.0, 4.0])) == 1.0  # (2 + 3) / 5
