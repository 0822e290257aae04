"""A measurement that never took place: intensities of a known crystal with the faults of real ones, in SHELX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .crystals import Crystal
from .reflections import expand_to_p1, unique_hkl
from .shelx import SHELX_LARGEST, write_shelx_files
from .structure_factors import structure_factors

BACKGROUND = 50     # counts under every reflection
STRONGEST = 5e5     # counts of the strongest reflection
INSTABILITY = 0.02  # of an intensity: the beam, absorption, the crystal's shape


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
