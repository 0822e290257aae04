"""Models that predict phases from amplitudes on the 13 × 13 × 13 box (h, k, l from -6 to 6). All are in this file.

Every one is called as ``vectors = model(F)``: F (B, 13, 13, 13) amplitudes on any scale, vectors (B, 2, 13, 13, 13) of
any length along (cos φ, sin φ). The four kinds are those of github.com/alimahdi3/convolutional-neural-nets; U-Net:
Ronneberger et al. (2015), arXiv:1505.04597; 3D: Çiçek et al. (2016), arXiv:1606.06650.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as nnf

SIDE = 13  # voxels along each of h, k, l


def scaled(F):
    """Square roots of amplitudes over the largest one, (B, 1, 13, 13, 13): of 1000 to 1, thirty to one is left."""
    return (F / F.amax(dim=(1, 2, 3), keepdim=True)).sqrt()[:, None]


class Standardised(nn.Module):
    """``scaled`` amplitudes less their mean over the training set, over their spread there, (B, 1, 13, 13, 13).

    After 6400 samples the loss of the fully connected net is 76 with it and 208 without.
    """

    LEAST = 0.02  # standard deviation of a reflection that hardly varies

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(SIDE, SIDE, SIDE))
        self.register_buffer("spread", torch.ones(SIDE, SIDE, SIDE))

    def fit(self, F):
        """Take mean and spread from training amplitudes F (n, 13, 13, 13)."""
        x = scaled(F)[:, 0]
        self.mean.copy_(x.mean(dim=0))
        self.spread.copy_(x.std(dim=0).clamp(min=self.LEAST))

    def forward(self, F):
        return (scaled(F) - self.mean) / self.spread


class LinearRegression(nn.Module):
    """Ridge regression of (cos φ, sin φ) on the amplitudes, solved in closed form by ``phases.solve_linear``.

    The input is taken to its first ``rank`` principal components, of variance 1, which keeps the file small.
    """

    @dataclass
    class Config:
        rank: int = 128

    def __init__(self, config=None):
        super().__init__()
        self.config, n = config or self.Config(), SIDE**3
        self.components = nn.Linear(n, self.config.rank)
        self.regression = nn.Linear(self.config.rank, 2 * n)

    def forward(self, F):
        return self.regression(self.components(scaled(F).flatten(1))).unflatten(1, (2, SIDE, SIDE, SIDE))


def hidden(n_in, width, config):
    """A fully connected layer; one of a convolution whose kernel is the whole box is the same."""
    norm = nn.LayerNorm(width) if config.norm else nn.Identity()
    return nn.Sequential(nn.Linear(n_in, width), norm, nn.GELU(), nn.Dropout(config.dropout))


@dataclass
class NetConfig:
    """The choices that the networks have in common."""

    width: int = 128      # of the layers that see the whole box
    depth: int = 2        # such layers, before the one that writes the box
    channels: int = 2     # of the layers that see a voxel and its neighbours
    norm: bool = True     # LayerNorm after each layer that sees the whole box
    dropout: float = 0.0  # after the same


def whole_box(n_in, n_out, config):
    """Fully connected layers, ``depth`` hidden ones and the last."""
    widths = [n_in] + [config.width] * config.depth
    return nn.Sequential(*(hidden(*pair, config) for pair in zip(widths, widths[1:])), nn.Linear(config.width, n_out))


class FullyConnected(nn.Module):
    """Three fully connected layers, or as many as ``depth`` says."""

    Config = NetConfig

    def __init__(self, config=None):
        super().__init__()
        self.config, n = config or self.Config(), SIDE**3
        self.standardised = Standardised()
        self.layers = whole_box(n, 2 * n, self.config)

    def forward(self, F):
        return self.layers(self.standardised(F).flatten(1)).unflatten(1, (2, SIDE, SIDE, SIDE))


class Convolutional(nn.Module):
    """Three 3D convolutions, with kernels of 3, 13 and (transposed) 13 voxels.

    With kernels of 3 voxels throughout, a voxel sees the three voxels on each side of it, and can know neither which crystal
    this is nor the shift.
    """

    @dataclass
    class Config(NetConfig):
        depth: int = 1

    def __init__(self, config=None):
        super().__init__()
        self.config, n = config or self.Config(), SIDE**3
        self.standardised = Standardised()
        self.neighbours = nn.Conv3d(1, self.config.channels, 3, padding=1)
        # kernels of the box's own size fit at one place only, where a product of matrices is the same and faster
        self.box = hidden(self.config.channels * n, self.config.width, self.config)
        self.head = nn.Linear(self.config.width, 2 * n)

    def forward(self, F):
        x = nnf.gelu(self.neighbours(self.standardised(F)))               # (B, channels, 13, 13, 13)
        return self.head(self.box(x.flatten(1))).unflatten(1, (2, SIDE, SIDE, SIDE))


class PhaseUNet(nn.Module):
    """U-Net of two levels, 13³ voxels and one: down and up by convolutions whose kernel is the box, with a skip between.

    A usual one that halves the box three times was at a loss of 125 after four minutes, when this one is below 10: what
    tells the shift is spread over the whole box, and lost where neighbours are pooled. The encoder and decoder convolve over
    3 × 3 × 3 voxels; learnt numbers for each voxel are further channels, since a convolution does not know its h, k, l.
    With ``bottom_only`` it is the lower level alone, which is trained first because it takes a fifth of the time.
    """

    @dataclass
    class Config(NetConfig):
        channels: int = 4
        positions: int = 3  # learnt channels
        up: int = 2         # channels that come up from the level below

    def __init__(self, config=None):
        super().__init__()
        self.config, n = config or self.Config(), SIDE**3
        channels, up = self.config.channels, self.config.up
        self.standardised = Standardised()
        self.positions = nn.Parameter(torch.randn(1, self.config.positions, SIDE, SIDE, SIDE))
        self.encoder = nn.Conv3d(1 + self.config.positions, channels, 3, padding=1)
        self.bottleneck = whole_box(n, up * n, self.config)
        self.decoder = nn.Conv3d(up + channels, channels, 3, padding=1)
        self.head = nn.Conv3d(up + channels, 2, 1)
        nn.init.zeros_(self.head.weight[:, up:])  # the upper level begins where the lower one has got to
        self.bottom_only = False

    def forward(self, F):
        x = self.standardised(F)                                          # (B, 1, 13, 13, 13)
        if self.bottom_only:
            below = self.bottleneck(x.flatten(1)).unflatten(1, (self.config.up, SIDE, SIDE, SIDE))
            return nnf.conv3d(below, self.head.weight[:, :self.config.up], self.head.bias)
        skip = nnf.gelu(self.encoder(torch.cat([x, self.positions.expand(len(x), -1, -1, -1, -1)], dim=1)))
        below = self.bottleneck(x.flatten(1)).unflatten(1, (self.config.up, SIDE, SIDE, SIDE))
        x = nnf.gelu(self.decoder(torch.cat([below, skip], dim=1)))       # (B, channels, 13, 13, 13)
        return self.head(torch.cat([below, x], dim=1))


class SymmetricUNet(PhaseUNet):
    """A U-Net that treats a crystal and its image inverted in the origin alike: φ(h) of the one is φ(-h) of the other.

    Where an inversion centre stands at the origin F(h) = F(-h), f″ included: what goes in is its own image, and what comes
    out is so by construction.
    """

    def forward(self, F):
        return (super().forward(F) + super().forward(F.flip(1, 2, 3)).flip(2, 3, 4)) / 2


PHASE_MODELS = {"linear": LinearRegression, "fully_connected": FullyConnected, "convolutional": Convolutional,
                "unet": PhaseUNet, "symmetric_unet": SymmetricUNet}
"""Name in files -> class. Each class has a dataclass ``Config`` of its choices."""

PHASE_TITLES = {"linear": "linear regression", "fully_connected": "fully connected", "convolutional": "convolutional",
                "unet": "U-net", "symmetric_unet": "symmetric U-net"}
"""Name in files -> name in tables."""
