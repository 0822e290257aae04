"""An atomic model against amplitudes: structure factors with derivatives, least squares, completion from maps."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import combinations

import gemmi
import numpy as np
from scipy.ndimage import map_coordinates

from ..crystals import all_operators, without_inversion
from ..structure_factors import fit_scale, form_factor
from .fourier import MapGrid
from .peaks import assign_elements, find_peaks, snap

U_START, U_MIN, U_MAX = 0.04, 0.005, 0.25  # Å²
MAX_MOVE = 0.2                             # Å an atom may move in one cycle of least squares
SPACING = 3.0                              # points of a map per d_min


@dataclass(frozen=True)
class Model:
    """Atoms of the asymmetric unit and how well they explain the amplitudes.

    fract (n, 3), elements (n,), u_iso (n,) Å², occ (n,) crystallographic, heights (n,) in sigmas of the map
    r1 : Σ |F - scale |Fcalc|| / Σ F; scale brings Fcalc to the scale of F
    """

    fract: np.ndarray
    elements: tuple[str, ...]
    u_iso: np.ndarray
    occ: np.ndarray
    heights: np.ndarray
    r1: float = np.nan
    scale: float = 1.0


class Refiner:
    """One set of reflections prepared for many models: indices of all operators, form factors, map grid."""

    def __init__(self, reflections):
        self.reflections = reflections
        hkl, spacegroup = reflections.hkl, reflections.spacegroup
        rot, tran, self.centric = without_inversion(spacegroup)
        self.hkl_ops = np.einsum("ni,gij->gnj", hkl, rot)                     # (g, n, 3)
        self.shifts = np.einsum("ni,gi->gn", hkl, tran)                       # (g, n) in cycles
        centring = np.array(spacegroup.operations().cen_ops, float) / gemmi.Op.DEN
        factor = np.exp(2j * np.pi * hkl @ centring.T).sum(1).real            # 0 where the centring forbids
        self.factor = factor * (2 if self.centric else 1)
        self.stol2 = 0.25 / reflections.d**2
        self.maps = MapGrid(reflections.p1, reflections.cell, reflections.d_min / SPACING)
        self.orth = np.array(reflections.cell.orth.mat.tolist())
        self._form = {}

    def select(self, rows) -> Refiner:
        """The Refiner of some of the reflections; its maps stay those of all."""
        part = copy.copy(self)
        part.reflections = self.reflections.select(rows)
        part.hkl_ops, part.shifts = self.hkl_ops[:, rows], self.shifts[:, rows]
        part.factor, part.stol2, part._form = self.factor[rows], self.stol2[rows], {}
        return part

    def form_factor(self, element):
        """``structure_factors.form_factor`` (n,), single precision."""
        if element not in self._form:
            self._form[element] = form_factor(element, self.stol2).astype(np.float32)
        return self._form[element]

    def weights(self, model):
        """occ f exp(-8π² U s²) of each atom (n_hkl, n_atoms), single precision."""
        falloff = np.multiply.outer((-8 * np.pi**2 * self.stol2).astype(np.float32), model.u_iso.astype(np.float32))
        np.exp(falloff, out=falloff)
        falloff *= model.occ.astype(np.float32)
        for element in set(model.elements):
            falloff[:, np.array(model.elements) == element] *= self.form_factor(element)[:, None]
        return falloff

    def _waves(self, model):
        """Cosine and sine (n, a) of the phases of all atoms, operator by operator."""
        for hkl, shift in zip(self.hkl_ops, self.shifts):
            phase = hkl @ model.fract.T + shift[:, None]
            # single precision suffices once the whole cycles are gone, and its sine is several times faster
            phase = (2 * np.pi * (phase - np.round(phase))).astype(np.float32)
            yield np.cos(phase), np.sin(phase)

    def structure_factors(self, model) -> np.ndarray:
        """Complex structure factors (n,) of a model, in electrons."""
        weights = self.weights(model)
        real, imag = 0, 0
        for cos, sin in self._waves(model):
            real = real + np.einsum("na,na->n", weights, cos)
            imag = imag if self.centric else imag + np.einsum("na,na->n", weights, sin)
        return (real + 1j * imag) * self.factor

    def score(self, model, sf=None) -> Model:
        """The model with its scale by least squares and its R1."""
        F = self.reflections.F
        sf = np.abs(self.structure_factors(model) if sf is None else sf)
        scale = fit_scale(F, sf)
        return replace(model, scale=scale, r1=float(np.abs(F - scale * sf).sum() / F.sum()))

    def adjusted_r1(self, model) -> float:
        """R1 times (n / (n - p))^1/2, n reflections and p = 4 parameters an atom: few data are easy to explain."""
        n, p = len(self.reflections), 4 * len(model.fract) + 1
        return model.r1 * np.sqrt(n / (n - p)) if n > p else np.inf

    def fit_overall_u(self, model) -> Model:
        """The model with one U for all atoms, the best of a few values."""
        base = self.structure_factors(replace(model, u_iso=np.zeros(len(model.fract))))
        models = [self.score(replace(model, u_iso=np.full(len(model.fract), u)),
                             base * np.exp(-8 * np.pi**2 * self.stol2 * u)) for u in np.arange(0.01, 0.12, 0.01)]
        return min(models, key=lambda m: m.r1)

    def least_squares(self, model, cycles) -> Model:
        """Refine coordinates and U by damped Gauss-Newton steps on F, unit weights; keep the best cycle."""
        F, best = self.reflections.F, None
        n_atoms, factor = len(model.fract), self.factor.astype(np.float32)[:, None]
        for cycle in range(cycles + 1):
            weights, waves, cos_phi, sin_phi, shares, sf = self._shares(model)
            model = self.score(model, sf)
            best = min(filter(None, (best, model)), key=lambda m: m.r1)
            if cycle == cycles:
                return best
            J = np.empty((len(F), 4 * n_atoms + 1), np.float32)
            d_x = np.zeros((3, *weights.shape), np.float32)
            for (cos, sin), hkl in zip(waves, self.hkl_ops):
                along = cos * sin_phi - sin * cos_phi
                for axis in range(3):
                    d_x[axis] += along * hkl[:, axis, None].astype(np.float32)
            d_x *= 2 * np.pi * model.scale * weights * factor
            J[:, :3 * n_atoms].reshape(len(F), n_atoms, 3)[:] = np.moveaxis(d_x, 0, 2)
            J[:, 3 * n_atoms:-1] = shares * (-8 * np.pi**2 * model.scale * self.stol2[:, None])
            J[:, -1] = np.abs(sf)
            normal = (J.T @ J).astype(float)
            # a small ridge for parameters the data do not determine: special positions, the origin of polar groups
            normal[np.diag_indices_from(normal)] *= 1.001
            normal[np.diag_indices_from(normal)] += 1e-9 * np.trace(normal) / len(normal)
            step = np.linalg.solve(normal, J.T @ (F - model.scale * np.abs(sf)))
            move = step[:3 * n_atoms].reshape(-1, 3)
            length = np.linalg.norm(move @ self.orth.T, axis=1, keepdims=True)
            move = move * np.minimum(1, MAX_MOVE / np.maximum(length, 1e-9))
            u_iso = (model.u_iso + np.clip(step[3 * n_atoms:4 * n_atoms], -0.03, 0.03)).clip(U_MIN, U_MAX)
            model = replace(model, fract=self._keep_special(model.fract + move, model.occ), u_iso=u_iso)

    def _shares(self, model):
        """What atoms add to |Fcalc|, with what it is made of.

        Returns
        -------
        weights (n, a), waves : of all operators; cos_phi, sin_phi (n, 1) of the phase of Fcalc, for which d|F| is
        cos(phi) dA + sin(phi) dB; shares (n, a) of the atoms along it; Fcalc (n,)
        """
        factor = self.factor.astype(np.float32)[:, None]
        weights, waves = self.weights(model), list(self._waves(model))
        real = weights * sum(cos for cos, _ in waves) * factor
        imag = np.zeros_like(real) if self.centric else weights * sum(sin for _, sin in waves) * factor
        sf = real.sum(1) + 1j * imag.sum(1)
        unit = (sf / np.maximum(np.abs(sf), 1e-9))[:, None]
        return weights, waves, unit.real, unit.imag, real * unit.real + imag * unit.imag, sf

    def filled(self, model) -> np.ndarray:
        """How much of each atom (n,) the data see, by one linear step of its share and U: 6/8 where C is named O."""
        *_, shares, sf = self._shares(model)
        J = model.scale * np.concatenate([shares, shares * (-8 * np.pi**2 * self.stol2[:, None]), np.abs(sf)[:, None]], axis=1)
        step, *_ = np.linalg.lstsq(J, self.reflections.F - model.scale * np.abs(sf), rcond=1e-6)
        return 1 + step[:len(model.fract)]

    def _keep_special(self, fract, occ):
        """Atoms on special positions stay there."""
        rot, tran = all_operators(self.reflections.spacegroup)
        return np.array([snap(x, rot, tran, self.orth, 0.9)[0] if o < 0.99 else x for x, o in zip(fract, occ)])

    def model_from_map(self, rho, contents, n_atoms=None) -> Model | None:
        """The highest peaks of a map as atoms with one overall U; None if there is no peak."""
        peaks = find_peaks(rho, self.reflections.cell, self.reflections.spacegroup, n_atoms or sum(contents.values()))
        if not len(peaks):
            return None
        model = Model(peaks.fract, assign_elements(peaks.occ, contents), np.full(len(peaks), U_START), peaks.occ,
                      peaks.height / rho.std())
        return self.fit_overall_u(model)

    def map(self, model, difference=False):
        """Map with coefficients 2F - Fcalc, or F - Fcalc, and the phases of the model, on the scale of Fcalc."""
        sf = self.structure_factors(model)
        amplitude = self.reflections.F / model.scale
        amplitude = amplitude - np.abs(sf) if difference else np.maximum(2 * amplitude - np.abs(sf), 0)
        return self.maps.map(amplitude * np.exp(1j * np.angle(sf)))

    def recycle(self, model, contents, rounds) -> Model:
        """New peaks from the map with the phases of the model, again and again; the best model met."""
        best = model
        for _ in range(rounds):
            model = self.model_from_map(self.map(model), contents)
            if model is None or model.r1 > best.r1 + 0.02:
                break
            best = min(best, model, key=lambda m: m.r1)
        return best

    def complete(self, model, contents, enough=0.0, patience=3, cycles=4) -> Model:
        """Refine; drop the atoms that melt; fill up from the difference map; name the elements again by peak height.

        At least the eighth of the atoms with the largest U is dropped each time: right ones come back as the highest
        peaks of the difference map, wrong ones do not. Ends after `patience` rounds without a better R1, or one where
        R1 is below `enough`.
        """
        best = model = self.least_squares(model, cycles)
        waited = 0
        while waited < (1 if best.r1 < enough else patience):
            melting = np.argsort(-model.u_iso, kind="stable")
            drop = max(1, len(melting) // 8, int((model.u_iso > max(3.5 * np.median(model.u_iso), 0.15)).sum()))
            model = _take(model, np.sort(melting[drop:]))
            if not len(model.fract):
                break
            model = self._add_peaks(model, contents)
            model = self.least_squares(self.rename(model, contents), cycles)
            waited = 0 if model.r1 < best.r1 - 0.002 else waited + 1
            best = min(best, model, key=lambda m: m.r1)
        return best

    def _add_peaks(self, model, contents):
        """The model with as many atoms as `contents` has, the new ones at peaks of the difference map."""
        model = self.score(model)
        peaks = find_peaks(self.map(model, difference=True), self.reflections.cell, self.reflections.spacegroup,
                           sum(contents.values()) - model.occ.sum(), exclude=model.fract)
        n, u = len(peaks), np.median(model.u_iso)
        return replace(model, fract=np.concatenate([model.fract, peaks.fract]),
                       elements=model.elements + (list(contents)[-1],) * n, occ=np.concatenate([model.occ, peaks.occ]),
                       u_iso=np.concatenate([model.u_iso, np.full(n, u)]),
                       heights=np.concatenate([model.heights, np.zeros(n)]))

    def rename(self, model, contents) -> Model:
        """Elements by the height of the density at the atoms, heaviest to the highest, and atoms in that order."""
        rho = self.map(model)
        height = map_coordinates(rho, (model.fract % 1 * rho.shape).T, order=1, mode="grid-wrap")
        order = np.argsort(-height, kind="stable")
        model = _take(model, order)
        return replace(model, elements=assign_elements(model.occ, contents), heights=height[order] / rho.std())

    def exchange_elements(self, model, cycles=3) -> Model:
        """The model with pairs of elements exchanged as long as that lowers R1, refined.

        Peak heights misname atoms: one that moves little looks heavier than it is. So the heavier atom that is filled
        least and the lighter one that is filled most change names.
        """
        symbols = sorted(set(model.elements), key=lambda symbol: -gemmi.Element(symbol).atomic_number)
        tried = iter(pairs := list(combinations(symbols, 2)))
        while pair := next(tried, None):
            filled = self.filled(model)
            heavy, light = (np.flatnonzero(np.array(model.elements) == element) for element in pair)
            i, j = heavy[filled[heavy].argmin()], light[filled[light].argmax()]
            if filled[i] >= filled[j] or model.occ[i] != model.occ[j]:
                continue
            elements = list(model.elements)
            elements[i], elements[j] = elements[j], elements[i]
            changed = self.least_squares(replace(model, elements=tuple(elements)), cycles)
            if changed.r1 < model.r1:
                model, tried = changed, iter(pairs)
        return model


def _take(model, rows):
    elements = tuple(np.array(model.elements)[rows])
    return replace(model, fract=model.fract[rows], elements=elements, u_iso=model.u_iso[rows], occ=model.occ[rows],
                   heights=model.heights[rows])
