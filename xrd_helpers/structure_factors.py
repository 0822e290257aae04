"""Structure factors of many crystals at once, by direct summation in torch.

F(hkl) = Σ_ops Σ_atoms occ (f(s²) + f′ + i f″) T(hkl) exp(2πi h·(R x + t)), s = sin θ / λ = 1 / 2d
(International Tables for Crystallography, Vol. B, chapter 1.2; form factors from Vol. C, table 6.1.1.4). T is
exp(-8π² U s²), or exp(-2π² hR U* (hR)ᵀ) with U*ij = Uij a*i a*j for an anisotropic atom.

Two ways give the same sum. Where one axis is perpendicular to the other two, say b, and all U are isotropic, every
factor is one of (h, l) times one of k: a block of indices is then a matrix product over the atoms and their images
for each element, and hardly more than that. It pays where the reflections fill a good part of the block that holds
them; any other crystal or list of reflections is summed term by term.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import gemmi
import numpy as np
import torch

from .crystals import Crystal, CrystalError, without_inversion

CHUNK = {"cpu": 2**20}   # numbers in the largest tensor held at a time: 4 MB in float32, so that it stays in the cache
CHUNK_ELSEWHERE = 2**26  # on other devices, to which long work matters more
SPARSE = 12              # the block of indices may have so many times the members of the list of reflections
ENERGIES = (1, 80)       # keV, the range of the cross-sections behind Cromer and Liberman's method


class Kind(NamedTuple):
    """What decides how a crystal is summed: crystals of one kind are summed together, without any padding of operators."""

    n_ops: int             # operators without centring; of each pair that an inversion at the origin links, one
    centring: tuple        # centring translations in 1/24 of the cell edges
    centrosymmetric: bool  # inversion at the origin
    isotropic: bool
    axis: int              # the axis perpendicular to the other two, -1 if there is none or if an atom is anisotropic


@dataclass(frozen=True)
class CrystalBatch:
    """Crystals of any cell and space group as padded tensors; N atoms, G operators at most, E elements.

    A column of the (B, N) tensors holds one element only, element after element; where a crystal has no atom, its
    occupancy is zero. Operators are those without centring, and of a group with the inversion at the origin only one
    of each pair that the inversion links: the sum over the others is the complex conjugate.
    """

    metric: torch.Tensor         # (B, 3, 3) reciprocal metric tensor, Å⁻²
    fract: torch.Tensor          # (B, N, 3)
    u_iso: torch.Tensor          # (B, N) Å²
    u_star: torch.Tensor | None  # (B, N, 3, 3) U* of all atoms, the isotropic ones too; None if there is no other
    occ: torch.Tensor            # (B, N) crystallographic occupancy
    rot: torch.Tensor            # (B, G, 3, 3)
    tran: torch.Tensor           # (B, G, 3)
    heights: torch.Tensor        # (E, 5) a1..a4 and c + f′ of the form factor Σ a exp(-b s²)
    widths: torch.Tensor         # (E, 5) b1..b4 and 0, Å²
    f_double_prime: tuple        # (E,) electrons; empty without anomalous scattering
    n_atoms: np.ndarray          # (B, E)
    kinds: tuple[Kind, ...]      # (B,)

    def __len__(self):
        return len(self.fract)

    @classmethod
    def from_crystals(cls, crystals, dtype=torch.float64, device="cpu", energy=None, dispersion=None) -> CrystalBatch:
        """Pad and stack a list of Crystal.

        ``energy`` in keV adds f′ and f″ (gemmi's Cromer-Liberman with the corrections of Kissel and Pratt, Acta Cryst.
        A46 (1990) 170; none for H and He); with None there is no anomalous scattering. ``dispersion`` {symbol: (f′, f″)}
        replaces these of some elements.

        Raises
        ------
        CrystalError
            If an element has no form factor, or there are no f′ and f″ for the element or the energy.
        """
        symbols = sorted({element for crystal in crystals for element in crystal.elements})
        code = {symbol: i for i, symbol in enumerate(symbols)}
        codes = np.array([code[element] for crystal in crystals for element in crystal.elements])
        row = np.repeat(np.arange(len(crystals)), [len(crystal.elements) for crystal in crystals])
        key = row * len(symbols) + codes
        n_atoms = np.bincount(key, minlength=len(crystals) * len(symbols)).reshape(len(crystals), len(symbols))
        order = np.argsort(key, kind="stable")
        number = np.empty_like(key)  # of the atom among those of its element and crystal
        number[order] = np.arange(len(key)) - (np.cumsum(n_atoms) - n_atoms.ravel())[key[order]]
        width = n_atoms.max(axis=0)
        column = (np.cumsum(width) - width)[codes] + number

        def tensor(values):
            return torch.as_tensor(values, dtype=dtype, device=device)

        def padded(values):
            out = np.zeros((len(crystals), width.sum(), *values.shape[1:]))
            out[row, column] = values
            return tensor(out)

        metric = reciprocal_metric([crystal.cell for crystal in crystals])
        u_iso = np.concatenate([crystal.u_iso for crystal in crystals])
        anisotropic = np.array([crystal.u_aniso is not None and crystal.u_aniso.any() for crystal in crystals])
        u_star = None
        if anisotropic.any():
            voigt = np.concatenate([np.zeros((len(crystal.elements), 6)) if crystal.u_aniso is None else crystal.u_aniso
                                    for crystal in crystals])
            star = np.sqrt(metric.diagonal(axis1=1, axis2=2))[row]                                    # a*, b*, c*
            u_star = voigt[:, [[0, 3, 4], [3, 1, 5], [4, 5, 2]]] * star[:, :, None] * star[:, None]
            u_star = np.where(voigt.any(axis=1)[:, None, None], u_star, u_iso[:, None, None] * metric[row])
        groups = [_operators(crystal.spacegroup.xhm()) for crystal in crystals]
        kinds = tuple(Kind(len(group[0]), *group[2:], not aniso, -1 if aniso else axis)
                      for group, aniso, axis in zip(groups, anisotropic.tolist(), _perpendicular_axis(metric).tolist()))
        rot = np.zeros((len(crystals), max(kind.n_ops for kind in kinds), 3, 3))
        tran = np.zeros(rot.shape[:3])
        for i, group in enumerate(groups):
            rot[i, :len(group[0])], tran[i, :len(group[0])] = group[:2]
        form_factor = np.array([_form_factor(symbol) for symbol in symbols])
        f_double_prime = ()
        if energy is not None:
            f_prime, f_double_prime = zip(*[(dispersion or {}).get(symbol) or _anomalous(symbol, energy)
                                             for symbol in symbols])
            form_factor[:, -1] += f_prime
        n = form_factor.shape[1] // 2  # Gaussians, beside the constant
        heights, widths = np.delete(form_factor, slice(n, 2 * n), axis=1), np.pad(form_factor[:, n:2 * n], ((0, 0), (0, 1)))
        fract = np.concatenate([crystal.fract for crystal in crystals])
        return cls(metric=tensor(metric), fract=padded(fract - np.round(fract)), u_iso=padded(u_iso),
                   u_star=None if u_star is None else padded(u_star),
                   occ=padded(np.concatenate([crystal.occ for crystal in crystals])), rot=tensor(rot), tran=tensor(tran),
                   heights=tensor(heights), widths=tensor(widths), f_double_prime=f_double_prime, n_atoms=n_atoms,
                   kinds=kinds)

    def stol2(self, hkl) -> torch.Tensor:
        """(sin θ / λ)² = 1 / 4d² in Å⁻² of reflections hkl (n, 3) -> (B, n)."""
        return _stol2(self.metric, hkl.to(self.metric))

    def structure_factors(self, hkl) -> torch.Tensor:
        """Complex structure factors in electrons, hkl (n, 3) int common to all crystals -> (B, n), on the batch's device."""
        hkl = hkl.to(self.metric.device)
        sf = torch.empty((len(self), len(hkl)), dtype=self.metric.dtype.to_complex(), device=hkl.device)
        if not len(hkl):
            return sf
        chunk = CHUNK.get(hkl.device.type, CHUNK_ELSEWHERE)
        dense = math.prod((hkl.amax(0) - hkl.amin(0) + 1).tolist()) <= SPARSE * len(hkl)
        rows_of_kind = defaultdict(list)
        for row, kind in enumerate(self.kinds):
            rows_of_kind[kind].append(row)
        for kind, rows in rows_of_kind.items():
            block = _Block(hkl, kind.axis, self.metric.dtype) if dense and kind.axis >= 0 else None
            allowed = _allowed(hkl, kind.centring).to(self.metric) if len(kind.centring) > 1 else None
            atoms = self._atoms(rows, kind)
            rows = torch.tensor(rows, device=hkl.device)
            n_at_a_time = max(1, chunk // (2 * atoms.images[0, ..., 0].numel()))  # a cosine and a sine for each image
            step = max(1, n_at_a_time // (block.products[0].numel() if block else len(hkl)))
            parts = [(part, _products(part)) for part in hkl.to(self.metric).split(n_at_a_time)]
            for some in (slice(first, first + step) for first in range(0, len(rows), step)):
                if block:
                    sums = self._sum_block(atoms.part(some), kind, block, n_at_a_time)
                else:
                    sums = torch.cat([self._sum_terms(atoms.part(some), kind, *part) for part in parts], dim=-1)
                sf[rows[some]] = _complex(sums if allowed is None else sums * allowed)
        return sf

    def _atoms(self, rows, kind):
        """The atoms of crystals of one kind and their images, without the padding that other crystals make necessary."""
        width, count = self.n_atoms.max(axis=0), self.n_atoms[rows].max(axis=0)
        columns = np.concatenate([start + np.arange(n) for start, n in zip(np.cumsum(width) - width, count)])
        elements = [(i, slice(end - n, end)) for i, (n, end) in enumerate(zip(count, np.cumsum(count))) if n]
        rows, columns = (torch.as_tensor(numbers, device=self.fract.device) for numbers in (rows, columns))
        at = rows[:, None], columns
        rot, tran = self.rot[rows, :kind.n_ops], self.tran[rows, :kind.n_ops]
        images = (self.fract[at] @ rot.flatten(1, 2).mT).unflatten(2, (-1, 3)) + tran[:, None]
        # hR U* (hR)ᵀ = h (R U* Rᵀ) hᵀ
        u_star = None if kind.isotropic else torch.einsum("bgij,bnjk,bglk->bngil", rot, self.u_star[at], rot)
        weight = self.occ[at] * (len(kind.centring) * (2 if kind.centrosymmetric else 1))
        return _Atoms(self.metric[rows], images - images.round(), self.u_iso[at], u_star, weight, elements)

    def _sum_terms(self, atoms, kind, hkl, products):
        """Sums for reflections hkl (n, 3), term by term -> (b, 1 or 2, 1 or 2, n), see ``_complex``."""
        phase = _phase(atoms.images @ hkl.T)                                           # (b, N, G, n)
        stol2 = 0.25 * (atoms.metric.flatten(1) @ products)                            # (b, n)
        if kind.isotropic:
            damping = atoms.damping(stol2)                                             # (b, N, n)
        else:
            damping = (-2 * torch.pi**2 * atoms.u_star.flatten(3) @ products).exp_()   # (b, N, G, n)
        waves = []
        for function in (torch.cos,) if kind.centrosymmetric else (torch.cos, torch.sin):
            wave = function(phase)
            waves.append(wave.sum(2).mul_(damping) if kind.isotropic else wave.mul_(damping).sum(2))
        form_factor = (self._gaussians(stol2) * self.heights[..., None]).sum(2)        # (b, E, n)
        sums = self._empty_sums(len(phase), len(waves), len(hkl))
        for i, columns in atoms.elements:
            scattered = [atoms.weight[:, None, columns] @ wave[:, columns] for wave in waves]
            self._scatter(sums, i, torch.cat(scattered, dim=1), form_factor[:, i])
        return sums

    def _sum_block(self, atoms, kind, block, n_at_a_time):
        """The same by matrix products: all reflections of the block are summed, and those that were asked for returned."""
        h_axis, l_axis, k_axis = block.axes
        h, l, k = block.indices

        def wave(axis, index):
            phase = _phase(atoms.images[..., axis, None] * index)
            return phase.cos(), phase.sin()                                            # (b, N, G, index) each

        # cos(α + β) = cos α cos β - sin α sin β and sin(α + β) = sin α cos β + cos α sin β. With β of k and α of h and
        # l they are matrix products, over atoms, images and the two waves; α itself is made of h and l in the same way.
        k_stol2 = 0.25 * atoms.metric[:, k_axis, k_axis, None] * k**2
        k_gaussians = self._gaussians(k_stol2) * self.heights[..., None]               # (b, E, 5, k)
        cos, sin = wave(k_axis, k)
        k_waves = [torch.stack((cos, -sin), dim=3)]
        if not kind.centrosymmetric:
            k_waves.append(torch.stack((sin, cos), dim=3))
        k_waves = torch.cat(k_waves, dim=-1).unflatten(-1, (-1, len(k)))               # (b, N, G, 2, 1 or 2, k)
        k_waves *= (atoms.damping(k_stol2) * atoms.weight[..., None])[:, :, None, None, None]
        l_cos, l_sin = (waves[:, :, :, None, None] for waves in wave(l_axis, l))       # (b, N, G, 1, 1, l)
        parts = []
        step = max(1, n_at_a_time // len(l))
        for some_h, products in zip(h.split(step), block.products.split(step, dim=1)):
            cos, sin = wave(h_axis, some_h)
            plane = torch.stack((cos, sin), dim=3)[..., None] * l_cos                  # (b, N, G, 2, h, l)
            plane = plane.addcmul_(torch.stack((-sin, cos), dim=3)[..., None], l_sin).flatten(4)
            stol2 = 0.25 * (atoms.metric.flatten(1) @ products.flatten(1))             # (b, hl)
            plane *= atoms.damping(stol2)[:, :, None, None]
            gaussians = self._gaussians(stol2)                                         # (b, E, 5, hl)
            sums = self._empty_sums(len(plane), k_waves.shape[-2], len(k), plane.shape[-1])
            for i, columns in atoms.elements:
                waves = k_waves[:, columns].flatten(4).flatten(1, 3).mT @ plane[:, columns].flatten(1, 3)
                form_factor = k_gaussians[:, i].mT @ gaussians[:, i]                   # (b, k, hl)
                self._scatter(sums, i, waves.unflatten(1, (-1, len(k))), form_factor)
            parts.append(sums.unflatten(-1, (len(some_h), len(l))))                    # (b, 1 or 2, 1 or 2, k, h, l)
        sums = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
        # two dimensions: with more of them index_select is five times slower
        return sums.flatten(3).flatten(0, 2).index_select(1, block.position).unflatten(0, sums.shape[:3])

    def _gaussians(self, stol2):
        """exp(-b s²) of all elements at (b, n) values of s² -> (b, E, 5, n)."""
        return (-self.widths.flatten()[:, None] * stol2[:, None]).exp_().unflatten(1, self.widths.shape)

    def _empty_sums(self, b, *shape):
        """Zeros for the sums of waves (b, *shape): those with f + f′ and, of anomalous scattering, those with f″."""
        return self.heights.new_zeros(b, 2 if self.f_double_prime else 1, *shape)

    def _scatter(self, sums, i, waves, form_factor):
        """Add what element i scatters to sums: waves (b, 1 or 2, ...), cosines and sines, and form factors (b, ...)."""
        sums[:, 0].addcmul_(waves, form_factor[:, None])
        if self.f_double_prime:
            sums[:, 1].add_(waves, alpha=self.f_double_prime[i])


@dataclass(frozen=True)
class _Atoms:
    """Atoms of b crystals of one kind: what is left of the tensors of CrystalBatch, and what is derived from them."""

    metric: torch.Tensor
    images: torch.Tensor         # (b, N, G, 3) positions in fractions of the cell, between -1/2 and 1/2
    u_iso: torch.Tensor
    u_star: torch.Tensor | None  # (b, N, G, 3, 3), of the images
    weight: torch.Tensor         # (b, N) occupancy times the number of operators that are not in images
    elements: list               # (row of the form factor, slice of the columns) of each element

    def part(self, rows):
        """Some of the crystals."""
        u_star = None if self.u_star is None else self.u_star[rows]
        return _Atoms(self.metric[rows], self.images[rows], self.u_iso[rows], u_star, self.weight[rows], self.elements)

    def damping(self, stol2):
        """exp(-8π² U s²) at (b, n) values of s² -> (b, N, n)."""
        return (-8 * torch.pi**2 * self.u_iso[..., None] * stol2[:, None]).exp_()


class _Block:
    """The smallest block of Miller indices that holds reflections hkl (n, 3); the axis given comes last, as k."""

    def __init__(self, hkl, axis, dtype):
        self.axes = [*(other for other in range(3) if other != axis), axis]
        low, high = hkl.amin(0), hkl.amax(0)
        h, l, k = ranges = [torch.arange(low[i], high[i] + 1, device=hkl.device) for i in self.axes]
        hl = torch.zeros(len(h), len(l), 3, dtype=dtype, device=hkl.device)
        hl[..., self.axes[0]], hl[..., self.axes[1]] = h[:, None], l
        self.indices = [indices.to(dtype) for indices in ranges]
        self.products = _products(hl.flatten(0, 1)).unflatten(1, (len(h), len(l)))       # (9, h, l)
        h, l, k = (hkl - low)[:, self.axes].T
        self.position = (k * len(ranges[0]) + h) * len(ranges[1]) + l                  # (n,) in a (k, h, l) array


def structure_factors(crystal: Crystal, hkl, energy=None, dispersion=None) -> np.ndarray:
    """Complex structure factors of one crystal in electrons, double precision; hkl (n, 3) -> (n,).

    ``energy`` in keV adds f′ and f″, which `dispersion` may give, see ``CrystalBatch.from_crystals``.
    """
    batch = CrystalBatch.from_crystals([crystal], energy=energy, dispersion=dispersion)
    return batch.structure_factors(torch.as_tensor(np.asarray(hkl)))[0].numpy()


def fit_scale(F, F_calc) -> float:
    """The factor that brings amplitudes F_calc (n,) to the scale of F (n,), by least squares."""
    return float(F @ F_calc / max(F_calc @ F_calc, 1e-30))


def reciprocal_metric(cells) -> np.ndarray:
    """Reciprocal metric tensors in Å⁻² of B gemmi.UnitCell, (B, 3, 3): 1 / d² = h G* hᵀ."""
    frac = np.array([cell.frac.mat.tolist() for cell in cells])  # rows are a*, b*, c* in Cartesian axes
    return frac @ frac.swapaxes(1, 2)


def _stol2(metric, hkl):
    return 0.25 * (metric.flatten(1) @ _products(hkl))


def _products(hkl):
    """The nine products of two indices, (9, n): a quadratic form of hkl is its flattened matrix times these."""
    return (hkl.T[:, None] * hkl.T).flatten(0, 1)


def _phase(turns):
    """Radians between -π and π: without whole turns single precision loses nothing to large indices. Changes ``turns``."""
    return turns.sub_(turns.round()).mul_(2 * torch.pi)


def _allowed(hkl, centring):
    """(n,) bool, False where the centring forbids the reflection."""
    allowed = torch.ones(len(hkl), dtype=torch.bool, device=hkl.device)
    for shift in centring:
        allowed &= (hkl * torch.tensor(shift, device=hkl.device)).sum(1) % gemmi.Op.DEN == 0
    return allowed


def _complex(sums):
    """F (b, n) from sums (b, 1 or 2, 1 or 2, n): those with f + f′ and, if any, with f″; of cosines and, if any, sines."""
    real, imag = sums[:, :, 0], (sums[:, :, 1] if sums.shape[2] == 2 else torch.zeros_like(sums[:, :, 0]))
    sf = torch.complex(real, imag)
    return sf[:, 0] + 1j * sf[:, 1] if sums.shape[1] == 2 else sf[:, 0]


def _perpendicular_axis(metric):
    """(B,) the axis that is perpendicular to the other two, b before c before a, or -1; gemmi's zeros are exact at 90°."""
    ab, ac, bc = metric[:, 0, 1] == 0, metric[:, 0, 2] == 0, metric[:, 1, 2] == 0
    return np.select([ab & bc, ac & bc, ab & ac], [1, 2, 0], -1)


@cache
def _operators(symbol):
    """(rot (g, 3, 3), tran (g, 3), centring, inversion at the origin) of a space group, see CrystalBatch and Kind."""
    spacegroup = gemmi.SpaceGroup(symbol)
    rot, tran, inversion = without_inversion(spacegroup)
    return rot.astype(float), tran, tuple(map(tuple, spacegroup.operations().cen_ops)), inversion


@cache
def _form_factor(symbol):
    """The nine coefficients of table 6.1.1.4 for a neutral atom; deuterium scatters X-rays as hydrogen does."""
    coefficients = gemmi.Element("H" if symbol == "D" else symbol).it92
    if coefficients is None:
        raise CrystalError(f"there is no X-ray form factor for the element {symbol}")
    return (*coefficients.a, *coefficients.b, coefficients.c)


def form_factor(symbol, stol2) -> np.ndarray:
    """Form factor (n,) of a neutral atom at (sin θ / λ)² (n,) in Å⁻² (International Tables, Vol. C, table 6.1.1.4)."""
    *gaussians, c = _form_factor(symbol)
    half = len(gaussians) // 2
    return sum(a * np.exp(-b * stol2) for a, b in zip(gaussians[:half], gaussians[half:])) + c


def _anomalous(symbol, energy):
    """(f′, f″) in electrons at an energy in keV."""
    low, high = ENERGIES
    if not low <= energy <= high:
        raise CrystalError(f"f′ and f″ are known from {low} to {high} keV, not at {energy} keV")
    number = gemmi.Element(symbol).atomic_number
    if number > 92:
        raise CrystalError(f"there are no f′ and f″ for the element {symbol}, only up to uranium")
    return gemmi.cromer_liberman(z=number, energy=1000 * energy)
