"""Least squares of the atoms of known molecules: |F| and distances inside the rigid parts together.

At 2-3 Å there are fewer reflections than coordinates; what is known of the molecules makes up for it, as in the refinement of
Konnert (1976), Acta Cryst. A32, 614.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..compiled import compiled
from .climbing import _cos, _sin, add_waves

SIGMAS = (0.02, 0.03, 0.06)   # Å, of distances between atoms one bond, two bonds and further apart
FAR = 4.5                     # Å, distances beyond are not restrained: shorter ones fix them
WEIGHT = 0.06                 # of the mean F, added to sigF: what a model of rigid atoms with one U leaves over
SIGMA_U = 0.02                # Å², of U: below 2 Å the data hardly tell it
MAX_MOVE = 0.15               # Å in one cycle


class Distances(NamedTuple):
    """Pairs of atoms i, j (p,) with distances (p,) Å that differ from those of the conformer by about sigma (p,)."""

    i: np.ndarray
    j: np.ndarray
    target: np.ndarray
    sigma: np.ndarray


def rigid_distances(molecules) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows i, j and sigma of the distances of each of several molecules that no torsion changes, atoms numbered through."""
    rows, first = [], 0
    for molecule in molecules:
        n = len(molecule)
        apart = np.full((n, n), 9)
        np.fill_diagonal(apart, 0)
        for a, b in molecule.bonds:
            apart[a, b] = apart[b, a] = 1
        for k in range(n):
            apart = np.minimum(apart, apart[:, k, None] + apart[k])
        i, j = np.nonzero(np.triu(molecule.rigid(), 1))
        rows.append((i + first, j + first, np.array(SIGMAS)[np.clip(apart[i, j], 1, 3) - 1]))
        first += n
    return tuple(np.concatenate(part) for part in zip(*rows))


def distances_of(rows, xyz) -> Distances:
    """The Distances as they are between atoms xyz (n, 3) Å; rows as ``rigid_distances`` gives them."""
    i, j, sigma = rows
    target = np.linalg.norm(xyz[i] - xyz[j], axis=1)
    near = target < FAR
    return Distances(i[near], j[near], target[near], sigma[near])


@compiled(error_model="numpy")
def _derivatives(fract, data, u, stol2, re, im, slope):
    """Structure factors re, im (n,) with U changed by u, and derivatives of |F| by the fractions, slope (3 atoms, n)."""
    n = len(re)
    re[:] = 0
    im[:] = 0
    damp = np.exp(np.float32(-8 * np.pi**2 * u) * stol2)
    for i in range(fract.shape[0]):
        add_waves(fract[i, 0], fract[i, 1], fract[i, 2], data.form[data.kind[i]], data, n, re, im)
    slope[:] = 0
    amplitude = np.sqrt(re * re + im * im + np.float32(1e-6))
    for i in range(fract.shape[0]):
        x, y, z = fract[i, 0], fract[i, 1], fract[i, 2]
        w = data.form[data.kind[i]]
        sx, sy, sz = slope[3 * i], slope[3 * i + 1], slope[3 * i + 2]
        for g in range(data.h.shape[0]):
            hg, kg, lg, sg = data.h[g], data.k[g], data.l[g], data.shift[g]
            for j in range(n):
                p = hg[j] * x + kg[j] * y + lg[j] * z + sg[j]
                p -= np.rint(p)
                q = p * p
                f = w[j] * (im[j] * _cos(q) - re[j] * _sin(p, q)) * np.float32(2 * np.pi) * damp[j] / amplitude[j]
                sx[j] += f * hg[j]
                sy[j] += f * kg[j]
                sz[j] += f * lg[j]
    re *= damp
    im *= damp


def refine(xyz, data, refiner, sigma, distances, cycles=8, u=0.0):
    """Refine coordinates, one change of U and a scale.

    Parameters
    ----------
    xyz : (n, 3) Å; data : ``climbing.Data`` in the order of d; sigma : (reflections,) of F in that order
    distances : Distances

    Returns
    -------
    xyz (n, 3), u : Å² to add to the U of the data, r1, strain : mean square of (distance - target) / sigma
    """
    frac = np.linalg.inv(refiner.orth)
    F = data.F.astype(float)
    stol2 = (refiner.stol2[np.argsort(-refiner.reflections.d, kind="stable")]).astype(np.float32)
    n = len(xyz)
    re, im, slope = np.empty(len(F), np.float32), np.empty(len(F), np.float32), np.empty((3 * n, len(F)), np.float32)
    weight = 1 / (sigma + WEIGHT * F.mean())
    best = None
    i, j = distances.i, distances.j
    damping = 1e-3
    for cycle in range(cycles + 1):
        _derivatives((xyz @ frac.T).astype(np.float32), data, u, stol2, re, im, slope)
        a = np.hypot(re, im).astype(float)
        k = float((weight**2 * a) @ F / ((weight * a) @ (weight * a)))
        rest = F - k * a
        apart = xyz[i] - xyz[j]
        length = np.linalg.norm(apart, axis=1)
        off = (distances.target - length) / distances.sigma
        cost = float((weight * rest) @ (weight * rest) + off @ off + (u / SIGMA_U) ** 2)
        if best is None or cost < best[0]:
            best = (cost, xyz, u, float(np.abs(rest).sum() / F.sum()), float(off @ off / max(len(off), 1)))
            damping = max(damping / 3, 1e-4)
        else:
            damping = min(damping * 10, 10)
        if cycle == cycles:
            break
        J = np.empty((len(F), 3 * n + 2))
        J[:, :3 * n] = (slope.T.reshape(len(F), n, 3) @ (k * frac)).reshape(len(F), -1)
        J[:, -2] = -8 * np.pi**2 * k * stol2 * a
        J[:, -1] = a
        J *= weight[:, None]
        normal = J.T @ J
        right = J.T @ (weight * rest)
        pull = apart / (length * distances.sigma)[:, None]                    # derivative of length / sigma by x_i
        B = np.zeros((len(i), n, 3))
        B[np.arange(len(i)), i] = pull
        B[np.arange(len(i)), j] = -pull
        B = B.reshape(len(i), 3 * n)
        normal[:3 * n, :3 * n] += B.T @ B
        right[:3 * n] += B.T @ off
        normal[-2, -2] += 1 / SIGMA_U**2
        right[-2] -= u / SIGMA_U**2
        diagonal = np.diag_indices_from(normal)
        normal[diagonal] = normal[diagonal] * (1 + damping) + 1e-6 * np.trace(normal) / len(normal)
        step = np.linalg.solve(normal, right)
        move = step[:3 * n].reshape(-1, 3)
        longest = np.linalg.norm(move, axis=1).max()
        xyz = xyz + move * min(1, MAX_MOVE / max(longest, 1e-9))
        u = float(np.clip(u + np.clip(step[-2], -0.02, 0.02), -0.035, 0.1))
    return best[1:]
