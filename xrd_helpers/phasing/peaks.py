"""The atoms at the maxima of a density map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter

from ..crystals import all_operators

MIN_DISTANCE = 0.95  # Å between two peaks: no bond but those of hydrogen is shorter than 1.1 Å


@dataclass(frozen=True)
class Peaks:
    """Maxima of a map, one of each set that the space group links, highest first.

    fract : (n, 3), height : (n,) in the unit of the map
    occ : (n,) 1 / number of operators that leave the place where it is: 1 in general positions
    """

    fract: np.ndarray
    height: np.ndarray
    occ: np.ndarray

    def __len__(self):
        return len(self.fract)


def find_peaks(rho, cell, spacegroup, n_atoms, min_distance=MIN_DISTANCE, exclude=None) -> Peaks:
    """Find the highest maxima of a periodic map.

    A maximum is placed between the points by a parabola along each axis through its three points, and onto a
    special position when it comes nearer than `min_distance` to an image of itself.

    Parameters
    ----------
    rho : (nx, ny, nz) float array, the whole cell
    n_atoms : so many in the asymmetric unit are returned at most, where one on a special position counts as its ``occ``
    min_distance : float, Å, between any two peaks and their images
    exclude : (m, 3) fract, optional; no peak nearer than `min_distance` to one of these
    """
    size = np.array(rho.shape)
    is_peak = (rho == maximum_filter(rho, size=3, mode="wrap")) & (rho > 0)
    voxels = np.argwhere(is_peak)
    values = rho[is_peak]
    rot, tran = all_operators(spacegroup)
    # each peak turns up once for every operator; twice as many leave room for those that are too near
    order = np.argsort(-values, kind="stable")[:2 * len(rot) * int(np.ceil(n_atoms)) + 50]
    voxels, values = voxels[order], values[order]
    offset, height = _parabola(rho, voxels, values)
    fract = ((voxels + offset) / size) % 1
    orth = np.array(cell.orth.mat.tolist())
    taken = np.zeros((0, 3)) if exclude is None else _images(np.asarray(exclude), rot, tran)
    kept = [], [], []
    for x, value in zip(fract, height):
        if sum(kept[2]) > n_atoms - 0.1:
            break
        if len(taken) and _distance(taken - x, orth).min() < min_distance:
            continue
        x, occ = snap(x, rot, tran, orth, min_distance)
        for column, entry in zip(kept, (x, value, occ)):
            column.append(entry)
        taken = np.concatenate([taken, _images(x[None], rot, tran)])
    found = Peaks(np.array(kept[0]).reshape(-1, 3), np.array(kept[1]), np.array(kept[2]))
    order = np.argsort(-found.height, kind="stable")
    return Peaks(found.fract[order], found.height[order], found.occ[order])


def snap(x, rot, tran, orth, within):
    """Move x (3,) onto the special position nearer than `within` Å to it, if any -> (x, 1 / operators that keep it).

    The mean of x and its images nearby is that position.
    """
    images = np.einsum("gij,j->gi", rot, x) + tran
    vectors = images - x
    vectors -= np.round(vectors)
    near = ((vectors @ orth.T) ** 2).sum(1) < within**2
    return x + vectors[near].mean(0), 1 / near.sum()


def without_hydrogen(elements) -> dict[str, float]:
    """What phasing looks for, of {symbol: number of atoms}."""
    return {symbol: n for symbol, n in elements.items() if symbol not in ("H", "D")}


def assign_elements(occ, contents) -> tuple[str, ...]:
    """Elements for peaks sorted by height, of occupancies occ (n,): the heaviest of `contents` to the highest.

    An element is used up when its number of atoms is reached; what is left over becomes the lightest.
    """
    symbols, found, used = list(contents), [], 0.0
    for share in occ:
        while len(symbols) > 1 and used > contents[symbols[0]] - 0.1:
            symbols, used = symbols[1:], 0.0
        found.append(symbols[0])
        used += share
    return tuple(found)


def _images(fract, rot, tran):
    return (np.einsum("gij,nj->ngi", rot, fract) + tran).reshape(-1, 3)


def _distance(vectors, orth):
    return np.sqrt((((vectors - np.round(vectors)) @ orth.T) ** 2).sum(-1))


def _parabola(rho, voxels, values):
    """Vertex of the parabola through each maximum and its neighbours along each axis -> offset (n, 3), height (n,)."""
    offset, height = np.zeros(voxels.shape), values.astype(float)
    for axis in range(3):
        step = np.zeros(3, int)
        step[axis] = 1
        before, after = (rho[tuple(((voxels + s) % rho.shape).T)].astype(float) for s in (-step, step))
        curvature = np.minimum(before + after - 2 * values, -1e-12)
        slope = (after - before) / 2
        offset[:, axis] = np.clip(-slope / curvature, -0.5, 0.5)
        height -= 0.5 * slope**2 / curvature
    return offset, height
