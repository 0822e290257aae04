"""What every network has in common: the three things that are known about an amplitude without a network."""

import torch
from torch.nn import functional as nnf

SHARPNESS = 20  # of softplus: it bends within 0.05, below the mean scaled amplitude of 0.09
START = 0.06    # raw output before training, near the typical amplitude: the first steps need not find the level


def start_constant(head):
    """Let a linear or convolutional head begin with START everywhere, whatever its input."""
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.constant_(head.bias, START)
    return head


def amplitudes(raw, F_in, measured, target, absent):
    """Turn raw output into amplitudes: never negative, measured ones unchanged, absent ones and those beyond d_target zero.

    All arguments and the result are (B, H, K, L). Softplus rather than a rectifier, because half of the amplitudes
    are near zero, where a rectifier has no gradient to recover with.
    """
    F_out = torch.where(measured, F_in, nnf.softplus(raw.float(), beta=SHARPNESS))
    return F_out * (target & ~absent)
