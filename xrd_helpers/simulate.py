"""Measurements that never took place: the faults of real ones, put into boxes of ideal amplitudes or into SHELX files.

For both, ``d_min`` is the resolution to which was measured, and ``missing`` the share of what was not measured after all. What
was measured is a ``reflections.Measured``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .config import UserError
from .crystals import Crystal
from .gridding import AmplitudeBoxes
from .reflections import expand_to_p1, unique_hkl
from .shelx import SHELX_LARGEST, write_shelx_files
from .structure_factors import structure_factors

BACKGROUND = 50     # counts under every reflection
STRONGEST = 5e5     # counts of the strongest reflection
INSTABILITY = 0.02  # of an intensity: the beam, absorption, the crystal's shape


@dataclass(frozen=True)
class Faults:
    """How measured amplitudes fall short of ideal ones. Truth, against which a loss or a score counts, stays exact.

    d_min : (low, high) in Å, or None; each crystal was measured to a resolution drawn between the two (None: d_input).
    missing : of the measured reflections of a crystal, a share drawn between 0 and this one was not measured after all.
    noise : 0 for none. Else each intensity I = F² gets a normal error with σ² = (0.02 I)² + (k ⟨I⟩)², where ⟨I⟩ is the
        mean over the crystal's measured reflections and k is drawn between 0 and ``noise``: the first term is what
        scaling and absorption leave, the second counting and background. F = sqrt(I), zero where I is negative.

    A reflection that was not measured has to be predicted. Equivalent voxels keep equal values. Amplitudes are scaled
    anew to a largest measured one of 1.
    """

    d_min: tuple[float, float] | None = None
    missing: float = 0.0
    noise: float = 0.0

    def __bool__(self):
        return bool(self.d_min or self.missing or self.noise)

    def check(self, d_target) -> None:
        """UserError if they cannot be those of data that are extended to d_target (Å)."""
        if self.d_min and not d_target < self.d_min[0] <= self.d_min[1]:
            low, high = self.d_min
            raise UserError(f"d_min must be drawn between two resolutions beyond d_target ({d_target:g} Å), the lower number "
                            f"first, not between {low:g} and {high:g} Å")
        if not 0 <= self.missing < 1 or not self.noise >= 0:
            raise UserError(f"missing must be a share from 0 to below 1 and noise not below 0, not {self.missing:g} and "
                            f"{self.noise:g}")

    def apply(self, boxes: AmplitudeBoxes, seed, numbers):
        """(what the network sees, what it is compared with); `numbers` of the crystals in the stream decide all draws."""
        draws = [self._draw(boxes.box, seed, int(number)) for number in numbers]
        d_min, missing, k, chance, error = (torch.as_tensor(np.array(x), dtype=boxes.F.dtype, device=boxes.F.device)
                                            for x in zip(*draws))
        column, present = (-1, 1, 1, 1), ~boxes.absent
        measured = boxes.measured
        if self.d_min:
            measured = boxes.target & (boxes.d >= d_min.view(column))
        if self.missing:
            measured = measured & (chance >= missing.view(column))
        F_seen = boxes.F
        if self.noise:
            I, counted = boxes.F.square(), measured & present
            mean = (I * counted).sum(dim=(1, 2, 3)) / counted.sum(dim=(1, 2, 3)).clamp(min=1)
            sigma = ((INSTABILITY * I).square() + (k * mean).view(column).square()).sqrt()
            F_seen = torch.where(present & boxes.target, (I + sigma * error).clamp(min=0).sqrt(), boxes.F)
        largest = (F_seen * measured).amax(dim=(1, 2, 3)).clamp(min=1e-6)
        truth = replace(boxes, F=boxes.F / largest.view(column), scale=boxes.scale * largest, measured=measured)
        return replace(truth, F=F_seen / largest.view(column)), truth

    def _draw(self, box, seed, number):
        """d_min, missing, k and, a voxel, a chance in 0..1 and a normal number; drawn whatever is used of them."""
        rng = np.random.default_rng([seed, 2, number])
        d_min, missing, k = rng.uniform((self.d_min or (0, 0))[0], (self.d_min or (0, 0))[1]), *(rng.random(2))
        same = box.representative
        chance, error = rng.random(len(same), np.float32)[same], rng.standard_normal(len(same), np.float32)[same]
        return d_min, missing * self.missing, k * self.noise, chance.reshape(box.shape), error.reshape(box.shape)


def simulate_measurement(stem, crystal: Crystal, d_min=0.84, times=3, missing=0.02, seed=0) -> Path:
    """Write ``.hkl`` and ``.ins`` of a measurement as a CCD diffractometer gives it, not merged; the path of the ``.hkl``.

    Counts follow Poisson's law over a background, which is subtracted again: weak intensities come out below zero. Each
    measured intensity is off by INSTABILITY, too. Its uncertainty states both.

    Parameters
    ----------
    stem : path of both files without the suffix
    d_min : Å, resolution of the detector
    times : measurements of each reflection on average, one at least, drawn from its symmetry and Friedel mates
    missing : share of the reflections that are not measured at all
    """
    rng = np.random.default_rng(seed)
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
    intensity = np.abs(structure_factors(crystal, hkl)) ** 2
    mates = expand_to_p1(hkl, crystal.spacegroup)
    order = rng.permutation(len(mates.hkl))
    order = order[np.isin(mates.index[order], np.flatnonzero(rng.random(len(hkl)) >= missing))]
    once = order[np.unique(mates.index[order], return_index=True)[1]]
    rows = np.concatenate([once, rng.choice(order, int((times - 1) * len(once)))])  # (m,) of mates
    counts = intensity[mates.index[rows]] * (STRONGEST / intensity.max())
    counts *= 1 + INSTABILITY * rng.standard_normal(len(rows))
    total = rng.poisson(np.maximum(counts, 0) + BACKGROUND)
    sigma = np.sqrt(total + BACKGROUND + (INSTABILITY * (total - BACKGROUND)) ** 2)
    scale = SHELX_LARGEST / (total.max() - BACKGROUND)
    write_shelx_files(stem, mates.hkl[rows], (total - BACKGROUND) * scale, sigma * scale, 1, crystal.cell, crystal.spacegroup,
                      crystal.contents, title=f"{crystal.name}, simulated")
    return Path(stem).with_name(Path(stem).name + ".hkl")
