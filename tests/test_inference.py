"""Extension of measured reflections: against structure factors by gemmi, which the code under test has never seen."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

from makers import REAL, direct_sum, make_crystal, random_crystal
from xrd_helpers import ROOT, baselines, inference
from xrd_helpers.cif import read_cif
from xrd_helpers.config import UserError
from xrd_helpers.gridding import BOXES, AmplitudeBoxes, measured_box, to_box_setting
from xrd_helpers.known_molecule import read_molecules
from xrd_helpers.metrics import score
from xrd_helpers.reflection_files import read_measured
from xrd_helpers.reflections import Measured, ReflectionError, Reflections, unique_hkl
from xrd_helpers.weights import WeightsError, load_model, predict
from xrd_helpers.wilson import ShellMean

MONOCLINIC = BOXES["monoclinic"]


@pytest.fixture(scope="module")
def shell_mean():
    return baselines.shell_mean(60)


def test_the_verdict_says_when_a_model_knows_nothing():
    scores = dict(r_ext=0.6, cc_ext=0.5, shell_mean_r_ext=0.55, shell_mean_cc_ext=0.51, recipe="atoms")
    bad = inference.verdict("UNet", scores)
    assert "r_ext 0.600, cc_ext 0.500" in bad and "nothing beyond the fall-off" in bad and "do not expect" in bad
    good = inference.verdict("UNet", scores | dict(cc_ext=0.7))
    assert "nothing beyond" not in good and "do not expect" not in good and "r_ext 0.550, cc_ext 0.510" in good
    assert "nothing is known" in inference.verdict("UNet", {})


# ---- extension of measured reflections ----

MEASURED = REAL / "measured"
SETTINGS = {"P 1 21/c 1": (7.3, 9.1, 8.4, 90, 111, 90), "P 1 21/n 1": (9.4, 6.1, 7.3, 90, 99, 90),
            "P 1 21/a 1": (9.4, 6.1, 7.3, 90, 99, 90), "I 1 2/a 1": (11.3, 5.1, 9.4, 90, 97, 90),
            "A 1 2/n 1": (11.3, 5.1, 9.4, 90, 97, 90), "C 1 2 1": (12.1, 6.3, 7.2, 90, 108, 90),
            "P 1 21 1": (9.1, 7.3, 6.2, 90, 103, 90),
            "P -1": (6.1, 8.3, 9.7, 81, 95, 104), "P 1": (6.1, 5.3, 7.7, 81, 95, 104)}


def made_data(group, d_min=1.5, seed=0):
    """(Crystal, {hkl: |F|} to 0.9 Å by gemmi's direct summation, Measured to d_min)."""
    crystal = make_crystal("CNOS", group, SETTINGS[group], seed=seed)
    cell, spacegroup = crystal.cell, crystal.spacegroup
    hkl = gemmi.make_miller_array(cell, spacegroup, 0.9)
    F = np.abs(direct_sum(crystal, hkl))
    inside = cell.calculate_d_array(hkl) >= d_min
    measured = Measured(hkl[inside].astype(np.int64), F[inside] ** 2, 0.02 * F[inside] ** 2 + 0.01, cell, spacegroup,
                        crystal.contents, 0.71073, (Path("made.hkl"),), "SHELX")
    return crystal, dict(zip(map(tuple, hkl.tolist()), F)), measured


def all_knowing(crystal, box):
    """A method that knows the crystal, in the setting of the box."""
    def method(boxes):
        truth = AmplitudeBoxes.from_crystals([to_box_setting(crystal)], box, 1.5, 0.9, dtype=torch.float64)
        return (truth.F * truth.scale / boxes.scale).numpy()
    return method


@pytest.mark.parametrize("group", SETTINGS)
def test_predictions_come_back_in_the_setting_of_the_data(group):
    box = BOXES["triclinic" if group in ("P 1", "P -1") else "monoclinic"]
    crystal, truth, measured = made_data(group)
    extended = inference.extend(measured, all_knowing(crystal, box), 0.5, box, 0.9, 1.5)
    found = {tuple(h): F for h, F in zip(extended.predicted.hkl.tolist(), extended.predicted.F)}
    missing = truth.keys() - set(map(tuple, measured.hkl.tolist()))
    assert found.keys() == missing and len(missing) > 100
    largest = max(truth.values())
    assert np.array([found[h] for h in missing]) == pytest.approx(np.array([truth[h] for h in missing]), abs=2e-3 * largest)
    assert extended.predicted.spacegroup.xhm() == group and extended.measured is measured


def test_what_a_model_is_shown():
    """Amplitudes over the largest one, equivalents twice in the box, absences inside the data measured and zero."""
    crystal, truth, measured = made_data("P 1 21/c 1")
    boxes, swapped = measured_box(measured.merge(), MONOCLINIC, 0.9)
    expected = AmplitudeBoxes.from_crystals([crystal], d_input=1.5, d_target=0.9)
    assert not swapped
    for name in ("measured", "target", "absent", "redundant"):
        assert torch.equal(getattr(boxes, name), getattr(expected, name)), name
    np.testing.assert_allclose(boxes.F_in, expected.F_in, atol=2e-3)
    np.testing.assert_allclose(boxes.epsilon, expected.epsilon)
    inside = boxes.target[0]
    np.testing.assert_allclose(boxes.d[0][inside], expected.d[0][inside], rtol=1e-5)


def test_holes_are_filled_and_data_beyond_are_kept():
    crystal, truth, measured = made_data("P 1 21/n 1", d_min=1.2)
    holes = [tuple(h) for h in measured.hkl[::7].tolist()]
    kept = np.array([tuple(h) not in holes for h in measured.hkl.tolist()])
    measured = replace(measured, hkl=measured.hkl[kept], intensity=measured.intensity[kept], sigma=measured.sigma[kept])
    shown = []

    def method(boxes):
        shown.append(boxes)
        return all_knowing(crystal, MONOCLINIC)(boxes)

    extended = inference.extend(measured, method, 0.5, MONOCLINIC, 0.9, d_shown=1.5)
    found = {tuple(h): F for h, F in zip(extended.predicted.hkl.tolist(), extended.predicted.F)}
    assert set(holes) <= found.keys() and not found.keys() & set(map(tuple, measured.hkl.tolist()))
    assert all(found[h] == pytest.approx(truth[h], abs=1) for h in holes)
    seen = shown[0].measured & ~shown[0].absent
    assert shown[0].d[seen].min() >= 1.5 > 1.3 > extended.merged.d_min, "no more than the model was trained on"
    inference.extend(measured, method, 0.5, MONOCLINIC, 0.9, d_shown=1.0)
    assert shown[1].d[shown[1].measured & ~shown[1].absent].min() < 1.25


def test_the_uncertainty_is_that_of_the_validation():
    _, _, measured = made_data("P 1 21/n 1")
    predicted = inference.extend(measured, lambda boxes: np.ones(boxes.F.shape), 0.4, MONOCLINIC, 0.9).predicted
    # constant amplitudes F: the mean error is 0.4 F, that of a normal distribution with σ is σ (2/π)^½
    np.testing.assert_allclose(predicted.sigF * (2 / np.pi) ** 0.5, 0.4 * predicted.F, rtol=0.003)


def test_the_uncertainty_of_each_amplitude_where_a_model_knows_it():
    """A spread whose σ is the number of the voxel comes out at each reflection, in the setting of the data."""
    crystal, truth, measured = made_data("P 1 21/a 1")

    class Numbers:
        def sigma(self, boxes, i, F):
            return (F * (1 + np.arange(F.size).reshape(F.shape) / F.size)) * boxes.extension[i].numpy()

    found = {}
    for name in ("F", "sigF"):
        spread = Numbers() if name == "sigF" else None
        predicted = inference.extend(measured, all_knowing(crystal, MONOCLINIC), 0.5, MONOCLINIC, 0.9, spread=spread).predicted
        found[name] = predicted
    assert (found["F"].hkl == found["sigF"].hkl).all() and (found["F"].F == found["sigF"].F).all()
    for hkl, F, sigF in zip(found["sigF"].hkl.tolist(), found["sigF"].F, found["sigF"].sigF):
        h, k, l = hkl[2], -hkl[1], hkl[0]  # a > c: the box has them exchanged
        voxel = MONOCLINIC.index(np.array([[h, k, l]]))[0]
        assert sigF == pytest.approx(F * (1 + voxel / len(MONOCLINIC.hkl)), rel=1e-5)


def test_the_resolution_that_is_found_in_the_data():
    _, _, measured = made_data("P 1 21/c 1", d_min=0.95)
    d = measured.cell.calculate_d_array(measured.hkl.astype(np.int32))
    kept = (d > 1.2) | (np.arange(len(d)) % 5 == 0)  # whole to 1.2 Å, a fifth from there to 0.95 Å
    measured = replace(measured, hkl=measured.hkl[kept], intensity=measured.intensity[kept], sigma=measured.sigma[kept])
    extended = inference.extend(measured, lambda boxes: np.full(boxes.F.shape, 0.1), 0.5, MONOCLINIC, 0.9)
    assert extended.d_complete == pytest.approx(1.2, abs=0.04) and extended.merged.d_min == pytest.approx(0.95, abs=0.01)
    text = inference.describe(extended, 0.9)
    assert f"to {extended.merged.d_min:.2f} Å, more than half of them to {extended.d_complete:.2f} Å only" in text
    _, _, whole = made_data("P 1 21/c 1", d_min=1.1)
    extended = inference.extend(whole, lambda boxes: np.full(boxes.F.shape, 0.1), 0.5, MONOCLINIC, 0.9)
    assert extended.d_complete == extended.merged.d_min
    assert ", 0 of them in holes" in inference.describe(extended, 0.9)
    assert "kept, but not shown to the model" in inference.describe(extended, 0.9, (1.5, 1.5))
    assert "expect worse" in inference.describe(extended, 0.9, (1.0, 1.0))
    assert "expect worse" not in inference.describe(extended, 0.9, (1.5, 1.5))


@pytest.mark.parametrize("group, cell, d_target, message", [
    ("P -1", (6, 7, 8, 81, 95, 104), 0.8, "space group P -1 is not of the monoclinic box"),
    ("P 1 1 21/b", (6, 7, 8, 90, 90, 104), 0.8, "unique axis b"),
    ("P 1 21/c 1", (7, 15.5, 9, 90, 99, 90), 0.8, r"k from 18 to 19, the box holds 0..17: b is too long"),
    ("P 1 21/c 1", (3.1, 3.2, 3.3, 90, 99, 90), 0.8, "reflections are measured to")])
def test_data_that_do_not_fit_the_box(group, cell, d_target, message):
    cell, spacegroup = gemmi.UnitCell(*cell), gemmi.SpaceGroup(group)
    hkl = gemmi.make_miller_array(cell, spacegroup, 1.5).astype(np.int64)
    data = Measured(hkl, np.ones(len(hkl)), np.ones(len(hkl)), cell, spacegroup, (), 0, (Path("a.hkl"),), "made")
    with pytest.raises(UserError, match=message) as caught:
        inference.extend(data, lambda boxes: boxes.F.numpy(), d_target=d_target)
    assert str(caught.value).startswith("a.hkl: ")


def test_complete_data_need_no_extension():
    _, _, measured = made_data("P 1 21/c 1", d_min=0.9)
    with pytest.raises(UserError, match="are measured: there is nothing to extend"):
        inference.extend(measured, lambda boxes: boxes.F.numpy(), d_target=0.9)


def test_written_files(tmp_path):
    _, truth, measured = made_data("P 1 21/a 1")
    measured = replace(measured, files=(tmp_path / "a.hkl",),  # unmerged, and one below zero
                       hkl=np.concatenate([measured.hkl[:1] * [-1, 1, -1], measured.hkl]),
                       intensity=np.concatenate([[-0.37], measured.intensity]),
                       sigma=np.concatenate([[1.25], measured.sigma]))
    extended = inference.extend(measured, lambda boxes: np.full(boxes.F.shape, 0.1), 0.5, MONOCLINIC, 0.9)
    paths = inference.write_extended(tmp_path / "out" / "b", extended, csv=True, mtz=True, cif=True)
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    assert [path.name for path in paths] == ["b.hkl", "b.ins", "b.csv", "b.cif", "b.mtz"]
    remark = " ".join(line[4:] for line in paths[1].read_text().splitlines() if line.startswith("REM"))
    n, m = len(measured.hkl), len(extended.predicted)
    assert f"EXTENDED: {n} measured reflections (batch number 1), then {m} PREDICTED by a model (batch number 2)" in remark
    lines = paths[0].read_text().splitlines()
    assert len(lines) == n + m + 1 and lines[-1].split() == ["0", "0", "0", "0.00", "0.00", "0"]
    assert {line[28:32] for line in lines[:n]} == {"   1"} and {line[28:32] for line in lines[n:-1]} == {"   2"}
    assert lines[0][12:28] == "   -0.37    1.25"
    for line, h, I, s in zip(lines, measured.hkl.tolist(), measured.intensity, measured.sigma):
        assert [int(line[i:i + 4]) for i in (0, 4, 8)] == h and float(line[12:20]) == pytest.approx(I, abs=0.0051)
        assert float(line[20:28]) == pytest.approx(s, abs=0.0051)
    level = 0.1 * max(F for h, F in truth.items() if h in set(map(tuple, measured.hkl.tolist())))
    sigma = 1.25 * 0.5 * level
    assert float(lines[n][12:20]) == pytest.approx(level**2, rel=0.01)
    assert float(lines[n][20:28]) == pytest.approx((level + sigma) ** 2 - level**2, rel=0.01)
    for path in (paths[1], paths[3], paths[4]):  # what was predicted is never read as measured
        again = read_measured(path)
        assert again.spacegroup.xhm() == "P 1 21/a 1" and len(again.merge()) == len(extended.merged)
        assert len(again.hkl) == (n if path is paths[1] else len(extended.merged))
    assert f"{m} predicted reflections of the file are left out" in read_measured(paths[1]).notes
    table = np.genfromtxt(paths[2], delimiter=",", names=True)
    assert table["measured"].sum() == len(extended.merged) and len(table) == len(extended.merged) + m
    mtz = gemmi.read_mtz_file(str(paths[4]))
    assert mtz.spacegroup.xhm() == "P 1 21/a 1" and mtz.nreflections == len(table)
    for label, name, known in (("F", "F", 1), ("SIGF", "sigF", 1), ("FEXT", "F", 0), ("SIGFEXT", "sigF", 0)):
        values, its_own = mtz.column_with_label(label).array, table["measured"] == known
        np.testing.assert_allclose(values[its_own], table[name][its_own], rtol=1e-5)
        assert np.isnan(values[~its_own]).all()
    loop = gemmi.cif.read(str(paths[3])).sole_block().find("_refln_", ["F_meas", "xrd_phase_F_predicted"])
    assert [(row[0] == "?", row[1] == "?") for row in loop] == [(not known, bool(known)) for known in table["measured"]]
    for stem in (tmp_path / "a", tmp_path / "out" / ".." / "a"):
        with pytest.raises(UserError, match="a.hkl is a file that was read, and is not overwritten"):
            inference.write_extended(stem, extended)
    assert not (tmp_path / "a.ins").exists()
    from_cif = replace(extended, measured=replace(measured, kind="_refln_F_squared_meas", files=(tmp_path / "c.cif",)))
    names = [path.name for path in inference.write_extended(tmp_path / "c_extended", from_cif)]
    assert names == ["c_extended.hkl", "c_extended.ins", "c_measured.hkl"]
    assert len(read_measured(tmp_path / "c_measured.hkl").hkl) == n


def test_intensities_that_shelx_has_no_room_for_are_scaled(tmp_path):
    _, _, measured = made_data("P 1 21/c 1")
    for factor in (1e6, 1e-6):
        scaled = replace(measured, intensity=measured.intensity * factor, sigma=measured.sigma * factor)
        extended = inference.extend(scaled, lambda boxes: np.full(boxes.F.shape, 0.1), 0.5, MONOCLINIC, 0.9)
        inference.write_extended(tmp_path / "b", extended)
        back = read_measured(tmp_path / "b.hkl")
        n = len(measured.hkl)
        assert max(back.intensity.max(), back.sigma.max()) == pytest.approx(9999, abs=1)
        ratio = back.intensity[:n] / back.intensity[:n].max() - measured.intensity / measured.intensity.max()
        assert np.abs(ratio).max() < 1e-5
        assert "All intensities in the .hkl file were multiplied by" in inference.describe(extended, 0.9)


@pytest.mark.skipif(not MEASURED.is_dir(), reason=f"no measured reflections in {MEASURED}")
def test_the_shipped_patterson_net_knows_more_than_the_fall_off_on_measured_data(shell_mean):
    network, _ = load_model(ROOT / "weights" / "patterson_net.safetensors")
    gains = []
    for name in ("2012000.hkl", "2016452.hkl", "2021921.cif", "2200000.hkl", "2241551.cif", "4035731.cif"):
        model = MEASURED / name.replace(".hkl", "_model.cif")
        whole = read_measured(MEASURED / name, model if model.is_file() and name.endswith(".hkl") else None)
        d = whole.cell.calculate_d_array(whole.hkl.astype(np.int32))
        cut = replace(whole, hkl=whole.hkl[d >= 1.5], intensity=whole.intensity[d >= 1.5], sigma=whole.sigma[d >= 1.5])
        merged = whole.merge()
        truth = {tuple(h): F for h, F, d in zip(merged.hkl.tolist(), merged.F, merged.d) if 0.8 <= d < 1.5}
        found = []
        for method in (partial(predict, network), shell_mean.predict):
            predicted = inference.extend(cut, method).predicted
            F = dict(zip(map(tuple, predicted.hkl.tolist()), predicted.F))
            found.append(np.corrcoef([F[h] for h in truth], list(truth.values()))[0, 1])
        gains.append(found[0] - found[1])
    assert min(gains) > 0.05 and np.mean(gains) > 0.15, gains


@pytest.mark.skipif(not MEASURED.is_dir(), reason=f"no measured reflections in {MEASURED}")
@pytest.mark.parametrize("name", ["2012000.hkl", "2016452.hkl", "2021921.cif", "2200000.hkl", "2241551.cif", "4035731.cif"])
def test_measured_data_cut_at_1_5_angstrom_are_extended_to_those_that_were_measured(name, shell_mean):
    whole = read_measured(MEASURED / name)
    d = whole.cell.calculate_d_array(whole.hkl.astype(np.int32))
    cut = replace(whole, hkl=whole.hkl[d >= 1.5], intensity=whole.intensity[d >= 1.5], sigma=whole.sigma[d >= 1.5])
    predicted = inference.extend(cut, shell_mean.predict).predicted
    truth = {tuple(h): F for h, F, d in zip(*(lambda m: (m.hkl.tolist(), m.F, m.d))(whole.merge())) if 0.8 <= d < 1.5}
    place = {tuple(h): i for i, h in enumerate(predicted.hkl.tolist())}
    assert truth.keys() <= place.keys(), "whatever was measured beyond 1.5 Å has a prediction, in its own indices"
    rows = np.array([place[h] for h in truth])
    F, P, sigma = np.array(list(truth.values())), predicted.F[rows], predicted.sigF[rows]
    # a mean amplitude, without any knowledge of the crystal: R of 0.41 (acentric) to 0.59 (centric, Wilson statistics) and
    # what the fall-off is wrong by; an uncertainty covers two thirds of the errors
    assert 0.4 < np.abs(F - P).sum() / F.sum() < 0.72 and 0.2 < np.corrcoef(F, P)[0, 1] < 0.65
    assert 0.6 < (np.abs(F - P) < sigma).mean() < 0.9


# ---- phase first ----

MEAN = ShellMean(s2=np.linspace(0.01, 1.6, 20), curve=np.exp(-np.outer([1, 0.8], np.linspace(0.01, 1.6, 20))),
                 B=(3.0, 2.0), sigma_B=1.0)


def split(name, d_input=1.2, d_target=0.9, scale=1.0):
    """(crystal, Reflections to d_input on a scale, hkl beyond, their F)."""
    crystal = random_crystal(name)
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_target)
    F, known = scale * np.abs(direct_sum(crystal, hkl)), crystal.cell.calculate_d_array(hkl.astype(np.int32)) >= d_input
    return crystal, Reflections.of_good_data(hkl[known], F[known], crystal.cell, crystal.spacegroup), hkl[~known], F[~known]


@pytest.mark.parametrize("name, scale", [("P -1", 1.0), ("P 1 21/c 1", 0.037), ("C 1 c 1", 250.0)])
def test_what_was_not_measured_follows_from_the_atoms(name, scale):
    crystal, measured, hkl, F = split(name, scale=scale)
    found = inference.phase_first(measured, hkl, crystal.elements, seed=1)
    assert np.corrcoef(found.F, F)[0, 1] > 0.98
    assert np.abs(found.F - F).sum() / F.sum() < 0.15, "on the scale of the data"
    assert found.r_ext == pytest.approx(2.2 * found.solution.r1) and len(found.solution.elements) == 7
    assert "7 atoms found" in inference.describe_solution(found.solution)


@pytest.fixture(scope="module")
def hopeless():
    _, measured, hkl, _ = split("P 1 21/c 1", d_input=1.0)
    shuffled = np.random.default_rng(0).permutation(measured.F)
    return Reflections.of_good_data(measured.hkl, shuffled, measured.cell, measured.spacegroup), hkl


def test_without_a_structure_something_else_stands_in(hopeless):
    measured, hkl = hopeless
    assert inference.phase_first(measured, hkl, ["S", *"OONCCC"], trials=4) is None
    assert "no structure was found" in inference.describe_solution(None)
    noise = Measured(measured.hkl, measured.F**2, 0.05 * measured.F**2 + 1, measured.cell, measured.spacegroup,
                     {"C": 7}, 0.71073, (Path("made.hkl"),), "made up")
    assert inference.extend_by_structure(noise, d_target=0.9, trials=2) == (None, None)
    # the mean is a function of d alone: k exp(-B/4d²) exp(-1/d²) and the form factor of carbon, nearly a line of ln F in 1/d²
    predicted = inference.extend_by_mean(noise, MEAN, d_target=0.9).predicted
    x = 1 / predicted.d**2
    slope, offset = np.polyfit(x, np.log(predicted.F), 1)
    assert np.abs(np.log(predicted.F) - offset - slope * x).max() < 0.02 and len(predicted) == len(hkl)
    boxes = AmplitudeBoxes.from_crystals([to_box_setting(random_crystal("P 1 21/c 1"))], d_input=1.0, d_target=0.9)
    shuffled = boxes.F.clone()
    inside = (boxes.measured & ~boxes.absent & ~boxes.redundant)
    shuffled[inside] = shuffled[inside][torch.randperm(int(inside.sum()), generator=torch.Generator().manual_seed(0))]
    boxes = replace(boxes, F=shuffled)
    stood_in = inference.phase_first_boxes(boxes, lambda b: np.full(b.F.shape, 0.123), trials=2)
    assert (stood_in[boxes.extension.numpy()] == 0.123).all()


def test_the_next_best_method_says_that_it_stands_in(monkeypatch):
    """Where no structure is found PattersonNet, and the mean where that cannot be had."""
    _, truth, measured = made_data("P 1 21/c 1")
    monkeypatch.setattr(inference, "extend_by_structure", lambda *arguments: (None, None))
    monkeypatch.setattr(inference, "shell_mean", lambda: MEAN)
    extended, trained, words = inference.extend_by("phase_first", measured, d_target=0.9)
    by_name, its_own, _ = inference.extend_by("patterson_net", measured, d_target=0.9)
    assert "no structure was found" in words and "Instead: PattersonNet" in words and trained == its_own != (0, 0)
    np.testing.assert_array_equal(extended.predicted.F, by_name.predicted.F)
    assert truth.keys() - set(map(tuple, measured.hkl.tolist())) == set(map(tuple, extended.predicted.hkl.tolist()))

    def without(path):
        raise WeightsError(f"{path} is damaged")

    monkeypatch.setattr(inference, "load_model", without)
    extended, trained, words = inference.extend_by("phase_first", measured, d_target=0.9)
    assert "patterson_net.safetensors is damaged.) Instead: Shell mean" in words and trained == (0, 0)
    slope, offset = np.polyfit(extended.predicted.d**-2.0, np.log(extended.predicted.F), 1)
    # a function of d alone, nearly a line: the form factors bend it
    assert np.abs(np.log(extended.predicted.F) - offset - slope * extended.predicted.d**-2.0).max() < 0.05


def test_boxes_hold_what_the_reflections_say(monkeypatch):
    crystal = to_box_setting(random_crystal("C 1 c 1"))
    boxes = AmplitudeBoxes.from_crystals([crystal, to_box_setting(random_crystal("P 1 21/c 1"))], d_input=1.2, d_target=0.9)
    F = inference.phase_first_boxes(boxes, MEAN.predict, seed=1)
    measured, absent = boxes.measured.numpy(), boxes.absent.numpy()
    np.testing.assert_allclose(F[measured], boxes.F.double().numpy()[measured])
    assert (F[absent | ~boxes.target.numpy()] == 0).all() and (score(F, boxes)["cc_ext"] > 0.98).all()
    # (-3, 2, 0) and (3, 2, 0) are equivalent in 2/m, and both stand in the box
    at = {tuple(h): i for i, h in enumerate(boxes.box.hkl.tolist())}
    for h, k in ((5, 5), (3, 7), (7, 3), (6, 4)):
        assert F[0].flat[at[-h, k, 0]] == F[0].flat[at[h, k, 0]]
    again = inference.phase_first_boxes(boxes[[1]], MEAN.predict, seed=1)
    np.testing.assert_allclose(again[0], F[1])
    hkl, measured_F = boxes.reflections(1, boxes.F_in[1])
    inside = boxes.reflections(1, boxes.measured[1])[1] > 0
    sample = boxes.samples[1]
    reflections = Reflections.of_good_data(hkl[inside], measured_F[inside], sample.cell, sample.spacegroup)
    solution = inference.phase(reflections, sample.contents, seed=1)
    monkeypatch.setattr(inference, "phase", None)  # what is known already is not looked for again
    known = inference.phase_first_boxes(boxes, MEAN.predict, solutions=[None, solution])
    np.testing.assert_allclose(known[1], F[1], rtol=0.02, atol=1e-3)
    np.testing.assert_allclose(known[0], MEAN.predict(boxes)[0])


@pytest.fixture(scope="module")
def known():
    """(crystal, its molecules, Measured to 2 Å, {hkl: |F|} to 0.9 Å by gemmi's direct summation)."""
    pytest.importorskip("rdkit")
    crystal = read_cif(ROOT / "data" / "molecules" / "paracetamol.cif")
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, 0.9)
    F = 0.3 * np.abs(direct_sum(crystal, hkl))
    short = crystal.cell.calculate_d_array(hkl.astype(np.int32)) >= 2
    measured = Measured(hkl[short], F[short] ** 2, 0.02 * F[short] ** 2 + 0.1, crystal.cell, crystal.spacegroup, {}, 0.71073,
                        (Path("made.hkl"),), "made up")
    return crystal, read_molecules("CC(=O)Nc1ccc(O)cc1"), measured, dict(zip(map(tuple, hkl.tolist()), F))


def test_what_was_not_measured_follows_from_the_molecule(known):
    _, molecules, measured, truth = known
    extended, trained, words = inference.extend_by("molecule_first", measured, d_target=0.9, molecules=molecules)
    F = np.array([truth[tuple(h)] for h in extended.predicted.hkl.tolist()])
    P = extended.predicted.F
    assert len(F) > 5 * len(measured.hkl) and np.corrcoef(P, F)[0, 1] > 0.9 and np.abs(P - F).sum() / F.sum() < 0.4
    assert 0.5 < (np.abs(F - P) < extended.predicted.sigF).mean() < 0.95
    assert trained == (0, 0) and words.startswith("Molecule first: 1 C8H9NO2 in the asymmetric unit")
    with pytest.raises(UserError, match="name it with --molecule"):
        inference.extend_by("molecule_first", measured)
    with pytest.raises(UserError, match="no number of them fills it"):
        inference.extend_by("molecule_first", measured, molecules=read_molecules("C" * 40))


def test_the_molecule_stands_in_the_boxes_of_crystals_that_have_one(known):
    crystal, molecules, _, _ = known
    boxes = AmplitudeBoxes.from_crystals([to_box_setting(crystal)] * 3, d_input=2.0, d_target=0.9)
    too_large = read_molecules("C" * 40)
    boxes = replace(boxes, samples=tuple(s._replace(molecules=tuple(m)) for s, m in zip(boxes.samples,
                                                                                      (molecules, (), too_large))))
    F = inference.molecule_first_boxes(boxes, lambda b: np.full(b.F.shape, 0.123), minutes=0.2)
    scores = score(F, boxes)
    assert scores["cc_ext"][0] > 0.9 and scores["r_ext"][0] < 0.4
    assert (F[1:][boxes.extension[1:].numpy()] == 0.123).all()


def test_measured_data_of_any_space_group_are_extended():
    crystal, reflections, hkl, F = split("P -1", scale=3.0)
    measured = Measured(reflections.hkl, reflections.F**2, 0.05 * reflections.F**2 + 1, crystal.cell, crystal.spacegroup,
                        crystal.contents, 0.71073, (Path("made.hkl"),), "made up")
    extended, solution = inference.extend_by_structure(measured, d_target=0.9)
    assert len(extended.predicted) == len(hkl) and solution.accepted
    row = {tuple(h): i for i, h in enumerate(extended.predicted.hkl.tolist())}
    P = extended.predicted.F[[row[tuple(h)] for h in hkl.tolist()]]
    assert np.corrcoef(P, F)[0, 1] > 0.98 and np.abs(P - F).sum() / F.sum() < 0.15
    with pytest.raises(ReflectionError, match="nothing to extend"):
        inference.extend_by_structure(measured, d_target=1.3)
    few = replace(measured, hkl=measured.hkl[:20], intensity=measured.intensity[:20], sigma=measured.sigma[:20])
    with pytest.raises(ReflectionError, match="made.hkl: only 20 reflections"):
        inference.extend_by_structure(few)
