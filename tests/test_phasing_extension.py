"""Phase first: against structure factors of the crystal by gemmi, which the code under test has never seen."""

from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

from test_phasing_charge_flipping import random_crystal
from xrd_helpers.gridding import AmplitudeBoxes, to_box_setting
from xrd_helpers.inference import describe_solution, extend_by_mean, extend_by_structure
from xrd_helpers.metrics import ShellMean, score
from xrd_helpers.phasing import extension
from xrd_helpers.reflections import Measured, ReflectionError, Reflections, unique_hkl

MEAN = ShellMean(s2=np.linspace(0.01, 1.6, 20), curve=np.exp(-np.linspace(0.01, 1.6, 20)), B=3.0, sigma_B=1.0)


def amplitudes(crystal, hkl):
    small = crystal.small_structure()
    calculator = gemmi.StructureFactorCalculatorX(small.cell)
    return np.array([abs(calculator.calculate_sf_from_small_structure(small, h)) for h in hkl.tolist()])


def split(name, d_input=1.2, d_target=0.9, scale=1.0):
    """(crystal, Reflections to d_input on a scale, hkl beyond, their F)."""
    crystal = random_crystal(name)
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_target)
    F, known = scale * amplitudes(crystal, hkl), crystal.cell.calculate_d_array(hkl.astype(np.int32)) >= d_input
    return crystal, Reflections.of_good_data(hkl[known], F[known], crystal.cell, crystal.spacegroup), hkl[~known], F[~known]


@pytest.mark.parametrize("name, scale", [("P -1", 1.0), ("P 1 21/c 1", 0.037), ("C 1 c 1", 250.0)])
def test_what_was_not_measured_follows_from_the_atoms(name, scale):
    crystal, measured, hkl, F = split(name, scale=scale)
    found = extension.phase_first(measured, hkl, crystal.elements, seed=1)
    assert np.corrcoef(found.F, F)[0, 1] > 0.98
    assert np.abs(found.F - F).sum() / F.sum() < 0.15, "on the scale of the data"
    assert found.r_ext == pytest.approx(2.5 * found.solution.r1) and len(found.solution.elements) == 7
    assert "7 atoms found" in describe_solution(found.solution)


@pytest.fixture(scope="module")
def hopeless():
    _, measured, hkl, _ = split("P 1 21/c 1", d_input=1.0)
    shuffled = np.random.default_rng(0).permutation(measured.F)
    return Reflections.of_good_data(measured.hkl, shuffled, measured.cell, measured.spacegroup), hkl


def test_without_a_structure_something_else_stands_in(hopeless):
    measured, hkl = hopeless
    assert extension.phase_first(measured, hkl, ["S", *"OONCCC"], trials=4) is None
    assert "no structure was found" in describe_solution(None)
    noise = Measured(measured.hkl, measured.F**2, 0.05 * measured.F**2 + 1, measured.cell, measured.spacegroup,
                     {"C": 7}, 0.71073, (Path("made.hkl"),), "made up")
    assert extend_by_structure(noise, d_target=0.9, trials=2) == (None, None)
    # the mean is a function of d alone: k exp(-B/4d²) exp(-1/d²), a line of ln F against 1/d²
    predicted = extend_by_mean(noise, MEAN, d_target=0.9).predicted
    x = 1 / predicted.d**2
    slope, offset = np.polyfit(x, np.log(predicted.F), 1)
    assert np.abs(np.log(predicted.F) - offset - slope * x).max() < 0.02 and slope < 0 and len(predicted) == len(hkl)
    boxes = AmplitudeBoxes.from_crystals([to_box_setting(random_crystal("P 1 21/c 1"))], d_input=1.0, d_target=0.9)
    shuffled = boxes.F.clone()
    inside = (boxes.measured & ~boxes.absent & ~boxes.redundant)
    shuffled[inside] = shuffled[inside][torch.randperm(int(inside.sum()), generator=torch.Generator().manual_seed(0))]
    boxes = replace(boxes, F=shuffled)
    stood_in = extension.phase_first_boxes(boxes, lambda b: np.full(b.F.shape, 0.123), trials=2)
    assert (stood_in[boxes.extension.numpy()] == 0.123).all()


def test_a_list_of_kinds_is_filled_up_with_carbon(monkeypatch):
    asked = []
    monkeypatch.setattr(extension.charge_flipping, "solve", lambda reflections, elements, **_: asked.append(elements))
    _, measured, _, _ = split("P 1 21/c 1")  # 521 Å³ in four parts: 7 atoms of 18 Å³
    for elements in (["C", "H", "O"], {}, ["S", *"OONCCC", "H"]):
        extension.phase(measured, elements)
    assert asked == [{"O": 1, "C": 6}, {"C": 7}, {"S": 1, "O": 2, "N": 1, "C": 3, "H": 1}]


def test_boxes_hold_what_the_reflections_say(monkeypatch):
    crystal = to_box_setting(random_crystal("C 1 c 1"))
    boxes = AmplitudeBoxes.from_crystals([crystal, to_box_setting(random_crystal("P 1 21/c 1"))], d_input=1.2, d_target=0.9)
    F = extension.phase_first_boxes(boxes, MEAN.predict, seed=1)
    measured, absent = boxes.measured.numpy(), boxes.absent.numpy()
    np.testing.assert_allclose(F[measured], boxes.F.double().numpy()[measured])
    assert (F[absent | ~boxes.target.numpy()] == 0).all() and (score(F, boxes)["cc_ext"] > 0.98).all()
    # (-3, 2, 0) and (3, 2, 0) are equivalent in 2/m, and both stand in the box
    at = {tuple(h): i for i, h in enumerate(boxes.box.hkl.tolist())}
    for h, k in ((5, 5), (3, 7), (7, 3), (6, 4)):
        assert F[0].flat[at[-h, k, 0]] == F[0].flat[at[h, k, 0]]
    again = extension.phase_first_boxes(boxes[[1]], MEAN.predict, seed=1)
    np.testing.assert_allclose(again[0], F[1])
    hkl, measured_F = boxes.reflections(1, boxes.F_in[1])
    inside = boxes.reflections(1, boxes.measured[1])[1] > 0
    sample = boxes.samples[1]
    reflections = Reflections.of_good_data(hkl[inside], measured_F[inside], sample.cell, sample.spacegroup)
    solution = extension.phase(reflections, sample.contents, seed=1)
    monkeypatch.setattr(extension, "phase", None)  # what is known already is not looked for again
    known = extension.phase_first_boxes(boxes, MEAN.predict, solutions=[None, solution])
    np.testing.assert_allclose(known[1], F[1], rtol=0.02, atol=1e-3)
    np.testing.assert_allclose(known[0], MEAN.predict(boxes)[0])


def test_measured_data_of_any_space_group_are_extended():
    crystal, reflections, hkl, F = split("P -1", scale=3.0)
    measured = Measured(reflections.hkl, reflections.F**2, 0.05 * reflections.F**2 + 1, crystal.cell, crystal.spacegroup,
                        crystal.contents, 0.71073, (Path("made.hkl"),), "made up")
    extended, solution = extend_by_structure(measured, d_target=0.9)
    assert len(extended.predicted) == len(hkl) and solution.accepted
    row = {tuple(h): i for i, h in enumerate(extended.predicted.hkl.tolist())}
    P = extended.predicted.F[[row[tuple(h)] for h in hkl.tolist()]]
    assert np.corrcoef(P, F)[0, 1] > 0.98 and np.abs(P - F).sum() / F.sum() < 0.15
    with pytest.raises(ReflectionError, match="nothing to extend"):
        extend_by_structure(measured, d_target=1.3)
    few = replace(measured, hkl=measured.hkl[:20], intensity=measured.intensity[:20], sigma=measured.sigma[:20])
    with pytest.raises(ReflectionError, match="made.hkl: only 20 reflections"):
        extend_by_structure(few)
