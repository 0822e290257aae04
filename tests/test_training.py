"""Training: against a loop in plain torch, schedules worked by hand, and crystals that a network has to learn by heart."""

import copy
import math
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tiny import LIMITS, TINY, tiny_crystals
from xrd_helpers import training
from xrd_helpers.config import UserError
from xrd_helpers.gridding import AmplitudeBoxes, Box
from xrd_helpers.models import MODELS, AmplitudeModel, FFTUNet, PattersonNet, UNet, XRDTransformer, base, extension_loss
from xrd_helpers.simulate import Faults
from xrd_helpers.sources import Generated
from xrd_helpers.storage import write_crystals
from xrd_helpers.training import PRECISIONS, Budget, Device, arithmetic, fit, learning_rate, pick_precision
from xrd_helpers.weights import load_model, predict, save_model

CPU = Device("cpu", precision="32-true")
SETTINGS = dict(**LIMITS, batch_size=2, ema=0.0, device=CPU)
SMALL = {"unet": UNet.Config((8, 16), 16, True), "fft_unet": FFTUNet.Config((8, 12), 12, True),
         "xrd_transformer": XRDTransformer.Config(shape=TINY.shape, dim=64, depth=1, mlp_ratio=2, published=True)}


@pytest.fixture(scope="module")
def crystals():
    return tiny_crystals()


def new_model(name="unet", config=None, seed=0):
    torch.manual_seed(seed)
    return MODELS[name](config or SMALL[name])


def thin(seed=0):
    return new_model(config=UNet.Config((2, 3), 4, True), seed=seed)


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
    history = fit(model, crystals[:2], None, Budget(epochs=n_steps), lr=lr, weight_decay=0.1, **SETTINGS)

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


@pytest.mark.slow
@pytest.mark.parametrize("name, steps", [("unet", 60), ("fft_unet", 70), ("xrd_transformer", 200)])
def test_two_crystals_are_learnt_by_heart(name, steps, crystals):
    boxes = AmplitudeBoxes.from_crystals(crystals[:2], **LIMITS)
    spread = float(boxes.F[boxes.extension].var(unbiased=False))  # the loss of the best constant
    model = new_model(name)
    history = fit(model, crystals[:2], None, Budget(epochs=steps), lr=4e-3 if name == "xrd_transformer" else 1e-2, **SETTINGS)
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
        history = fit(model, crystals[:5], crystals[5:6], Budget(epochs=3), seed=seed, **SETTINGS)
        results.append((weights(model), history.drop(columns="seconds")))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1].equals(results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


def test_every_epoch_takes_each_crystal_once_in_another_order(crystals, monkeypatch):
    seen, build = [], AmplitudeBoxes.from_crystals
    monkeypatch.setattr(AmplitudeBoxes, "from_crystals",
                        lambda batch, *args, **kwargs: seen.append([c.name for c in batch]) or build(batch, *args, **kwargs))
    history = fit(thin(), crystals[:7], None, Budget(epochs=3), **SETTINGS)
    assert len(history) == 9 and [len(batch) for batch in seen] == [2] * 9  # the seventh waits for another epoch
    epochs = [sum(seen[i:i + 3], []) for i in (0, 3, 6)]
    assert all(len(set(names)) == 6 for names in epochs)
    assert epochs[0] != epochs[1] and set(sum(epochs, [])) <= {c.name for c in crystals[:7]}


def test_validation_crystals_are_only_looked_at(crystals):
    config = XRDTransformer.Config(shape=TINY.shape, dim=8, depth=1, n_heads=2, dropout=0.3)
    results = {}
    for name, validation in {"none": None, "empty": [], "one": crystals[4:5], "others": crystals[5:8]}.items():
        model = new_model("xrd_transformer", config)
        history = fit(model, crystals[:4], validation, Budget(epochs=4), n_validations=4, **SETTINGS)
        results[name] = history
        assert list(history.columns) == ["step", "crystals", "seconds", "loss", "r_ext", "cc_ext"]
        assert torch.equal(weights(model), results.setdefault("weights", weights(model)))
        assert np.array_equal(history["loss"], results["none"]["loss"])
    assert results["none"]["r_ext"].isna().all() and results["empty"]["cc_ext"].isna().all()
    assert list(results["one"]["r_ext"].notna()) == [True, True, False, True, False, True, False, True]
    assert not np.allclose(results["one"]["r_ext"].dropna(), results["others"]["r_ext"].dropna())


def test_history_says_what_happened(crystals):
    model = thin()
    history = fit(model, crystals[:6], crystals[6:8], Budget(epochs=2), **SETTINGS)
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
    history = fit(thin(), crystals[:2], crystals[2:3], Budget(epochs=18), n_validations=9, **SETTINGS)
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
    monkeypatch.setattr(training, "learning_rate",
                        lambda progress, peak: rates.append(progress) or learning_rate(progress, peak))
    history = fit(thin(), crystals[:4], crystals[4:5], Budget(epochs=10**6, minutes=1), **SETTINGS)
    assert list(history["seconds"]) == [6, 12, 18, 24, 30, 36, 42, 48, 54, 60]
    np.testing.assert_allclose(rates, np.arange(10) / 10)
    assert np.isfinite(history["r_ext"].iloc[-1]), "the last step is validated"


def test_the_epochs_end_a_training_that_has_time_left(crystals, monkeypatch):
    rates = []
    monkeypatch.setattr(training, "learning_rate",
                        lambda progress, peak: rates.append(progress) or learning_rate(progress, peak))
    assert len(fit(thin(), crystals[:4], None, Budget(epochs=4, minutes=60), **SETTINGS)) == 8
    np.testing.assert_allclose(rates, np.arange(8) / 8, atol=1e-2)


def test_too_few_crystals_say_what_to_do(crystals):
    too_few = "^1 crystals .* fewer than one batch of 2: generate more crystals, or lower batch_size$"
    with pytest.raises(UserError, match=too_few):
        fit(thin(), crystals[:1], None, **SETTINGS)


def test_a_diverging_training_stops_and_says_so(crystals):
    with pytest.raises(UserError, match=r"the loss is (nan|inf), .* at step \d+: lower lr \(now 1e\+30\)"):
        fit(thin(), crystals[:2], None, Budget(epochs=20), lr=1e30, **SETTINGS)


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
        device = Device("cpu", precision=precision)
        losses.append(fit(model, crystals[:2], crystals[2:3], Budget(epochs=3), **SETTINGS | dict(device=device))["loss"])
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        with torch.no_grad(), arithmetic(precision, "cpu"):
            F_out = model(boxes)
        known = boxes.measured & ~boxes.absent
        assert F_out.dtype == torch.float32 and torch.equal(F_out[known], boxes.F[known])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    assert not losses[1].equals(losses[0]), "one of the two was not done"


def test_a_resumed_training_goes_on_in_its_precision(crystals, tmp_path):
    settings = SETTINGS | dict(checkpoint=tmp_path / "c", checkpoint_minutes=0)
    fit(thin(), crystals[:4], None, Budget(epochs=2), **settings | dict(device=Device("cpu", precision="bf16-mixed")))
    fit(thin(), crystals[:4], None, Budget(epochs=2), **settings | dict(device=Device("cpu")))
    with pytest.raises(UserError, match="a training with precision bf16-mixed, not 32-true"):
        fit(thin(), crystals[:4], None, Budget(epochs=2), **settings)


# --- budgets and limits ---


@pytest.mark.parametrize("budget, n_steps", [
    (dict(steps=5), 5), (dict(n_crystals=7), 3), (dict(steps=5, n_crystals=4), 2), (dict(epochs=2, steps=50), 6),
    (dict(), 3), (dict(steps=4, minutes=60), 4), (dict(epochs=1, n_crystals=50), 3)])
def test_the_first_limit_that_is_reached_ends_the_training(budget, n_steps, crystals):
    assert len(fit(thin(), crystals[:7], None, Budget(**budget), **SETTINGS)) == n_steps


def test_without_validations_nothing_is_validated(crystals):
    history = fit(thin(), crystals[:4], crystals[4:6], n_validations=0, **SETTINGS)
    assert len(history) == 2 and history["r_ext"].isna().all()


@pytest.mark.parametrize("change, message", [
    (dict(d_input=1.8), "d_target is 1.8 Å and d_input 1.8 Å"), (dict(d_input=1.2), "d_target is 1.8 Å and d_input 1.2 Å"),
    (dict(d_target=0.0), "d_target is 0 Å and d_input 3 Å"),
    (dict(faults=Faults(d_min=(1.8, 3))), "between 1.8 and 3 Å"),
    (dict(faults=Faults(d_min=(3, 2.5))), "between 3 and 2.5 Å"),
    (dict(faults=Faults(missing=1.0)), "not 1 and 0"), (dict(faults=Faults(noise=-1.0)), "not 0 and -1"),
    (dict(budget=Budget(steps=-1)), "must not be below 0"),
    (dict(budget=Budget(n_crystals=1)), "n_crystals 1 is less than one batch of 2")])
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
    history = fit(model, crystals[:4], crystals[4:5], Budget(steps=12), lr=3e-2, **SETTINGS | dict(ema=0.4))
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


# --- what the network sees ---


def test_a_training_on_generated_crystals_needs_an_end():
    source = Generated("atoms", TINY, 1.8, workers=0)
    for budget in (Budget(), Budget(epochs=3)):
        with pytest.raises(UserError, match="needs an end: give minutes, steps or n_crystals"):
            fit(thin(), source, None, budget, **SETTINGS)
    assert len(fit(thin(), source, None, Budget(n_crystals=4), **SETTINGS)) == 2


def test_the_network_sees_the_disturbed_and_is_compared_with_the_true(crystals, monkeypatch):
    shown, compared = [], []
    model = thin()
    model.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    monkeypatch.setattr(base, "extension_loss", lambda F_out, boxes: compared.append(boxes) or extension_loss(F_out, boxes))
    fit(model, crystals[:2], None, faults=Faults(missing=0.9, noise=0.5), seed=4, **SETTINGS)
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


@pytest.mark.slow
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_training_is_the_uninterrupted_one(ema, crystals, tmp_path):
    """Dropout, hidden reflections and the order of the crystals included: equal to the last bit."""
    config = XRDTransformer.Config(shape=TINY.shape, dim=8, depth=1, n_heads=2, dropout=0.3)
    settings = SETTINGS | dict(budget=Budget(steps=12), lr=1e-2, ema=ema, n_validations=12, faults=Faults((2.4, 3), 0.2, 0.1))
    model = new_model("xrd_transformer", config)
    whole = fit(model, crystals[:5], crystals[5:6], **settings)
    path, log = tmp_path / "x.checkpoint", tmp_path / "x.csv"
    settings |= dict(checkpoint=path, checkpoint_minutes=0.0, log=log)
    for step, start in (4, 0), (9, 77):  # with a checkpoint, where the weights start does not matter
        with pytest.raises(Killed):
            fit(new_model("xrd_transformer", config, seed=start), crystals[:5], crystals[5:6], watch=killed_after(step),
                **settings)
        log.write_text(log.read_text() + "99,198,1.0,0.5,,\n")  # a line that came after the last checkpoint
    (tmp_path / ".x.partial.checkpoint").write_text("half a checkpoint")
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
    settings = SETTINGS | dict(budget=Budget(steps=6), n_validations=6)
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
    settings = SETTINGS | dict(budget=Budget(minutes=1, epochs=10**6), checkpoint=tmp_path / "c", checkpoint_minutes=0.2)
    with pytest.raises(Killed):
        fit(thin(), crystals[:4], crystals[4:5], n_validations=10, watch=killed_after(5), **settings)
    history = fit(thin(), crystals[:4], crystals[4:5], **settings)
    assert list(history["seconds"]) == [6, 12, 18, 24, 30, 36, 42, 48, 54, 60], "checkpoints at 12 and 24, then 30 again"


@pytest.mark.parametrize("change, message", [
    (dict(lr=2e-3), "training with lr 0.001, not 0.002"), (dict(budget=Budget(3)), "training with steps 2, not 3"),
    (dict(crystals=slice(2, 6)), "training with crystals 4 crystals .*, not 4 crystals"),
    (dict(faults=Faults(missing=0.1)), "training with faults .*missing=0.0.*, not .*missing=0.1")])
def test_a_checkpoint_of_another_training_says_what_differs(change, message, crystals, tmp_path):
    path = tmp_path / "c.checkpoint"
    fit(thin(), crystals[:4], None, **SETTINGS, budget=Budget(steps=2), lr=1e-3, checkpoint=path)
    other = crystals[change.pop("crystals", slice(4))]
    with pytest.raises(UserError, match=f"c.checkpoint is of a {message}.*delete it to begin anew"):
        fit(thin(), other, None, **(SETTINGS | dict(budget=Budget(steps=2), lr=1e-3) | change), checkpoint=path)


def test_a_checkpoint_of_a_wider_model_says_so(crystals, tmp_path):
    settings = SETTINGS | dict(budget=Budget(steps=1), checkpoint=tmp_path / "c.checkpoint")
    fit(thin(), crystals[:4], None, **settings)
    other = r"training with model UNet.Config\(widths=\(2, 3\).*, not UNet.Config\(widths=\(4, 6\)"
    with pytest.raises(UserError, match=other):
        fit(new_model(config=UNet.Config((4, 6), 8, True)), crystals[:4], None, **settings)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 pickled", None])
def test_a_damaged_checkpoint_is_named(content, crystals, tmp_path):
    path = tmp_path / "c.checkpoint"
    fit(thin(), crystals[:4], None, **SETTINGS, budget=Budget(steps=1), checkpoint=path)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UserError, match="c.checkpoint is damaged or no checkpoint .* delete it to begin anew"):
        fit(thin(), crystals[:4], None, **SETTINGS, budget=Budget(steps=1), checkpoint=path)


# --- several processes ---


def test_batches_made_a_step_ahead_by_a_thread_are_the_same(crystals, monkeypatch):
    settings = SETTINGS | dict(budget=Budget(steps=7), faults=Faults(missing=0.3, noise=0.1), seed=2)
    histories = []
    for ahead in (False, True):
        monkeypatch.setattr(training, "_ahead", lambda device, ahead=ahead: ahead)
        histories.append(fit(thin(), crystals[:5], crystals[5:6], **settings).drop(columns="seconds"))
    assert histories[0].equals(histories[1])
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name], "it ended with the training"
    monkeypatch.setattr(AmplitudeBoxes, "from_crystals", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(thin(), crystals[:5], None, **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_sentence(crystals):
    with pytest.raises(UserError, match="^1 x cuda on 1 node.s. cannot train here: [^\\n]*not available"):
        fit(thin(), crystals[:4], None, **SETTINGS | dict(device=Device("cuda")))

TWO = """
import sys
import torch
sys.path.insert(0, {tests!r})
from test_training import LIMITS, Budget, Device, Faults, fit, thin, tiny_crystals
crystals = tiny_crystals()
fit(thin(), crystals[:7], crystals[7:8], Budget(6), Device("cpu", 2, precision="32-true"), lr=1e-2, batch_size=1,
    faults=Faults(missing=0.2), seed=3, log={log!r}, **LIMITS)
"""


@pytest.mark.slow
def test_two_processes_have_the_loss_of_one_with_twice_the_batch(crystals, tmp_path):
    log = tmp_path / "two.csv"
    (tmp_path / "two.py").write_text(TWO.format(tests=str(Path(__file__).parent), log=str(log)))
    subprocess.run([sys.executable, str(tmp_path / "two.py")], check=True, timeout=120, capture_output=True)
    one = fit(thin(), crystals[:7], crystals[7:8], Budget(steps=6), lr=1e-2, seed=3, faults=Faults(missing=0.2),
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
    monkeypatch.setattr(training._progress_bar, "show",
                        lambda bar, *arguments: show(bar, *arguments) or seen.append(bar.bar.postfix))
    fit(thin(), crystals[:4], crystals[4:5], Budget(steps=31), n_validations=1, **SETTINGS)
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
    call = dict(crystals=tmp_path / "c.parquet", **LIMITS, n_validation=2, batch_size=2, device=CPU)
    training.train("unet", tmp_path / "a.safetensors", Budget(steps=3), **call)
    # no step to speak of: with a rate of zero and no mean the weights that come out are those that went in
    made = training.train("unet", tmp_path / "b.safetensors", Budget(steps=1), lr=0.0, ema=0,
                          start=tmp_path / "a.safetensors", **call)
    first, second = (load_model(tmp_path / f"{name}.safetensors")[0].state_dict() for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert np.shape(made["spread"]) == (2, 5)
    assert made["crystals_seen"] == 6 + 2 and made["started_from"]["crystals_seen"] == 6
    training.train("xrd_transformer", tmp_path / "t.safetensors", Budget(steps=1), **call)
    with pytest.raises(UserError, match="t.safetensors holds weights of another model than unet"):
        training.train("unet", tmp_path / "c.safetensors", Budget(steps=1), start=tmp_path / "t.safetensors", **call)


def test_calibration_writes_the_uncertainty_into_a_file_and_nothing_else(crystals, tmp_path):
    path, model = tmp_path / "u.safetensors", thin()
    save_model(path, "unet", model, box="monoclinic", d_input=3.0, d_target=1.8, r_ext=0.6)
    before = load_model(path)
    spread = training.calibrate(path, crystals[:3])
    model, made = load_model(path)
    assert made == before[1] | {"spread": [list(terms) for terms in spread.terms]}
    assert all(torch.equal(x, y) for x, y in zip(model.state_dict().values(), before[0].state_dict().values()))
    boxes = AmplitudeBoxes.from_crystals(crystals[:3], d_input=3.0, d_target=1.8)
    F, z = predict(model, boxes), []
    for i in range(3):
        where = boxes.extension[i].numpy()
        z.append((boxes.F[i].numpy() - F[i])[where] / spread.sigma(boxes, i, F[i])[where])
    assert np.sqrt((np.concatenate(z) ** 2).mean()) == pytest.approx(1, abs=0.1)


def test_a_killed_training_goes_on_with_the_same_call_and_leaves_weights_and_log(crystals, tmp_path, small_models):
    write_crystals(tmp_path / "c.parquet", crystals)
    out = tmp_path / "w.safetensors"
    call = dict(name="unet", crystals=tmp_path / "c.parquet", **LIMITS, n_validation=2, budget=Budget(steps=6),
                n_validations=6, batch_size=2, checkpoint_minutes=0, device=CPU)
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
    assert training.train(out=out, overwrite=True, **call | dict(budget=Budget(steps=1)))["crystals_seen"] == 2
    # the scores that are stated are those of the file
    model, stated = load_model(out)
    boxes = AmplitudeBoxes.from_crystals(crystals[:2], **LIMITS)
    F_pred = predict(model, boxes)
    error, inside = np.abs(F_pred - boxes.F.numpy()), boxes.extension.numpy()
    r = [error[i][inside[i]].sum() / boxes.F[i].numpy()[inside[i]].sum() for i in (0, 1)]
    assert stated["r_ext"] == pytest.approx(float(np.mean(r)), abs=2e-3)
