"""The networks that extend amplitudes, one a file. Every one is called as

    F_out = model(F_in, measured, target, absent)

with F_in (B, H, K, L) amplitudes scaled to a largest measured one of 1, zero where not measured, and three bool
masks of the same shape (see ``gridding.AmplitudeBoxes``); F_out has the same shape.
"""

from .fft_unet import FFTUNet
from .unet import UNet
from .xrd_transformer import XRDTransformer

MODELS = {"unet": UNet, "fft_unet": FFTUNet, "xrd_transformer": XRDTransformer}
"""Name in files and tables -> class. Each class has a dataclass ``Config`` of its choices."""

TITLES = {"unet": "UNet", "fft_unet": "FFT_UNet", "xrd_transformer": "XRD_Transformer"}
"""Name in files -> name in the literature."""
