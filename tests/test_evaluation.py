"""The table of scores against numbers worked out by hand, and against crystals whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from makers import make_crystal
from xrd_helpers import evaluation as ev
from xrd_helpers.baselines import zero_fill
from xrd_helpers.config import UserError
from xrd_helpers.gridding import AmplitudeBoxes, to_box_setting
from xrd_helpers.simulate import Faults

D = dict(d_input=1.5, d_target=1.0)


def crystal(name, elements, seed, spacegroup="P 1 21/c 1", cell=(7.3, 9.1, 8.4, 90, 111, 90)):
    return make_crystal(elements, spacegroup, cell, seed=seed, name=name)


@pytest.fixture(scope="module")
def crystals():
    """The second and third in settings that the box does not hold as they are: a > c."""
    return [crystal("light", "CNOH", 1), crystal("same", ["C", "C", "Cl"], 2, "P 1 21/a 1", (8.4, 9.1, 7.3, 90, 111, 90)),
            crystal("same", "CCOC", 3, "I 1 2/a 1", (12.1, 6.3, 9.4, 90, 97, 90)), crystal("last", "CCBC", 4)]


METHODS = {"all right": lambda boxes: boxes.F.double().numpy(),
           "twice": lambda boxes: (boxes.F * (1 + boxes.extension)).double().numpy(), "zero fill": zero_fill}


@pytest.fixture(scope="module")
def result(crystals):
    return ev.evaluate(crystals, METHODS, **D, batch_size=3)


def test_a_row_a_crystal_and_method(result):
    table = result.table
    assert list(table.columns) == ["name", "spacegroup", "atoms", "light", "method", "mse_box", "r_all", "r_ext", "cc_ext",
                                   "cc_e", "ssim", "solved", "claimed"]
    assert list(table["method"]) == list(METHODS) * 4
    first = table[table["method"] == "twice"]
    assert list(first["name"]) == ["light", "same", "same", "last"] and list(first["atoms"]) == [3, 3, 4, 4]
    assert list(first["light"]) == [True, False, True, True]
    assert list(first["spacegroup"]) == ["P 1 21/c 1", "P 1 21/a 1", "I 1 2/a 1", "P 1 21/c 1"], "those of the file"


def test_scores_of_answers_that_are_known(result):
    by = result.table.groupby("method")[["mse_box", "r_ext", "cc_ext", "r_all"]].agg(["min", "max"])
    # all right; doubled: |2F - F| / F = 1 and still proportional; nothing: R = 1, and a constant correlates with nothing
    for method, mse, r, cc in [("all right", 0, 0, 1), ("twice", None, 1, 1), ("zero fill", None, 1, 0)]:
        assert by.loc[method, "r_ext"].to_numpy() == pytest.approx(r, abs=1e-6)
        assert by.loc[method, "cc_ext"].to_numpy() == pytest.approx(cc, abs=1e-6)
        assert mse is None or by.loc[method, "mse_box"].to_numpy() == pytest.approx(mse)
    shells = result.resolution.set_index("method")
    assert shells.loc["twice", "r_ext"].to_numpy() == pytest.approx(1, abs=1e-6) and len(shells.loc["twice"]) == ev.N_SHELLS
    # of equal volume: d^-3 in equal steps between the two limits
    steps = np.diff(np.r_[1.5**-3, shells.loc["twice", "d"].to_numpy() ** -3.0, 1])
    assert steps[1:-1] == pytest.approx((1 - 1.5**-3) / 8) and steps[[0, -1]] == pytest.approx((1 - 1.5**-3) / 16)


def test_stated_uncertainties_are_held_against_errors(crystals):
    """Errors of F, half of F stated: 2 and none within; twice F stated: 1/2 and all within."""
    class Stated:
        def __init__(self, factor):
            self.factor = factor

        def sigma(self, boxes, i, F_pred):
            return self.factor * F_pred / 2
    methods = {"twice": METHODS["twice"], "again": METHODS["twice"], "unstated": METHODS["twice"]}
    result = ev.evaluate(crystals, methods, **D, spreads={"twice": Stated(0.5), "again": Stated(2)})
    by = result.table.groupby("method")[["z", "in_sigma"]].agg(["min", "max"])
    assert by.loc["twice"].tolist() == pytest.approx([2, 2, 0, 0])
    assert by.loc["again"].tolist() == pytest.approx([0.5, 0.5, 1, 1])
    assert by.loc["unstated"].isna().all()
    assert "z: error over its stated σ" in ev.report(result)


def test_the_size_of_the_batch_changes_nothing(crystals, result):
    again = ev.evaluate(crystals, METHODS, **D, batch_size=1)
    pd.testing.assert_frame_equal(again.table, result.table, atol=1e-6)
    pd.testing.assert_frame_equal(again.resolution, result.resolution, atol=1e-6)


def test_noise_reaches_the_method_and_not_the_truth(crystals):
    seen, truth = [], AmplitudeBoxes.from_crystals([to_box_setting(c) for c in crystals], **D)
    relative = truth.F.double() / truth.F_in.amax(dim=(1, 2, 3), keepdim=True)
    methods = {"seen": lambda boxes: seen.append(boxes) or zero_fill(boxes)}
    table = ev.evaluate(crystals, methods, **D, faults=Faults(noise=0.1), seed=3).table
    boxes = seen[0]
    kept = boxes.measured & ~boxes.absent
    scaled = boxes.F * boxes.scale.view(-1, 1, 1, 1) / truth.scale.view(-1, 1, 1, 1)
    error = ((scaled - relative)[kept].abs().mean() / relative[kept].mean()).item()
    assert 0.005 < error < 0.2, "F differs by a few per cent"
    assert table["r_ext"].to_numpy() == pytest.approx(1, abs=1e-6), "nothing predicted, against amplitudes without noise"
    hidden = ev.evaluate(crystals, methods, **D, faults=Faults(missing=0.4), seed=3)
    assert (seen[1].measured & ~truth.measured).sum() == 0 and seen[1].measured.sum() < 0.95 * truth.measured.sum()
    assert set(hidden.table["cc_ext"]) == {0.0}


def test_nothing_to_evaluate():
    with pytest.raises(UserError, match="no crystal to evaluate"):
        ev.evaluate([], METHODS)


def table_of(r_model, r_mean, light=None, **more):
    n = len(r_model)
    light = [True] * n if light is None else light
    rows = [{"name": "x", "spacegroup": group, "atoms": 5, "light": light[i], "method": method, "mse_box": 0.0, "r_all": 0.0,
             "r_ext": r, "cc_ext": -r, "cc_e": 0.0, "ssim": 0.0, "solved": None, "claimed": None}
            for i in range(n) for method, r, group in (("net", r_model[i], more.get("groups", ["P 1 21/c 1"] * n)[i]),
                                                       ("shell mean", r_mean[i], more.get("groups", ["P 1 21/c 1"] * n)[i]))]
    return pd.DataFrame(rows)


def test_the_paired_test_gives_the_exact_probability():
    # of seven differences all of one sign: 2 / 2^7 (Wilcoxon, 1945)
    tests = ev.compare(table_of([0.5, 0.4, 0.3, 0.2, 0.25, 0.35, 0.45], [0.6] * 7))
    assert tests["class"].tolist() == ["all", "all", "light", "light"]
    tests = tests[tests["class"] == "all"].set_index("score")
    assert tests.loc["r_ext", "p"] == pytest.approx(2 / 2**7) and tests.loc["cc_ext", "p"] == pytest.approx(2 / 2**7)
    assert tests["better"].tolist() == [1, 1] and tests.loc["r_ext", "median"] == pytest.approx(-0.25)
    assert tests["crystals"].tolist() == [7, 7] and tests["method"].tolist() == ["net", "net"]
    few = ev.compare(table_of([0.5] * 5, [0.6] * 5))
    assert few["p"].isna().all() and (few["crystals"] == 5).all()
    assert ev.compare(table_of([0.5], [0.6]), baseline="another").empty


def test_means_by_class_and_space_group():
    groups = ["P 1 21/n 1", "P 1 21/a 1", "C 1 2 1"]
    table = table_of([0.1, 0.2, 0.6], [1, 1, 1], [True, False, True], groups=groups)
    means = ev.summarise(table).set_index(["class", "method"])
    assert means.loc[("all", "net"), "r_ext"] == pytest.approx(0.3) and means.loc[("light", "net"), "r_ext"] == 0.35
    assert means.loc[("heavier", "net"), "crystals"] == 1 and "solve_rate" not in means
    by_group = ev.by_spacegroup(table).set_index(["spacegroup", "method"])
    assert by_group.loc[("P21/c", "net"), "r_ext"] == pytest.approx(0.15) and by_group.loc[("C2", "net"), "crystals"] == 1
    assert list(by_group.index)[0][0] == "P21/c"
    assert set(ev.classes(table_of([0.1], [1]))) == {"all", "light"}


def test_solve_rate_and_wrong_claims_are_of_the_phased_crystals():
    table = table_of([0.1] * 4, [1] * 4)
    net = table.index[table["method"] == "net"]
    table.loc[net[:3], "solved"], table.loc[net[:3], "claimed"] = [True, False, False], [True, True, False]
    row = ev.summarise(table).set_index(["class", "method"]).loc[("all", "net")]
    assert row["phased"] == 3 and row["solve_rate"] == pytest.approx(1 / 3) and row["wrong_claims"] == 1
    other = ev.summarise(table).set_index(["class", "method"]).loc[("all", "shell mean")]
    assert other["phased"] == 0 and np.isnan(other["solve_rate"]) and other["wrong_claims"] == 0


def test_the_true_amplitudes_of_a_crystal_solve_it(crystals):
    # five atoms, two of them heavy, far apart: any engine finds these from amplitudes to 1 Å, on axes exchanged as well
    atoms = [[0.1, 0.1, 0.1], [0.35, 0.4, 0.2], [0.7, 0.2, 0.4], [0.2, 0.6, 0.6], [0.55, 0.62, 0.1]]
    easy = make_crystal(("S", "Cl", "O", "C", "C"), "P 1 21/a 1", (8.4, 9.1, 7.3, 90, 101, 90), atoms, u=0.02, name="easy")
    methods = {"zero fill": zero_fill, "all right": METHODS["all right"]}
    result = ev.evaluate([easy, crystals[0]], methods, **D, n_solve=2, trials=4)
    found = result.table[result.table["name"] == "easy"].set_index("method")
    assert found.loc[ev.TRUE, "solved"] and found.loc["all right", "solved"]
    assert found.loc["zero fill", "solved"] == found.loc[ev.NOTHING, "solved"]
    assert found.loc[ev.TRUE, list(ev.SCORES)].isna().all()
    assert len(result.table) == 8 and result.table["solved"].notna().all()
    text = ev.report(result)
    assert "true amplitudes" in text and "solve_rate" in text and "nothing added" in text
    one = ev.evaluate([easy, crystals[0]], {"zero fill": zero_fill}, **D, n_solve=1, trials=1)
    assert one.table["solved"].notna().sum() == 3, "one crystal: zero fill, true amplitudes, nothing added"
