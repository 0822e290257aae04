"""Fourier sums over reflections: the grid that a transform takes, maps of the cell, and where a sum is highest."""

from __future__ import annotations

import numpy as np
from scipy.fft import fftn, irfftn, next_fast_len
from scipy.ndimage import maximum_filter


def grid_size(cell, hkl, spacing) -> tuple[int, int, int]:
    """Points along the axes: at most `spacing` (Å) apart, all of hkl inside, fast to transform, the last one even."""
    lengths = np.array(cell.parameters[:3])
    least = np.maximum(np.ceil(lengths / spacing), 2 * np.abs(hkl).max(axis=0) + 1).astype(int)
    return next_fast_len(int(least[0])), next_fast_len(int(least[1])), 2 * next_fast_len((int(least[2]) + 1) // 2)


class HalfGrid:
    """Where the reflections of a P1Expansion stand on the half grid that an inverse real transform takes.

    size : (nx, ny, nz) points of the map; half : (nx, ny, nz // 2 + 1)
    rows : (m,) those of the expansion that stand there, l >= 0; the plane l = 0 is whole. voxel : (m,) where
    """

    def __init__(self, p1, size):
        self.p1, self.size, self.half = p1, size, (*size[:2], size[2] // 2 + 1)
        self.rows = np.flatnonzero(p1.hkl[:, 2] >= 0)
        self.voxel = np.ravel_multi_index((p1.hkl[self.rows] % size).T, self.half)

    def coefficients(self, sf) -> np.ndarray:
        """The half grid, complex64, of structure factors (n,) of the asymmetric unit; the transform of it is the map.

        It holds the conjugate of F(h) at h, because the inverse transforms have exp(+2πi h·x).
        """
        grid = np.zeros(self.half, np.complex64)
        grid.flat[self.voxel] = self.p1.structure_factors(sf)[self.rows].conj()
        return grid


class MapGrid(HalfGrid):
    """Density maps of a P1Expansion in a cell, `spacing` Å between the points.

    rho(x) = 1/V Σ F(h) exp(-2πi h·x) over the whole sphere, in electrons per Å³ if F is in electrons and without
    the constant F000 / V.
    """

    def __init__(self, p1, cell, spacing):
        super().__init__(p1, grid_size(cell, p1.hkl, spacing))
        self.cell = cell

    def map(self, sf) -> np.ndarray:
        """The map (nx, ny, nz) of complex structure factors (n,) of the asymmetric unit."""
        return irfftn(self.coefficients(sf), s=self.size) * np.float32(np.prod(self.size) / self.cell.volume)


class FourierSum:
    """Σ Re[c exp(-2πi k·u)] as a function of u (p,), for indices k (n, p) int, sampled at `size` (p,) points."""

    def __init__(self, k, size):
        self.k, self.size = k, tuple(size)
        # all k even, as in P-1, means that the sum repeats in each half of the axis: one half, twice as finely
        self.period = np.maximum(np.gcd.reduce(k, axis=0), 1)
        self.voxel = np.ravel_multi_index((k // self.period % self.size).T, self.size)

    def maximum(self, c, gain=1e-5):
        """Where the sum of coefficients c (n,) complex is highest: the highest point of the grid, then Newton steps.

        They end after one that gains less than `gain` of the sum.

        Returns
        -------
        u : (p,), value of the sum there
        """
        top = np.unravel_index(self._sampled(c).argmax(), self.size)
        return self._climb(c, np.array(top) / self.size / self.period, gain)

    def maxima(self, c, n, gain=1e-5):
        """The `n` highest maxima of the sum, as ``maximum``: u (m, p) and values (m,), the highest first."""
        value = self._sampled(c)
        value = value[tuple(slice(None) if along else slice(1) for along in self.k.any(0))]  # constant along a polar axis
        points = np.argwhere(value == maximum_filter(value, size=3, mode="wrap"))
        points = points[np.argsort(-value[tuple(points.T)], kind="stable")[:n]]
        climbed = sorted((self._climb(c, at / self.size / self.period, gain) for at in points), key=lambda found: -found[1])
        return np.array([u for u, _ in climbed]), np.array([top for _, top in climbed])

    def _sampled(self, c):
        """The sum at the points of the grid."""
        series = np.zeros(self.size, np.complex64)
        series.real.flat = np.bincount(self.voxel, c.real, series.size)
        series.imag.flat = np.bincount(self.voxel, c.imag, series.size)
        return fftn(series, overwrite_x=True).real

    def _climb(self, c, u, gain, steps=12):
        k = self.k.astype(float)
        term = c * np.exp(-2j * np.pi * (k @ u))
        for _ in range(steps):
            best = term.real.sum()
            gradient = 2 * np.pi * term.imag @ k
            curvature, axes = np.linalg.eigh(4 * np.pi**2 * (k.T * term.real) @ k)
            # upwards along every axis, even where the curvature has the wrong sign; polar directions stay where they are
            curvature = np.maximum(np.abs(curvature), 1e-3 * np.abs(curvature).max() + 1e-12)
            move = axes @ (axes.T @ gradient / curvature)
            for _ in range(4):
                moved = c * np.exp(-2j * np.pi * (k @ (u + move)))
                if moved.real.sum() > best:
                    u, term = u + move, moved
                    break
                move = move / 2
            if term.real.sum() < best * (1 + gain):
                break
        return u, float(term.real.sum())
