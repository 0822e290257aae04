"""Shells, normalised amplitudes and the mean at each resolution: Wilson statistics in closed form, fall-offs put in by hand."""

from dataclasses import replace
from math import exp, pi, sqrt

import gemmi
import numpy as np
import pytest
import torch

from box_makers import recipe, simulated
from xrd_helpers import metrics, wilson
from xrd_helpers.gridding import AmplitudeBoxes
from xrd_helpers.reflections import Reflections, unique_hkl
from xrd_helpers.structure_factors import form_factor


@pytest.fixture
def p21c():
    return recipe("P 1 21/c 1")


def test_shells_have_equal_count():
    d = np.random.default_rng(0).uniform(0.8, 1.5, 1003)
    number = wilson.shells(d, 10)
    counts = np.bincount(number)
    assert len(counts) == 10 and counts.max() - counts.min() <= 1
    for low, high in zip(range(9), range(1, 10)):
        assert d[number == low].min() > d[number == high].max()  # shell 0 is low resolution
    assert wilson.shells(np.array([1.0, 3.0, 2.0]), 10).tolist() == [2, 0, 1]  # no empty shells where there are few
    assert wilson.shells(np.empty(0)).tolist() == []


@pytest.mark.parametrize("kind, expected", [("acentric", 2 / exp(1)),                          # 0.736
                                            ("centric", 4 * exp(-0.5) / sqrt(2 * pi))])         # 0.968
def test_normalised_amplitudes_have_wilson_statistics(kind, expected):
    d, mean, intensity = simulated(kind)
    E = wilson.normalize(np.sqrt(intensity), d, np.ones(len(d)))
    number = wilson.shells(d)
    for shell in range(10):  # 3000 reflections: standard error 0.018 (acentric), 0.026 (centric)
        assert (E[number == shell] ** 2).mean() == pytest.approx(1, abs=0.04)
    assert np.abs(E**2 - 1).mean() == pytest.approx(expected, abs=0.02)
    np.testing.assert_allclose(E.mean(), sqrt(pi) / 2 if kind == "acentric" else sqrt(2 / pi), atol=0.01)
    # each E is the square root of intensity over true mean, but for the error of the mean of a shell
    np.testing.assert_allclose(E, np.sqrt(intensity / mean), rtol=0.06)


def test_shells_of_equal_volume_hold_as_many_reflections():
    hkl = np.stack(np.meshgrid(*[np.arange(-61, 62)] * 3), -1).reshape(-1, 3)
    d = 60 / np.sqrt(np.maximum((hkl**2).sum(1), 1e-9))  # a cubic lattice of 60 Å: 4/3 π a³ / d³ points but for 0.5 %
    edges = np.linspace(2.0**-3, 1.0**-3, 6)
    inside = (d < 2) & (d >= 1)
    number = wilson.volume_shells(d[inside], edges)
    np.testing.assert_allclose(np.bincount(number), 4 / 3 * np.pi * 60**3 * (1 - 1 / 8) / 5, rtol=0.01)
    assert d[inside][number == 0].min() > d[inside][number == 1].max()
    assert wilson.volume_shells([99.0, 0.5], edges).tolist() == [0, 4], "what lies beyond belongs to the last one"


def test_a_scale_and_a_fall_off_are_removed():
    d, _, intensity = simulated("acentric")
    F = np.sqrt(intensity)
    E = wilson.normalize(F, d, np.ones(len(d)))
    np.testing.assert_allclose(wilson.normalize(37 * F, d, np.ones(len(d))), E, rtol=1e-12)
    # exp(-B s²/4) with B = 5 Å²: amplitudes at 0.8 Å fall to a quarter of those at 1.5 Å
    np.testing.assert_allclose(wilson.normalize(F * np.exp(-5 / (4 * d**2)), d, np.ones(len(d))), E, rtol=0.02)


def test_a_pure_fall_off_is_flat_also_at_both_ends():
    """F = exp(-B s²/4), B = 5 Å²: E = 1 but for the curvature inside a shell, 0.7 % in intensity."""
    d = np.linspace(0.8, 1.5, 2000)
    E = wilson.normalize(np.exp(-5 / (4 * d**2)), d, np.ones(len(d)))
    np.testing.assert_allclose(E, 1, rtol=0.02)


def test_epsilon_is_divided_out():
    d, _, intensity = simulated("acentric")
    epsilon = np.random.default_rng(1).choice([1.0, 2.0, 4.0], len(d))
    E = wilson.normalize(np.sqrt(intensity * epsilon), d, epsilon)
    np.testing.assert_allclose(E, wilson.normalize(np.sqrt(intensity), d, np.ones(len(d))), rtol=1e-12)


def test_few_reflections_still_have_finite_amplitudes():
    E = wilson.normalize(np.array([3.0, 2.0, 1.5, 1.0]), np.array([1.4, 1.2, 1.0, 0.9]), np.ones(4))
    np.testing.assert_allclose(E, 1, rtol=1e-12)  # each its own shell


def falling(boxes, rng, k, B, statistics):
    """The geometry of real boxes with F = k exp(-B s²/4) (1.5 + cos 2s²) and, if asked, Wilson statistics."""
    d = boxes.d.double().numpy()
    with np.errstate(divide="ignore"):
        s2 = 1 / d**2
    F = k[:, None, None, None] * np.exp(-B[:, None, None, None] * s2 / 4) * (1.5 + np.cos(2 * s2))
    if statistics:
        F = F * np.sqrt(rng.exponential(1, F.shape)) * 2 / sqrt(pi)  # mean 1
    F = F * (boxes.target & ~boxes.absent).numpy()
    return AmplitudeBoxes(box=boxes.box, F=torch.as_tensor(F), scale=boxes.scale, measured=boxes.measured, target=boxes.target,
                          absent=boxes.absent, redundant=boxes.redundant, d=boxes.d.double(), epsilon=boxes.epsilon)


@pytest.mark.parametrize("statistics, tolerance_k, tolerance_B", [(False, 0.01, 0.05), (True, 0.12, 0.3)])
def test_shell_mean_recovers_scale_and_fall_off(p21c, statistics, tolerance_k, tolerance_B):
    """k relative to the mean of all, B in Å²: the curve itself can take up a common scale and fall-off."""
    train, test = p21c
    rng = np.random.default_rng(2)
    k, B = np.exp(rng.normal(0, 1, (2, 20))), rng.normal(4, 1.5, (2, 20))
    row = wilson.ShellMean.fit([falling(train, rng, k[0], B[0], statistics)])
    assert row.sigma_B == pytest.approx(1.48 * np.median(np.abs(B[0] - np.median(B[0]))), rel=0.2)
    # the curve is 1.5 + cos 2s² but for a common scale and fall-off, a line in the logarithm
    inside = (row.s2 > 0.2) & (row.s2 < 1.5)
    ratio = np.log(row.curve[0] * form_factor("C", row.s2 / 4) / (1.5 + np.cos(2 * row.s2)))[inside]  # no formula: carbon
    line = np.polyval(np.polyfit(row.s2[inside], ratio, 1), row.s2[inside])
    np.testing.assert_allclose(ratio, line, atol=0.1 if statistics else 0.02)
    boxes = falling(test, rng, k[1][:len(test)], B[1][:len(test)], statistics)
    fits = []
    for i in range(len(boxes)):
        use = (boxes.target[i] & ~boxes.absent[i] & ~boxes.redundant).numpy()
        fits.append(row._wilson(boxes.F[i].numpy()[use], 1 / boxes.d[i].numpy()[use] ** 2, {"C": 1}))
    k_fit, B_fit = np.array(fits).T
    ratio, shift = k_fit / k[1][:len(fits)], B_fit - B[1][:len(fits)]
    np.testing.assert_allclose(ratio / np.median(ratio), 1, atol=tolerance_k)
    np.testing.assert_allclose(shift - np.median(shift), 0, atol=tolerance_B)


def test_shell_mean_extends_a_smooth_fall_off(p21c):
    """Without statistics the curve is the truth, and B near that of the training crystals is found again."""
    train, test = p21c
    rng = np.random.default_rng(3)
    train = falling(train, rng, np.exp(rng.normal(0, 1, 20)), rng.normal(4, 0.1, 20), False)
    k, B = np.exp(rng.normal(0, 1, len(test))), rng.normal(4, 0.1, len(test))
    test = falling(test, rng, k, B, False)
    pred = wilson.ShellMean.fit([train]).predict(test)
    measured, target, absent = test.measured.numpy(), test.target.numpy(), test.absent.numpy()
    np.testing.assert_array_equal(pred[measured], test.F.numpy()[measured])
    assert (pred[~target | absent] == 0).all()
    assert (pred[target & ~measured & ~absent] > 0).all()
    r = metrics.score(pred, test).r_ext  # 0.1 Å² changes F by 2.4 % between 1.5 and 0.8 Å
    assert r.median() < 0.015 and r.max() < 0.04
    # the same crystals with other scales: nothing but the measured part may be used
    hidden = falling(test, rng, k, B, False)
    hidden.F[~hidden.measured] = 99
    np.testing.assert_array_equal(wilson.ShellMean.fit([train]).predict(hidden)[~measured], pred[~measured])


def test_wilson_fit_has_its_closed_form():
    """On a flat curve without prior the fit is the Wilson plot: exact for F = k exp(-B s²/4) √⟨f²⟩, shells being narrow."""
    s2, contents = np.linspace(0.01, 1.5, 3000), {"C": 8, "H": 10, "Cl": 2}
    f2 = sum(n * np.array([gemmi.Element(symbol).it92.calculate_sf(x / 4) for x in s2]) ** 2 for symbol, n in contents.items())
    F = 5.3 * np.exp(-3.1 * s2 / 4) * np.sqrt(f2 / 20)
    row = wilson.ShellMean(s2=np.array([0, 2.0]), curve=np.ones((2, 2)))
    k, B = row._wilson(F, s2, contents)
    assert k == pytest.approx(5.3, rel=1e-3) and B == pytest.approx(3.1, abs=2e-3)
    assert row.at(F[:900], s2[:900] ** -0.5, s2[900:] ** -0.5, contents) == pytest.approx(F[900:], rel=0.01)
    # with a prior that is sure of itself B is the prior's, and k follows: 2 Cl of 8 C, 10 H and 2 Cl are 578 of 876
    assert wilson.heavy_share(contents) == pytest.approx(578 / 876)
    sure = wilson.ShellMean(s2=row.s2, curve=row.curve, B=(2.0, 1.0), sigma_B=1e-6)
    assert sure._wilson(F, s2, contents)[1] == pytest.approx(2 - 578 / 876, abs=1e-6)


def test_light_and_heavier_crystals_fall_off_each_in_its_way(p21c):
    """F = exp(-B s²/4) √⟨f²⟩ times a wave for light atoms, which heavier ones do not have."""
    train, _ = p21c
    rng, made, s2 = np.random.default_rng(5), [], 1 / np.maximum(train.d.double().numpy(), 0.1) ** 2
    formulas = [{"C": 6.0, "O": 1.0} if i % 2 else {"C": 6.0, "Br": 1.0} for i in range(len(train))]
    for i, contents in enumerate(formulas):
        heavy, f2 = wilson.heavy_share(contents), sum(n * form_factor(e, s2[i] / 4) ** 2 for e, n in contents.items())
        B = rng.normal(3 - 1.5 * heavy, 0.1)
        made.append(np.exp(-B * s2[i] / 4 + (1 - heavy) * 0.2 * np.cos(4 * s2[i])) * np.sqrt(f2))
    F = torch.as_tensor(np.array(made)) * (train.target & ~train.absent)
    boxes = replace(train, F=F, d=train.d.double(), samples=tuple(
        sample._replace(contents=contents) for sample, contents in zip(train.samples, formulas)))
    row = wilson.ShellMean.fit([boxes])
    assert row.sigma_B == pytest.approx(0.1, abs=0.05), "Å², since light and heavier ones have a mean each"
    assert metrics.score(row.predict(boxes), boxes).r_ext.max() < 0.04
    blind = replace(boxes, samples=())
    assert metrics.score(wilson.ShellMean.fit([blind]).predict(blind), blind).r_ext.mean() > 0.06, "without the formula"


@pytest.mark.parametrize("name, domains, l, l2, likely", [  # Padilla & Yeates (2003), table 1, and integrals of theirs
    ("P 1", 1, 1 / 2, 1 / 3, False), ("P 1", 2, 3 / 8, 1 / 5, True), ("P -1", 1, 2 / pi, 1 / 2, False),
    ("P -1", 2, 1 / 2, 1 / 3, True)])
def test_twins_are_told_by_differences_of_neighbours(name, domains, l, l2, likely):
    rng, cell, spacegroup = np.random.default_rng(3), gemmi.UnitCell(13.1, 14.3, 15.7, 81, 95, 104), gemmi.SpaceGroup(name)
    hkl = unique_hkl(cell, spacegroup, 1.2)
    I = sum(rng.standard_normal(len(hkl)) ** 2 if name == "P -1" else rng.exponential(1, len(hkl)) for _ in range(domains))
    I *= 1000 * np.exp(-3 * cell.calculate_d_array(hkl.astype(np.int32)) ** -2)
    data = Reflections(hkl, np.sqrt(I), 0.02 * np.sqrt(I), cell, spacegroup)
    found = wilson.intensity_statistics(data, {"C": 8})
    assert found.n_pairs > 5000 and (found.l, found.l2) == pytest.approx((l, l2), abs=0.02)
    assert found.twinning_likely == likely and (found.twinned if domains == 2 else found.expected) == pytest.approx(l)
    weak = wilson.intensity_statistics(Reflections(hkl, np.sqrt(I), np.sqrt(I), cell, spacegroup), {})
    assert weak.n_pairs == 0 and not weak.twinning_likely


def test_equivalents_are_no_neighbours():
    """In P2/m (-1 k 0) and (1 k 0) are equivalent and differ by two: of (h k 0), |h| < 2, only k and k + 2 are left."""
    hkl = np.array([(h, k, 0) for h in (0, 1) for k in range(1, 9)])
    cell, spacegroup = gemmi.UnitCell(13.1, 14.3, 15.7, 90, 95, 90), gemmi.SpaceGroup("P 1 2/m 1")
    data = Reflections(hkl, np.linspace(5, 9, 16), np.full(16, 0.01), cell, spacegroup)
    # and across the origin (h -1 0) with (h 1 0), which are equivalent, too
    assert wilson.intensity_statistics(data, {}).n_pairs == 2 * 6


def test_the_wilson_plot_of_atoms_at_rest_anywhere():
    """I = ε k Σ f² exp(-2 B s²) to the letter gives B; f² by gemmi."""
    cell, spacegroup = gemmi.UnitCell(9.1, 12.3, 10.4, 90, 101, 90), gemmi.SpaceGroup("P 1 21/c 1")
    hkl = unique_hkl(cell, spacegroup, 0.85)
    s2 = cell.calculate_d_array(hkl.astype(np.int32)) ** -2 / 4
    f2 = sum(n * np.array([gemmi.Element(symbol).it92.calculate_sf(x) for x in s2]) ** 2 for symbol, n in (("C", 8), ("Cl", 2)))
    epsilon = spacegroup.operations().epsilon_factor_without_centering_array(hkl.astype(np.int32))
    F = np.sqrt(0.7 * epsilon * f2 * np.exp(-2 * 3.3 * s2))
    found = wilson.intensity_statistics(Reflections(hkl, F, 0.01 * F, cell, spacegroup), {"C": 8, "Cl": 2})
    assert found.B == pytest.approx(3.3, abs=0.02) and found.e2_1 == pytest.approx(0, abs=0.02)


def test_the_uncertainty_that_was_put_in_is_found():
    """Normal errors whose variance grows with E and with resolution, other ones where reflections are centric (h0l of P2₁)."""
    training, other = recipe("P 1 21 1")
    rng = np.random.default_rng(5)

    def disturbed(boxes):
        F_pred, sigma = boxes.F.double().numpy(), np.zeros(boxes.F.shape)
        for i in range(len(boxes)):
            where = boxes.extension[i].numpy()
            F, d = F_pred[i][where], boxes.d[i].double().numpy()[where]
            E = wilson.normalize(F, d, boxes.epsilon[i].double().numpy()[where])
            centric, t = boxes.box.hkl[where.ravel(), 1] == 0, (1 / d - 1 / 1.5) / (1.25 - 1 / 1.5)
            sigma[i][where] = F / E * np.sqrt(np.where(centric, 0.5 + 0.1 * E, 0.1 + 0.2 * E**2 + 0.1 * t))
        true = F_pred + sigma * rng.standard_normal(F_pred.shape)
        return F_pred, replace(boxes, F=torch.where(boxes.extension, torch.as_tensor(true), boxes.F)), sigma

    F_pred, truth, _ = disturbed(training)
    spread = wilson.Spread.fit([(F_pred, truth)])
    F_pred, truth, sigma = disturbed(other)
    z = []
    for i in range(len(other)):
        where, found = other.extension[i].numpy(), spread.sigma(truth, i, F_pred[i])
        assert (found[~where] == 0).all()
        acentric = where & (other.box.hkl[:, 1] > 0).reshape(where.shape)
        np.testing.assert_allclose(np.median(found[acentric] / sigma[i][acentric]), 1, atol=0.05)
        assert np.corrcoef(found[where], sigma[i][where])[0, 1] > 0.95
        z += [((truth.F[i].numpy() - F_pred[i]) / np.where(where, found, 1))[where]]
    assert np.sqrt((np.concatenate(z) ** 2).mean()) == pytest.approx(1, abs=0.03)


def test_few_reflections_give_one_uncertainty_and_none_that_of_knowing_nothing():
    """In P2₁ h0l alone is centric; here none of it is to be predicted."""
    boxes = recipe("P 1 21 1")[0][[0]]
    F, where = boxes.F[0].double().numpy(), boxes.extension[0].numpy()
    few = replace(boxes, target=boxes.target & (torch.arange(18) > 0).view(1, 1, 18, 1) | boxes.measured)
    spread = wilson.Spread.fit([(few.F.double().numpy() * 1.1, few)])
    assert spread.terms[1] == (1, 0, 0, 0, 0), "h0l is not among them"
    sigma = wilson.Spread(((0.0,) * 5, (0.0,) * 5)).sigma(boxes, 0, F)
    assert (sigma[where] > 0).all() and (sigma[~where] == 0).all()
