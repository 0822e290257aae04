"""What every network has in common: how it is called, what it is trained on, and what is known without it."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as nnf

SHARPNESS = 20  # of softplus: it bends within 0.05, below the mean scaled amplitude of 0.09
START = 0.06    # raw output before training, near the typical amplitude: the first steps need not find the level


class AmplitudeModel(nn.Module):
    """A network that extends amplitudes. A subclass has ``predict``; whatever else it says is of its own choice.

    ``model(boxes)`` is (B, *box.shape), the amplitudes of ``gridding.AmplitudeBoxes`` extended; ``model(boxes, truth)``, with
    boxes that hold the true ones, is the loss to train with. ``title`` is its name in tables, that of the class if it has
    none of its own.
    """

    title = "AmplitudeModel"

    @dataclass
    class Config:
        """The choices of the network: plain numbers, texts and tuples of them, which its file of weights keeps."""

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        cls.title = vars(cls).get("title", cls.__name__)

    def __init__(self, config=None):
        super().__init__()
        self.config = config or self.Config()

    @classmethod
    def config_for(cls, box, d_target):
        """The choices for a box and a resolution (Å) to extend to, where no others were made."""
        return cls.Config()

    def start_from(self, mean) -> None:
        """Take over what is expected of any crystal; ``mean``, a function without arguments, returns the ShellMean of it."""

    def predict(self, boxes):
        """(B, *box.shape), on the device of the boxes."""
        raise NotImplementedError

    def loss(self, boxes, truth):
        """What training makes small, a number."""
        return extension_loss(self.predict(boxes), truth)

    def forward(self, boxes, truth=None):
        return self.predict(boxes) if truth is None else self.loss(boxes, truth)


def extension_loss(F_out, truth):
    """Mean squared error over the reflections that had to be predicted; the others are known and cost nothing."""
    return (F_out - truth.F)[truth.extension].square().mean()


def start_constant(head):
    """Let a linear or convolutional head begin with START everywhere, whatever its input."""
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, START)
    return head


def amplitudes(raw, boxes):
    """Turn raw output into amplitudes: never negative, measured ones unchanged, absent ones and those beyond d_target zero.

    raw and the result are (B, H, K, L). Softplus rather than a rectifier, because half of the amplitudes are near zero,
    where a rectifier has no gradient to recover with.
    """
    F_out = torch.where(boxes.measured, boxes.F_in, nnf.softplus(raw.float(), beta=SHARPNESS))
    return F_out * (boxes.target & ~boxes.absent)
