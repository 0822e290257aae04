"""Training: against a loop in plain torch, schedules worked by hand, and crystals that a network has to learn by heart."""

import copy
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as nnf

from xrd_helpers import gridding, training
from xrd_helpers.gridding import AmplitudeBoxes, Box, select_fitting
from xrd_helpers.models import MODELS, FFTUNet, UNet, XRDTransformer
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.training import extension_loss, fit, learning_rate, pick_precision

TINY = Box("tiny", (-6, 0, 0), (6, 8, 10), "P 1 2/m 1")  # an eighth of the published box, for crystals to 1.8 Å
LIMITS = dict(box=TINY, d_input=3.0, d_target=1.8)
SETTINGS = dict(**LIMITS, batch_size=2, device="cpu", precision="32-true")
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
        F_out = copied(boxes.F * boxes.measured, boxes.measured, boxes.target, boxes.absent)
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
    monkeypatch.setattr(training, "extension_loss", lambda F_out, boxes: 1e6 * extension_loss(F_out, boxes))
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
        F_out = model(boxes.F_in, boxes.measured, boxes.target, boxes.absent)
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
        F_out = model(boxes.F_in, boxes.measured, boxes.target, boxes.absent).numpy()
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
    with pytest.raises(ValueError, match="^1 crystals .* fewer than one batch of 2: generate more crystals, or lower batch_size$"):
        fit(thin(), crystals[:1], None, **SETTINGS)


def test_a_diverging_training_stops_and_says_so(crystals):
    with pytest.raises(ValueError, match=r"the loss is (nan|inf), .* at step \d+: lower lr \(now 1e\+30\)"):
        fit(thin(), crystals[:2], None, epochs=20, lr=1e30, **SETTINGS)


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(crystals, monkeypatch):
    monkeypatch.setattr(training, "extension_loss", lambda F_out, boxes: (F_out - F_out).abs().sqrt().mean())  # 0, slope nan
    model = thin()
    with pytest.raises(ValueError, match="the loss is 0.0, its gradient nan, at step 1: lower lr"):
        fit(model, crystals[:2], None, **SETTINGS)
    assert weights(model).isfinite().all()


@pytest.mark.parametrize("slow, expected", [(torch.bfloat16, "32-true"), (torch.float32, "bf16-mixed")])
def test_precision_is_the_faster_one_on_a_cpu(slow, expected, monkeypatch):
    def conv3d(x, w, fast=nnf.conv3d):
        time.sleep(0.01 * (x.dtype == slow))
        return fast(x[:, :1, :3, :3, :3].float(), w[:1, :1].float())
    monkeypatch.setattr(training, "nnf", SimpleNamespace(conv3d=conv3d))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert pick_precision("cpu") == expected
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("supported, expected", [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_on_a_gpu_is_what_the_gpu_has(supported, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert pick_precision("cuda") == pick_precision("auto") == expected


def test_precision_of_this_machine_is_one_of_two():
    assert pick_precision("cpu") in ("32-true", "bf16-mixed")


@pytest.mark.parametrize("name", MODELS)
def test_a_step_in_half_precision_is_near_the_step_in_full(name, crystals):
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        model = new_model(name, XRDTransformer.Config(shape=TINY.shape, dim=8, depth=1, n_heads=2, dropout=0.0)
                          if name == "xrd_transformer" else type(SMALL[name])((2, 3), 4))
        losses.append(fit(model, crystals[:2], crystals[2:3], epochs=3, **{**SETTINGS, "precision": precision})["loss"])
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
