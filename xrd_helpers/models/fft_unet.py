"""FFT_UNet: the UNet with a branch in the transformed space at every level.

The amplitudes are the Fourier transform of the density, so that what is far apart in one space is near in the
other; a convolution in both sees both. After github.com/blackwood168/xrd_phase_ml.
"""

import torch
from torch import nn

from .unet import DoubleConv, UNet


class ResFBlock(nn.Module):
    """x + DoubleConv(x) + irfftn(conv1x1(conv1x1(|rfftn(x)|))), each 1×1×1 convolution with InstanceNorm and GELU."""

    def __init__(self, c):
        super().__init__()
        self.conv = DoubleConv(c, c)
        self.spectral = nn.Sequential(
            nn.Conv3d(c, c, 1), nn.InstanceNorm3d(c), nn.GELU(),
            nn.Conv3d(c, c, 1), nn.InstanceNorm3d(c), nn.GELU())

    def forward(self, x):
        spectrum = torch.fft.rfftn(x.float(), dim=(-3, -2, -1)).abs()  # (B, c, H, K, L // 2 + 1), phases dropped
        spectrum = self.spectral(spectrum.to(x.dtype)).float()         # the transform has no half precision
        return x + self.conv(x) + torch.fft.irfftn(spectrum, s=x.shape[2:], dim=(-3, -2, -1)).to(x.dtype)


class FFTUNet(UNet):
    """The UNet with a ResFBlock after each DoubleConv of the encoder and the decoder; the bottleneck has none."""

    title = "FFT_UNet"

    def level(self, c_in, c_out):
        return nn.Sequential(DoubleConv(c_in, c_out), ResFBlock(c_out))
