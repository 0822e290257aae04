"""What every network has in common: how it is called, what it is trained on, and what is known without it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as nnf

from ..wilson import Expected, ShellMean

SHARPNESS = 20  # of softplus: it bends within 0.05, below the mean scaled amplitude of 0.09
START = 0.06    # raw output before training, near the typical amplitude: the first steps need not find the level
N_INPUTS = 7    # of ``normalized``
MAP_SCALE = 5   # see ``to_map``
ONE = math.log(math.e - 1)  # softplus of this is 1


class AmplitudeModel(nn.Module):
    """A network that extends amplitudes. A subclass has ``predict``; whatever else it says is of its own choice.

    ``model(boxes)`` is (B, *box.shape), the amplitudes of ``gridding.AmplitudeBoxes`` extended; ``model(boxes, truth)``, with
    boxes that hold the true ones, is the loss to train with. ``title`` is its name in tables, that of the class if it has
    none of its own.
    """

    title = "AmplitudeModel"
    PUBLISHED = {}   # choices that make the form in which it was published, where that is another
    any_box = False  # whether it works in boxes of any shape and Laue class, so that each crystal may have its own

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


class NormalizedModel(AmplitudeModel):
    """A network of normalised amplitudes E, which what is expected of any crystal turns into F again.

    A subclass has ``raw``; where that is zero, the prediction is the expected amplitude (``wilson.Expected``), and so it is
    before training. The boxes have to say what is known of each crystal (``samples``). Where the choice ``published`` is
    set, the network sees F_in alone, and its output becomes F by softplus.
    """

    def __init__(self, config=None, n_points=40):
        super().__init__(config)
        if not self.published:  # of a crystal's fall-off: ``ShellMean``, B and its spread in one
            self.register_buffer("mean_s2", torch.linspace(0.02, 1.55, n_points))
            self.register_buffer("mean_F", torch.ones(2, n_points))
            self.register_buffer("mean_B", torch.tensor([3.0, 3.0, 1.0]))

    @property
    def published(self) -> bool:
        return getattr(self.config, "published", False)

    @property
    def n_inputs(self) -> int:
        return 1 if self.published else N_INPUTS

    def started(self, head):
        """A head whose output before training is the same everywhere: what is known without it."""
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, START if self.published else 0.0)
        return head

    def start_from(self, mean) -> None:
        if not self.published:
            mean = mean()
            self.mean_s2.copy_(torch.as_tensor(mean.s2))
            self.mean_F.copy_(torch.as_tensor(mean.curve))
            self.mean_B.copy_(torch.tensor([*mean.B, mean.sigma_B]))

    @property
    def mean(self) -> ShellMean:
        s2, curve, B = (x.double().cpu().numpy() for x in (self.mean_s2, self.mean_F, self.mean_B))
        return ShellMean(s2, curve, B=tuple(B[:2].tolist()), sigma_B=float(B[2]))

    def raw(self, x, boxes):
        """(B, *box.shape) from what the network sees, (B, n_inputs, *box.shape)."""
        raise NotImplementedError

    def predict(self, boxes):
        if self.published:
            return amplitudes(self.raw(boxes.F_in[:, None], boxes), boxes)
        return self._predict(boxes)[0]

    def loss(self, boxes, truth):
        """Published: the mean squared error. Else the mean absolute error of F, relative to the crystal's mean expected one:
        what R counts, which is least for the median of what F may be, a tenth below the mean."""
        if self.published:
            return super().loss(boxes, truth)
        F_out, base = self._predict(boxes)
        where = truth.extension
        scale = torch.stack([x[rows].mean() for x, rows in zip(base, where)])
        return ((F_out - truth.F).abs() / scale.view(-1, 1, 1, 1))[where].mean()

    def _predict(self, boxes):
        """Amplitudes and the expected ones, which are zero where nothing is to be predicted."""
        x, base = normalized(boxes, self.mean)
        F_out = base * nnf.softplus(self.raw(x, boxes).float() + ONE)
        return torch.where(boxes.measured, boxes.F_in, F_out) * (boxes.target & ~boxes.absent), base


def normalized(boxes, mean):
    """What a network of E sees, (B, N_INPUTS, *box.shape), and the amplitudes to be expected, (B, *box.shape).

    The inputs: ε E² - 1 and E where measured; coefficients of the square of the positive Patterson map (as Sayre's equation
    has them for a density: 1952, Acta Cryst. 5, 60), of mean 0 and deviation 1 over what is to be predicted; what is measured,
    absent, to be predicted; and 1/d, its largest being 1. Equivalent voxels are equal.
    """
    box = boxes.box
    E2, base = np.zeros((2, len(boxes), len(box.hkl)))
    for i in range(len(boxes)):
        expected = Expected.of(boxes, i, mean)
        E2[i], base[i, expected.voxels] = expected.E2, expected.F
    E2, base = (torch.as_tensor(x, dtype=torch.float32, device=boxes.F.device).view(boxes.F.shape)
                for x in (E2, base[:, box.representative]))
    values = torch.where(boxes.absent, -1, boxes.epsilon * E2 - 1) * boxes.measured
    squared, wanted = to_box(to_map(values[:, None], box).clamp(min=0).square(), box)[:, 0], base > 0
    for i, rows in enumerate(wanted):
        squared[i] = (squared[i] - squared[i][rows].mean()) / squared[i][rows].std() * rows
    finest = torch.where(boxes.target, boxes.d, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    s = torch.where(boxes.target, finest / boxes.d, 0)
    return torch.stack([values, E2.sqrt(), squared, boxes.measured & ~boxes.absent, boxes.absent & boxes.target, wanted, s],
                       dim=1), base


def to_map(x, box):
    """Maps (B, c, X, Y, Z // 2 + 1), half of each, of coefficients (B, c, *box.shape), unfolded to the whole sphere.

    A map of measured E² - 1 has a deviation of about 1 in the monoclinic box.
    """
    size, voxel, _ = box.sphere
    voxel = torch.as_tensor(voxel, device=x.device)
    whole = (x.float().flatten(2)[..., voxel.clamp(min=0)] * (voxel >= 0)).view(*x.shape[:2], *size)
    return torch.fft.rfftn(whole, dim=(-3, -2, -1), norm="ortho").real * MAP_SCALE


def to_box(rho, box):
    """Coefficients (B, c, *box.shape) of half maps."""
    size, _, place = box.sphere
    rho = rho.float()
    whole = torch.fft.irfftn(torch.complex(rho, torch.zeros_like(rho)), s=size, dim=(-3, -2, -1), norm="ortho")
    return whole.flatten(2)[..., torch.as_tensor(place, device=rho.device)].view(*rho.shape[:2], *box.shape)


def extension_loss(F_out, truth):
    """Mean squared error over the reflections that had to be predicted; the others are known and cost nothing."""
    return (F_out - truth.F)[truth.extension].square().mean()


def amplitudes(raw, boxes):
    """Turn raw output into amplitudes: never negative, measured ones unchanged, absent ones and those beyond d_target zero.

    raw and the result are (B, H, K, L). Softplus rather than a rectifier, because half of the amplitudes are near zero,
    where a rectifier has no gradient to recover with.
    """
    F_out = torch.where(boxes.measured, boxes.F_in, nnf.softplus(raw.float(), beta=SHARPNESS))
    return F_out * (boxes.target & ~boxes.absent)
