"""The networks that extend amplitudes, one a file. Every one is called as

    F_out = model(F_in, measured, target, absent)

with F_in (B, H, K, L) amplitudes scaled to a largest measured one of 1, zero where not measured, and three bool
masks of the same shape (see ``gridding.AmplitudeBoxes``); F_out has the same shape. A model with ``takes_boxes`` looks
beyond the box, at cell and space group, and is called with the AmplitudeBoxes; ``run`` knows the difference.
"""

from .fft_unet import FFTUNet
from .patterson_net import PattersonNet
from .unet import UNet
from .xrd_transformer import XRDTransformer

MODELS = {"unet": UNet, "fft_unet": FFTUNet, "xrd_transformer": XRDTransformer,
          "patterson_net": PattersonNet}
"""Name in files and tables -> class. Each class has a dataclass ``Config`` of its choices."""

TITLES = {"unet": "UNet", "fft_unet": "FFT_UNet", "xrd_transformer": "XRD_Transformer", "patterson_net": "PattersonNet"}
"""Name in files -> name in the literature."""


def run(model, boxes):
    """Amplitudes (B, *box.shape) of AmplitudeBoxes, on their device, by any of the models."""
    if getattr(model, "takes_boxes", False):
        return model(boxes)
    return model(boxes.F_in, boxes.measured, boxes.target, boxes.absent)
