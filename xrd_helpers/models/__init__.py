"""The networks that extend amplitudes, one a file; ``base.AmplitudeModel`` says how each is called."""

from .base import AmplitudeModel, extension_loss
from .fft_unet import FFTUNet
from .patterson_net import PattersonNet
from .unet import UNet
from .xrd_transformer import XRDTransformer

__all__ = ["MODELS", "TITLES", "AmplitudeModel", "FFTUNet", "PattersonNet", "UNet", "XRDTransformer", "extension_loss"]

MODELS = {"unet": UNet, "fft_unet": FFTUNet, "xrd_transformer": XRDTransformer,
          "patterson_net": PattersonNet}
"""Name in files and tables -> class. Each class has a dataclass ``Config`` of its choices."""

TITLES = {"unet": "UNet", "fft_unet": "FFT_UNet", "xrd_transformer": "XRD_Transformer", "patterson_net": "PattersonNet"}
"""Name in files -> name in the literature."""
