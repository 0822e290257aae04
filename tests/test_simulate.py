"""A simulated measurement is read back as a measurement: of the crystal, with the faults that were asked for."""

import numpy as np
import pytest

from xrd_helpers import locate
from xrd_helpers.cif import read_cif
from xrd_helpers.reflection_files import read_measured
from xrd_helpers.reflections import unique_hkl
from xrd_helpers.simulate import simulate_measurement
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
