"""FFT_UNet: the UNet with a branch in the transformed space.

Intensities are the transform of the Patterson map, so that what is far apart in one space is near in the other. The published
form, after github.com/blackwood168/xrd_phase_ml, transforms the box at every level and drops the phases. But a box is a part
of reciprocal space that begins at h = -13: only the whole sphere, unfolded by symmetry, transforms into the map itself, which
is real and needs no phases dropped. So the branch does that, at the finest level, where the box has one voxel a reflection.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as nnf

from .base import to_box, to_map
from .unet import DoubleConv, UNet


class ResFBlock(nn.Module):
    """The published branch: x + DoubleConv(x) + irfftn(conv1x1(conv1x1(|rfftn(x)|))), each 1×1×1 convolution with
    InstanceNorm and GELU."""

    def __init__(self, c):
        super().__init__()
        self.conv = DoubleConv(c, c, published=True)
        self.spectral = nn.Sequential(
            nn.Conv3d(c, c, 1), nn.InstanceNorm3d(c), nn.GELU(),
            nn.Conv3d(c, c, 1), nn.InstanceNorm3d(c), nn.GELU())

    def forward(self, x):
        spectrum = torch.fft.rfftn(x.float(), dim=(-3, -2, -1)).abs()  # (B, c, H, K, L // 2 + 1), phases dropped
        spectrum = self.spectral(spectrum.to(x.dtype)).float()         # the transform has no half precision
        return x + self.conv(x) + torch.fft.irfftn(spectrum, s=x.shape[2:], dim=(-3, -2, -1)).to(x.dtype)


class MapLevel(nn.Module):
    """DoubleConv(x) + what a perceptron, the same at every point of the Patterson map, makes of x there."""

    def __init__(self, c_in, c_out, maps):
        super().__init__()
        self.conv = DoubleConv(c_in, c_out)
        self.mix = nn.Conv3d(c_in, maps, 1, bias=False)
        self.one, self.two = nn.Conv3d(maps, 2 * maps, 1), nn.Conv3d(2 * maps, c_out, 1)

    def forward(self, x, box):
        rho = self.two(nnf.gelu(self.one(to_map(self.mix(x), box))))
        return self.conv(x) + to_box(rho, box)


class FFTUNet(UNet):
    """The UNet with a MapLevel at the finest level of encoder and decoder; published, a ResFBlock after each DoubleConv of
    both, and none in the bottleneck."""

    title = "FFT_UNet"

    @dataclass
    class Config(UNet.Config):
        maps: int = 8  # Patterson maps in each branch

    def level(self, c_in, c_out, finest):
        if self.published:
            return nn.Sequential(DoubleConv(c_in, c_out, True), ResFBlock(c_out))
        return MapLevel(c_in, c_out, self.config.maps) if finest else super().level(c_in, c_out, finest)

    def through(self, level, x, box):
        return level(x, box) if isinstance(level, MapLevel) else level(x)
