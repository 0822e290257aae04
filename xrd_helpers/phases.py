"""Phases predicted from amplitudes: crystals distorted by shifts, splits of them, scores, and the training of the models.

A shift is a fraction Δ of the cell edge a. F(h) of a shifted crystal is Σ_c P_c(h) exp(2πi (h·c) Δ), with a few integer
directions c along which atoms move: a thousand shifts of a crystal cost one structure factor calculation.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace

import gemmi
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from .config import UserError
from .crystals import Crystal, rotations_and_translations
from .gridding import Box
from .models.phase_models import PHASE_MODELS, SIDE, LinearRegression, PhaseUNet, SymmetricUNet, scaled
from .structure_factors import structure_factors
from .summary import git_state, machine
from .training import Budget, _average, learning_rate
from .weights import load_model, save_model

PHASE_BOX = Box("phases", (-6, -6, -6), (6, 6, 6), "P 1")
ENERGY = 10.0   # keV
SIGMA = 0.05    # standard deviation of the shifts, fractions of a
BOTTOM_FIRST = 0.5  # share of a training in which a U-net is its lower level alone
ABSENT = 1e-5   # of the largest amplitude: what is below is rounding, and has no phase
COLUMNS = ["step", "samples", "seconds", "loss", "validation"]  # of the history of a training

MODES = {
    "symmetric": "the first site moves along a, and its copies as the symmetry makes them: the space group stays",
    "site": "the first site and all its copies move along a, which breaks the symmetry",
    "crystal": "all atoms move along a, which is another choice of the origin",
}


@dataclass(frozen=True)
class Shifted:
    """Shifted crystals: sf (n, 13, 13, 13) complex64 in electrons, crystal (n,) its number, shift (n,) fractions of a."""

    sf: torch.Tensor
    crystal: np.ndarray
    shift: np.ndarray

    def __len__(self):
        return len(self.sf)

    def __getitem__(self, rows) -> Shifted:
        return Shifted(self.sf[rows], self.crystal[rows], self.shift[rows])


def draw_shifts(n_crystals, n_shifts, seed=0) -> np.ndarray:
    """Normal shifts with mean 0 and standard deviation SIGMA, (n_crystals, n_shifts), in fractions of a."""
    return np.random.default_rng(seed).normal(0, SIGMA, (n_crystals, n_shifts))


def shift_crystals(crystals, shifts, mode="symmetric", energy=ENERGY) -> Shifted:
    """Structure factors of every crystal at its row of shifts (n_crystals, n_shifts); see MODES.

    ``energy`` in keV adds f′ and f″; None leaves both out.
    """
    if mode not in MODES:
        raise UserError(f"there is no mode {mode!r} of shifting: the modes are {', '.join(MODES)}")
    if not crystals:
        raise UserError("there is no crystal to shift: name a folder with CIF files")
    hkl, shifts = PHASE_BOX.hkl, np.asarray(shifts, float)
    sf = np.zeros((*shifts.shape, len(hkl)), np.complex64)
    for row, crystal in enumerate(crystals):
        for direction, part in shift_terms(crystal, mode, energy).items():
            order = hkl @ np.array(direction)                              # (n,), h·c
            orders, place = np.unique(order, return_inverse=True)
            waves = np.exp(2j * np.pi * shifts[row][:, None] * orders)     # (n_shifts, orders)
            sf[row] += part.astype(np.complex64) * waves.astype(np.complex64)[:, place]
    return Shifted(torch.from_numpy(sf.reshape(-1, *PHASE_BOX.shape)), np.repeat(np.arange(len(crystals)), shifts.shape[1]),
                   shifts.ravel())


def shift_terms(crystal: Crystal, mode, energy=ENERGY) -> dict:
    """{direction c: P_c (n,) complex} of a crystal on the box, (0, 0, 0) being what does not move."""
    hkl = PHASE_BOX.hkl
    if mode == "crystal":
        return {(1, 0, 0): structure_factors(crystal, hkl, energy)}
    first, rest = _sites(crystal, slice(0, 1)), _sites(crystal, slice(1, None))
    terms = {(0, 0, 0): structure_factors(rest, hkl, energy)} if rest.elements else {}
    if mode == "site":
        return terms | {(1, 0, 0): structure_factors(first, hkl, energy)}
    # the image of a site under (R, t) scatters at h as the site itself does at hR, times exp(2πi h·t)
    alone = replace(first, spacegroup=gemmi.SpaceGroup("P 1"))
    rot, tran = rotations_and_translations(crystal.spacegroup)
    centring = np.array(crystal.spacegroup.operations().cen_ops) / gemmi.Op.DEN
    lattice = np.exp(2j * np.pi * (hkl @ centring.T)).sum(axis=1)
    images = structure_factors(alone, np.concatenate([hkl @ r for r in rot]), energy).reshape(len(rot), -1)
    for r, t, image in zip(rot, tran, images):
        direction = tuple(r[:, 0].tolist())                                # where the image goes when the site goes along a
        terms[direction] = terms.get(direction, 0) + image * np.exp(2j * np.pi * (hkl @ t)) * lattice
    return terms


def _sites(crystal, rows) -> Crystal:
    """Some of the sites of a crystal, with its cell and space group."""
    u_aniso = None if crystal.u_aniso is None else crystal.u_aniso[rows]
    return replace(crystal, elements=crystal.elements[rows], fract=crystal.fract[rows], u_iso=crystal.u_iso[rows],
                   occ=crystal.occ[rows], u_aniso=u_aniso)


# --- splits ---


def split(shifted: Shifted, how, seed=0, validation_crystals=(), test_crystals=()) -> tuple[Shifted, Shifted, Shifted]:
    """(training, validation, test).

    ``random``: 80, 10 and 10 % as they come, as published. ``shift``: the same shares by size of the shift, the largest
    last. ``crystal``: by the numbers of the crystals.
    """
    if how == "crystal":
        validation, test = (np.isin(shifted.crystal, numbers) for numbers in (validation_crystals, test_crystals))
        parts = [np.flatnonzero(mask) for mask in (~validation & ~test, validation, test)]
    elif how in ("random", "shift"):
        shuffled = np.random.default_rng(seed).permutation(len(shifted))
        order = shuffled if how == "random" else np.argsort(np.abs(shifted.shift))
        parts = np.split(order, [8 * len(order) // 10, 9 * len(order) // 10])
    else:
        raise UserError(f"there is no split {how!r}: the splits are random, shift and crystal")
    if not all(len(part) for part in parts):
        raise UserError(f"the split {how} leaves {' / '.join(str(len(part)) for part in parts)} samples to train, validate "
                        "and test with: give more crystals or shifts")
    return tuple(shifted[part] for part in parts)


# --- scores ---


def present(sf):
    """Bool, the reflections that have a phase: those above ABSENT of the largest amplitude of their crystal."""
    F = sf.abs()
    return F > ABSENT * F.amax(dim=(1, 2, 3), keepdim=True)


def cos_error(vectors, sf):
    """cos(φ_pred - φ_true), of sf's shape; 1, which costs nothing, where a reflection has no phase."""
    cos, sin = sf.real, sf.imag
    length = (vectors.square().sum(dim=1) * sf.abs().square()).clamp(min=1e-20).sqrt()
    return torch.where(present(sf), (vectors[:, 0] * cos + vectors[:, 1] * sin) / length, 1.0)


def phase_loss(vectors, sf):
    """The published loss: Σ (1 - cos Δφ) over the reflections, divided by the number of crystals."""
    return (1 - cos_error(vectors, sf)).sum() / len(sf)


def with_phases(sf, vectors):
    """Structure factors with the amplitudes of sf and predicted phases."""
    return sf.abs() * torch.complex(*(vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-10)).unbind(dim=1))


def density(sf, n_grid=48) -> np.ndarray:
    """Charge density of one box of structure factors (13, 13, 13) on n_grid³ points of the cell; its scale is arbitrary.

    f″ makes the sum slightly complex; the real part is that of the mean of F(h) and the conjugate of F(-h).
    """
    padded = np.zeros((n_grid,) * 3, complex)
    padded[tuple((PHASE_BOX.hkl % n_grid).T)] = np.asarray(sf).ravel()
    return np.fft.fftn(padded).real  # ρ(x) = Σ F(h) exp(-2πi h·x)


def score(vectors, shifted: Shifted) -> pd.DataFrame:
    """A row a sample: crystal, shift, the published loss, and two scores that weigh reflections as a map does.

    ``phase_error`` is Σ F |Δφ| / Σ F in degrees, ``map_cc`` the correlation of the two densities (``density``), by
    Parseval's theorem from their coefficients. Both leave out F(000), which every map has in common, and reflections
    without amplitude.
    """
    sf = shifted.sf
    cos = cos_error(vectors, sf)
    F = sf.abs() * present(sf)
    F[:, SIDE // 2, SIDE // 2, SIDE // 2] = 0
    error = torch.rad2deg(torch.arccos(cos.clamp(-1, 1)))
    true, found = (_real_map(x / sf.abs().clamp(min=1e-20) * F) for x in (sf, with_phases(sf, vectors)))
    cc = (true * found.conj()).real.sum(dim=(1, 2, 3)) / (_norm(true) * _norm(found)).clamp(min=1e-20)
    return pd.DataFrame({"crystal": shifted.crystal, "shift": shifted.shift, "loss": (1 - cos).sum(dim=(1, 2, 3)),
                         "phase_error": (F * error).sum(dim=(1, 2, 3)) / F.sum(dim=(1, 2, 3)), "map_cc": cc})


def _real_map(sf):
    """The coefficients of the real part of the map."""
    return (sf + sf.flip(1, 2, 3).conj()) / 2


def _norm(sf):
    return sf.abs().square().sum(dim=(1, 2, 3)).sqrt()


def unit_vectors(sf):
    """(n, 2, 13, 13, 13) of (cos φ, sin φ); zero where there is no phase."""
    unit = sf / sf.abs().clamp(min=1e-20) * present(sf)
    return torch.stack([unit.real, unit.imag], dim=1)


def random_phases(shifted: Shifted, seed=0):
    """Vectors of phases drawn from 0 to 2π: what knows nothing."""
    phi = 2 * torch.pi * torch.rand(shifted.sf.shape, generator=torch.Generator().manual_seed(seed))
    return torch.stack([phi.cos(), phi.sin()], dim=1)


def mean_phases(training: Shifted, shifted: Shifted):
    """Vectors of the mean phase of each reflection in the training set."""
    mean = torch.stack([unit_vectors(part).sum(dim=0) for part in training.sf.split(500)]).sum(dim=0)
    return mean.expand(len(shifted), -1, -1, -1, -1)


def best_possible(crystals, shifted: Shifted, mode, sign_known=True, energy=ENERGY, n=400):
    """Vectors of a predictor that knows the crystal and all that its amplitudes can tell: no model can do better.

    If no amplitude of a crystal depends on the shift, that is the mean phase over the distribution of the shifts. Else it
    is the true phase; with ``sign_known`` False the mean of those for Δ and -Δ, which is all that is left if the
    differences of Friedel pairs, the work of f″, are too small to be seen.
    """
    vectors = unit_vectors(shifted.sf)
    for number in np.unique(shifted.crystal):
        crystal, rows = [crystals[number]], shifted.crystal == number
        sample = shift_crystals(crystal, draw_shifts(1, n), mode, energy).sf
        spread = sample.abs().std(dim=0).max() / sample.abs().max()
        if spread < ABSENT:
            vectors[rows] = unit_vectors(sample).mean(dim=0)
        elif not sign_known:
            vectors[rows] += unit_vectors(shift_crystals(crystal, -shifted.shift[None, rows], mode, energy).sf)
    return vectors


# --- training ---


def predict_phases(model, shifted: Shifted, batch_size=64):
    """Vectors (n, 2, 13, 13, 13) of a model, which is left in eval mode."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(part.abs()) for part in shifted.sf.split(batch_size)])


def solve_linear(model: LinearRegression, training: Shifted, ridge=1e-6) -> None:
    """Fit principal components and ridge regression in place, in double precision and closed form.

    ``ridge`` is the penalty over the largest eigenvalue of the components' covariance; smaller ones are damped by it.
    """
    x = scaled(training.sf.abs()).flatten(1)
    mean = x.double().mean(dim=0)
    covariance = (x.T @ x).double() / len(x) - mean.outer(mean)
    variance, axes = torch.linalg.eigh(covariance)
    variance, axes = variance[-model.config.rank:].clamp(min=0), axes[:, -model.config.rank:]
    scale = (variance + ridge * variance.max()).rsqrt()
    with torch.no_grad():
        model.components.weight.copy_((axes * scale).T)
        model.components.bias.copy_(-(mean @ axes) * scale)
        products, target = 0, torch.zeros(2 * SIDE**3)
        for part_x, part_sf in zip(x.split(500), training.sf.split(500)):
            y = unit_vectors(part_sf).flatten(1)
            products = products + model.components(part_x).T @ y
            target += y.sum(dim=0)
        # the components are uncorrelated and have variance 1, or less where the ridge damps them
        model.regression.weight.copy_((products / len(x)).T)
        model.regression.bias.copy_(target / len(x))
    model.eval()


AUGMENTATIONS = ("none", "origin", "axes")


def augment(sf, how, generator):
    """A batch of structure factors of the same crystals described otherwise.

    ``origin``: the origin moved by half a cell along some of the axes: phases change by π (h·n), amplitudes do not, and an
    inversion centre at the origin stays one. ``axes``: the axes renamed and reversed, for the
    mirror image too, which takes each reflection elsewhere in the box with its phase.
    """
    if how == "origin":
        axis = torch.arange(SIDE) - SIDE // 2
        for dim in range(1, 4):
            sign = torch.where(torch.rand(len(sf), 1, generator=generator) < 0.5, 1 - 2 * (axis % 2).abs(), 1)
            sf = sf * sign.view(len(sf), *(SIDE if d == dim else 1 for d in range(1, 4)))
    elif how == "axes":
        sf = sf.permute(0, *(1 + torch.randperm(3, generator=generator)).tolist())
        flips = [dim for dim in range(1, 4) if torch.rand((), generator=generator) < 0.5]
        sf = sf.flip(flips) if flips else sf
    return sf


def fit_phases(model, training: Shifted, validation: Shifted, *, epochs=0, minutes=0.0, batch_size=32, lr=2e-3,
               weight_decay=0.01, ema=0.99, patience=5, n_validations=20, n_validate=400, augmentation="none", seed=0,
               watch=None) -> pd.DataFrame:
    """Train a model in place, stop early, and leave it with the weights that validated best.

    Parameters
    ----------
    epochs, minutes : whichever is reached first ends the training; 0 is no limit. The learning rate falls to its end.
    weight_decay, lr : of AdamW; ema : decay of the running mean of the weights, which is what is validated and kept.
    patience : validations without a better one after which the training stops; n_validations are made in all, each
        on ``n_validate`` samples drawn once.
    augmentation : see ``augment``.
    watch : function that is called with the history after each validation.

    Returns
    -------
    history : DataFrame with a row a step; ``validation`` is NaN but where validated.
    """
    if augmentation not in AUGMENTATIONS:
        raise UserError(f"there is no augmentation {augmentation!r}: they are {', '.join(AUGMENTATIONS)}")
    if not (epochs or minutes) or len(training) < batch_size:
        raise UserError(f"a training needs epochs or minutes, and a batch of samples: {epochs} epochs, {minutes} minutes, "
                        f"{len(training)} samples for batches of {batch_size}")
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of dropout
    model.standardised.fit(training.sf.abs())
    validation = validation[np.random.default_rng(0).permutation(len(validation))[:n_validate]]
    model.to(memory_format=torch.channels_last_3d)  # a convolution takes two thirds of the time
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    averaged = copy.deepcopy(model).requires_grad_(False)
    per_epoch = len(training) // batch_size
    budget, start = Budget(epochs * per_epoch, minutes), time.perf_counter()
    history, best, since, progress, order = [], (np.inf, None), 0, 0.0, ()
    with tqdm(total=1.0, desc=type(model).__name__, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
              mininterval=1, disable=None) as bar:
        while progress < 1 and since < patience:
            step = len(history)
            if step % per_epoch == 0:
                order = rng.permutation(len(training))
            rows = order[step % per_epoch * batch_size:][:batch_size]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress, lr)
            model.bottom_only = averaged.bottom_only = progress < BOTTOM_FIRST  # of use to the U-net only
            model.train()
            sf = augment(training.sf[rows], augmentation, generator)
            vectors = model(sf.abs())
            loss = phase_loss(vectors, sf)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
            if not torch.isfinite(vectors).all():
                raise UserError(f"what the model puts out is not finite at step {step + 1}: lower lr (now {lr})")
            optimizer.step()
            _average(averaged, model, min(ema, (step + 1) / (step + 10)))
            seconds = time.perf_counter() - start
            progress = budget.progress(step + 1, seconds)
            row = {"step": step + 1, "samples": (step + 1) * batch_size, "seconds": seconds, "loss": loss.item()}
            history.append(row)
            if progress >= (sum("validation" in row for row in history) + 1) / n_validations or progress >= 1:
                row["validation"] = float(phase_loss(predict_phases(averaged, validation), validation.sf))
                since = 0 if row["validation"] < best[0] else since + 1
                best = min(best, (row["validation"], copy.deepcopy(averaged.state_dict())), key=lambda pair: pair[0])
                bar.set_postfix_str(f"loss {row['loss']:.1f}, validation {row['validation']:.1f}")
                if watch:
                    watch(pd.DataFrame(history, columns=COLUMNS))
            bar.update(progress - bar.n)
    model.load_state_dict(best[1])
    model.bottom_only = False
    model.eval()
    return pd.DataFrame(history, columns=COLUMNS)


def train_phase_model(name, path, training: Shifted, validation: Shifted, *, config=None, seed=0, made=(), **options):
    """Train one of PHASE_MODELS, or solve the linear one, and write its weights to ``path``.

    ``config`` is a dict of choices of the model, ``made`` pairs to say of its making, ``options`` as for ``fit_phases``.

    Returns
    -------
    model, and what its file says of its making
    """
    if name not in PHASE_MODELS:
        raise UserError(f"there is no phase model {name!r}: the models are {', '.join(PHASE_MODELS)}")
    model_class, start = PHASE_MODELS[name], time.perf_counter()
    torch.manual_seed(seed)
    model = model_class(model_class.Config(**(config or {})))
    if name == "linear":
        solve_linear(model, training)
        samples = len(training)
    else:
        samples = int(fit_phases(model, training, validation, seed=seed, **options)["samples"].iloc[-1])
    computer = machine()
    validated = float(phase_loss(predict_phases(model, validation), validation.sf))
    made = dict(made) | dict(seed=seed, samples_seen=samples, minutes=round((time.perf_counter() - start) / 60, 2),
                             validation_loss=round(validated, 3), commit=git_state(),
                             machine=f"{computer['processor']}, {computer['cores']} cores, GPU {computer['gpu']}")
    save_model(path, name, model, **made)
    return load_phase_model(path)


def load_phase_model(path):
    """(model, what its file says of its making), in half precision as it was written."""
    return load_model(path, PHASE_MODELS)


def symmetrised(model: PhaseUNet) -> SymmetricUNet:
    """A trained U-net with the same weights, used so that what comes out has the inversion centre of what went in."""
    symmetric = SymmetricUNet(model.config).eval()
    symmetric.load_state_dict(model.state_dict())
    return symmetric


def isotypes(crystals, n, seed=0) -> list[Crystal]:
    """n crystals of the structure types of given ones: elements replaced by any from Li to Bi, edges scaled by 0.8-1.25."""
    rng, made = np.random.default_rng(seed), []
    for number in range(n):
        crystal = crystals[rng.integers(len(crystals))]
        other = {element: gemmi.Element(int(rng.integers(3, 84))).name for element in dict.fromkeys(crystal.elements)}
        scale = np.exp(rng.uniform(np.log(0.8), np.log(1.25)))
        cell = gemmi.UnitCell(*(edge * scale for edge in crystal.cell.parameters[:3]), *crystal.cell.parameters[3:])
        made.append(replace(crystal, name=f"{crystal.name} type {number}", cell=cell,
                            elements=tuple(other[element] for element in crystal.elements)))
    return made
