"""3D UNet that extends amplitudes. The whole model is in this file.

U-Net: Ronneberger et al. (2015), arXiv:1505.04597; 3D: Çiçek et al. (2016), arXiv:1606.06650; widths, normalisation
and activation as in github.com/blackwood168/xrd_phase_ml.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as nnf

from .base import AmplitudeModel, amplitudes, start_constant


class DoubleConv(nn.Sequential):
    """(Conv3d 3 -> InstanceNorm -> GELU) twice."""

    def __init__(self, c_in, c_out):
        super().__init__(
            nn.Conv3d(c_in, c_out, 3, padding=1), nn.InstanceNorm3d(c_out), nn.GELU(),
            nn.Conv3d(c_out, c_out, 3, padding=1), nn.InstanceNorm3d(c_out), nn.GELU())


class UNet(AmplitudeModel):
    """Encoder, bottleneck and decoder with skips; ``level`` is what stands at each level of both."""

    @dataclass
    class Config:
        widths: tuple[int, ...] = (64, 128)  # channels of the levels, fine to coarse
        bottleneck: int = 256                # channels below the last level

    def __init__(self, config=None):
        super().__init__(config)
        widths = list(self.config.widths)
        self.down = nn.ModuleList(self.level(c_in, c_out) for c_in, c_out in zip([1, *widths], widths))
        self.bottleneck = DoubleConv(widths[-1], self.config.bottleneck)
        below = [*widths[1:], self.config.bottleneck]
        self.up = nn.ModuleList(self.level(c_below + c, c) for c_below, c in zip(below[::-1], widths[::-1]))
        self.head = start_constant(nn.Conv3d(widths[0], 1, 1))

    def level(self, c_in, c_out):
        """The block of one level."""
        return DoubleConv(c_in, c_out)

    def predict(self, boxes):
        x, skips = boxes.F_in[:, None], []                             # (B, 1, H, K, L)
        for level in self.down:
            x = level(x)                                              # (B, width, H / 2^i, K / 2^i, L / 2^i)
            skips.append(x)
            x = nnf.max_pool3d(x, 2)
        x = self.bottleneck(x)                                        # (B, 256, H / 4, K / 4, L / 4)
        for level in self.up:
            skip = skips.pop()
            # to the skip's size, because 18 / 2 = 9 and 23 / 2 = 11 do not double back
            x = nnf.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=False)
            x = level(torch.cat([x, skip], dim=1))                    # (B, width, H / 2^i, K / 2^i, L / 2^i)
        return amplitudes(self.head(x)[:, 0], boxes)
