"""3D UNet that extends amplitudes. The whole model is in this file.

U-Net: Ronneberger et al. (2015), arXiv:1505.04597; 3D: Çiçek et al. (2016), arXiv:1606.06650; the published form, with its
widths, normalisation and activation, as in github.com/blackwood168/xrd_phase_ml.
"""

from dataclasses import dataclass
from math import gcd

import torch
from torch import nn
from torch.nn import functional as nnf

from .base import NormalizedModel


class DoubleConv(nn.Sequential):
    """(Conv3d 3 -> GroupNorm -> GELU) twice; published, InstanceNorm."""

    def __init__(self, c_in, c_out, published=False):
        def norm():
            return nn.InstanceNorm3d(c_out) if published else nn.GroupNorm(gcd(4, c_out), c_out)
        super().__init__(nn.Conv3d(c_in, c_out, 3, padding=1), norm(), nn.GELU(),
                         nn.Conv3d(c_out, c_out, 3, padding=1), norm(), nn.GELU())


class UNet(NormalizedModel):
    """Encoder, bottleneck and decoder with skips; ``level`` is what stands at each level of both."""

    @dataclass
    class Config:
        widths: tuple[int, ...] = (16, 32)  # channels of the levels, fine to coarse
        bottleneck: int = 64                # channels below the last level
        published: bool = False

    PUBLISHED = dict(widths=(64, 128), bottleneck=256, published=True)

    def __init__(self, config=None):
        super().__init__(config)
        widths = list(self.config.widths)
        above = [self.n_inputs, *widths]
        self.down = nn.ModuleList(self.level(c_in, c, i == 0) for i, (c_in, c) in enumerate(zip(above, widths)))
        self.bottleneck = DoubleConv(widths[-1], self.config.bottleneck, self.published)
        below = [*widths[1:], self.config.bottleneck]
        self.up = nn.ModuleList(self.level(c_below + c, c, i + 1 == len(widths))
                                for i, (c_below, c) in enumerate(zip(below[::-1], widths[::-1])))
        self.head = self.started(nn.Conv3d(widths[0], 1, 1))

    def level(self, c_in, c_out, finest):
        """The block of one level; `finest` where that is the box itself."""
        return DoubleConv(c_in, c_out, self.published)

    def through(self, level, x, box):
        """What a level makes of x (B, c_in, ...)."""
        return level(x)

    def raw(self, x, boxes):
        skips = []                                                     # x (B, n_inputs, H, K, L)
        for level in self.down:
            x = self.through(level, x, boxes.box)                     # (B, width, H / 2^i, K / 2^i, L / 2^i)
            skips.append(x)
            x = nnf.max_pool3d(x, 2)
        x = self.bottleneck(x)                                        # (B, bottleneck, H / 4, K / 4, L / 4)
        for level in self.up:
            skip = skips.pop()
            # to the skip's size, because 18 / 2 = 9 and 23 / 2 = 11 do not double back
            x = nnf.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=False)
            x = self.through(level, torch.cat([x, skip], dim=1), boxes.box)
        return self.head(x)[:, 0]
