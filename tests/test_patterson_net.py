"""PattersonNet against direct Fourier sums over the whole sphere, and what it must not depend on."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from torch.nn import functional as nnf

from makers import make_crystal
from xrd_helpers.config import UserError
from xrd_helpers.gridding import BOXES, OWN, AmplitudeBoxes, Box, amplitude_boxes, to_box_setting
from xrd_helpers.inference import extend
from xrd_helpers.models.patterson_net import Block, Fold, PattersonMap, PattersonNet, grid_points
from xrd_helpers.reflections import Measured, unique_hkl
from xrd_helpers.simulate import Faults
from xrd_helpers.sources import Generated
from xrd_helpers.structure_factors import structure_factors
from xrd_helpers.training import Budget, Device, fit, train
from xrd_helpers.weights import load_model, predict, save_model
from xrd_helpers.wilson import ShellMean, normalize

MEAN = ShellMean(s2=np.linspace(0.02, 1.55, 40), curve=0.3 * np.exp(-np.outer([1, 0.8], np.linspace(0.02, 1.55, 40))),
                 B=(3.0, 2.0), sigma_B=1.0)
D = dict(d_input=2.2, d_target=1.4)
GROUPS = {"P 1 21/c 1": (7.3, 9.1, 8.4, 90, 111, 90), "P 1 21 1": (6.1, 8.3, 6.2, 90, 103, 90),
          "C 1 2/c 1": (8.3, 7.1, 9.4, 90, 107, 90), "P 1 n 1": (6.3, 7.1, 9.4, 90, 98, 90)}
OTHERS = {"P -1": (6.1, 7.4, 8.3, 81, 103, 111), "P 21 21 21": (6.4, 7.7, 9.1, 90, 90, 90),
          "R -3": (11.2, 11.2, 7.3, 90, 90, 120), "P 41 21 2": (7.3, 7.3, 9.8, 90, 90, 90),
          "I 1 1 2/b": (8.3, 9.4, 7.1, 90, 90, 107)}


def crystal(name, seed=0):
    return make_crystal("CCCNOO", name, (GROUPS | OTHERS)[name], u=0.04, seed=seed, name=name)


def boxes_of(*names, **settings):
    return AmplitudeBoxes.from_crystals([crystal(name, i) for i, name in enumerate(names)], **(D | settings))


def own(name, **settings):
    """In a box of its own, as crystals of any symmetry are."""
    found, = amplitude_boxes([crystal(name)], OWN, **(D | settings))
    return found


def network(seed=0, **choices):
    """One whose heads do something, as after a training."""
    torch.manual_seed(seed)
    model = PattersonNet(PattersonNet.Config(channels=4, blocks=1, d_target=1.4, **choices))
    model.start_from(lambda: MEAN)
    for head in model.head:
        torch.nn.init.normal_(head.weight, std=0.3)
    return model.eval()


def sphere(boxes, values, i=0):
    """(hkl (m, 3), values (m,)) of crystal i over the whole sphere, from values (n,) of the box, by gemmi's operators."""
    found, ops = {}, boxes.samples[i].spacegroup.operations().sym_ops
    for hkl, value in zip(boxes.box.hkl.tolist(), values):
        for op in ops:
            if not np.isnan(value):
                image = op.apply_to_hkl(hkl)
                found[tuple(image)] = found[tuple(-x for x in image)] = value
    return np.array(list(found)), np.array(list(found.values()))


@pytest.mark.parametrize("name", [*GROUPS, *OTHERS])
def test_the_map_is_the_transform_of_the_measured_sphere(name):
    boxes = own(name)
    found = PattersonMap(boxes, 0, MEAN, 1.4)
    group = boxes.samples[0].spacegroup.operations()
    box, F, absent = boxes.box, boxes.F[0].flatten().double().numpy(), boxes.absent[0].flatten().numpy()
    measured, once = boxes.measured[0].flatten().numpy(), ~boxes.redundant.flatten().numpy()
    epsilon = group.epsilon_factor_without_centering_array(np.where((box.hkl == 0).all(1)[:, None], 1, box.hkl).astype("i4"))
    use = measured & once & ~absent
    E2 = np.zeros(len(F))
    E2[use] = normalize(F[use], boxes.d[0].flatten().double().numpy()[use], epsilon[use], max(3, min(10, use.sum() // 20))) ** 2
    values = np.where(absent, -1, epsilon * E2 - 1)
    lattice = gemmi.GroupOps([gemmi.Op().translated(list(t)) for t in group.cen_ops])
    inside = measured & once & ~np.array(lattice.systematic_absences(box.hkl.astype("i4")), bool)
    hkl, values = sphere(boxes, np.where(inside, values, np.nan))
    rho = found.to_map()[0, 0].numpy()
    x, y, z = (np.array(found.size) // 2).tolist()
    folded = {"P -1": (x + 1, 2 * y, 2 * z), "R -3": (x + 1, 2 * y, 2 * z), "P 21 21 21": (x + 1, y + 1, z + 1),
              "P 41 21 2": (x + 1, y + 1, z + 1), "I 1 1 2/b": (x + 1, 2 * y, z + 1)}
    assert rho.shape == folded.get(name, (x + 1, y + 1, 2 * z))
    for point in ((0, 0, 0), (1, 2, 3), (4, 0, 5), (2, 5, 1), (3, 3, rho.shape[2] - 1)):
        direct = (values * np.cos(2 * np.pi * hkl @ (np.array(point) / found.size))).sum() / np.sqrt(2 * len(found.inner))
        assert rho[point] == pytest.approx(direct, abs=2e-4)


@pytest.mark.parametrize("name", [*GROUPS, *OTHERS])
def test_a_map_of_what_is_beyond_comes_back_from_the_sphere(name):
    """The transform of a map that holds the measured values and E² beyond is, beyond, ε E² - 1 up to the map's factor."""
    boxes = own(name)
    found = PattersonMap(boxes, 0, MEAN, 1.4)
    by_voxel = torch.rand(len(boxes.box.hkl), generator=torch.Generator().manual_seed(1)) * 3
    by_voxel = by_voxel[torch.as_tensor(boxes.box.index(boxes.box.hkl))]  # equivalent voxels are equal
    lattice = gemmi.GroupOps([gemmi.Op().translated(list(t)) for t in boxes.samples[0].spacegroup.operations().cen_ops])
    allowed = ~torch.as_tensor(np.array(lattice.systematic_absences(boxes.box.hkl.astype("i4")), bool))
    E2 = by_voxel[(boxes.target[0] & ~boxes.measured[0]).flatten() & allowed]
    back = found.to_sphere(found.to_map(E2)[0, 0]) * np.sqrt(2 * len(found.inner) / np.prod(found.size))
    assert back.numpy() == pytest.approx((found.epsilon * E2 - 1).numpy(), abs=1e-4)
    assert len(back) == len(E2) > 50


@pytest.mark.parametrize("laue", ["P -1", "P 1 2/m 1", "P 1 1 2/m", "P m m m", "P 4/m", "P -3"])
def test_folding_and_padding_are_the_symmetry_of_the_whole_cell(laue):
    """A map made symmetric by gemmi's operators is folded, comes back whole, and is padded by what surrounds it there."""
    n, rng = (8, 8, 6), np.random.default_rng(0)
    group = gemmi.SpaceGroup(laue).operations()
    whole, drawn = np.zeros(n), rng.random(n)
    for point in np.ndindex(n):
        images = [op.apply_to_xyz((np.array(point) / n).tolist()) for op in group]
        whole[point] = drawn[min(tuple(np.round(np.array(image) * n).astype(int) % n) for image in images)]
    fold = Fold(Box("own", (0, 0, 0), (1, 1, 1), laue).rotations)
    x, y, z = fold.shape(n)
    part = torch.as_tensor(whole)[:x, :y, :z]
    np.testing.assert_array_equal(fold.whole(part), whole)
    padded = fold.pad(part[None, None])[0, 0]
    assert padded.shape == (x + 2, y + 2, z + 2)
    for (x, y, z), value in np.ndenumerate(padded.numpy()):
        assert value == whole[(x - 1) % n[0], (y - 1) % n[1], (z - 1) % n[2]]


def test_harker_vectors_of_a_screw_axis_and_a_glide_plane():
    """P 21/c: the vectors (2x, 1/2, 2z + 1/2) fill a plane, (0, 2y + 1/2, 1/2) a line (International Tables, B 2.3)."""
    found = PattersonMap(boxes_of("P 1 21/c 1"), 0, MEAN, 1.4)
    planes, lines = found.maps[0, -2:].numpy()
    n = found.size
    assert planes[:, n[1] // 2].min() == pytest.approx(1) and planes[:, 0].max() < 1e-6
    assert lines[0, :, n[2] // 2].min() == pytest.approx(1) and lines[:, :, 0].max() < 1e-6


def test_crystals_of_any_symmetry_train_together_each_in_a_box_of_its_own(tmp_path):
    crystals = [crystal(name) for name in ("P -1", "P 21 21 21", "P 1 21/c 1", "R -3")]
    model, boxes = network(), amplitude_boxes(crystals, OWN, **D)

    def loss():
        with torch.no_grad():
            return sum(float(model(part, part)) for part in boxes)
    before = loss()
    history = fit(model, crystals, crystals[:2], Budget(steps=10), Device("cpu"), box=OWN, batch_size=4, lr=3e-3, ema=0,
                  n_validations=2, faults=Faults((1.9, 2.4)), **D)
    assert loss() < 0.97 * before and np.isfinite(history["cc_ext"].iloc[-1])
    with pytest.raises(UserError, match="UNet needs one box for all crystals: choose monoclinic"):
        train("unet", tmp_path / "u.safetensors", Budget(steps=1), box=OWN)


@pytest.mark.parametrize("name", OTHERS)
def test_every_laue_class_is_extended(name):
    boxes, model = own(name), network()
    F = predict(model, boxes)[0]
    known = (boxes.measured & ~boxes.absent)[0].numpy()
    np.testing.assert_array_equal(F[known], boxes.F[0].double().numpy()[known])
    assert (F[boxes.extension[0].numpy()] > 0).all() and boxes.extension.sum() >= 50
    model(boxes, boxes).backward()


def test_without_training_it_is_the_squared_map_and_with_none_of_that_the_mean():
    boxes = boxes_of("P 1 21/c 1")
    model, found = PattersonNet(PattersonNet.Config(channels=4, blocks=1, d_target=1.4)), PattersonMap(boxes, 0, MEAN, 1.4)
    model.start_from(lambda: MEAN)
    F = predict(model, boxes)[0].ravel()[found.voxels]
    expected = found.base * nnf.softplus(0.3 * found.squared()[found.present] + np.log(np.e - 1))
    assert F == pytest.approx(expected.numpy(), rel=1e-4)
    with torch.no_grad():
        model.start.zero_()
    assert predict(model, boxes)[0].ravel()[found.voxels] == pytest.approx(found.base.numpy(), rel=1e-4)
    # the mean differs from the shell mean by what ε and centric reflections do to it, and by nothing on average
    at = MEAN.predict(boxes)[0].ravel()[found.voxels]
    ratio = found.base.numpy() / at
    assert ratio.mean() == pytest.approx(1, abs=0.01) and len(np.unique(ratio.round(4))) == 2  # h0l twice as intense
    assert ratio.max() / ratio.min() == pytest.approx(np.sqrt(2), rel=1e-3)


@pytest.mark.parametrize("name", GROUPS)
def test_what_is_known_without_a_network(name):
    boxes, model = boxes_of(name), network()
    F = predict(model, boxes)[0]
    measured, absent = boxes.measured[0].numpy(), boxes.absent[0].numpy()
    np.testing.assert_array_equal(F[measured & ~absent], boxes.F[0].double().numpy()[measured & ~absent])
    assert (F[absent | ~boxes.target[0].numpy()] == 0).all() and (F >= 0).all()
    assert (F[boxes.extension[0].numpy()] > 0).all()
    flat, same = F.ravel(), boxes.box.index(boxes.box.hkl)
    assert np.abs(flat[same] - flat).max() < 1e-5, "equivalent voxels agree"


def test_what_was_not_measured_is_not_looked_at():
    boxes, model = boxes_of(*GROUPS), network()
    hidden = replace(boxes, F=torch.where(boxes.measured, boxes.F, torch.rand_like(boxes.F)))
    np.testing.assert_array_equal(predict(model, hidden), predict(model, boxes))
    other = replace(boxes, F=boxes.F * (1 + 0.5 * torch.rand_like(boxes.F)))
    assert np.abs(predict(model, other) - predict(model, boxes))[boxes.extension.numpy()].max() > 1e-3


def test_crystals_of_a_batch_do_not_see_each_other():
    boxes, model = boxes_of(*GROUPS), network()
    together = predict(model, boxes)
    for i in range(len(boxes)):
        np.testing.assert_allclose(predict(model, boxes[[i]])[0], together[i], atol=1e-6)


def test_the_scale_of_the_data_does_not_matter():
    boxes, model = boxes_of("P 1 21 1"), network()
    np.testing.assert_allclose(predict(model, replace(boxes, F=7 * boxes.F)), 7 * predict(model, boxes), rtol=1e-3, atol=1e-5)


def test_an_unknown_formula_is_taken_as_carbon():
    boxes = boxes_of("P 1 21/c 1")
    unknown = replace(boxes, samples=tuple(sample._replace(contents={}) for sample in boxes.samples))
    carbon = replace(boxes, samples=tuple(s._replace(contents={"C": s.cell.volume / 4 / 18}) for s in boxes.samples))
    np.testing.assert_allclose(predict(network(), unknown), predict(network(), carbon))


@pytest.mark.parametrize("edge", [3.1, 7.26, 9.99, 20.4])
def test_points_of_the_map(edge):
    n = grid_points(edge, 0.8)
    assert n % 2 == 0 and edge / n <= 0.4 and int(edge / 0.8) < n / 2
    for prime in (2, 3, 5, 7):
        while n % prime == 0:
            n //= prime
    assert n == 1


def test_gradient_reaches_every_parameter():
    boxes, model = boxes_of("P 1 21/c 1", "C 1 2/c 1"), network().train()
    model(boxes, boxes).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_the_loss_by_hand():
    boxes, model = boxes_of("P 1 21/c 1", "P 1 21 1"), network(passes=1)
    F = torch.as_tensor(predict(model, boxes), dtype=torch.float32)
    expected = []
    for i in range(2):
        found = PattersonMap(boxes, i, MEAN, 1.4)
        pred, true = (x[i].flatten()[torch.as_tensor(found.voxels)] for x in (F, boxes.F))
        expected.append(((pred - true) ** 2 / found.base).mean() / found.base.mean())
    with torch.no_grad():
        assert model(boxes, boxes).item() == pytest.approx(float(sum(expected)) / 2, rel=1e-4)


def test_training_learns_and_comes_back_from_its_file(tmp_path):
    crystals = [crystal(name, seed) for name in GROUPS for seed in (1, 2)]
    model, boxes = network(), boxes_of("P 1 21/c 1")
    with torch.no_grad():
        before = float(model(*[AmplitudeBoxes.from_crystals(crystals, **D)] * 2))
    history = fit(model, crystals, crystals[:2], Budget(epochs=8), Device("cpu"), batch_size=4, lr=3e-3, ema=0,
                  n_validations=2, **D)
    with torch.no_grad():
        after = float(model(*[AmplitudeBoxes.from_crystals(crystals, **D)] * 2))
    assert after < 0.97 * before and history["cc_ext"].dropna().between(-1, 1).all()
    save_model(tmp_path / "p.safetensors", "patterson_net", model, box="monoclinic")
    loaded, _ = load_model(tmp_path / "p.safetensors")
    assert loaded.config == model.config
    np.testing.assert_allclose(predict(loaded, boxes), predict(model, boxes), atol=2e-3)
    assert torch.equal(loaded(boxes), loaded(boxes))


def test_parameters_against_the_closed_form():
    def conv(c_in, c_out, n=27):
        return c_in * c_out * n + c_out
    c, blocks = 24, 3
    expected = conv(7, c) + conv(1, c) + 2 * blocks * (2 * conv(c, c) + 1) + 2 * conv(c, 1, 1) + 12 * c + c + 1
    assert sum(p.numel() for p in PattersonNet().parameters()) == expected
    pad = Fold(BOXES["triclinic"].rotations).pad
    assert Block(4)(torch.zeros(1, 4, 5, 6, 6), pad).shape == (1, 4, 5, 6, 6)
    assert BOXES["monoclinic"].shape == (26, 18, 23)


def test_measured_data_are_extended_as_the_crystal_would_be():
    """In P2₁/a with a > c: the box holds it with a and c exchanged."""
    swapped = make_crystal("CCCNOO", "P 1 21/a 1", (8.4, 9.1, 7.3, 90, 111, 90), u=0.04, seed=3)
    hkl = unique_hkl(swapped.cell, swapped.spacegroup, 2.2)
    F = np.abs(structure_factors(swapped, hkl))
    measured = Measured(hkl, F**2, 0.02 * F**2 + 1e-3, swapped.cell, swapped.spacegroup, swapped.contents, 0.7,
                        (Path("made.hkl"),), "made")
    model = network()
    predicted = extend(measured, partial(predict, model), d_target=1.4).predicted
    boxes = AmplitudeBoxes.from_crystals([to_box_setting(swapped)], **D)
    expected = dict(zip(map(tuple, boxes.box.hkl.tolist()), predict(model, boxes)[0].ravel() * float(boxes.scale[0])))
    for (h, k, l), amplitude in zip(predicted.hkl.tolist(), predicted.F):
        image = next(i for i in ((l, -k, h), (l, k, h), (-l, k, -h), (-l, -k, -h)) if i in expected)
        assert amplitude == pytest.approx(expected[image], rel=0.02, abs=0.02)


def test_crystals_of_any_symmetry_are_generated_by_other_processes():
    with Generated(box=OWN, workers=1) as source:
        drawn = source.batch(3, 0, 12, slice(0, 12))
    assert len(drawn) == 12 and len({crystal.spacegroup.laue_str() for crystal in drawn}) > 1
    assert [crystal.name for crystal in drawn] == [c.name for c in Generated(box=OWN, workers=0).batch(3, 0, 12, slice(0, 12))]
