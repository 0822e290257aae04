"""Restrained least squares: what chemistry knows of distances and displacements, as observations beside the amplitudes.

Bond lengths stand for all kinds of bond between two elements together: a rounded mean and spread of those that Allen et al.
(1987), J. Chem. Soc. Perkin Trans. 2, S1, list kind by kind (International Tables, Vol. C, chapter 9.5). A test holds them
against 7,700 bonds of published structures. Pairs that are not in the list take the sum of the covalent radii (Cordero et al.
(2008), Dalton Trans., 2832, as in gemmi). How restraints are weighted: Watkin (2008), J. Appl. Cryst. 41,
491. The loops over reflections, atoms and pairs are compiled.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.fft import irfftn
from scipy.linalg.lapack import dposv

from ..bonds import covalent_radii
from ..compiled import compiled
from ..crystals import all_operators
from .peaks import snap
from .refine import MAX_MOVE, U_MAX, U_MIN, Refiner

# Å, mean and half spread of bonds between two elements, single to triple and aromatic
BONDS = {"BB": (1.78, 0.06), "BC": (1.59, 0.05), "BF": (1.38, 0.03), "BN": (1.51, 0.08), "BO": (1.42, 0.06),
         "BrC": (1.91, 0.04), "CC": (1.44, 0.07), "CCl": (1.74, 0.04), "CF": (1.35, 0.03), "CI": (2.11, 0.04),
         "CN": (1.38, 0.08), "CO": (1.31, 0.10), "CP": (1.82, 0.03), "CS": (1.75, 0.06), "CSe": (1.92, 0.05),
         "CSi": (1.87, 0.03), "NN": (1.35, 0.08), "NO": (1.27, 0.08), "NP": (1.64, 0.06), "NS": (1.63, 0.05),
         "OO": (1.47, 0.03), "OP": (1.53, 0.06), "OS": (1.46, 0.05), "OSi": (1.63, 0.02), "FP": (1.58, 0.03),
         "SS": (2.05, 0.03), "PS": (1.97, 0.06), "ClCl": (1.99, 0.03)}
LOOSE = 0.15           # Å, spread of a bond that is not in the table: coordination bonds vary more than covalent ones
REACH = 0.2            # Å, as much longer than the mean and its spread a bond may be and still be one
SHORTEST = 1.1         # Å, of a bond between atoms that are not hydrogen (C≡N is 1.14 Å)
APART = 2.15           # Å, the shortest distance of two atoms that are bonded to the same third one (F···F of CF3)
ASIDE, S_ASIDE = 2.3, 0.12   # Å, where atoms go that are neither bonded nor apart
SAME = 0.3             # Å, two images nearer than this are one atom
S_SIMILAR, S_MEDIAN = 0.015, 0.03  # Å², between U of bonded atoms, and between each U and the median
RISE = 0.003           # of R1, by which a later cycle may be worse and still be the better one


@compiled
def design(indices, shifts, factor, stol2, weights, x, y, z, centric, extra, J, sf):
    """Rows of J (n, 4 a + 1): derivatives of |Fcalc| by x, y, z (fractions) and U of all atoms, and |Fcalc|; sf (n,) complex.
    extra (n,) is added to it: what other atoms give, which stay where they are.

    indices (n, g, 3) and shifts (n, g) of the reflections under all operators, float32; weights (n, a), occ f exp(-8π² U s²).
    """
    n_atoms, n_ops, tau = len(x), indices.shape[1], np.float32(2 * np.pi)
    A, B = np.empty(n_atoms, np.float32), np.empty(n_atoms, np.float32)
    Ax, Ay, Az = np.empty(n_atoms, np.float32), np.empty(n_atoms, np.float32), np.empty(n_atoms, np.float32)
    Bx, By, Bz = np.empty(n_atoms, np.float32), np.empty(n_atoms, np.float32), np.empty(n_atoms, np.float32)
    # minimax polynomials of cos 2πr and sin 2πr / r in r² for |r| <= 1/2: branch-free, so that the loop is vectorised
    c0, c1, c2, c3 = np.float32(1), np.float32(-19.7392045), np.float32(64.9391175), np.float32(-85.4501395)
    c4, c5, c6 = np.float32(60.167631), np.float32(-25.9675992), np.float32(6.52865816)
    s0, s1, s2, s3 = np.float32(6.2831853), np.float32(-41.3417004), np.float32(81.6051314), np.float32(-76.7030154)
    s4, s5, s6, half = np.float32(42.025927), np.float32(-14.8998467), np.float32(3.23813751), np.float32(0.5)
    for i in range(len(factor)):
        for a in range(n_atoms):
            A[a] = 0
            B[a] = 0
            Ax[a] = 0
            Ay[a] = 0
            Az[a] = 0
            Bx[a] = 0
            By[a] = 0
            Bz[a] = 0
        for g in range(n_ops):
            h, k, l, t = indices[i, g, 0], indices[i, g, 1], indices[i, g, 2], shifts[i, g]
            for a in range(n_atoms):
                r = h * x[a] + k * y[a] + l * z[a] + t
                r = r - np.floor(r + half)
                q = r * r
                c = c0 + q * (c1 + q * (c2 + q * (c3 + q * (c4 + q * (c5 + q * c6)))))
                s = r * (s0 + q * (s1 + q * (s2 + q * (s3 + q * (s4 + q * (s5 + q * s6))))))
                A[a] += c
                Ax[a] -= h * s
                Ay[a] -= k * s
                Az[a] -= l * s
                if not centric:
                    B[a] += s
                    Bx[a] += h * c
                    By[a] += k * c
                    Bz[a] += l * c
        re, im = np.float32(0), np.float32(0)
        for a in range(n_atoms):
            re += weights[i, a] * A[a]
            im += weights[i, a] * B[a]
        re, im = re * factor[i] + extra[i].real, im * factor[i] + extra[i].imag
        size = np.sqrt(re * re + im * im)
        p, q = (re / size * factor[i], im / size * factor[i]) if size > 1e-9 else (factor[i], np.float32(0))
        sf[i] = re + 1j * im
        u = np.float32(-8 * np.pi**2) * stol2[i]
        for a in range(n_atoms):
            w = weights[i, a]
            J[i, a] = w * tau * (p * Ax[a] + q * Bx[a])
            J[i, n_atoms + a] = w * tau * (p * Ay[a] + q * By[a])
            J[i, 2 * n_atoms + a] = w * tau * (p * Az[a] + q * Bz[a])
            J[i, 3 * n_atoms + a] = w * u * (p * A[a] + q * B[a])
        J[i, 4 * n_atoms] = size


@compiled
def find_pairs(fract, occ, rot, tran, orth, reach):
    """Pairs of atoms (i, image j) nearer than `reach` Å, each once from either side where j >= i.

    Returns
    -------
    i, j, g (m,) int: operator g of atom j is meant; vector (m, 3) Å from i to it; length (m,) Å
    """
    n, n_ops, most = len(fract), len(rot), 64 * len(fract) + 64
    first, second, op = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    vector, length, m = np.empty((most, 3)), np.empty(most), 0
    for j in range(n):
        for g in range(n_ops):
            px = rot[g, 0, 0] * fract[j, 0] + rot[g, 0, 1] * fract[j, 1] + rot[g, 0, 2] * fract[j, 2] + tran[g, 0]
            py = rot[g, 1, 0] * fract[j, 0] + rot[g, 1, 1] * fract[j, 1] + rot[g, 1, 2] * fract[j, 2] + tran[g, 1]
            pz = rot[g, 2, 0] * fract[j, 0] + rot[g, 2, 1] * fract[j, 1] + rot[g, 2, 2] * fract[j, 2] + tran[g, 2]
            for i in range(j + 1):
                dx, dy, dz = px - fract[i, 0], py - fract[i, 1], pz - fract[i, 2]
                dx, dy, dz = dx - np.round(dx), dy - np.round(dy), dz - np.round(dz)
                vx = orth[0, 0] * dx + orth[0, 1] * dy + orth[0, 2] * dz
                vy = orth[1, 1] * dy + orth[1, 2] * dz
                vz = orth[2, 2] * dz
                d = np.sqrt(vx * vx + vy * vy + vz * vz)
                if d < reach and m < most and (i != j and (d > 1e-3) or i == j and d > SAME):
                    first[m], second[m], op[m], length[m] = i, j, g, d
                    vector[m, 0], vector[m, 1], vector[m, 2] = vx, vy, vz
                    m += 1
    return first[:m], second[:m], op[:m], vector[:m], length[:m]


@compiled
def restrain(normal, rhs, pairs, kind, u_iso, rot, orth, bond, spread, longest):
    """Add the restraints, in units of their sigma, to the normal matrix (p, p) and the right side (p,)."""
    first, second, op, vector, length = pairs
    n = len(u_iso)
    grad, row, col = np.empty(6), np.empty(6), np.empty(6, np.int64)
    for m in range(len(first)):
        i, j, g, d = first[m], second[m], op[m], max(length[m], 1e-3)
        a, b = kind[i], kind[j]
        if d < longest[a, b]:
            target, sigma = bond[a, b], spread[a, b]
            if i != j:
                weight = 1 / S_SIMILAR**2
                p, q = 3 * n + i, 3 * n + j
                normal[p, p] += weight
                normal[q, q] += weight
                normal[p, q] -= weight
                normal[q, p] -= weight
                rhs[p] += weight * (u_iso[j] - u_iso[i])
                rhs[q] += weight * (u_iso[i] - u_iso[j])
        elif d < APART and longest[a, b] < APART:
            target, sigma = ASIDE, S_ASIDE
        else:
            continue
        # d(length) by the fractions of the image of j, and through its operator by those of j
        for c in range(3):
            grad[c] = 0.0
            for e in range(3):
                grad[c] += vector[m, e] / d * orth[e, c]
        for c in range(3):
            row[c], col[c], col[3 + c] = -grad[c], c * n + i, c * n + j
            row[3 + c] = grad[0] * rot[g, 0, c] + grad[1] * rot[g, 1, c] + grad[2] * rot[g, 2, c]
        for c in range(6):
            rhs[col[c]] += row[c] * (target - d) / sigma**2
            for e in range(6):
                normal[col[c], col[e]] += row[c] * row[e] / sigma**2
    middle = np.median(u_iso)
    for i in range(n):
        normal[3 * n + i, 3 * n + i] += 1 / S_MEDIAN**2
        rhs[3 * n + i] += (middle - u_iso[i]) / S_MEDIAN**2


@compiled
def local_maxima(rho, least):
    """Voxels above `least` that are no lower than their 26 neighbours in a periodic map -> (m, 3) int, (m,) values."""
    nx, ny, nz = rho.shape
    most = rho.size // 8 + 8
    voxel, value, m = np.empty((most, 3), np.int64), np.empty(most), 0
    for i in range(nx):
        i0, i2 = (i - 1) % nx, (i + 1) % nx
        for j in range(ny):
            j0, j2 = (j - 1) % ny, (j + 1) % ny
            for k in range(nz):
                v = rho[i, j, k]
                if v <= least or m == most:
                    continue
                k0, k2 = (k - 1) % nz, (k + 1) % nz
                if v < rho[i, j, k0] or v <= rho[i, j, k2] or v < rho[i, j0, k] or v <= rho[i, j2, k]:
                    continue
                if v < rho[i0, j, k] or v <= rho[i2, j, k]:
                    continue
                top = True
                for a in (i0, i, i2):
                    for b in (j0, j, j2):
                        for c in (k0, k, k2):
                            top = top and rho[a, b, c] <= v
                if top:
                    voxel[m, 0], voxel[m, 1], voxel[m, 2], value[m] = i, j, k, v
                    m += 1
    return voxel[:m], value[:m]


@compiled
def choose_peaks(rho, voxel, order, most, fract, kind, rot, tran, orth, bond, longest, new_kind, apart):
    """Peaks of a map in the asymmetric unit, in the order given, none nearer than `apart` Å to an atom or to another peak.

    Returns
    -------
    fract (m, 3), height (m,), occ (m,), bonds (m,): atoms at the length of a bond, nearest (m,): Å to the nearest atom
    """
    n_ops, n, size = len(rot), len(fract), np.array(rho.shape)
    found, height, share = np.empty((most, 3)), np.empty(most), np.empty(most)
    bonds, nearest, m = np.zeros(most, np.int64), np.empty(most), 0
    images, x, at, d3 = np.empty((n_ops, 3)), np.empty(3), np.empty(3, np.int64), np.empty(3)
    for row in order:
        if m == most:
            break
        for c in range(3):
            at[c] = voxel[row, c]
        value = rho[at[0], at[1], at[2]]
        top = float(value)
        for c in range(3):
            here = at[c]
            at[c] = (here - 1) % size[c]
            before = float(rho[at[0], at[1], at[2]])
            at[c] = (here + 1) % size[c]
            after = float(rho[at[0], at[1], at[2]])
            at[c] = here
            curvature, slope = min(before + after - 2 * value, -1e-12), (after - before) / 2
            x[c] = (here + min(max(-slope / curvature, -0.5), 0.5)) / size[c]
            top -= 0.5 * slope**2 / curvature
        # images of the peak: onto a special position if they come near it, and away from the peaks that are taken
        mean, count, again = np.zeros(3), 0, False
        for g in range(n_ops):
            for c in range(3):
                images[g, c] = rot[g, c, 0] * x[0] + rot[g, c, 1] * x[1] + rot[g, c, 2] * x[2] + tran[g, c]
                d3[c] = images[g, c] - x[c]
                d3[c] -= np.round(d3[c])
            if _length(d3, orth) < apart:
                count += 1
                mean += d3
        x += mean / count
        for p in range(m):
            for g in range(n_ops):
                for c in range(3):
                    d3[c] = rot[g, c, 0] * x[0] + rot[g, c, 1] * x[1] + rot[g, c, 2] * x[2] + tran[g, c] - found[p, c]
                    d3[c] -= np.round(d3[c])
                if _length(d3, orth) < apart:
                    again = True
                    break
            if again:
                break
        if again:
            continue
        near, linked = 99.0, 0
        for i in range(n):
            for g in range(n_ops):
                for c in range(3):
                    d3[c] = rot[g, c, 0] * x[0] + rot[g, c, 1] * x[1] + rot[g, c, 2] * x[2] + tran[g, c] - fract[i, c]
                    d3[c] -= np.round(d3[c])
                d = _length(d3, orth)
                near = min(near, d)
                if d < longest[kind[i], new_kind] and d > 0.8 * bond[kind[i], new_kind]:
                    linked += 1
        if near < apart:
            continue
        found[m], height[m], share[m], bonds[m], nearest[m] = x, top, 1 / count, linked, near
        m += 1
    return found[:m], height[:m], share[:m], bonds[:m], nearest[:m]


@compiled
def _length(d, orth):
    vx = orth[0, 0] * d[0] + orth[0, 1] * d[1] + orth[0, 2] * d[2]
    vy, vz = orth[1, 1] * d[1] + orth[1, 2] * d[2], orth[2, 2] * d[2]
    return np.sqrt(vx * vx + vy * vy + vz * vz)


class Restraints:
    """Distances that atoms of some elements keep, and the operators that make their neighbours.

    symbols : of the kinds of atoms, in which the other arrays are counted
    bond, spread, longest, shortest : (k, k) Å, mean length of a bond, its standard deviation, and from where to where it is one
    """

    def __init__(self, symbols, cell, spacegroup):
        self.symbols, n = tuple(symbols), len(symbols)
        radius = covalent_radii(self.symbols)
        self.bond, self.spread = radius[:, None] + radius, np.full((n, n), LOOSE)
        for a, first in enumerate(self.symbols):
            for b, second in enumerate(self.symbols):
                if known := BONDS.get("".join(sorted((first, second)))):
                    self.bond[a, b], self.spread[a, b] = known
        self.longest = self.bond + self.spread + REACH
        self.shortest = np.minimum(SHORTEST, self.bond - 0.2)
        rot, self.tran = all_operators(spacegroup)
        self.rot, self.orth = rot.astype(float), np.array(cell.orth.mat.tolist())

    def pairs(self, fract, occ, reach=None):
        """``find_pairs`` up to the longest bond, or to APART where that is more."""
        return find_pairs(fract, occ, self.rot, self.tran, self.orth, reach or max(APART, self.longest.max()))


class RestrainedRefiner(Refiner):
    """A Refiner whose least squares also know the Restraints; elements : those that atoms may have.

    The amplitudes have unit weights, their standard deviation being that of the residuals, or of the data where that is
    more: restraints fade as the model explains the data.
    """

    def __init__(self, reflections, elements):
        super().__init__(reflections)
        self.restraints = Restraints(elements, reflections.cell, reflections.spacegroup)
        self._row = {symbol: i for i, symbol in enumerate(self.restraints.symbols)}
        p1, rows = self.maps.p1, self.maps.rows
        self._turn = np.exp(1j * p1.shift[rows]).astype(np.complex64)
        self._mate, self._index = p1.friedel[rows], p1.index[rows]
        self._arrays()

    def _arrays(self):
        """What the compiled loops read."""
        self._indices = np.ascontiguousarray(self.hkl_ops.transpose(1, 0, 2), np.float32)
        self._shifts = np.ascontiguousarray((self.shifts - np.round(self.shifts)).T, np.float32)
        self._factor, self._stol2 = self.factor.astype(np.float32), self.stol2.astype(np.float32)
        self._forms = np.stack([self.form_factor(symbol) for symbol in self.restraints.symbols], axis=1)
        self._F = self.reflections.F.astype(np.float32)
        self._least = float((self.reflections.sigF ** 2).mean())

    def select(self, rows):
        part = super().select(rows)
        part._arrays()
        return part

    def kinds(self, elements):
        """Rows (n,) of the restraints of elements."""
        return np.array([self._row[element] for element in elements], np.int64)

    def derivatives(self, fract, kind, u_iso, occ, extra=None):
        """Derivatives (n, 4 a + 1) of |Fcalc| by all x, then y, z, U, and |Fcalc| itself in the last column; Fcalc (n,)."""
        weights = np.multiply.outer(-8 * np.float32(np.pi**2) * self._stol2, u_iso.astype(np.float32))
        np.exp(weights, out=weights)
        weights *= self._forms[:, kind] * occ.astype(np.float32)
        J, sf = np.empty((len(weights), 4 * len(kind) + 1), np.float32), np.empty(len(weights), np.complex64)
        design(self._indices, self._shifts, self._factor, self._stol2, weights, *fract.T.astype(np.float32, order="C"),
               self.centric, np.zeros(len(weights), np.complex64) if extra is None else extra, J, sf)
        return J, sf

    def fit(self, fract, kind, u_iso, occ, cycles, restrained=True, extra=None):
        """Some cycles of restrained least squares -> fract, u_iso, scale, r1, Fcalc of the best one.

        extra (n,) complex64 : added to Fcalc, of atoms that are not refined
        """
        F, total, best, n = self._F, float(self._F.sum()), None, len(kind)
        special = np.flatnonzero(occ < 0.99)
        for cycle in range(cycles + 1):
            J, sf = self.derivatives(fract, kind, u_iso, occ, extra)
            Fc = J[:, -1]
            scale = float(F @ Fc) / max(float(Fc @ Fc), 1e-30)
            residual = F - np.float32(scale) * Fc
            r1 = float(np.abs(residual).sum()) / total
            # the later cycle obeys the restraints better
            if best is None or r1 < best[3] + RISE:
                best = fract, u_iso, scale, r1, sf
            if cycle == cycles:
                return best
            normal, rhs = self._normal(J, residual, scale)
            if restrained:
                r = self.restraints
                restrain(normal, rhs, r.pairs(fract, occ), kind, u_iso, r.rot, r.orth, r.bond, r.spread, r.longest)
            step = dposv(normal, rhs, lower=1)[1]
            move = step[:3 * n].reshape(3, n).T
            length = np.linalg.norm(move @ self.orth.T, axis=1, keepdims=True)
            fract = fract + move * np.minimum(1, MAX_MOVE / np.maximum(length, 1e-9))
            for i in special:
                fract[i] = snap(fract[i], self.restraints.rot, self.restraints.tran, self.orth, 0.9)[0]
            u_iso = (u_iso + step[3 * n:4 * n].clip(-0.03, 0.03)).clip(U_MIN, U_MAX)

    def _normal(self, J, residual, scale):
        """Normal matrix and right side of the amplitudes, in units of their variance."""
        factor = np.full(J.shape[1], scale)
        factor[-1] = 1
        variance = max(float(residual @ residual) / len(residual), self._least)
        normal = (J.T @ J).astype(float) * (factor[:, None] * factor / variance)
        rhs = (J.T @ residual).astype(float) * factor / variance
        normal.flat[::J.shape[1] + 1] *= 1.001
        normal.flat[::J.shape[1] + 1] += 1e-9 * np.trace(normal) / len(normal)
        return normal, rhs

    def n_parameters(self, model) -> float:
        """As many as the amplitudes determine: the trace of (N + R)⁻¹ N, N and R the normal matrices of amplitudes and
        restraints (Hastie, Tibshirani & Friedman (2009), The Elements of Statistical Learning, 7.6)."""
        fract, kind, u_iso = np.asarray(model.fract, float), self.kinds(model.elements), np.asarray(model.u_iso, float)
        J, _ = self.derivatives(fract, kind, u_iso, model.occ)
        normal, rhs = self._normal(J, self._F - np.float32(model.scale) * J[:, -1], model.scale)
        both, r = normal.copy(), self.restraints
        restrain(both, rhs, r.pairs(fract, model.occ), kind, u_iso, r.rot, r.orth, r.bond, r.spread, r.longest)
        return float(np.trace(np.linalg.solve(both, normal)))

    def adjusted_r1(self, model):
        """As ``Refiner.adjusted_r1``; of fewer reflections than parameters with ``n_parameters``."""
        n = len(self.reflections)
        if n > 4 * len(model.fract) + 1:
            return super().adjusted_r1(model)
        p = self.n_parameters(model)
        return model.r1 * np.sqrt(n / (n - p)) if n > p else np.inf

    def least_squares(self, model, cycles):
        """As ``Refiner.least_squares``, with restraints."""
        fract, u_iso, scale, r1, _ = self.fit(np.asarray(model.fract, float), self.kinds(model.elements),
                                              np.asarray(model.u_iso, float), model.occ, cycles)
        return replace(model, fract=fract, u_iso=u_iso, scale=scale, r1=r1)

    def density(self, coefficients):
        """Map of complex structure factors (n,) of the asymmetric unit, as ``MapGrid.map`` but for the constant factor."""
        half = np.zeros(self.maps.half, np.complex64)
        sf = coefficients[self._index] * self._turn
        half.flat[self.maps.voxel] = np.where(self._mate, sf, sf.conj())
        return irfftn(half, s=self.maps.size)
