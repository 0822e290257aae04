"""Structure factors of many crystals at once, by direct summation in torch.

F(hkl) = Σ_ops Σ_atoms occ f(s²) exp(-8π² U s²) exp(2πi h·(R x + t)), s = sin θ / λ = 1 / 2d
(International Tables for Crystallography, Vol. B, chapter 1.2; form factors from Vol. C, table 6.1.1.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
import torch

from .crystals import Crystal, CrystalError, rotations_and_translations

TWO_PI = 2 * torch.pi
CHUNK = 2_000_000  # phases held at a time: 16 MB in double precision, so that they stay near the cache


@dataclass(frozen=True)
class CrystalBatch:
    """Crystals of any cell and space group as padded tensors; N atoms, G operators, C centring vectors at most.

    Padding has weight zero. Operators are those without centring, and of a group with the inversion at the origin
    only one of each pair that the inversion links: the sum over the others is the complex conjugate.
    """

    metric: torch.Tensor      # (B, 3, 3) reciprocal metric tensor, Å⁻²
    fract: torch.Tensor       # (B, N, 3)
    u_iso: torch.Tensor       # (B, N) Å²
    occ: torch.Tensor         # (B, N) crystallographic occupancy
    element: torch.Tensor     # (B, N) row of form_factor
    form_factor: torch.Tensor  # (E, 9) a1..a4, b1..b4, c
    rot: torch.Tensor         # (B, G, 3, 3)
    tran: torch.Tensor        # (B, G, 3)
    op_weight: torch.Tensor   # (B, G) 1 or 0
    centring: torch.Tensor    # (B, C, 3)
    centring_weight: torch.Tensor  # (B, C) 1 or 0
    centrosymmetric: torch.Tensor  # (B,) bool, inversion at the origin

    def __len__(self):
        return len(self.fract)

    @classmethod
    def from_crystals(cls, crystals, dtype=torch.float64, device="cpu") -> CrystalBatch:
        """Pad and stack a list of Crystal."""
        symbols = sorted({element for crystal in crystals for element in crystal.elements})
        groups = [_operators(crystal.spacegroup) for crystal in crystals]

        def stack(rows):
            length = max(len(row) for row in rows)
            out = np.zeros((len(rows), length, *np.shape(rows[0])[1:]))
            for i, row in enumerate(rows):
                out[i, :len(row)] = row
            return torch.as_tensor(out, dtype=dtype, device=device)

        return cls(
            metric=stack([reciprocal_metric(crystal.cell) for crystal in crystals]),
            fract=stack([crystal.fract for crystal in crystals]),
            u_iso=stack([crystal.u_iso for crystal in crystals]),
            occ=stack([crystal.occ for crystal in crystals]),
            element=stack([[symbols.index(e) for e in crystal.elements] for crystal in crystals]).long(),
            form_factor=torch.as_tensor(np.array([_form_factor(s) for s in symbols]), dtype=dtype, device=device),
            rot=stack([group[0] for group in groups]),
            tran=stack([group[1] for group in groups]),
            op_weight=stack([np.ones(len(group[0])) for group in groups]),
            centring=stack([group[2] for group in groups]),
            centring_weight=stack([np.ones(len(group[2])) for group in groups]),
            centrosymmetric=torch.tensor([group[3] for group in groups], device=device),
        )

    def stol2(self, hkl) -> torch.Tensor:
        """(sin θ / λ)² = 1 / 4d² in Å⁻² of reflections hkl (n, 3) -> (B, n)."""
        hkl = hkl.to(self.metric)
        return 0.25 * torch.einsum("ni,bij,nj->bn", hkl, self.metric, hkl)

    def structure_factors(self, hkl) -> torch.Tensor:
        """Complex structure factors in electrons, hkl (n, 3) common to all crystals -> (B, n)."""
        step = max(1, CHUNK // (self.fract.shape[0] * self.fract.shape[1]))
        return torch.cat([self._sum(part) for part in hkl.to(self.metric).split(step)], dim=1)

    def _sum(self, hkl):
        stol2 = self.stol2(hkl)                                                        # (B, n)
        a, b, c = self.form_factor[:, :4], self.form_factor[:, 4:8], self.form_factor[:, 8]
        f = (a[:, :, None, None] * torch.exp(-b[:, :, None, None] * stol2)).sum(1) + c[:, None, None]  # (E, B, n)
        rows = torch.arange(len(self), device=f.device)[:, None]
        weight = f[self.element, rows]                                                 # (B, N, n)
        weight = weight * self.occ[..., None] * torch.exp(-8 * torch.pi**2 * self.u_iso[..., None] * stol2[:, None])
        real = imag = 0
        for g in range(self.rot.shape[1]):
            hkl_g = torch.einsum("ni,bij->bnj", hkl, self.rot[:, g])                   # hR, (B, n, 3)
            shift = torch.einsum("ni,bi->bn", hkl, self.tran[:, g])[:, None]           # h·t, (B, 1, n)
            phase = torch.einsum("bai,bni->ban", self.fract, hkl_g) + shift            # in cycles, (B, N, n)
            # the fraction alone: single precision then loses nothing to large indices in 2π
            phase = TWO_PI * (phase - phase.round())
            real = real + self.op_weight[:, g, None] * (weight * phase.cos()).sum(1)
            # cosines only, where the imaginary parts of all crystals cancel
            if not bool(self.centrosymmetric.all()):
                imag = imag + self.op_weight[:, g, None] * (weight * phase.sin()).sum(1)
        sf = torch.complex(real, torch.zeros_like(real) if isinstance(imag, int) else imag)
        sf = torch.where(self.centrosymmetric[:, None], torch.complex(2 * real, torch.zeros_like(real)), sf)
        phase = TWO_PI * torch.einsum("ni,bci->bcn", hkl, self.centring)               # (B, C, n)
        return sf * (self.centring_weight[..., None] * phase.cos()).sum(1)             # 0 where the centring forbids


def structure_factors(crystal: Crystal, hkl) -> np.ndarray:
    """Complex structure factors of one crystal in electrons, double precision; hkl (n, 3) -> (n,)."""
    batch = CrystalBatch.from_crystals([crystal])
    return batch.structure_factors(torch.as_tensor(np.asarray(hkl)))[0].numpy()


def reciprocal_metric(cell: gemmi.UnitCell) -> np.ndarray:
    """Reciprocal metric tensor (3, 3) in Å⁻²: 1 / d² = h G* hᵀ."""
    frac = np.array(cell.frac.mat.tolist())  # rows are a*, b*, c* in Cartesian axes
    return frac @ frac.T


def _operators(spacegroup):
    """(rot (g, 3, 3), tran (g, 3), centring (c, 3), inversion at the origin) of a space group, see CrystalBatch."""
    rot, tran = rotations_and_translations(spacegroup)
    centring = np.array(spacegroup.operations().cen_ops, float) / gemmi.Op.DEN
    # an inversion at a centring translation is one at the origin, too
    has_inversion = any((r == -np.eye(3, dtype=int)).all() and (t % 1 == centring % 1).all(axis=1).any()
                        for r, t in zip(rot, tran))
    if has_inversion:
        keep = np.linalg.det(rot) > 0  # the inversion links each proper operation to an improper one
        rot, tran = rot[keep], tran[keep]
    return rot.astype(float), tran, centring, has_inversion


def _form_factor(symbol):
    """The nine coefficients of table 6.1.1.4 for a neutral atom; deuterium scatters X-rays as hydrogen does."""
    coefficients = gemmi.Element("H" if symbol == "D" else symbol).it92
    if coefficients is None:
        raise CrystalError(f"there is no X-ray form factor for the element {symbol}")
    return [*coefficients.a, *coefficients.b, coefficients.c]
