"""The inner loops of a search for molecules: many placements, each moved uphill until it explains the amplitudes.

A placement is the coordinates of all atoms. It is scored by the correlation of |F| and climbs it by its derivatives with
respect to the rotation and translation of each molecule and its torsions (Adam: Kingma & Ba, 2015, arXiv:1412.6980). All is
compiled by numba, one placement after the other, so that nothing leaves the cache: sine and cosine as polynomials in
registers make it a hundred times faster on a core than the same sums as torch arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..compiled import compiled

H_LENGTH = 1.0      # Å, radius of the shell on which hydrogen is spread around its parent
# Adam's first and second moment, and steps in radians of rotation, Å of translation, radians of a torsion
BETA1, BETA2 = 0.8, 0.95
STEP_ROTATION, STEP_TRANSLATION, STEP_TORSION = 0.08, 0.12, 0.08


def _polynomials():
    """cos 2πp and sin 2πp / p as polynomials in p², -1/2 <= p <= 1/2, within 3e-6."""
    p = np.cos(np.linspace(0, np.pi / 2, 400))[:-1] / 2
    powers = np.vander(p**2, 8, increasing=True)
    return tuple(tuple(np.float32(c) for c in np.linalg.lstsq(powers, f, rcond=None)[0])
                 for f in (np.cos(2 * np.pi * p), np.sin(2 * np.pi * p) / p))


(C0, C1, C2, C3, C4, C5, C6, C7), (S0, S1, S2, S3, S4, S5, S6, S7) = _polynomials()


class Data(NamedTuple):
    """Reflections, the ones of lowest resolution first, and what atoms scatter there; float32 but for kind.

    F (n,), weight (n,) in the correlation, h, k, l, shift (g, n) of each operator, form (kinds, n), kind (atoms,) int,
    centric, frac (3, 3): Å to fractions of the cell
    """

    F: np.ndarray
    weight: np.ndarray
    h: np.ndarray
    k: np.ndarray
    l: np.ndarray
    shift: np.ndarray
    form: np.ndarray
    kind: np.ndarray
    centric: bool
    frac: np.ndarray


class Joints(NamedTuple):
    """What moves: first (m + 1,) row of the first atom of each molecule; a, b (t,) ends of the bonds that turn; side, rows of
    the atoms they turn, those of bond i from start[i] to start[i + 1]; linked (m + 1,) the first bond of each molecule."""

    first: np.ndarray
    a: np.ndarray
    b: np.ndarray
    side: np.ndarray
    start: np.ndarray
    linked: np.ndarray


def data_of(refiner, elements, hydrogen, occ, u_iso):
    """(Data, d (n,) Å) of atoms: elements (a,), hydrogen (a,) on each, spread over a shell, occ (a,), u_iso Å² of all."""
    reflections = refiner.reflections
    order = np.argsort(-reflections.d, kind="stable")
    d, stol2 = reflections.d[order], refiner.stol2[order]
    falloff = np.exp(-8 * np.pi**2 * u_iso * stol2) * refiner.factor[order]
    around = np.sinc(2 * H_LENGTH / d) * refiner.form_factor("H")[order]
    atoms = list(zip(elements, np.asarray(hydrogen).tolist(), np.asarray(occ, float).tolist()))
    kinds = sorted(set(atoms))
    form = np.array([(refiner.form_factor(e)[order] + n_h * around) * o * falloff for e, n_h, o in kinds], np.float32)
    h, k, l = (np.ascontiguousarray(refiner.hkl_ops[:, order, i], np.float32) for i in range(3))
    frac = np.linalg.inv(refiner.orth).astype(np.float32)
    shift = np.ascontiguousarray(refiner.shifts[:, order], np.float32)
    return Data(reflections.F[order].astype(np.float32), np.ones(len(d), np.float32), h, k, l, shift - np.round(shift),
                np.ascontiguousarray(form), np.array([kinds.index(atom) for atom in atoms], np.int64), refiner.centric,
                frac), d


@compiled(inline="always")
def _cos(q):
    return C0 + q * (C1 + q * (C2 + q * (C3 + q * (C4 + q * (C5 + q * (C6 + q * C7))))))


@compiled(inline="always")
def _sin(p, q):
    return p * (S0 + q * (S1 + q * (S2 + q * (S3 + q * (S4 + q * (S5 + q * (S6 + q * S7)))))))


@compiled(error_model="numpy")
def add_waves(x, y, z, w, data, n, re, im):
    """Add one atom at x, y, z in fractions of the cell, of form factors w, to the structure factors re, im of n reflections."""
    for g in range(data.h.shape[0]):
        hg, kg, lg, sg = data.h[g], data.k[g], data.l[g], data.shift[g]
        if data.centric:
            for j in range(n):
                p = hg[j] * x + kg[j] * y + lg[j] * z + sg[j]
                p -= np.rint(p)
                re[j] += w[j] * _cos(p * p)
        else:
            for j in range(n):
                p = hg[j] * x + kg[j] * y + lg[j] * z + sg[j]
                p -= np.rint(p)
                q = p * p
                re[j] += w[j] * _cos(q)
                im[j] += w[j] * _sin(p, q)


@compiled(error_model="numpy")
def _pull(x, y, z, w, data, n, d_re, d_im):
    """Derivative by x, y, z of an atom of what has derivatives d_re, d_im (n,) by the structure factors."""
    gx = gy = gz = np.float32(0)
    for g in range(data.h.shape[0]):
        hg, kg, lg, sg = data.h[g], data.k[g], data.l[g], data.shift[g]
        if data.centric:
            for j in range(n):
                p = hg[j] * x + kg[j] * y + lg[j] * z + sg[j]
                p -= np.rint(p)
                f = -w[j] * d_re[j] * _sin(p, p * p)
                gx += f * hg[j]
                gy += f * kg[j]
                gz += f * lg[j]
        else:
            for j in range(n):
                p = hg[j] * x + kg[j] * y + lg[j] * z + sg[j]
                p -= np.rint(p)
                q = p * p
                f = w[j] * (d_im[j] * _cos(q) - d_re[j] * _sin(p, q))
                gx += f * hg[j]
                gy += f * kg[j]
                gz += f * lg[j]
    return gx, gy, gz


@compiled(error_model="numpy")
def _correlation(re, im, data, n):
    """Weighted correlation of |F| and the amplitudes; re and im become its derivatives by themselves."""
    sw = sa = sf = np.float32(0)
    for j in range(n):
        a = np.sqrt(re[j] * re[j] + im[j] * im[j] + np.float32(1e-6))
        w = data.weight[j]
        sw += w
        sa += w * a
        sf += w * data.F[j]
    ma, mf = sa / sw, sf / sw
    aa = ff = af = np.float32(1e-12)
    for j in range(n):
        a = np.sqrt(re[j] * re[j] + im[j] * im[j] + np.float32(1e-6)) - ma
        f = data.F[j] - mf
        w = data.weight[j]
        aa += w * a * a
        ff += w * f * f
        af += w * a * f
    norm = np.sqrt(aa * ff)
    cc = af / norm
    for j in range(n):
        a = np.sqrt(re[j] * re[j] + im[j] * im[j] + np.float32(1e-6))
        d = data.weight[j] * ((data.F[j] - mf) / norm - cc * (a - ma) / aa) / a
        re[j] *= d
        im[j] *= d
    return cc


@compiled(error_model="numpy")
def _structure_factors(xyz, data, n, fract, re, im):
    re[:n] = 0
    im[:n] = 0
    for i in range(xyz.shape[0]):
        for c in range(3):
            fract[i, c] = (data.frac[c, 0] * xyz[i, 0] + data.frac[c, 1] * xyz[i, 1] + data.frac[c, 2] * xyz[i, 2])
        add_waves(fract[i, 0], fract[i, 1], fract[i, 2], data.form[data.kind[i]], data, n, re, im)


@compiled(error_model="numpy")
def score(xyz, data, n):
    """Correlation (b,) of placements xyz (b, atoms, 3) float32 Å over the first n reflections."""
    re, im = np.empty(n, np.float32), np.empty(n, np.float32)
    fract = np.empty((xyz.shape[1], 3), np.float32)
    cc = np.empty(len(xyz), np.float32)
    for b in range(len(xyz)):
        _structure_factors(xyz[b], data, n, fract, re, im)
        cc[b] = _correlation(re, im, data, n)
    return cc


@compiled(error_model="numpy")
def r_factors(xyz, data, n):
    """Σ |F - k |Fcalc|| / Σ F (b,) over the first n reflections, k by least squares."""
    re, im = np.empty(n, np.float32), np.empty(n, np.float32)
    fract = np.empty((xyz.shape[1], 3), np.float32)
    r = np.empty(len(xyz), np.float32)
    for b in range(len(xyz)):
        _structure_factors(xyz[b], data, n, fract, re, im)
        a = np.sqrt(re * re + im * im)
        k = (a * data.F[:n]).sum() / (a * a).sum()
        r[b] = np.abs(data.F[:n] - k * a).sum() / data.F[:n].sum()
    return r


@compiled(error_model="numpy")
def turn_about(xyz, rows, point, axis, angle):
    """Turn the atoms rows of xyz about an axis of length 1 through point."""
    cos, sin = np.cos(angle), np.sin(angle)
    for i in rows:
        x, y, z = xyz[i, 0] - point[0], xyz[i, 1] - point[1], xyz[i, 2] - point[2]
        along = (x * axis[0] + y * axis[1] + z * axis[2]) * (1 - cos)
        xyz[i, 0] = point[0] + x * cos + (axis[1] * z - axis[2] * y) * sin + axis[0] * along
        xyz[i, 1] = point[1] + y * cos + (axis[2] * x - axis[0] * z) * sin + axis[1] * along
        xyz[i, 2] = point[2] + z * cos + (axis[0] * y - axis[1] * x) * sin + axis[2] * along


@compiled(error_model="numpy")
def _unit(v):
    length = np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]) + np.float32(1e-9)
    v /= length
    return length


@compiled(error_model="numpy")
def _move(xyz, joints, step, free):
    """Turn torsions, then each molecule about its centre, then shift it; step (6 m + t,) rotation and shift of each molecule,
    angles. free (m, 3, 3): what a molecule on a special position keeps of a shift."""
    m = len(joints.first) - 1
    axis, centre = np.empty(3, np.float32), np.empty(3, np.float32)
    for t in range(len(joints.a)):
        axis[:] = xyz[joints.b[t]] - xyz[joints.a[t]]
        _unit(axis)
        centre[:] = xyz[joints.b[t]]
        turn_about(xyz, joints.side[joints.start[t]:joints.start[t + 1]], centre, axis, step[6 * m + t])
    for c in range(m):
        i, j = joints.first[c], joints.first[c + 1]
        for k in range(3):
            centre[k] = xyz[i:j, k].mean()
        if j - i > 1:
            axis[:] = step[6 * c:6 * c + 3]
            angle = _unit(axis)
            turn_about(xyz, np.arange(i, j), centre, axis, angle)
        for k in range(3):
            xyz[i:j, k] += (free[c, k, 0] * step[6 * c + 3] + free[c, k, 1] * step[6 * c + 4]
                            + free[c, k, 2] * step[6 * c + 5])


@compiled(error_model="numpy")
def _parameters(xyz, force, joints, out):
    """Derivatives by rotation, shift and torsions out (6 m + t,) from those by the atoms, force (atoms, 3)."""
    m = len(joints.first) - 1
    out[:] = 0
    for c in range(m):
        i, j = joints.first[c], joints.first[c + 1]
        cx, cy, cz = xyz[i:j, 0].mean(), xyz[i:j, 1].mean(), xyz[i:j, 2].mean()
        for a in range(i, j):
            x, y, z = xyz[a, 0] - cx, xyz[a, 1] - cy, xyz[a, 2] - cz
            fx, fy, fz = force[a, 0], force[a, 1], force[a, 2]
            out[6 * c] += y * fz - z * fy
            out[6 * c + 1] += z * fx - x * fz
            out[6 * c + 2] += x * fy - y * fx
            out[6 * c + 3] += fx
            out[6 * c + 4] += fy
            out[6 * c + 5] += fz
    axis = np.empty(3, np.float32)
    for t in range(len(joints.a)):
        axis[:] = xyz[joints.b[t]] - xyz[joints.a[t]]
        _unit(axis)
        bx, by, bz = xyz[joints.b[t], 0], xyz[joints.b[t], 1], xyz[joints.b[t], 2]
        total = np.float32(0)
        for a in joints.side[joints.start[t]:joints.start[t + 1]]:
            x, y, z = xyz[a, 0] - bx, xyz[a, 1] - by, xyz[a, 2] - bz
            total += (axis[0] * (y * force[a, 2] - z * force[a, 1]) + axis[1] * (z * force[a, 0] - x * force[a, 2])
                      + axis[2] * (x * force[a, 1] - y * force[a, 0]))
        out[6 * m + t] = total


@compiled(error_model="numpy")
def climb(xyz, free, data, joints, counts, sizes):
    """Move placements xyz (b, atoms, 3) float32 uphill in place; free (b, m, 3, 3).

    counts (s,) int: reflections that count in each step; sizes (s,): its size, 1 for the full STEP_...

    Returns
    -------
    cc (b,) over the reflections of the last step, before it was made
    """
    most = counts.max()
    re, im = np.empty(most, np.float32), np.empty(most, np.float32)
    fract, force = np.empty((xyz.shape[1], 3), np.float32), np.empty((xyz.shape[1], 3), np.float32)
    m, t = len(joints.first) - 1, len(joints.a)
    gradient, step = np.empty(6 * m + t, np.float32), np.empty(6 * m + t, np.float32)
    size = np.full(6 * m + t, np.float32(STEP_TORSION))
    for c in range(m):
        size[6 * c:6 * c + 3] = STEP_ROTATION
        size[6 * c + 3:6 * c + 6] = STEP_TRANSLATION
    first, second = np.empty_like(step), np.empty_like(step)
    cc = np.empty(len(xyz), np.float32)
    for b in range(len(xyz)):
        first[:] = 0
        second[:] = 0
        p1 = p2 = 1.0
        for s in range(len(counts)):
            n = counts[s]
            _structure_factors(xyz[b], data, n, fract, re, im)
            cc[b] = _correlation(re, im, data, n)
            for i in range(xyz.shape[1]):
                gx, gy, gz = _pull(fract[i, 0], fract[i, 1], fract[i, 2], data.form[data.kind[i]], data, n, re, im)
                for c in range(3):
                    force[i, c] = data.frac[0, c] * gx + data.frac[1, c] * gy + data.frac[2, c] * gz
            _parameters(xyz[b], force, joints, gradient)
            p1 *= BETA1
            p2 *= BETA2
            for p in range(len(step)):
                first[p] = BETA1 * first[p] + (1 - BETA1) * gradient[p]
                second[p] = BETA2 * second[p] + (1 - BETA2) * gradient[p] ** 2
                step[p] = (sizes[s] * size[p] * (first[p] / np.float32(1 - p1))
                           / (np.sqrt(second[p] / np.float32(1 - p2)) + np.float32(1e-9)))
            _move(xyz[b], joints, step, free[b])
    return cc


@compiled(error_model="numpy")
def _random_rotation(xyz, i, j):
    """Turn atoms i to j about their mean by a random rotation (uniform: a random quaternion)."""
    q = np.empty(4)
    for c in range(4):
        q[c] = np.random.normal()
    q /= np.sqrt((q * q).sum()) + 1e-12
    axis, centre = np.empty(3, np.float32), np.empty(3, np.float32)
    for c in range(3):
        axis[c] = q[c + 1]
        centre[c] = xyz[i:j, c].mean()
    sine = _unit(axis)
    turn_about(xyz, np.arange(i, j), centre, axis, np.float32(2 * np.arctan2(sine, q[0])))


@compiled(fastmath=False, error_model="numpy")
def _turn_torsion(xyz, joints, t, angle):
    axis, centre = np.empty(3, np.float32), np.empty(3, np.float32)
    axis[:] = xyz[joints.b[t]] - xyz[joints.a[t]]
    _unit(axis)
    centre[:] = xyz[joints.b[t]]
    turn_about(xyz, joints.side[joints.start[t]:joints.start[t + 1]], centre, axis, np.float32(angle))


@compiled(fastmath=False, error_model="numpy")
def _put(xyz, i, j, place):
    for c in range(3):
        xyz[i:j, c] += place[c] - xyz[i:j, c].mean()


@compiled(fastmath=False, error_model="numpy")
def draw(xyz, free, conformers, chosen, joints, sites, orth, loose, seed):
    """Random placements into xyz (b, atoms, 3) and free (b, m, 3, 3): a conformer, rotation, position and torsions each.

    conformers (k, atoms, 3): any k, those of each molecule side by side, centred; chosen (b, m) int its row
    sites (m, s, 12): of each molecule where it may be: a point of the special position in fractions of the cell, and the
        projection (3, 3) on what is free around it, in fractions
    orth (3, 3); loose : share of the torsions that get any angle; the others a normal deviate of 0.25
    """
    np.random.seed(seed)
    m = len(joints.first) - 1
    place, x = np.empty(3), np.empty(3)
    frac = np.linalg.inv(orth)
    for b in range(len(xyz)):
        for c in range(m):
            i, j = joints.first[c], joints.first[c + 1]
            xyz[b, i:j] = conformers[chosen[b, c], i:j]
        share = loose * np.random.random()
        for t in range(len(joints.a)):
            any_angle = np.random.random() < share
            _turn_torsion(xyz[b], joints, t, np.random.uniform(-np.pi, np.pi) if any_angle else np.random.normal(0, 0.25))
        for c in range(m):
            i, j = joints.first[c], joints.first[c + 1]
            _random_rotation(xyz[b], i, j)
            site = sites[c, np.random.randint(sites.shape[1])]
            for k in range(3):
                x[k] = np.random.random() - site[k]
            projection = site[3:].copy().reshape(3, 3)
            place[:] = orth @ (site[:3] + projection @ x)
            free[b, c] = (orth @ projection @ frac).astype(np.float32)
            _put(xyz[b], i, j, place)


@compiled(fastmath=False, error_model="numpy")
def mutate(xyz, free, conformers, chosen, joints, sites, orth, seed):
    """Change placements in place, each in one respect: a torsion or two, the rotation, the position of one molecule, or all."""
    np.random.seed(seed)
    m = len(joints.first) - 1
    place = np.empty(3)
    for b in range(len(xyz)):
        c = np.random.randint(m)
        i, j = joints.first[c], joints.first[c + 1]
        first, last = joints.linked[c], joints.linked[c + 1]
        what = np.random.random()
        if last > first and what < 0.6:
            for _ in range(1 + np.random.randint(2)):
                _turn_torsion(xyz[b], joints, first + np.random.randint(last - first), np.random.uniform(-np.pi, np.pi))
        elif what < 0.8:
            _random_rotation(xyz[b], i, j)
        elif what < 0.9:
            for k in range(3):
                place[k] = np.random.normal(0, 1.5)
            shift = free[b, c].astype(np.float64) @ place
            for k in range(3):
                xyz[b, i:j, k] += np.float32(shift[k])
        else:
            for k in range(3):
                place[k] = xyz[b, i:j, k].mean()
            xyz[b, i:j] = conformers[chosen[b, c], i:j]
            for t in range(first, last):
                _turn_torsion(xyz[b], joints, t, np.random.normal(0, 0.5))
            _random_rotation(xyz[b], i, j)
            _put(xyz[b], i, j, place)
