"""Statistics of a crystal that tell whether it looks like a real one: one row of numbers a crystal."""

from __future__ import annotations

import gemmi
import numpy as np
import pandas as pd

from .bonds import SLACK, covalent_radii, neighbours
from .crystals import Crystal
from .structure_factors import form_factor, structure_factors
from .wilson import shells

N_SHELLS = 12  # of equal numbers of reflections, for the Wilson plot and the normalisation of E


def crystal_statistics(crystals, d_min=0.8) -> pd.DataFrame:
    """One row a crystal, each number a mean over the crystal; atoms are those other than H, distances in Å, U in Å²."""
    return pd.DataFrame([_row(crystal, d_min) for crystal in crystals])


def _row(crystal: Crystal, d_min):
    n_ops = len(crystal.spacegroup.operations())
    heavy, occ = crystal.heavy, crystal.occ
    weight = occ * heavy / (occ * heavy).sum()
    z = np.array([gemmi.Element(e).atomic_number for e in crystal.elements])
    edges = np.sort([crystal.cell.a, crystal.cell.b, crystal.cell.c])
    nearest, second, bonds, neighbours = neighbour_statistics(crystal)
    u = crystal.u_iso[heavy]
    e2, wilson_b, wilson_rms, n_reflections = _wilson(crystal, d_min)
    monoclinic = crystal.spacegroup.crystal_system_str() == "monoclinic"
    return {
        "atoms": (occ * heavy).sum(), "volume per atom": crystal.cell.volume / n_ops / (occ * heavy).sum(),
        "middle edge / shortest": edges[1] / edges[0], "longest edge / shortest": edges[2] / edges[0],
        "beta": crystal.cell.beta if monoclinic else np.nan,
        "nearest": nearest.mean(), "second nearest": second.mean(), "bonded neighbours": bonds.mean(),
        "neighbours to 4 Å": neighbours.mean(), "U": np.median(u), "U spread": u.std() / u.mean() if u.mean() else 0.0,
        "share C": weight[z == 6].sum(), "share N": weight[z == 7].sum(), "share O": weight[z == 8].sum(),
        "share heavier than F": weight[z > 9].sum(), "H per atom": (occ * ~heavy).sum() / (occ * heavy).sum(),
        "mean |E² - 1|": e2, "Wilson B": wilson_b, "Wilson rms": wilson_rms, "reflections": n_reflections,
    }


def neighbour_statistics(crystal: Crystal):
    """Of each atom but H: distance to the nearest and the second nearest other atom but H, how many are bonded, how many
    are within 4 Å; over all symmetry images."""
    heavy, reach = crystal.heavy, 4.5  # Å
    fract = crystal.fract[heavy]
    radius = covalent_radii(np.array(crystal.elements)[heavy].tolist())
    i, j, _, step, _ = neighbours(fract, crystal.cell, crystal.spacegroup, reach)
    # from places to 0.001 Å, as all these statistics were taken so far: what is at 4.000 Å counts the same
    orth, inside = np.array(crystal.cell.orth.mat.tolist()), (fract - np.floor(fract))[i]
    d = np.linalg.norm(np.round((inside + step) @ orth.T, 3) - inside @ orth.T, axis=1)
    apart = d > 0.4
    i, j, d = i[apart], j[apart], d[apart]
    order = np.lexsort((d, i))
    i, j, d = i[order], j[order], d[order]
    start = np.searchsorted(i, np.arange(len(fract)))
    d_padded = np.concatenate([d, [reach, reach]])
    count = np.bincount(i, minlength=len(fract))
    nearest = np.where(count > 0, d_padded[start], reach)
    second = np.where(count > 1, d_padded[start + 1], reach)
    bonds = np.bincount(i, d < radius[i] + radius[j] + SLACK, len(fract))
    return nearest, second, bonds, np.bincount(i, d < 4.0, len(fract))


def _wilson(crystal, d_min):
    """Mean |E² - 1|, B (Å²) of the Wilson plot, rms distance from its line, number of unique reflections to d_min."""
    hkl = gemmi.make_miller_array(crystal.cell, crystal.spacegroup, d_min)
    group = crystal.spacegroup.operations()
    intensity = np.abs(structure_factors(crystal, hkl)) ** 2 / group.epsilon_factor_array(hkl)
    stol2 = crystal.cell.calculate_1_d2_array(hkl) / 4
    shell = shells(crystal.cell.calculate_d_array(hkl), N_SHELLS)
    count = np.bincount(shell, minlength=N_SHELLS)
    mean = np.bincount(shell, intensity, N_SHELLS) / count
    x = np.bincount(shell, stol2, N_SHELLS) / count
    e2 = np.abs(intensity / mean[shell] - 1).mean()
    expected = sum(o * form_factor(e, x) ** 2 for e, o in zip(crystal.elements, crystal.occ)) * len(group)
    y = np.log(mean / expected)
    slope, offset = np.polyfit(x, y, 1)
    return e2, -slope / 2, np.sqrt(((y - slope * x - offset) ** 2).mean()), len(hkl)
