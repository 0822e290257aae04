"""Training: against a loop in plain torch, schedules worked by hand, and crystals that a network has to learn by heart."""

import copy
import math
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import gemmi
import numpy as np
import pandas as pd
import pytest
import torch

from xrd_helpers import ROOT, gridding, training
from xrd_helpers.config import UserError
from xrd_helpers.gridding import AmplitudeBoxes, Box, check_fit, select_fitting
from xrd_helpers.inference import load_model, predict, save_model
from xrd_helpers.models import MODELS, AmplitudeModel, FFTUNet, PattersonNet, UNet, XRDTransformer, base, extension_loss
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.storage import write_crystals
from xrd_helpers.training import (PRECISIONS, Generated, Measurement, Stored, arithmetic, fit, learning_rate,
                                  pick_precision)

TINY = Box("tiny", (-6, 0, 0), (6, 8, 10), "P 1 2/m 1")  # an eighth of the published box, for crystals to 1.8 Å
LIMITS = dict(box=TINY, d_input=3.0, d_target=1.8)
SETTINGS = dict(**LIMITS, batch_size=2, ema=0.0, device="cpu", precision="32-true")
SMALL = {"unet": UNet.Config((8, 16), 16), "fft_unet": FFTUNet.Config((8, 12), 12),
         "xrd_transformer": XRDTransformer.Config(shape=TINY.shape, dim=64, depth=1, mlp_ratio=2, dropout=0.0)}


@pytest.fixture(autouse=True)
def tiny_box(monkeypatch):
    monkeypatch.setitem(gridding.BOXES, "tiny", TINY)


@pytest.fixture(scope="module")
def crystals():
    return select_fitting(random_crystals(12, seed=0), TINY, 1.8)[0]


def new_model(name="unet", config=None, seed=0):
    torch.manual_seed(seed)
    return MODELS[name](config or SMALL[name])


def thin(seed=0):
    return new_model(config=UNet.Config((2, 3), 4), seed=seed)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_loss_is_the_mean_square_over_what_has_to_be_predicted():
    F = torch.tensor([[0.5, 0.4, 0.3, 0.2, 0.0, 0.7, 0.1, 0.6]]).reshape(1, 2, 2, 2)
    F_out = F + torch.tensor([[9., 9., 9., 0.1, -0.2, 9., 0.3, 9.]]).reshape(1, 2, 2, 2)
    mask = [torch.tensor([[c == "1" for c in bits]]).reshape(1, 2, 2, 2)
            for bits in ("10000000",   # measured
                         "10111111",   # target
                         "00100000",   # absent
                         "00000101")]  # redundant
    boxes = AmplitudeBoxes(box=Box("cube", (0, 0, 0), (1, 1, 1), "P -1"), F=F, scale=torch.ones(1), measured=mask[0],
                           target=mask[1], absent=mask[2], redundant=mask[3][0], d=F, epsilon=F)
    np.testing.assert_allclose(extension_loss(F_out, boxes), (0.01 + 0.04 + 0.09) / 3, rtol=1e-5)


@pytest.mark.parametrize("progress, share", [
    (0, 0.001 / 0.051), (0.02, 0.021 / 0.051), (0.05 - 1e-12, 1), (0.05, 1),   # warm-up to the peak
    (0.05 + 0.95 / 2, 0.505), (0.05 + 0.95 / 3, 0.01 + 0.99 * 0.75),           # a half and a third of the way down
    (1, 0.01), (1.7, 0.01)])                                                   # the end, and what lies beyond it
def test_learning_rate_rises_and_falls_to_a_hundredth(progress, share):
    assert learning_rate(progress, 3e-3) == pytest.approx(3e-3 * share, rel=1e-9)


def test_a_step_is_adamw_with_clipping(crystals):
    """Losses of a loop in plain torch. (Not the weights: AdamW makes steps of rounding noise where nothing depends on one.)"""
    model, n_steps, lr = thin(), 8, 3e-2
    copied = copy.deepcopy(model)
    history = fit(model, crystals[:2], None, epochs=n_steps, lr=lr, weight_decay=0.1, **SETTINGS)

    boxes = AmplitudeBoxes.from_crystals(crystals[:2], **LIMITS)
    wanted = boxes.target & ~boxes.measured & ~boxes.absent & ~boxes.redundant
    optimizer, losses, norms = torch.optim.AdamW(copied.parameters(), weight_decay=0.1), [], []
    for step in range(n_steps):
        progress = step / n_steps
        share = 0.001 / 0.051 if step == 0 else 0.01 + 0.99 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95)) / 2
        optimizer.param_groups[0]["lr"] = lr * share
        F_out = copied(boxes)
        loss = ((F_out - boxes.F) ** 2)[wanted].mean()
        gradient = torch.autograd.grad(loss, copied.parameters())
        norms.append(math.sqrt(sum(float((g ** 2).sum()) for g in gradient)))
        for p, g in zip(copied.parameters(), gradient):
            p.grad = g / max(1.0, norms[-1])
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-3)


def test_gradients_are_cut_to_a_norm_of_one(crystals, monkeypatch):
    """A loss a million times larger would throw plain SGD far away; what is cut moves by one learning rate at most."""
    monkeypatch.setattr(base, "extension_loss", lambda F_out, boxes: 1e6 * extension_loss(F_out, boxes))
    monkeypatch.setattr(torch.optim, "AdamW", lambda params, lr, weight_decay: torch.optim.SGD(params, lr=lr))
    model = thin()
    before = weights(model)
    fit(model, crystals[:2], None, lr=0.51, **SETTINGS)
    assert float((weights(model) - before).norm()) == pytest.approx(0.51 * 0.001 / 0.051, rel=1e-3)


@pytest.mark.parametrize("name, steps", [("unet", 60), ("fft_unet", 70), ("xrd_transformer", 200)])
def test_two_crystals_are_learnt_by_heart(name, steps, crystals):
    boxes = AmplitudeBoxes.from_crystals(crystals[:2], **LIMITS)
    spread = float(boxes.F[boxes.extension].var(unbiased=False))  # the loss of the best constant
    model = new_model(name)
    history = fit(model, crystals[:2], None, epochs=steps, lr=4e-3 if name == "xrd_transformer" else 1e-2, **SETTINGS)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] / 5
    with torch.no_grad():
        F_out = model(boxes)
    error = float((F_out - boxes.F)[boxes.extension].square().mean())
    assert error < spread / 2 and error < history["loss"].iloc[0] / 5, "the model that was passed in is the trained one"


def test_the_same_seed_gives_the_same_weights(crystals):
    results = []
    for seed in (7, 7, 8):
        model = new_model("xrd_transformer", XRDTransformer.Config(shape=TINY.shape, dim=8, depth=1, n_heads=2, dropout=0.3))
        torch.rand(len(results) + 1)  # whatever was drawn before does not matter
        history = fit(model, crystals[:5], crystals[5:6], epochs=3, seed=seed, **SETTINGS)
        results.append((weights(model), history.drop(columns="seconds")))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1].equals(results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


def test_every_epoch_takes_each_crystal_once_in_another_order(crystals, monkeypatch):
    seen, build = [], AmplitudeBoxes.from_crystals
    monkeypatch.setattr(AmplitudeBoxes, "from_crystals",
                        lambda batch, *args, **kwargs: seen.append([c.name for c in batch]) or build(batch, *args, **kwargs))
    history = fit(thin(), crystals[:7], None, epochs=3, **SETTINGS)
    assert len(history) == 9 and [len(batch) for batch in seen] == [2] * 9  # the seventh waits for another epoch
    epochs = [sum(seen[i:i + 3], []) for i in (0, 3, 6)]
    assert all(len(set(names)) == 6 for names in epochs)
    assert epochs[0] != epochs[1] and set(sum(epochs, [])) <= {c.name for c in crystals[:7]}


def test_validation_crystals_are_only_looked_at(crystals):
    config = XRDTransformer.Config(shape=TINY.shape, dim=8, depth=1, n_heads=2, dropout=0.3)
    results = {}
    for name, validation in {"none": None, "empty": [], "one": crystals[4:5], "others": crystals[5:8]}.items():
        model = new_model("xrd_transformer", config)
        history = fit(model, crystals[:4], validation, epochs=4, n_validations=4, **SETTINGS)
        results[name] = history
        assert list(history.columns) == ["step", "crystals", "seconds", "loss", "r_ext", "cc_ext"]
        assert torch.equal(weights(model), results.setdefault("weights", weights(model)))
        assert np.array_equal(history["loss"], results["none"]["loss"])
    assert results["none"]["r_ext"].isna().all() and results["empty"]["cc_ext"].isna().all()
    assert list(results["one"]["r_ext"].notna()) == [True, True, False, True, False, True, False, True]
    assert not np.allclose(results["one"]["r_ext"].dropna(), results["others"]["r_ext"].dropna())


def test_history_says_what_happened(crystals):
    model = thin()
    history = fit(model, crystals[:6], crystals[6:8], epochs=2, **SETTINGS)
    assert list(history["step"]) == [1, 2, 3, 4, 5, 6] and list(history["crystals"]) == [2, 4, 6, 8, 10, 12]
    assert (history["seconds"].diff().dropna() > 0).all() and history["seconds"].iloc[0] > 0
    boxes = AmplitudeBoxes.from_crystals(crystals[6:8], **LIMITS)
    with torch.no_grad():
        F_out = model(boxes).numpy()
    r, cc = [], []
    for i in range(2):
        where = boxes.extension[i].numpy()
        pred, true = F_out[i][where].astype(float), boxes.F[i].numpy()[where].astype(float)
        r.append(np.abs(pred - true).sum() / true.sum())
        cc.append(np.corrcoef(pred, true)[0, 1])
    np.testing.assert_allclose(history.iloc[-1][["r_ext", "cc_ext"]].astype(float), [np.mean(r), np.mean(cc)], rtol=1e-4)


def test_the_last_step_is_validated_whatever_the_rounding(crystals):
    assert np.cumsum([1 / 9] * 9)[-1] > 1, "nine ninths, added up, are more than one"
    history = fit(thin(), crystals[:2], crystals[2:3], epochs=18, n_validations=9, **SETTINGS)
    assert np.isfinite(history["r_ext"].iloc[-1])


@pytest.mark.parametrize("n_validation", [0, 1])
def test_the_model_comes_back_ready_to_predict(n_validation, crystals):
    model = thin()
    before = weights(model)
    fit(model, crystals[:2], crystals[2:2 + n_validation], **SETTINGS)
    assert not any(module.training for module in model.modules())
    assert {p.device.type for p in model.parameters()} == {"cpu"} and {p.dtype for p in model.parameters()} == {torch.float32}
    assert not torch.equal(weights(model), before)


def test_the_minutes_end_the_training_and_the_learning_rate_gets_to_its_end(crystals, monkeypatch):
    """A clock that goes on by six seconds a step: one minute is ten steps, whatever the number of epochs."""
    ticks, rates = iter(range(0, 10_000, 6)), []
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(training, "learning_rate", lambda progress, peak: rates.append(progress) or learning_rate(progress, peak))
    history = fit(thin(), crystals[:4], crystals[4:5], epochs=10**6, minutes=1, **SETTINGS)
    assert list(history["seconds"]) == [6, 12, 18, 24, 30, 36, 42, 48, 54, 60]
    np.testing.assert_allclose(rates, np.arange(10) / 10)
    assert np.isfinite(history["r_ext"].iloc[-1]), "the last step is validated"


def test_the_epochs_end_a_training_that_has_time_left(crystals, monkeypatch):
    rates = []
    monkeypatch.setattr(training, "learning_rate", lambda progress, peak: rates.append(progress) or learning_rate(progress, peak))
    assert len(fit(thin(), crystals[:4], None, epochs=4, minutes=60, **SETTINGS)) == 8
    np.testing.assert_allclose(rates, np.arange(8) / 8, atol=1e-2)


def test_too_few_crystals_say_what_to_do(crystals):
    with pytest.raises(UserError, match="^1 crystals .* fewer than one batch of 2: generate more crystals, or lower batch_size$"):
        fit(thin(), crystals[:1], None, **SETTINGS)


def test_a_diverging_training_stops_and_says_so(crystals):
    with pytest.raises(UserError, match=r"the loss is (nan|inf), .* at step \d+: lower lr \(now 1e\+30\)"):
        fit(thin(), crystals[:2], None, epochs=20, lr=1e30, **SETTINGS)


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(crystals, monkeypatch):
    monkeypatch.setattr(base, "extension_loss", lambda F_out, boxes: (F_out - F_out).abs().sqrt().mean())  # 0, slope nan
    model = thin()
    with pytest.raises(UserError, match="the loss is 0.0, its gradient nan, at step 1: lower lr"):
        fit(model, crystals[:2], None, **SETTINGS)
    assert weights(model).isfinite().all()


class Slow(AmplitudeModel):
    """A model that takes its time in one precision."""

    def __init__(self, slow):
        super().__init__()
        self.slow, self.linear = slow, torch.nn.Linear(1, 1)

    def predict(self, boxes):
        x = self.linear(boxes.F_in[..., None])[..., 0]
        time.sleep(0.02 * (x.dtype == self.slow))
        return x.float()


@pytest.mark.parametrize("slow, expected", [(torch.bfloat16, "32-true"), (torch.float32, "bf16-mixed")])
def test_precision_is_the_faster_one_of_the_model_itself(slow, expected, crystals):
    model, threads = Slow(slow), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert pick_precision(model, AmplitudeBoxes.from_crystals(crystals[:2], **LIMITS), "cpu") == expected
        assert torch.get_num_threads() == 3 and all(p.grad is None for p in model.parameters())
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("supported, expected", [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_on_a_gpu_is_what_the_gpu_has(supported, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert pick_precision(thin(), None, "cuda") == pick_precision(thin(), None) == expected


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_in_both_precisions(name, crystals):
    """The amplitudes stay in single precision: what was measured comes back unchanged, and the losses are nearly the same."""
    losses, boxes = [], AmplitudeBoxes.from_crystals(crystals[:2], **LIMITS)
    for precision in PRECISIONS:
        config = {"xrd_transformer": XRDTransformer.Config(shape=TINY.shape, dim=8, depth=1, n_heads=2, dropout=0.0),
                  "patterson_net": PattersonNet.Config(channels=4, blocks=1, d_target=1.8)}
        model = new_model(name, config[name] if name in config else type(SMALL[name])((2, 3), 4))
        losses.append(fit(model, crystals[:2], crystals[2:3], epochs=3, **{**SETTINGS, "precision": precision})["loss"])
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        with torch.no_grad(), arithmetic(precision, "cpu"):
            F_out = model(boxes)
        known = boxes.measured & ~boxes.absent
        assert F_out.dtype == torch.float32 and torch.equal(F_out[known], boxes.F[known])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    assert not losses[1].equals(losses[0]), "one of the two was not done"


def test_a_resumed_training_goes_on_in_its_precision(crystals, tmp_path):
    settings = SETTINGS | dict(checkpoint=tmp_path / "c", checkpoint_minutes=0)
    fit(thin(), crystals[:4], None, epochs=2, **settings | {"precision": "bf16-mixed"})
    fit(thin(), crystals[:4], None, epochs=2, **settings | {"precision": "auto"})
    with pytest.raises(UserError, match="a training with precision bf16-mixed, not 32-true"):
        fit(thin(), crystals[:4], None, epochs=2, **settings)


# --- budgets and limits ---


@pytest.mark.parametrize("budget, n_steps", [
    (dict(steps=5), 5), (dict(n_crystals=7), 3), (dict(steps=5, n_crystals=4), 2), (dict(epochs=2, steps=50), 6),
    (dict(), 3), (dict(steps=4, minutes=60), 4), (dict(epochs=1, n_crystals=50), 3)])
def test_the_first_limit_that_is_reached_ends_the_training(budget, n_steps, crystals):
    assert len(fit(thin(), crystals[:7], None, **budget, **SETTINGS)) == n_steps


def test_without_validations_nothing_is_validated(crystals):
    history = fit(thin(), crystals[:4], crystals[4:6], n_validations=0, **SETTINGS)
    assert len(history) == 2 and history["r_ext"].isna().all()


@pytest.mark.parametrize("change, message", [
    (dict(d_input=1.8), "d_target is 1.8 Å and d_input 1.8 Å"), (dict(d_input=1.2), "d_target is 1.8 Å and d_input 1.2 Å"),
    (dict(d_target=0.0), "d_target is 0 Å and d_input 3 Å"),
    (dict(measurement=Measurement(d_min=(1.8, 3))), "between 1.8 and 3 Å"),
    (dict(measurement=Measurement(d_min=(3, 2.5))), "between 3 and 2.5 Å"),
    (dict(measurement=Measurement(missing=1.0)), "not 1 and 0"), (dict(measurement=Measurement(noise=-1.0)), "not 0 and -1"),
    (dict(steps=-1), "must not be below 0"), (dict(n_crystals=1), "n_crystals 1 is less than one batch of 2")])
def test_what_cannot_be_trained_is_one_sentence(change, message, crystals):
    with pytest.raises(UserError, match=message):
        fit(thin(), crystals[:4], None, **(SETTINGS | change))


# --- running mean of weights ---


def test_the_mean_of_weights_is_that_of_the_steps(crystals, monkeypatch):
    model, steps, step = thin(), [], training._step
    before = weights(model).double()

    def record(fabric, trained, *arguments):
        loss = step(fabric, trained, *arguments)
        steps.append(weights(model).double())
        return loss

    monkeypatch.setattr(training, "_step", record)
    history = fit(model, crystals[:4], crystals[4:5], steps=12, lr=3e-2, **SETTINGS | dict(ema=0.4))
    mean = before
    for n, current in enumerate(steps, 1):  # forgets its start at first: 1/10, 2/11, ... up to 0.4
        decay = min(0.4, n / (n + 9))
        mean = decay * mean + (1 - decay) * current
    assert len(steps) == 12 and (mean - steps[-1]).abs().max() > 1e-3
    np.testing.assert_allclose(weights(model).double(), mean, atol=1e-6)
    boxes = AmplitudeBoxes.from_crystals(crystals[4:5], **LIMITS)
    with torch.no_grad():
        F_out = model(boxes)
    where = boxes.extension
    r = (F_out - boxes.F)[where].abs().sum() / boxes.F[where].sum()
    assert history["r_ext"].iloc[-1] == pytest.approx(float(r), rel=1e-4), "the mean is what is validated"


# --- where the crystals are from ---


def small_file(path, crystals, rows=3):
    """Each crystal twice: as it is and, under another name, with a cell that no box holds."""
    both = [c for crystal in crystals for c in (crystal, replace(crystal, name="large", cell=gemmi.UnitCell(90, 90, 90, 90, 95, 90)))]
    write_crystals(path, both, rows=rows)
    return [c.name for c in crystals]


def test_crystals_of_a_file_come_once_an_epoch_mixed_over_its_row_groups(crystals, tmp_path):
    crystals = crystals[:10]
    names = small_file(tmp_path / "c.parquet", crystals)
    source = Stored(tmp_path / "c.parquet", TINY, 1.8)
    assert len(source) == len(crystals) and len(source.groups) > 4
    source.MIXED = 2
    n_steps = len(crystals) // 2
    epochs = [[c.name for step in range(first, first + n_steps) for c in source.batch(5, step, 2, slice(None))]
              for first in (0, n_steps)]
    assert all(sorted(epoch) == sorted(names) for epoch in epochs) and epochs[0] != epochs[1] != names
    assert len(source._cache) <= 3
    again = Stored(tmp_path / "c.parquet", TINY, 1.8)
    again.MIXED = 2
    late = again.batch(5, n_steps + 1, 2, slice(None))
    assert [c.name for c in late] == epochs[1][2:4], "a resumed training takes what the first would have taken"
    assert [c.name for c in again.batch(5, n_steps + 1, 2, slice(1, 2))] == epochs[1][3:4]
    original = {c.name: c for c in crystals}
    for crystal in late:
        np.testing.assert_allclose(crystal.fract, original[crystal.name].fract, atol=1e-6)
    assert {c.name for step in range(4) for c in Stored(tmp_path / "c.parquet", TINY, 1.8, start=6).batch(0, step, 1, slice(None))
            } <= set(names[3:])


def test_generated_crystals_depend_on_seed_and_number_only():
    settings = dict(recipe="atoms", box=TINY, d_target=1.8)
    with Generated(workers=1, ahead=3, **settings) as source, Generated(workers=0, **settings) as alone:
        steps = [source.batch(3, step, 4, slice(None)) for step in range(5)]
        assert len(source._waiting) == 2, "the queue is bounded"
        names = [[c.name for c in batch] for batch in steps]
        assert names[3] == [c.name for c in alone.batch(3, 3, 4, slice(None))], "in this process, and from the middle"
        assert names[2] == [c.name for part in (slice(0, 2), slice(2, 4)) for c in alone.batch(3, 2, 4, part)]
        np.testing.assert_array_equal(steps[4][1].fract, alone.batch(3, 4, 4, slice(1, 2))[0].fract)
        other = alone.batch(4, 0, 4, slice(None))
        again = [source.batch(*arguments, slice(None)) for arguments in ((3, 5, 4), (4, 5, 4), (3, 0, 4), (3, 0, 2))]
        for crystals, arguments in zip(again, ((3, 5, 4), (4, 5, 4), (3, 0, 4), (3, 0, 2))):
            assert [c.name for c in crystals] == [c.name for c in alone.batch(*arguments, slice(None))], "another training"
    flat = [c for batch in steps for c in batch]
    assert len(flat) == 20 == len({c.name for c in flat}) and not np.allclose(other[0].cell.parameters, flat[0].cell.parameters)
    assert all(int(c.name.split("_")[-1]) >= 10**9 for c in flat), "none of a set for tests"
    assert {c.spacegroup.number for c in flat} == {14, 4, 5}  # P 21/c, P 21 and C 2, some with a and c swapped
    for crystal in flat:
        check_fit(crystal, TINY, 1.8)


def test_generated_molecules_are_of_groups_of_the_box_in_the_shares_of_the_recipe():
    source = Generated("molecules", gridding.BOXES["monoclinic"], workers=0)
    assert set(source.shares) == {"P 1 21/c 1", "P 1 21/n 1", "C 1 2/c 1", "P 1 21 1", "C 1 2 1", "C 1 c 1", "P 1 c 1"}
    assert source.shares["P 1 21/c 1"] == 0.22
    assert set(Generated("molecules", gridding.BOXES["triclinic"], workers=0).shares) == {"P -1", "P 1"}
    assert set(Generated("molecules", spacegroups=["P 1 21 1", "P -1"], workers=0).shares) == {"P 1 21 1"}


@pytest.mark.parametrize("arguments, message", [
    (dict(recipe="salts"), "no recipe 'salts'"), (dict(spacegroups=["P -1"]), "no space group of P -1 belongs to the monoclinic box"),
    (dict(spacegroups=["P 1 1 2"]), "unique axis b")])
def test_what_cannot_be_generated_is_one_sentence(arguments, message):
    with pytest.raises(UserError, match=message):
        Generated(workers=0, **arguments)


def test_a_training_on_generated_crystals_needs_an_end():
    source = Generated("atoms", TINY, 1.8, workers=0)
    with pytest.raises(UserError, match="needs an end: give minutes, steps or n_crystals"):
        fit(thin(), source, None, **SETTINGS)
    assert len(fit(thin(), source, None, n_crystals=4, **SETTINGS)) == 2


# --- what the network sees ---


@pytest.fixture(scope="module")
def many():
    made = select_fitting(random_crystals(400, seed=1), TINY, 1.8)[0]
    with pytest.MonkeyPatch.context() as patch:  # made before the fixture of the single test adds the box
        patch.setitem(gridding.BOXES, "tiny", TINY)
        return AmplitudeBoxes.from_crystals(made, **LIMITS)


def test_ideal_data_are_left_as_they_are(many):
    assert not Measurement() and Measurement(noise=0.1) and Measurement(missing=0.1) and Measurement(d_min=(2.5, 3))
    seen, truth = Measurement(missing=1e-9).apply(many, 0, range(len(many)))
    for name in ("F", "measured", "scale"):
        assert torch.equal(getattr(seen, name), getattr(many, name)) and torch.equal(getattr(truth, name), getattr(many, name))


def test_resolution_is_drawn_per_crystal(many):
    seen, truth = Measurement(d_min=(2.2, 3.4)).apply(many, 0, range(len(many)))
    measured = seen.measured.flatten(1)
    limit = torch.where(measured, many.d.flatten(1), 99.0).amin(dim=1)
    beyond = torch.where(measured | ~many.target.flatten(1), 0.0, many.d.flatten(1)).amax(dim=1)
    assert (beyond < limit).all(), "one sphere of each crystal"
    # uniform: deciles of the limits, which lie up to a reflection's distance above what was drawn
    np.testing.assert_allclose(np.quantile(limit, [0.1, 0.5, 0.9]), [2.32, 2.8, 3.28], atol=0.09)
    assert torch.equal(truth.measured, seen.measured) and (truth.extension == (many.target & ~seen.measured & ~many.absent
                                                                               & ~many.redundant)).all()


def test_up_to_the_stated_share_of_the_measured_is_missing(many):
    seen, truth = Measurement(missing=0.15).apply(many, 0, range(len(many)))
    assert not (seen.measured & ~many.measured).any() and not torch.equal(seen.measured, many.measured)
    share = 1 - seen.measured.sum(dim=(1, 2, 3)) / many.measured.sum(dim=(1, 2, 3))
    assert share.mean() == pytest.approx(0.075, abs=0.01) and share.max() < 0.3
    assert np.corrcoef(share, np.random.default_rng(0).random(len(many)))[0, 1] < 0.2
    # truth in electrons is what it was; scaled to the largest one that is left
    np.testing.assert_allclose(truth.F * truth.scale.view(-1, 1, 1, 1), many.F * many.scale.view(-1, 1, 1, 1), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose((seen.F * seen.measured).amax(dim=(1, 2, 3)), 1, rtol=1e-6)
    assert torch.equal(seen.F, truth.F)


def test_noise_has_the_stated_sigma(many):
    noise = 0.3
    seen, truth = Measurement(noise=noise).apply(many, 0, range(len(many)))
    where = (many.measured & ~many.absent & ~many.redundant).numpy()
    squares = {}
    for i in range(len(many)):
        I = (truth.F[i].numpy().astype(float) * float(truth.scale[i])) ** 2
        I_seen = (seen.F[i].numpy().astype(float) * float(seen.scale[i])) ** 2
        counted = (many.measured[i] & ~many.absent[i]).numpy()
        mean = I[counted].mean()
        strong = where[i] & (I > 1.5 * mean)  # no negative intensity there
        squares.setdefault("strong", []).extend(((I_seen - I)[strong] ** 2 - (0.02 * I[strong]) ** 2) / mean**2)
        zero = where[i] & (I_seen == 0)
        squares.setdefault("cut", []).extend(zero[where[i] & (I < 0.02 * mean)])
    # k uniform from 0 to 0.3: the mean of its square is a third of 0.09
    assert np.mean(squares["strong"]) == pytest.approx(noise**2 / 3, rel=0.15)
    assert 0.35 < np.mean(squares["cut"]) < 0.5, "of intensities near zero nearly a half is measured negative"
    strongest = truth.F.flatten(1).argmax(dim=1)
    ratio = (seen.F.flatten(1) / truth.F.flatten(1))[torch.arange(len(many)), strongest]
    assert torch.equal(seen.F[many.absent], truth.F[many.absent]) and 0.002 < float((ratio - 1).std()) < 0.06


def test_equivalent_voxels_are_disturbed_alike_and_by_number_not_by_place(many):
    measurement = Measurement(d_min=(2.4, 3.0), missing=0.5, noise=0.2)
    seen, truth = measurement.apply(many, 3, range(len(many)))
    layer = TINY.hkl[:, 2] == 0
    for h in range(1, 7):
        plus, minus = ((TINY.hkl[:, 0] == s * h) & layer for s in (1, -1))  # (h k 0) and (-h k 0), 2/m
        assert torch.equal(seen.measured.flatten(1)[:, plus], seen.measured.flatten(1)[:, minus])
        for F in (seen.F, truth.F):
            np.testing.assert_allclose(F.flatten(1)[:, plus], F.flatten(1)[:, minus], atol=1e-4)
    alone, _ = measurement.apply(many[5:7], 3, [5, 6])
    assert torch.equal(alone.F, seen.F[5:7]) and torch.equal(alone.measured, seen.measured[5:7])
    other, _ = measurement.apply(many[5:7], 4, [5, 6])
    assert not torch.equal(other.measured, alone.measured)


def test_the_network_sees_the_disturbed_and_is_compared_with_the_true(crystals, monkeypatch):
    shown, compared = [], []
    model = thin()
    model.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    monkeypatch.setattr(base, "extension_loss", lambda F_out, boxes: compared.append(boxes) or extension_loss(F_out, boxes))
    fit(model, crystals[:2], None, measurement=Measurement(missing=0.9, noise=0.5), seed=4, **SETTINGS)
    ideal = AmplitudeBoxes.from_crystals([crystals[i] for i in np.random.default_rng([4, 0]).permutation(2)], **LIMITS)
    (seen,), (boxes,) = shown, compared
    F_in, measured, target, absent = seen.F_in, seen.measured, seen.target, seen.absent
    assert torch.equal(target, ideal.target) and torch.equal(absent, ideal.absent) and torch.equal(measured, boxes.measured)
    assert 0 < measured.sum() < 0.95 * ideal.measured.sum() and (F_in[~measured] == 0).all()
    true = boxes.F * boxes.scale.view(-1, 1, 1, 1)
    np.testing.assert_allclose(true, ideal.F * ideal.scale.view(-1, 1, 1, 1), rtol=1e-5, atol=1e-4)
    assert (F_in - boxes.F)[measured].abs().max() > 0.01


# --- killed and resumed ---


class Killed(Exception):
    pass


def killed_after(step):
    def watch(history):
        if len(history) == step:
            raise Killed
    return watch


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_training_is_the_uninterrupted_one(ema, crystals, tmp_path):
    """Dropout, hidden reflections and the order of the crystals included: equal to the last bit."""
    config = XRDTransformer.Config(shape=TINY.shape, dim=8, depth=1, n_heads=2, dropout=0.3)
    settings = SETTINGS | dict(steps=12, lr=1e-2, ema=ema, n_validations=12, measurement=Measurement((2.4, 3), 0.2, 0.1))
    model = new_model("xrd_transformer", config)
    whole = fit(model, crystals[:5], crystals[5:6], **settings)
    path, log = tmp_path / "x.checkpoint", tmp_path / "x.csv"
    settings |= dict(checkpoint=path, checkpoint_minutes=0.0, log=log)
    for step, start in (4, 0), (9, 77):  # with a checkpoint, where the weights start does not matter
        with pytest.raises(Killed):
            fit(new_model("xrd_transformer", config, seed=start), crystals[:5], crystals[5:6], watch=killed_after(step), **settings)
        log.write_text(log.read_text() + "99,198,1.0,0.5,,\n")  # a line that came after the last checkpoint
    (tmp_path / ".x.0123abcd.checkpoint").write_text("half a checkpoint")
    resumed = new_model("xrd_transformer", config, seed=99)
    history = fit(resumed, crystals[:5], crystals[5:6], **settings)
    columns = ["step", "crystals", "loss", "r_ext", "cc_ext"]
    assert history[columns].equals(whole[columns]) and torch.equal(weights(resumed), weights(model))
    assert (history["seconds"].diff().dropna() > 0).all()
    logged = pd.read_csv(log)
    assert list(logged.columns) == list(history.columns)
    np.testing.assert_array_equal(logged, history)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.checkpoint", "x.csv"]
    finished = new_model("xrd_transformer", config)
    assert fit(finished, crystals[:5], crystals[5:6], **settings).equals(history), "there is nothing left to do"
    assert torch.equal(weights(finished), weights(model))


def test_a_convolutional_network_resumes_to_the_last_bit_too(crystals, tmp_path):
    settings = SETTINGS | dict(steps=6, n_validations=6)
    model, resumed = thin(), thin(seed=5)
    fit(model, crystals[:4], crystals[4:5], **settings)
    settings |= dict(checkpoint=tmp_path / "c", checkpoint_minutes=0.0)
    with pytest.raises(Killed):
        fit(thin(), crystals[:4], crystals[4:5], watch=killed_after(3), **settings)
    fit(resumed, crystals[:4], crystals[4:5], **settings)
    assert torch.equal(weights(resumed), weights(model))


def test_minutes_count_over_all_runs(crystals, tmp_path, monkeypatch):
    ticks = iter(range(0, 10_000, 6))
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    settings = SETTINGS | dict(minutes=1, epochs=10**6, checkpoint=tmp_path / "c", checkpoint_minutes=0.2)
    with pytest.raises(Killed):
        fit(thin(), crystals[:4], crystals[4:5], n_validations=10, watch=killed_after(5), **settings)
    history = fit(thin(), crystals[:4], crystals[4:5], **settings)
    assert list(history["seconds"]) == [6, 12, 18, 24, 30, 36, 42, 48, 54, 60], "checkpoints at 12 and 24, then 30 again"


@pytest.mark.parametrize("change, message", [
    (dict(lr=2e-3), "training with lr 0.001, not 0.002"), (dict(steps=3), "training with steps 2, not 3"),
    (dict(crystals=slice(2, 6)), "training with crystals 4 crystals .*, not 4 crystals"),
    (dict(measurement=Measurement(missing=0.1)), "training with measurement .*missing=0.0.*, not .*missing=0.1")])
def test_a_checkpoint_of_another_training_says_what_differs(change, message, crystals, tmp_path):
    path = tmp_path / "c.checkpoint"
    fit(thin(), crystals[:4], None, **SETTINGS, steps=2, lr=1e-3, checkpoint=path)
    other = crystals[change.pop("crystals", slice(4))]
    with pytest.raises(UserError, match=f"c.checkpoint is of a {message}.*delete it to begin anew"):
        fit(thin(), other, None, **(SETTINGS | dict(steps=2, lr=1e-3) | change), checkpoint=path)


def test_a_checkpoint_of_a_wider_model_says_so(crystals, tmp_path):
    settings = SETTINGS | dict(steps=1, checkpoint=tmp_path / "c.checkpoint")
    fit(thin(), crystals[:4], None, **settings)
    with pytest.raises(UserError, match=r"training with model UNet.Config\(widths=\(2, 3\).*, not UNet.Config\(widths=\(4, 6\)"):
        fit(new_model(config=UNet.Config((4, 6), 8)), crystals[:4], None, **settings)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 pickled", None])
def test_a_damaged_checkpoint_is_named(content, crystals, tmp_path):
    path = tmp_path / "c.checkpoint"
    fit(thin(), crystals[:4], None, **SETTINGS, steps=1, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UserError, match="c.checkpoint is damaged or no checkpoint .* delete it to begin anew"):
        fit(thin(), crystals[:4], None, **SETTINGS, steps=1, checkpoint=path)


# --- several processes ---


def test_batches_made_a_step_ahead_by_a_thread_are_the_same(crystals, monkeypatch):
    settings = SETTINGS | dict(steps=7, measurement=Measurement(missing=0.3, noise=0.1), seed=2)
    histories = []
    for ahead in (False, True):
        monkeypatch.setattr(training, "_ahead", lambda device: ahead)
        histories.append(fit(thin(), crystals[:5], crystals[5:6], **settings).drop(columns="seconds"))
    assert histories[0].equals(histories[1])
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name], "it ended with the training"
    monkeypatch.setattr(AmplitudeBoxes, "from_crystals", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(thin(), crystals[:5], None, **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_sentence(crystals):
    with pytest.raises(UserError, match="^1 x cuda on 1 node.s. cannot train here: [^\\n]*not available"):
        fit(thin(), crystals[:4], None, **SETTINGS | dict(device="cuda"))

TWO = """
import sys
import torch
sys.path.insert(0, {tests!r})
from test_training import LIMITS, TINY, Measurement, fit, gridding, random_crystals, select_fitting, thin
gridding.BOXES["tiny"] = TINY
crystals = select_fitting(random_crystals(12, seed=0), TINY, 1.8)[0]
fit(thin(), crystals[:7], crystals[7:8], steps=6, lr=1e-2, batch_size=1, devices=2, device="cpu", precision="32-true",
    measurement=Measurement(missing=0.2), seed=3, log={log!r}, **LIMITS)
"""


def test_two_processes_have_the_loss_of_one_with_twice_the_batch(crystals, tmp_path):
    log = tmp_path / "two.csv"
    (tmp_path / "two.py").write_text(TWO.format(tests=str(Path(__file__).parent), log=str(log)))
    subprocess.run([sys.executable, str(tmp_path / "two.py")], check=True, timeout=120, capture_output=True)
    one = fit(thin(), crystals[:7], crystals[7:8], steps=6, lr=1e-2, seed=3, measurement=Measurement(missing=0.2),
              **SETTINGS | dict(ema=0.999))
    two = pd.read_csv(log)
    assert list(two["crystals"]) == list(one["crystals"]) == [2, 4, 6, 8, 10, 12]
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-5)
    np.testing.assert_allclose(two["r_ext"], one["r_ext"], rtol=1e-4)
    assert one["loss"].std() / one["loss"].mean() > 1e-3


# --- the progress bar ---


def test_the_bar_shows_loss_score_speed_and_time_left(crystals, monkeypatch, capsys):
    ticks = iter(range(0, 10_000, 2))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    seen, show = [], training._progress_bar.show
    monkeypatch.setattr(training._progress_bar, "show", lambda bar, *arguments: show(bar, *arguments) or seen.append(bar.bar.postfix))
    fit(thin(), crystals[:4], crystals[4:5], steps=31, n_validations=1, **SETTINGS)
    # a step of two crystals every two seconds; 20 of 31 steps left
    assert re.fullmatch(r"loss \d\.\d\de-\d\d, r_ext \d\.\d{3}, 1 crystals/s, 00:40 left", seen[10])
    assert len(seen) == 31 and seen[-1].endswith("00:00 left")


# --- from crystals to a file of weights ---


@pytest.fixture
def small_models(monkeypatch):
    """The models of the package, small enough for a test; the names stay."""
    class Thin(UNet):
        @dataclass
        class Config(UNet.Config):
            widths: tuple[int, ...] = (2, 3)
            bottleneck: int = 4
    monkeypatch.setitem(MODELS, "unet", Thin)


def test_a_training_begins_with_the_weights_of_another(crystals, tmp_path, small_models):
    write_crystals(tmp_path / "c.parquet", crystals)
    call = dict(crystals=tmp_path / "c.parquet", box="tiny", d_input=3.0, d_target=1.8, n_validation=2, batch_size=2,
                device="cpu", precision="32-true")
    training.train("unet", tmp_path / "a.safetensors", steps=3, **call)
    # no step to speak of: with a rate of zero and no mean the weights that come out are those that went in
    made = training.train("unet", tmp_path / "b.safetensors", steps=1, lr=0.0, ema=0, start=tmp_path / "a.safetensors", **call)
    first, second = (load_model(tmp_path / f"{name}.safetensors")[0].state_dict() for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert made["crystals_seen"] == 6 + 2 and made["started_from"]["crystals_seen"] == 6
    training.train("xrd_transformer", tmp_path / "t.safetensors", steps=1, **call)
    with pytest.raises(UserError, match="t.safetensors holds weights of another model than unet"):
        training.train("unet", tmp_path / "c.safetensors", steps=1, start=tmp_path / "t.safetensors", **call)


def test_a_killed_training_goes_on_with_the_same_call_and_leaves_weights_and_log(crystals, tmp_path, small_models):
    write_crystals(tmp_path / "c.parquet", crystals)
    out = tmp_path / "w.safetensors"
    call = dict(name="unet", crystals=tmp_path / "c.parquet", box="tiny", d_input=3.0, d_target=1.8, n_validation=2, steps=6,
                n_validations=6, batch_size=2, checkpoint_minutes=0, device="cpu", precision="32-true")
    whole = training.train(out=tmp_path / "whole.safetensors", **call)
    with pytest.raises(Killed):
        training.train(out=out, watch=killed_after(4), **call)
    assert (tmp_path / "w.checkpoint").exists() and not out.exists()
    made = training.train(out=out, **call)
    assert {k: v for k, v in made.items() if k != "minutes"} == {k: v for k, v in whole.items() if k != "minutes"}
    assert out.read_bytes()[-500:] == (tmp_path / "whole.safetensors").read_bytes()[-500:]
    assert made["crystals_seen"] == 12 and made["recipe"] == "atoms" and made["n_validation"] == 2 and made["box"] == "tiny"
    losses = [pd.read_csv(path)["loss"] for path in (tmp_path / "w.csv", tmp_path / "whole.csv")]
    assert len(losses[0]) == 6 and losses[0].equals(losses[1])
    assert not (tmp_path / "w.checkpoint").exists()
    with pytest.raises(UserError, match="w.safetensors is there already"):
        training.train(out=out, **call)
    assert training.train(out=out, overwrite=True, **call | dict(steps=1))["crystals_seen"] == 2
    # the scores that are stated are those of the file
    model, stated = load_model(out)
    boxes = AmplitudeBoxes.from_crystals(crystals[:2], **LIMITS)
    F_pred = predict(model, boxes)
    r = [np.abs(F_pred - boxes.F.numpy())[i][boxes.extension[i].numpy()].sum() / boxes.F[i][boxes.extension[i]].sum() for i in (0, 1)]
    assert stated["r_ext"] == pytest.approx(float(np.mean(r)), abs=2e-3)


def test_validation_crystals_are_apart_and_the_same_for_every_seed(crystals, tmp_path):
    write_crystals(tmp_path / "c.parquet", [replace(crystals[0], cell=gemmi.UnitCell(90, 90, 90, 90, 95, 90)), *crystals])
    source, validation, sample = training._sets(tmp_path / "c.parquet", "", TINY, 1.8, 3, 0)
    assert [c.name for c in validation] == [c.name for c in crystals[:3]] and len(source) == len(crystals) - 3
    assert {c.name for step in range(len(source)) for c in source.batch(0, step, 1, slice(None))} == {c.name for c in crystals[3:]}
    sets = [training._sets("", "atoms", TINY, 1.8, 3, 0) for _ in range(2)]
    assert [c.name for c in sets[0][1]] == [c.name for c in sets[1][1]] and len(sets[0][2]) == 100
    kept = {c.name for c in sets[0][1] + sets[0][2]}
    assert kept.isdisjoint(c.name for step in range(20) for c in sets[0][0].batch(0, step, 4, slice(None)))
    with pytest.raises(UserError, match=f"{len(crystals)} fit the tiny box, not more than the {len(crystals)} for validation"):
        training._sets(tmp_path / "c.parquet", "", TINY, 1.8, len(crystals), 0)


def test_the_readme_of_the_weights_is_what_the_files_say(tmp_path):
    save_model(tmp_path / "b.safetensors", "xrd_transformer", MODELS["xrd_transformer"](),
               crystals_seen=12345, minutes=1.5, recipe="atoms", r_ext=0.25, shell_mean_r_ext=0.75, machine="a kind",
               curve=[[4, 0.9, 0.1], [12345, 0.25, 0.3]])
    (tmp_path / ".b.0123abcd.safetensors").write_bytes(b"half of")  # being written
    training.write_weights_readme(tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    row = dict(zip(table[0], table[2]))
    assert row["file"] == "`b.safetensors`" and row["model"] == "XRD_Transformer" and row["parameters"] == "994,989"
    assert row["crystals seen"] == "12,345" and row["`r_ext`"] == "0.25" and row["shell mean `r_ext`"] == "0.75"
    assert row["machine"] == "a kind" and row["`cc_ext`"] == "" and row["size"] == "1.9 MB"
    assert table[-2:] == [["`b.safetensors`", "4", "0.9", "0.1"], ["", "12,345", "0.25", "0.3"]]
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match="there are no weights in"):
        training.weights_readme(tmp_path)


def test_the_shipped_weights_have_their_readme_and_are_small():
    assert (ROOT / "weights" / "README.md").read_text() == training.weights_readme(ROOT / "weights")
    assert all(path.stat().st_size < 25e6 for path in (ROOT / "weights").glob("*.safetensors"))
