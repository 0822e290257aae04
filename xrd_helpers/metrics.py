"""Scores of extended amplitudes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from skimage.metrics import structural_similarity

from .gridding import AmplitudeBoxes
from .wilson import N_SHELLS, normalize, shells

SCORES = ("mse_box", "r_all", "r_ext", "cc_ext", "cc_e", "ssim")


def r_factor(F_pred, F_true) -> float:
    """Σ |F_pred - F_true| / Σ F_true."""
    return float(np.abs(F_pred - F_true).sum() / F_true.sum())


def correlation(x, y) -> float:
    """Pearson correlation; 0 where one of the two is constant, since a constant says nothing about the other."""
    x, y = x - np.mean(x), y - np.mean(y)
    norm = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / norm) if norm > 1e-12 * len(x) else 0.0


def score(F_pred, boxes: AmplitudeBoxes) -> pd.DataFrame:
    """All scores of DESIGN.md, section 7, but the solve rate: a row a crystal.

    Parameters
    ----------
    F_pred : (B, *box.shape) array of scaled amplitudes, as a model or a know-nothing row gives them.
    boxes : the true amplitudes and the masks.
    """
    return pd.DataFrame([_score_one(np.asarray(F_pred[i], float), boxes, i) for i in range(len(boxes))])


def _score_one(F_pred, boxes, i):
    F_true, d = boxes.F[i].double().numpy(), boxes.d[i].double().numpy()
    once, extension = ~boxes.redundant.numpy(), boxes.extension[i].numpy()
    pasted = np.where(boxes.measured[i].numpy() | ~once, F_true, F_pred)
    true, pred = F_true[extension], F_pred[extension]
    epsilon, side = boxes.epsilon[i].double().numpy()[extension], min(F_true.shape)
    return {
        "mse_box": float(((pasted - F_true)[once] ** 2).mean()),
        "r_all": r_factor(pasted[once], F_true[once]),
        "r_ext": r_factor(pred, true),
        "cc_ext": correlation(pred, true),
        "cc_e": correlation(normalize(pred, d[extension], epsilon), normalize(true, d[extension], epsilon)),
        "ssim": float(structural_similarity(pasted, F_true, data_range=1, win_size=min(7, side - 1 + side % 2))),
    }


def r_by_resolution(F_pred, boxes: AmplitudeBoxes, n_shells=N_SHELLS) -> pd.DataFrame:
    """R of the extension against resolution over all crystals: columns d (Å, middle of the shell), r_ext."""
    extension = boxes.extension.numpy()
    d, true, pred = boxes.d.double().numpy()[extension], boxes.F.double().numpy()[extension], F_pred[extension]
    shell = shells(d, n_shells)
    error, total, counts = (np.bincount(shell, x) for x in (np.abs(pred - true), true, np.ones(len(d))))
    return pd.DataFrame({"d": (np.bincount(shell, d ** -2.0) / counts) ** -0.5, "r_ext": error / total})
