"""A simulated measurement has the faults that were asked for, in boxes and in files that are read back as a measurement."""

import numpy as np
import pytest
import torch

from tiny import LIMITS, TINY, tiny_crystals
from xrd_helpers import locate
from xrd_helpers.cif import read_cif
from xrd_helpers.gridding import AmplitudeBoxes
from xrd_helpers.reflection_files import read_measured
from xrd_helpers.reflections import unique_hkl
from xrd_helpers.simulate import Faults, simulate_measurement
from xrd_helpers.structure_factors import structure_factors


@pytest.fixture(scope="module", params=["hydantoin", "ornithine_hydrochloride"])  # centrosymmetric with a centring, and polar
def crystal(request):
    return read_cif(locate(f"data/molecules/{request.param}.cif"))


def test_it_is_read_as_a_measurement_of_the_crystal(tmp_path, crystal):
    data = read_measured(simulate_measurement(tmp_path / "job", crystal, d_min=0.9, missing=0.1, seed=3))
    merged = data.merge()
    quality, n = data.quality(merged), len(unique_hkl(crystal.cell, crystal.spacegroup, 0.9))
    assert data.spacegroup.xhm() == crystal.spacegroup.xhm()
    np.testing.assert_allclose(data.cell.parameters, crystal.cell.parameters, atol=1e-3)
    assert data.elements == pytest.approx(crystal.contents, abs=0.13)  # UNIT holds whole atoms of the cell
    assert quality.completeness == pytest.approx(0.9, abs=0.04) and len(merged) == quality.n_unique < n
    assert quality.n_measured == pytest.approx(3 * quality.n_unique, rel=0.01) and 0.005 < quality.r_int < 0.05
    assert (data.intensity < 0).any(), "background was subtracted"
    true = np.abs(structure_factors(crystal, merged.hkl))
    assert np.corrcoef(true, merged.F)[0, 1] > 0.999


def test_errors_are_as_large_as_the_uncertainties_say(tmp_path, crystal):
    data = read_measured(simulate_measurement(tmp_path / "job", crystal, seed=1))
    true = np.abs(structure_factors(crystal, data.hkl)) ** 2
    weight = data.sigma**-2
    scale = (weight * true * data.intensity).sum() / (weight * true**2).sum()
    pulls = (data.intensity - scale * true) / data.sigma
    assert abs(pulls.mean()) < 0.1 and 0.85 < pulls.std() < 1.15


def test_the_seed_decides(tmp_path, crystal):
    paths = [simulate_measurement(tmp_path / f"{i}", crystal, d_min=1.2, seed=seed) for i, seed in enumerate((0, 0, 1))]
    texts = [path.read_text() for path in paths]
    assert texts[0] == texts[1] != texts[2]


# ---- in boxes ----


@pytest.fixture(scope="module")
def many():
    return AmplitudeBoxes.from_crystals(tiny_crystals(400, 1), **LIMITS)


def test_ideal_data_are_left_as_they_are(many):
    assert not Faults() and Faults(noise=0.1) and Faults(missing=0.1) and Faults(d_min=(2.5, 3))
    seen, truth = Faults(missing=1e-9).apply(many, 0, range(len(many)))
    for name in ("F", "measured", "scale"):
        assert torch.equal(getattr(seen, name), getattr(many, name)) and torch.equal(getattr(truth, name), getattr(many, name))


def test_resolution_is_drawn_per_crystal(many):
    seen, truth = Faults(d_min=(2.2, 3.4)).apply(many, 0, range(len(many)))
    measured = seen.measured.flatten(1)
    limit = torch.where(measured, many.d.flatten(1), 99.0).amin(dim=1)
    beyond = torch.where(measured | ~many.target.flatten(1), 0.0, many.d.flatten(1)).amax(dim=1)
    assert (beyond < limit).all(), "one sphere of each crystal"
    # uniform: deciles of the limits, which lie up to a reflection's distance above what was drawn
    np.testing.assert_allclose(np.quantile(limit, [0.1, 0.5, 0.9]), [2.32, 2.8, 3.28], atol=0.09)
    assert torch.equal(truth.measured, seen.measured) and (truth.extension == (many.target & ~seen.measured & ~many.absent
                                                                               & ~many.redundant)).all()


def test_up_to_the_stated_share_of_the_measured_is_missing(many):
    seen, truth = Faults(missing=0.15).apply(many, 0, range(len(many)))
    assert not (seen.measured & ~many.measured).any() and not torch.equal(seen.measured, many.measured)
    share = 1 - seen.measured.sum(dim=(1, 2, 3)) / many.measured.sum(dim=(1, 2, 3))
    assert share.mean() == pytest.approx(0.075, abs=0.01) and share.max() < 0.3
    assert np.corrcoef(share, np.random.default_rng(0).random(len(many)))[0, 1] < 0.2
    # truth in electrons is what it was; scaled to the largest one that is left
    in_electrons = [boxes.F * boxes.scale.view(-1, 1, 1, 1) for boxes in (truth, many)]
    np.testing.assert_allclose(*in_electrons, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose((seen.F * seen.measured).amax(dim=(1, 2, 3)), 1, rtol=1e-6)
    assert torch.equal(seen.F, truth.F)


def test_noise_has_the_stated_sigma(many):
    noise = 0.3
    seen, truth = Faults(noise=noise).apply(many, 0, range(len(many)))
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
    faults = Faults(d_min=(2.4, 3.0), missing=0.5, noise=0.2)
    seen, truth = faults.apply(many, 3, range(len(many)))
    layer = TINY.hkl[:, 2] == 0
    for h in range(1, 7):
        plus, minus = ((TINY.hkl[:, 0] == s * h) & layer for s in (1, -1))  # (h k 0) and (-h k 0), 2/m
        assert torch.equal(seen.measured.flatten(1)[:, plus], seen.measured.flatten(1)[:, minus])
        for F in (seen.F, truth.F):
            np.testing.assert_allclose(F.flatten(1)[:, plus], F.flatten(1)[:, minus], atol=1e-4)
    alone, _ = faults.apply(many[5:7], 3, [5, 6])
    assert torch.equal(alone.F, seen.F[5:7]) and torch.equal(alone.measured, seen.measured[5:7])
    other, _ = faults.apply(many[5:7], 4, [5, 6])
    assert not torch.equal(other.measured, alone.measured)
