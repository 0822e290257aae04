"""Shifted crystals, splits, scores, phase models: closed forms, Dans_Diffraction, the origin-shift theorem, numpy's FFT."""

import contextlib
import io
from dataclasses import replace

import gemmi
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from makers import make_crystal
from xrd_helpers import ROOT, phases, plots
from xrd_helpers.cif import read_cif
from xrd_helpers.cif_folders import read_cif_folders
from xrd_helpers.config import UserError
from xrd_helpers.crystals import Crystal, all_operators
from xrd_helpers.models.phase_models import PHASE_MODELS, SIDE, FullyConnected, LinearRegression, PhaseUNet, SymmetricUNet
from xrd_helpers.phases import ENERGY, PHASE_BOX, Shifted, shift_crystals
from xrd_helpers.structure_factors import structure_factors
from xrd_helpers.weights import WeightsError, find_weights, save_model

HKL = PHASE_BOX.hkl
TRICLINIC = gemmi.UnitCell(6.1, 8.3, 11.7, 81, 95, 104)
MONOCLINIC = gemmi.UnitCell(6.1, 8.3, 11.7, 90, 104, 90)
SIMPLE = sorted((ROOT / "data" / "simple").glob("*.cif"))


def crystal(spacegroup="P -1", cell=TRICLINIC, n=3, seed=0):
    return make_crystal(("Se", "O", "C", "Cl")[:n], spacegroup, cell, u=(0.01, 0.04), seed=seed)


def moved(c, by):
    """The crystal with its first site moved by fractions of the cell."""
    fract = c.fract.copy()
    fract[0] += by
    return replace(c, fract=fract)


def boxed(sf):
    return np.asarray(sf).reshape(PHASE_BOX.shape)


def assert_close(found, expected):
    assert np.abs(np.asarray(found) - boxed(expected)).max() < 1e-5 * np.abs(expected).max()


# --- shifts ---


@pytest.mark.parametrize("spacegroup, cell", [("P -1", TRICLINIC), ("P 1", TRICLINIC), ("P 1 21/c 1", MONOCLINIC),
                                              ("C 1 c 1", MONOCLINIC), ("P 61 2 2", gemmi.UnitCell(7, 7, 11, 90, 90, 120)),
                                              ("F d -3 m :2", gemmi.UnitCell(7, 7, 7, 90, 90, 90))])
def test_a_symmetric_shift_is_the_crystal_with_its_first_site_elsewhere(spacegroup, cell):
    c, shifts = crystal(spacegroup, cell), np.array([[0.0, 0.037, -0.21]])
    for delta, sf in zip(shifts[0], shift_crystals([c], shifts, "symmetric").sf):
        assert_close(sf, structure_factors(moved(c, [delta, 0, 0]), HKL, ENERGY))


@pytest.mark.parametrize("spacegroup, cell", [("P -1", TRICLINIC), ("P 1 21/c 1", MONOCLINIC), ("C 1 c 1", MONOCLINIC)])
def test_a_shifted_site_takes_all_its_copies_along_a(spacegroup, cell):
    """Beside the sum over all atoms of the cell, in P1."""
    c, delta = crystal(spacegroup, cell), 0.043
    rot, tran = all_operators(c.spacegroup)
    images = np.einsum("gij,nj->ngi", rot, c.fract) + tran
    images[0, :, 0] += delta
    n = len(rot)
    p1 = Crystal("p1", cell, gemmi.SpaceGroup("P 1"), tuple(np.repeat(c.elements, n)), images.reshape(-1, 3),
                 np.repeat(c.u_iso, n), np.ones(3 * n))
    sf = shift_crystals([c], [[delta]], "site").sf[0]
    assert_close(sf, structure_factors(p1, HKL, ENERGY))


def test_anisotropic_atoms_are_moved_with_their_displacements():
    c = replace(crystal("P 1 21/c 1", MONOCLINIC), u_aniso=np.array([[0.02, 0.04, 0.03, 0.005, 0.002, -0.004]] * 3))
    assert_close(shift_crystals([c], [[0.1]], "symmetric").sf[0], structure_factors(moved(c, [0.1, 0, 0]), HKL, ENERGY))


def test_a_shift_of_the_whole_crystal_obeys_the_origin_shift_theorem():
    """F'(h) = F(h) exp(2πi h Δ): all phases change and no amplitude does; for one site only, the modes are the same."""
    c, delta = crystal("C 1 c 1", MONOCLINIC), 0.031
    before, after = shift_crystals([c], [[0, delta]], "crystal").sf.numpy()
    turn = np.exp(2j * np.pi * delta * HKL[:, 0]).reshape(PHASE_BOX.shape)
    assert np.abs(after - before * turn).max() < 1e-5 * np.abs(before).max()
    silver = read_cif(ROOT / "data/simple/silver.cif")
    assert torch.equal(shift_crystals([silver], [[delta]], "site").sf, shift_crystals([silver], [[delta]], "crystal").sf)


def test_what_f_double_prime_does_to_friedel_pairs():
    """Centrosymmetric: F(h) = F(-h), not real. Acentric: neither that nor Friedel's law; without f″ the latter holds."""
    centric, acentric = (shift_crystals([crystal(group)], [[0.05]]).sf[0] for group in ("P -1", "P 1"))
    assert (centric - centric.flip(0, 1, 2)).abs().max() < 1e-4 and centric.imag.abs().max() > 1
    assert (acentric.abs() - acentric.abs().flip(0, 1, 2)).abs().max() > 0.3
    plain = shift_crystals([crystal("P 1")], [[0.05]], energy=None).sf[0]
    assert (plain - plain.flip(0, 1, 2).conj()).abs().max() < 1e-4


def test_the_sign_of_a_shift_shows_in_f_double_prime_alone():
    """A site of a centrosymmetric crystal that leaves its copies' inversion centre: |F| of Δ and -Δ differ by f″ only."""
    salt = read_cif(ROOT / "data/simple/sodium_chloride.cif")
    plus, minus = shift_crystals([salt], [[0.05, -0.05]], "site").sf.abs()
    assert 1e-3 < (plus - minus).abs().max() / plus.max() < 0.02
    plus, minus = shift_crystals([salt], [[0.05, -0.05]], "site", energy=None).sf.abs()
    assert (plus - minus).abs().max() < 1e-5 * plus.max()


@pytest.mark.parametrize("path", SIMPLE, ids=lambda path: path.stem)
def test_structure_factors_agree_with_dans_diffraction(path):
    """Unshifted, and with the first site moved; what is left is the difference of the tables of f, f′ and f″."""
    with contextlib.redirect_stdout(io.StringIO()):
        dans = pytest.importorskip("Dans_Diffraction", reason="Dans-Diffraction is in the extra bench")
        c, structure = read_cif(path), dans.Crystal(str(path))
        n_first = round(c.occ[0] * len(c.spacegroup.operations()))
        for delta, sf in zip((0.0, 0.04), shift_crystals([c], [[0.0, 0.04]], "site").sf.numpy()):
            structure.Structure.u[:n_first] += delta
            theirs = boxed(structure.Scatter.structure_factor(HKL, scattering_type="xray dispersion", energy_kev=ENERGY))
            # 0.1-1 %, but tungsten, whose absorption edge is at 10.2 keV, 2.3 %
            assert np.abs(sf - theirs).sum() < (0.03 if c.name == "tungsten" else 0.015) * np.abs(theirs).sum()


def test_errors_of_shifting_say_what_to_do():
    with pytest.raises(UserError, match="there is no mode 'along b'.*symmetric, site, crystal"):
        shift_crystals([crystal()], [[0.1]], "along b")
    with pytest.raises(UserError, match="no crystal to shift"):
        shift_crystals([], np.zeros((0, 1)))


# --- splits ---


def sample(n=200, seed=0):
    crystals = [crystal("P -1", seed=i) for i in range(4)]
    return shift_crystals(crystals, phases.draw_shifts(4, n // 4, seed))


def test_splits_share_nothing_and_keep_what_they_promise():
    shifted = sample()
    for how in ("random", "shift"):
        parts = phases.split(shifted, how)
        assert [len(part) for part in parts] == [160, 20, 20]
        assert len(set(np.concatenate([part.shift for part in parts]))) == 200
    training, validation, test = phases.split(shifted, "shift")
    small, larger, largest = (np.abs(part.shift) for part in (training, validation, test))
    assert small.max() <= larger.min() and larger.max() <= largest.min()
    training, validation, test = phases.split(shifted, "crystal", 0, [2], [0, 3])
    assert [set(part.crystal) for part in (training, validation, test)] == [{1}, {2}, {0, 3}]
    with pytest.raises(UserError, match="leaves 200 / 0 / 0 samples"):
        phases.split(shifted, "crystal")
    with pytest.raises(UserError, match="no split 'by luck'"):
        phases.split(shifted, "by luck")


# --- scores ---


def test_loss_and_scores_of_known_errors():
    shifted = sample(20)
    turned = torch.polar(torch.ones(()), torch.tensor(np.radians(60.0), dtype=torch.float32))
    vectors = 3.7 * phases.unit_vectors(shifted.sf * turned)  # any length
    n_present = phases.present(shifted.sf).sum() / 20
    assert float(phases.phase_loss(vectors, shifted.sf)) == pytest.approx(float(n_present) * 0.5, rel=1e-4)
    assert phases.score(vectors, shifted)["phase_error"].to_numpy() == pytest.approx(60, abs=0.1)
    perfect = phases.score(phases.unit_vectors(shifted.sf), shifted)
    assert perfect["loss"].abs().max() < 1e-2 and perfect["map_cc"].min() > 1 - 1e-4
    random = phases.score(phases.random_phases(shifted), shifted)
    assert random["loss"].mean() == pytest.approx(float(n_present), rel=0.05) and random["map_cc"].abs().max() < 0.2


def test_reflections_without_amplitude_have_no_phase_and_cost_nothing():
    silver = shift_crystals([read_cif(ROOT / "data/simple/silver.cif")], [[0.0]])
    odd = (HKL % 2).sum(axis=1) % 3 != 0  # mixed indices are absent in a face-centred lattice
    assert (phases.present(silver.sf).numpy().ravel() == ~odd).all()
    backwards = -phases.unit_vectors(silver.sf)
    assert float(phases.phase_loss(backwards, silver.sf)) == pytest.approx(2 * (~odd).sum())


def test_map_correlation_is_that_of_the_densities():
    """Beside numpy's corrcoef of two transforms on a grid; the mean of a map, F(000), has no part in either."""
    shifted = sample(20)
    vectors = phases.unit_vectors(shifted.sf) + 0.7 * phases.random_phases(shifted)
    found = phases.score(vectors, shifted)["map_cc"]
    for i in range(3):
        maps = [phases.density(sf[i], 26).ravel() for sf in (shifted.sf, phases.with_phases(shifted.sf, vectors))]
        assert found[i] == pytest.approx(np.corrcoef(*maps)[0, 1], abs=1e-4)


def test_density_has_its_peak_where_the_atom_is():
    """Axes and sign of the transform: one atom of a triclinic cell, at a grid point."""
    atom = replace(crystal("P 1", n=1), fract=np.array([[5, 9, 20]]) / 24)
    rho = phases.density(shift_crystals([atom], [[1 / 24]]).sf[0], 24)
    assert np.unravel_index(rho.argmax(), rho.shape) == (6, 9, 20)


@pytest.mark.slow
def test_what_amplitudes_can_tell():
    """Moving all of an atom's crystal: the mean over the normal distribution, 1 - exp(-2π² h² σ²) a reflection."""
    crystals = [read_cif(ROOT / f"data/simple/{name}.cif") for name in ("silver", "sodium_chloride")]
    shifted = shift_crystals(crystals, phases.draw_shifts(2, 1500, 3), "site")
    best = phases.score(phases.best_possible(crystals, shifted, "site"), shifted).groupby("crystal")["loss"].mean()
    allowed = (HKL % 2).sum(axis=1) % 3 == 0
    expected = (1 - np.exp(-2 * (np.pi * HKL[allowed, 0] * phases.SIGMA) ** 2)).sum()
    assert best[0] == pytest.approx(expected, rel=0.05) and best[1] < 0.01
    unsigned = phases.score(phases.best_possible(crystals, shifted, "site", sign_known=False), shifted)
    assert unsigned.groupby("crystal")["loss"].mean()[1] > 1
    kept = shift_crystals(crystals, phases.draw_shifts(2, 20, 3))
    assert phases.score(phases.best_possible(crystals, kept, "symmetric"), kept)["loss"].max() < 0.01


# --- models ---


@pytest.mark.parametrize("name", PHASE_MODELS)
def test_a_model_gives_a_vector_a_reflection_and_does_not_mind_the_scale(name):
    torch.manual_seed(0)
    model, F = PHASE_MODELS[name]().eval(), sample(8).sf.abs()
    vectors = model(F)
    assert vectors.shape == (8, 2, SIDE, SIDE, SIDE)
    assert torch.allclose(model(1000 * F), vectors, rtol=1e-3, atol=1e-4)


def test_the_symmetric_unet_keeps_an_inversion_centre():
    torch.manual_seed(0)
    model = SymmetricUNet().eval()
    centric = model(sample(4).sf.abs())
    assert torch.allclose(centric, centric.flip(2, 3, 4), atol=1e-5)
    F = torch.rand(2, SIDE, SIDE, SIDE)
    assert torch.allclose(model(F.flip(1, 2, 3)), model(F).flip(2, 3, 4), atol=1e-5)
    assert not torch.allclose(model(F), model(F).flip(2, 3, 4), atol=1e-2)


def test_a_trained_unet_is_averaged_over_the_inversion():
    torch.manual_seed(0)
    model, F = PhaseUNet().eval(), torch.rand(2, SIDE, SIDE, SIDE)
    other_side = model(F.flip(1, 2, 3)).flip(2, 3, 4)
    assert torch.allclose(phases.symmetrised(model)(F), (model(F) + other_side) / 2, atol=1e-6)


@pytest.mark.slow
def test_linear_regression_is_that_of_scikit_learn():
    """Full rank: components and ridge together are plain least squares on data with fewer dimensions than samples."""
    from sklearn.linear_model import LinearRegression as Reference
    shifted = sample(400)
    basis = torch.randn(12, SIDE**3, generator=torch.Generator().manual_seed(0)).abs()
    F = (torch.rand(400, 12, generator=torch.Generator().manual_seed(1)) @ basis).reshape(-1, SIDE, SIDE, SIDE) ** 2
    shifted = replace(shifted, sf=torch.polar(F, shifted.sf.angle()))
    model = LinearRegression(LinearRegression.Config(rank=40))
    phases.solve_linear(model, shifted, ridge=1e-12)
    x, y = phases.scaled(F).flatten(1).numpy(), phases.unit_vectors(shifted.sf).flatten(1).numpy()
    reference = Reference().fit(x.astype(float)[:, :], y)
    with torch.inference_mode():
        found = model(F).flatten(1).numpy()
    assert np.corrcoef(found.ravel(), reference.predict(x).ravel())[0, 1] > 0.98


@pytest.mark.slow
def test_training_learns_stops_early_and_keeps_what_validated_best():
    crystals, _ = read_cif_folders([ROOT / "data/simple"])
    training, validation, test = phases.split(shift_crystals(crystals[:4], phases.draw_shifts(4, 100)), "random")
    torch.manual_seed(0)
    model = FullyConnected(FullyConnected.Config(width=32))
    history = phases.fit_phases(model, training, validation, epochs=40, lr=5e-3)
    validated = history["validation"].dropna()
    kept = float(phases.phase_loss(phases.predict_phases(model, validation), validation.sf))
    assert kept == pytest.approx(validated.min(), rel=1e-3)
    mean = phases.phase_loss(phases.mean_phases(training, test), test.sf)
    assert phases.phase_loss(phases.predict_phases(model, test), test.sf) < 0.2 * mean
    noise = replace(validation, sf=torch.polar(validation.sf.abs(), 6.28 * torch.rand(validation.sf.shape)))  # no rule
    stopped = phases.fit_phases(FullyConnected(FullyConnected.Config(width=32)), training, noise, epochs=200, patience=2)
    assert len(stopped) < 200 * (len(training) // 32) and len(stopped.dropna()) >= 3


def test_the_same_seed_gives_the_same_weights():
    training, validation, _ = phases.split(sample(), "random")
    trained = []
    for _ in range(2):
        torch.manual_seed(0)
        model = FullyConnected(FullyConnected.Config(width=8, dropout=0.2))
        phases.fit_phases(model, training, validation, epochs=2, augmentation="origin")
        trained.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*trained)


def test_augmentation_describes_the_same_crystals_otherwise():
    """Origin: another origin of the same atoms. Axes: amplitudes and phases only change places."""
    c = crystal("P -1")
    sf = shift_crystals([c], [[0.02] * 64]).sf
    origins = phases.augment(sf, "origin", torch.Generator().manual_seed(0))
    expected = [shift_crystals([replace(c, fract=c.fract + np.array(n) / 2)], [[0.02]]).sf[0] for n in np.ndindex(2, 2, 2)]
    nearest = [[float((x - e).abs().max() / e.abs().max()) for e in expected] for x in origins]
    assert np.min(nearest, axis=1).max() < 1e-5 and len(set(np.argmin(nearest, axis=1))) == 8
    axes = phases.augment(sf, "axes", torch.Generator().manual_seed(1))
    assert not torch.equal(axes, sf)
    assert torch.equal(axes[0].abs().flatten().sort()[0], sf[0].abs().flatten().sort()[0])


def test_isotypes_have_the_same_sites_and_other_elements():
    rutile = read_cif(ROOT / "data/simple/titanium_dioxide.cif")
    for made in phases.isotypes([rutile], 20, 1):
        assert np.array_equal(made.fract, rutile.fract) and len(made.elements) == 2
        ratio = np.array(made.cell.parameters) / rutile.cell.parameters
        assert ratio[:3] == pytest.approx(ratio[0]) and 0.8 <= ratio[0] <= 1.25 and ratio[3:] == pytest.approx(1)


def test_weights_rebuild_their_model_and_are_no_amplitude_model(tmp_path):
    training, validation, _ = phases.split(sample(), "random")
    path = tmp_path / "random_fully_connected.safetensors"
    model, made = phases.train_phase_model("fully_connected", path, training, validation, config=dict(width=8, depth=3),
                                           epochs=1, made=dict(split="random"))
    assert model.config.depth == 3 and made["split"] == "random" and made["samples_seen"] == 160 and "minutes" in made
    loss = float(phases.phase_loss(phases.predict_phases(model, validation), validation.sf))
    assert loss == pytest.approx(made["validation_loss"], rel=0.02)
    with pytest.raises(WeightsError, match="holds weights of fully_connected, not of one of unet"):
        phases.load_model(path)
    save_model(path, "other", FullyConnected(FullyConnected.Config(width=8)))
    with pytest.raises(WeightsError, match="not of one of linear, fully_connected"):
        phases.load_phase_model(path)
    assert not any("phases" in str(found) for found in find_weights(["all"]).values())


def test_shipped_phase_models_load_and_say_how_they_were_made():
    paths = sorted((ROOT / "weights" / "phases").glob("*.safetensors"))
    assert paths, "weights/phases is empty"
    for path in paths:
        _, made = phases.load_phase_model(path)
        assert path.stem.startswith(made["split"])
        assert {"mode", "seed", "minutes", "validation_loss", "commit", "machine"} <= set(made)


def test_errors_of_training_say_what_to_do(tmp_path):
    shifted = sample(40)
    with pytest.raises(UserError, match="no phase model 'resnet'.*symmetric_unet"):
        phases.train_phase_model("resnet", tmp_path / "x.safetensors", shifted, shifted)
    with pytest.raises(UserError, match="no augmentation 'noise'"):
        phases.fit_phases(FullyConnected(), shifted, shifted, epochs=1, augmentation="noise")
    with pytest.raises(UserError, match="0 epochs"):
        phases.fit_phases(FullyConnected(), shifted, shifted)
    broken = Shifted(shifted.sf * np.nan, shifted.crystal, shifted.shift)
    with pytest.raises(UserError, match="is not finite at step 1: lower lr"):
        phases.fit_phases(FullyConnected(), broken, shifted, epochs=1)


# --- figures ---


@pytest.fixture
def closed():
    yield
    plt.close("all")


def test_tiling_puts_each_reflection_at_its_place(closed):
    sf = np.zeros((SIDE, SIDE, SIDE), complex)
    sf[6 + 2, 6 - 3, 6 + 4] = -1j  # h = 2, k = -3, l = 4
    amplitude, phase = (ax.images[0].get_array() for ax in plots.plot_tiling({"one": sf}).axes[:2])
    at = (8, 10 * SIDE + 3)
    assert amplitude.shape == (SIDE, SIDE**2) and amplitude[at] == 1 and amplitude.sum() == 1
    assert phase[at] == -90 and np.ma.masked_invalid(phase).count() == 1, "no phase without amplitude"


def test_reflections_in_space_are_those_with_an_amplitude(closed):
    sf = np.zeros((SIDE, SIDE, SIDE), complex)
    sf[8, 3, 10], sf[6, 6, 6] = 1j, 4
    drawn = plots.plot_reflections_3d(sf).axes[0].collections[0]
    x, y, z = drawn._offsets3d
    found = {tuple(map(int, hkl)): (size, phase) for *hkl, size, phase in zip(x, y, z, drawn.get_sizes(), drawn.get_array())}
    assert set(found) == {(2, -3, 4), (0, 0, 0)} and found[2, -3, 4][1] == 90
    assert found[0, 0, 0][0] == pytest.approx(4 * found[2, -3, 4][0])


def test_isosurface_stands_where_the_atom_is(closed):
    rho = np.zeros((16, 16, 16))
    rho[4, 8, 0] = 1.0  # at 1/4, 1/2, 0
    surface = plots.plot_isosurfaces({"one": rho}).axes[0].collections[0]
    corners = surface._vec[:3] if hasattr(surface, "_vec") else surface._faces.reshape(-1, 3).T
    assert np.mean(corners, axis=1) == pytest.approx([0.25, 0.5, 0], abs=0.02)


def test_other_figures_draw_what_they_are_given(closed):
    history = pd.DataFrame({"samples": [32, 64], "loss": [9.0, 4.0], "validation": [np.nan, 5.0]})
    assert plots.plot_phase_training({"net": history}, 3.0).axes[0].lines[1].get_ydata().tolist() == [5.0]
    curve = pd.DataFrame({"crystals": [1, 10], "training": [0.1, 0.2], "test": [0.9, 0.8]})
    variants = pd.DataFrame({"variant": ["a", "b"], "training": [0.1, 0.2], "test": [0.9, 0.7]})
    left, right = plots.plot_overfitting(curve, variants).axes
    assert left.lines[1].get_ydata().tolist() == [0.9, 0.8]
    assert [bar.get_width() for bar in right.patches] == [0.1, 0.2, 0.9, 0.7]
    bars = plots.plot_shifts(np.zeros(100), 0.05).axes[0].patches
    assert sum(bar.get_height() * bar.get_width() for bar in bars) == pytest.approx(1)


def test_the_upper_level_of_the_unet_begins_where_the_lower_one_has_got_to():
    torch.manual_seed(0)
    model, F = PHASE_MODELS["unet"]().eval(), sample(4).sf.abs()
    both = model(F)
    model.bottom_only = True
    assert torch.allclose(model(F), both, atol=1e-6)
    training, validation, _ = phases.split(sample(), "random")
    phases.fit_phases(model, training, validation, epochs=2)
    both = phases.predict_phases(model, validation)
    model.bottom_only = True
    assert not torch.allclose(phases.predict_phases(model, validation), both, atol=1e-3), "the upper level is trained, too"
