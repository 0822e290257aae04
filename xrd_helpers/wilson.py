"""What is known of amplitudes from their resolution alone: shells, normalisation, and the mean at each resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import gemmi
import numpy as np

from .gridding import AmplitudeBoxes
from .reflections import Reflections
from .structure_factors import form_factor

N_SHELLS = 10    # of equal count, for E and for permuting
LEAST_PAIRS = 200  # of reflections, fewer than which say nothing of twins
UNKNOWN_R = 0.6  # r_ext of amplitudes of which nothing but the fall-off is known (DESIGN.md, section 7)
CARBON = {"C": 1}  # in place of a formula that is not known
MEAN_E = {True: 0.798, False: 0.886}  # mean of |E|, centric and acentric (Wilson, 1949, Acta Cryst. 2, 318)


def shells(d, n_shells=N_SHELLS) -> np.ndarray:
    """(n,) int, shell number of each reflection: shells of equal count, 0 at low resolution (large d, Å)."""
    rank = np.empty(len(d), int)
    rank[np.argsort(-np.asarray(d), kind="stable")] = np.arange(len(d))
    return rank * min(n_shells, len(d)) // max(len(d), 1)  # no empty shells where reflections are few


def volume_shells(d, edges) -> np.ndarray:
    """(n,) int, shell number of each reflection, between edges (m + 1,) in Å⁻³: evenly apart they make shells of equal volume,
    with as many reflections in each."""
    return (np.digitize(np.asarray(d) ** -3.0, edges) - 1).clip(0, len(edges) - 2)


def normalize(F, d, epsilon, n_shells=N_SHELLS) -> np.ndarray:
    """Normalised amplitudes E = F / sqrt(ε <F²/ε>), (n,) each.

    The mean is taken in shells of equal count and interpolated in 1/d² (its logarithm), so that no step or slope
    of the fall-off remains inside a shell. International Tables for Crystallography, Vol. B, chapter 2.2.
    """
    s2, shell = 1 / np.asarray(d, float) ** 2, shells(d, n_shells)
    intensity = np.asarray(F, float) ** 2 / epsilon
    counts = np.bincount(shell)
    mean_s2 = np.bincount(shell, s2) / counts
    mean_i = np.maximum(np.bincount(shell, intensity) / counts, 1e-12)
    log_mean = np.interp(s2, mean_s2, np.log(mean_i))
    # beyond the centres of the first and the last shell the end slopes go on: np.interp alone would go flat
    if len(counts) > 1:
        for end, inner, beyond in ((0, 1, s2 < mean_s2[0]), (-1, -2, s2 > mean_s2[-1])):
            slope = (np.log(mean_i[end]) - np.log(mean_i[inner])) / (mean_s2[end] - mean_s2[inner])
            log_mean[beyond] = np.log(mean_i[end]) + slope * (s2[beyond] - mean_s2[end])
    return np.sqrt(intensity / np.exp(log_mean))


class Statistics(NamedTuple):
    """What the distribution of intensities says.

    B : Å², of a Wilson plot; nan where there are too few reflections for one
    e2_1 : ⟨|E² - 1|⟩, 0.736 (acentric) or 0.968 (centric) for atoms anywhere
    l, l2 : ⟨|L|⟩ and ⟨L²⟩ of `n_pairs` pairs; expected, twinned : ⟨|L|⟩ of one crystal of that space group, and of two equal
        twin domains
    """

    B: float
    e2_1: float
    l: float
    l2: float
    n_pairs: int
    expected: float
    twinned: float

    @property
    def twinning_likely(self) -> bool:
        """Whether ⟨|L|⟩ is nearer to that of two equal twin domains than to that of one crystal."""
        return self.n_pairs >= LEAST_PAIRS and self.l < (self.expected + self.twinned) / 2


def intensity_statistics(merged: Reflections, elements) -> Statistics:
    """``Statistics`` of merged reflections.

    B is the slope of ln(⟨I/ε⟩ / Σ f²) against (sin θ / λ)² in shells beyond 4 Å (Wilson, 1942, Nature 150, 152), and
    L = (I₁ - I₂) / (I₁ + I₂) of reflections whose indices differ by two in one place (Padilla & Yeates, 2003, Acta Cryst. D59,
    1124), as far as intensities are three times their uncertainties in the mean of a shell.

    Parameters
    ----------
    elements : {symbol: atoms in the asymmetric unit}; carbon where it is empty
    """
    hkl, ops = merged.hkl.astype(np.int32), merged.spacegroup.operations()
    epsilon = ops.epsilon_factor_without_centering_array(hkl)
    stol2, shell = 1 / (4 * merged.d**2), shells(merged.d, max(2, min(20, len(merged) // 25)))
    intensity, sigma = merged.intensities()
    counts = np.bincount(shell)
    mean, strength = (np.bincount(shell, x) / counts for x in (intensity / epsilon, intensity / np.maximum(sigma, 1e-30)))
    f2 = sum(n * form_factor(symbol, stol2) ** 2 for symbol, n in (elements or CARBON).items())
    plot = (np.bincount(shell, stol2) / counts, np.log(np.maximum(mean, 1e-30) / (np.bincount(shell, f2) / counts)))
    far = plot[0] > 1 / 64
    B = -np.polyfit(*(x[far] for x in plot), 1)[0] / 2 if far.sum() > 2 else float("nan")
    E2 = normalize(merged.F, merged.d, epsilon) ** 2
    # pairs among all mates, in the shells before the first weak one
    p1 = merged.p1
    weak = np.flatnonzero(strength < 3)
    centric = np.array(ops.centric_flag_array(hkl), bool)
    centrosymmetric = merged.spacegroup.is_centrosymmetric()
    use = (shell < (weak[0] if len(weak) else len(counts))) & (centric == centrosymmetric)
    rows = np.flatnonzero(use[p1.index])
    row_of = {tuple(h): p1.index[i] for i, h in zip(rows, p1.hkl[rows].tolist())}
    pairs = {tuple(sorted((p1.index[i], row_of[other]))) for i, (h, k, l) in zip(rows, p1.hkl[rows].tolist())
             for other in ((h + 2, k, l), (h, k + 2, l), (h, k, l + 2)) if other in row_of}
    one, two = np.array(sorted(pairs), int).reshape(-1, 2).T
    apart = (one != two) & (E2[one] + E2[two] > 0)  # equivalents are equal, in a twin or not
    L = (E2[one] - E2[two])[apart] / (E2[one] + E2[two])[apart]
    l, l2 = (float(np.abs(L).mean()), float((L**2).mean())) if len(L) else (np.nan, np.nan)
    one_crystal, two_domains = (2 / np.pi, 1 / 2) if centrosymmetric else (1 / 2, 3 / 8)
    return Statistics(float(B), float(np.abs(E2 - 1).mean()), l, l2, len(L), one_crystal, two_domains)


@dataclass(frozen=True)
class ShellMean:
    """Mean amplitude against d from training crystals, brought to a new crystal by a Wilson fit of its measured part.

    ``s2`` (m,) is 1/d² in Å⁻², and ``curve`` (2, m) the mean amplitude there over √Σf² of the formula: of crystals in which
    light atoms scatter alone, whose bonds make waves in it, and of those in which heavier ones do; between them it goes by
    their share (``heavy_share``). A crystal's mean is k exp(-B/4d²) curve(1/d²) √Σf²; k and B follow from its measured
    amplitudes (Wilson, Nature 150, 152, 1942), with the mean ``B`` (2,), of the two kinds again, and the spread ``sigma_B``
    (Å²) of the training crystals as prior: to 1.5 Å the data alone leave B too uncertain to extrapolate, which would make the
    row weaker than it has to be.
    """

    s2: np.ndarray
    curve: np.ndarray
    B: tuple = (0.0, 0.0)
    sigma_B: float = np.inf

    @classmethod
    def fit(cls, boxes, n_points=40) -> ShellMean:
        """The curve of training crystals, a list of AmplitudeBoxes: each is first brought to the common scale and fall-off."""
        edges = np.linspace(0, max(float(part.d[part.target].min()) ** -2 for part in boxes) * (1 + 1e-6), n_points + 1)
        centres = (edges[1:] + edges[:-1]) / 2
        mean = cls(s2=centres, curve=np.ones((2, n_points)))
        data = []
        for part in boxes:
            use = part.target & ~part.absent & ~part.redundant
            data += [(part.F[i][use[i]].double().numpy(), part.d[i][use[i]].double().numpy() ** -2, _contents(part, i))
                     for i in range(len(part))]
        for _ in range(5):  # the scales need the curve and the curve the scales
            normal, excess, all_B, shares = np.zeros((n_points, 2, 2)), np.zeros((n_points, 2)), [], []
            for F, s2, contents in data:
                k, B = mean._wilson(F, s2, contents)
                point = np.clip(np.digitize(s2, edges) - 1, 0, n_points - 1)
                expected = np.bincount(point, k * np.exp(-B * s2 / 4) * mean._shape(s2, contents), minlength=n_points)
                found, kind = np.bincount(point, F, minlength=n_points), _kinds(contents)
                # on one scale, on which a sum of n amplitudes scatters with √n: a Newton step of Σ F = Σ expected
                normal += expected[:, None, None] / k * np.outer(kind, kind)
                excess += ((found - expected) / k)[:, None] * kind
                all_B.append(B)
                shares.append(kind)
            filled = normal.sum(axis=(1, 2)) > 0  # low resolution leaves gaps between few reflections
            step = np.linalg.solve(_tied(normal[filled]), excess[filled][..., None])[..., 0]
            log = np.log(mean.curve[:, filled]) + np.clip(step.T, -1, 1)
            mean = cls(s2=centres, curve=np.exp([np.interp(centres, centres[filled], one) for one in log]))
        # B of the training crystals comes from all their amplitudes, so that its own error is small beside its spread
        shares, all_B = np.array(shares), np.array(all_B)
        B = np.linalg.solve(_tied((shares.T @ shares)[None])[0], shares.T @ all_B)
        rest = all_B - shares @ B
        sigma_B = 1.48 * float(np.median(np.abs(rest - np.median(rest))))  # of a normal distribution, outliers aside
        return cls(s2=mean.s2, curve=mean.curve, B=tuple(B.tolist()), sigma_B=max(sigma_B, 1e-3))

    def _shape(self, s2, contents):
        """curve √Σf² at 1/d² (n,), of one crystal."""
        light, heavy = (np.interp(s2, self.s2, np.log(one)) for one in self.curve)
        of_light, of_heavy = _kinds(contents)
        f2 = sum(n * form_factor(symbol, s2 / 4) ** 2 for symbol, n in contents.items())
        return np.exp(of_light * light + of_heavy * heavy) * np.sqrt(f2 / sum(contents.values()))

    def _wilson(self, F, s2, contents):
        """Scale k and B (Å²) of one crystal, from a line through ln(mean F / curve) of shells against 1/4d²."""
        shell = shells(s2 ** -0.5, max(2, min(20, len(F) // 15)))
        counts = np.bincount(shell)
        x = np.bincount(shell, s2) / counts / 4
        expected = np.bincount(shell, self._shape(s2, contents)) / counts
        y = np.log(np.maximum(np.bincount(shell, F) / counts, 1e-9) / expected)
        # ln of a mean over n amplitudes scatters by 0.6 / √n: 0.52 (acentric) to 0.76 (centric), Wilson statistics
        weight = counts / 0.6 ** 2
        design = np.stack([np.ones_like(x), -x], axis=1)
        normal = design.T @ (weight[:, None] * design) + np.diag([0, self.sigma_B ** -2])
        prior = [0, _kinds(contents) @ self.B * self.sigma_B ** -2]
        log_k, B = np.linalg.solve(normal, design.T @ (weight * y) + prior)
        return np.exp(log_k), B

    def at(self, F, d, d_new, contents=None) -> np.ndarray:
        """Mean amplitudes at d_new (n,) of a crystal whose measured ones are F (m,) at d (m,), all d in Å.

        contents : {symbol: atoms}, in any unit; carbon where it is empty
        """
        contents = contents or CARBON
        k, B = self._wilson(F, 1 / d ** 2, contents)
        s2 = 1 / d_new ** 2
        return k * np.exp(-B * s2 / 4) * self._shape(s2, contents)

    def predict(self, boxes: AmplitudeBoxes) -> np.ndarray:
        """(B, *box.shape): measured amplitudes, and the curve beyond."""
        F = boxes.F_in.double().numpy()
        for i in range(len(boxes)):
            absent = boxes.absent[i].numpy()
            measured = boxes.known[i].numpy()
            beyond = boxes.target[i].numpy() & ~boxes.measured[i].numpy() & ~absent
            d = boxes.d[i].double().numpy()
            F[i][beyond] = self.at(F[i][measured], d[measured], d[beyond], _contents(boxes, i))
        return F


def heavy_share(contents) -> float:
    """Share of the atoms heavier than fluorine in Σ Z², of {symbol: atoms}."""
    z2 = {symbol: n * gemmi.Element(symbol).atomic_number ** 2 for symbol, n in contents.items()}
    return sum(z2[symbol] for symbol in z2 if gemmi.Element(symbol).atomic_number > 9) / sum(z2.values())


def _kinds(contents):
    """(2,) shares of light and of heavier atoms."""
    share = heavy_share(contents)
    return np.array([1 - share, share])


def _contents(boxes, i):
    """{symbol: atoms} of crystal i of boxes; carbon where it is not known."""
    return (boxes.samples[i].contents if boxes.samples else None) or CARBON


def _tied(normal):
    """Normal matrices (n, 2, 2) of two kinds, which are held a little to each other: of one there may be no crystal."""
    weight = normal.trace(axis1=1, axis2=2)
    return normal + 1e-3 * weight[:, None, None] * np.array([[1, -1], [-1, 1]])


@dataclass(frozen=True)
class Expected:
    """What one crystal of boxes lets expect of itself, without any knowledge of its structure.

    E2 : (n,) E² of the measured reflections, in the flat voxels of the box: zero elsewhere, and where absent
    voxels : (m,) flat voxels of the reflections to be predicted, each once
    F : (m,) scaled amplitudes that are expected there: the shell mean, times what ε and centric reflections change in the
        mean of |E|
    """

    E2: np.ndarray
    voxels: np.ndarray
    F: np.ndarray

    @classmethod
    def of(cls, boxes: AmplitudeBoxes, i, mean: ShellMean) -> Expected:
        """Of crystal i, whose sample says its space group; nothing in it depends on what was not measured."""
        epsilon, d, F_in = (x[i].flatten().double().cpu().numpy() for x in (boxes.epsilon, boxes.d, boxes.F_in))
        use, wanted = (x[i].flatten().cpu().numpy() for x in (boxes.known, boxes.extension))
        E2, F = np.zeros(len(d)), F_in[use]
        E2[use] = normalize(F, d[use], epsilon[use], max(3, min(10, use.sum() // 20))) ** 2
        factor = np.sqrt(epsilon[wanted]) * np.where(_centric(boxes, i, wanted), MEAN_E[True], MEAN_E[False])
        F = mean.at(F, d[use], d[wanted], _contents(boxes, i)) * factor / factor.mean()
        return cls(E2[boxes.box.representative], np.flatnonzero(wanted), F)


SPREAD_TERMS = 5        # of ``Spread``
LEAST_VARIANCE = 0.01   # of E


@dataclass(frozen=True)
class Spread:
    """The uncertainty of predicted amplitudes, learnt from crystals whose true ones are known.

    σ² = (F_pred/E)² (c0 + c1 E + c2 E² + c3 t + c4 q), E being the normalised predicted amplitude, t 0 where the data end and 1
    at d_target, in 1/d, and q the deviation of E, which is small where a crystal told the method little. ``terms`` (2, 5)
    are c of acentric and of centric reflections.
    """

    terms: tuple

    @classmethod
    def fit(cls, predictions) -> Spread:
        """From pairs of F_pred (B, *box.shape) and AmplitudeBoxes with the true amplitudes."""
        parts = [(*_spread_design(boxes, i, F_pred[i]), boxes.F[i].double().numpy()[boxes.extension[i].numpy()] -
                  np.asarray(F_pred[i], float)[boxes.extension[i].numpy()]) for F_pred, boxes in predictions
                 for i in range(len(boxes))]
        design, centric, scale, error = (np.concatenate(x) for x in zip(*parts))
        return cls(tuple(tuple(_fit_variance(design[rows], (error[rows] / scale[rows]) ** 2)) for rows in (~centric, centric)))

    def sigma(self, boxes: AmplitudeBoxes, i, F_pred) -> np.ndarray:
        """(*box.shape) standard deviations of F_pred (*box.shape) of crystal i, zero where nothing was to be predicted."""
        design, centric, scale = _spread_design(boxes, i, F_pred)
        variance = (design * np.array(self.terms)[centric.astype(int)]).sum(axis=1)
        sigma = np.zeros(boxes.box.shape)
        sigma[boxes.extension[i].numpy()] = scale * np.sqrt(np.maximum(variance, LEAST_VARIANCE))
        return sigma


def _spread_design(boxes, i, F_pred):
    """(n, SPREAD_TERMS) terms, (n,) bool centric, and F_pred/E (n,) of the reflections to be predicted."""
    where, measured = boxes.extension[i].numpy(), boxes.measured[i].numpy()
    d, epsilon = (x[i].double().numpy() for x in (boxes.d, boxes.epsilon))
    F = np.maximum(np.asarray(F_pred, float)[where], 1e-9)
    E = normalize(F, d[where], epsilon[where], max(3, min(10, len(F) // 20)))
    s, start, end = 1 / d[where], 1 / d[measured].min(), 1 / d[boxes.target[i].numpy()].min()
    t = ((s - start) / (end - start)).clip(0, 1)
    centric = _centric(boxes, i, where)
    return np.stack([np.ones_like(E), E, E * E, t, np.full_like(E, E.std())], axis=1), centric, F / E


def _fit_variance(design, squares):
    """Terms (SPREAD_TERMS,) whose sum is the mean of squares (n,): weights are those of squares of normal errors.

    Of few squares, their mean alone; of none 1, as if nothing were known.
    """
    terms = np.zeros(SPREAD_TERMS)
    terms[0] = squares.mean() if len(squares) else 1
    if len(squares) > 50 * SPREAD_TERMS:
        variance = np.full(len(squares), squares.mean())
        for _ in range(8):
            weighted = design / variance[:, None] ** 2
            normal = weighted.T @ design
            # what the crystals do not decide (q of all may be nearly the same) stays small
            terms = np.linalg.solve(normal + 1e-3 * np.diag(np.diag(normal)), weighted.T @ squares)
            variance = np.maximum(design @ terms, LEAST_VARIANCE)
    return terms.tolist()


def _centric(boxes, i, where):
    """(n,) bool, of the reflections where (*box.shape) is True."""
    hkl = np.ascontiguousarray(boxes.box.hkl[where.ravel()], np.int32)
    return np.array(boxes.samples[i].spacegroup.operations().centric_flag_array(hkl), bool)
