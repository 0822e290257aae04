"""The amplitude box: the reflections of one asymmetric unit on a grid of Miller indices that a network can read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import gemmi
import numpy as np
import torch

from .config import UserError
from .crystals import Crystal, CrystalError, rotations_and_translations, swap_a_and_c
from .reflections import MOST_POSSIBLE, ReflectionError, Reflections
from .structure_factors import CrystalBatch, reciprocal_metric

LEAST = 30  # reflections measured in the box, below which there is nothing to extend


@dataclass(frozen=True)
class Box:
    """A box of Miller indices, low to high with both ends, for the Laue group of ``spacegroup``."""

    name: str
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    spacegroup: str  # a centrosymmetric symmorphic group of the Laue class

    @classmethod
    def around(cls, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, d_target: float) -> Box:
        """The smallest box for one crystal, of any Laue class, to d_target (Å)."""
        laue = spacegroup.operations().derive_symmorphic()
        laue.add_inversion()
        laue.cen_ops = laue.cen_ops[:1]
        group = gemmi.find_spacegroup_by_ops(laue)
        if group is None:
            raise CrystalError(f"the Laue group of {spacegroup.xhm()} is in no setting that is known: transform the cell")
        hkl = gemmi.make_miller_array(cell, group, d_target)
        return cls("own", tuple(np.minimum(hkl.min(axis=0), 0).tolist()), tuple(np.maximum(hkl.max(axis=0), 0).tolist()),
                   group.xhm())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along h, k, l."""
        return tuple(high - low + 1 for low, high in zip(self.low, self.high))

    @cached_property
    def hkl(self) -> np.ndarray:
        """(n, 3) int, the Miller indices of the voxels in C order."""
        axes = [np.arange(low, high + 1) for low, high in zip(self.low, self.high)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)

    @cached_property
    def rotations(self) -> np.ndarray:
        """(g, 3, 3) int, the Laue group: hkl @ rotation is an equivalent of hkl."""
        return rotations_and_translations(gemmi.SpaceGroup(self.spacegroup))[0]

    @cached_property
    def laue(self) -> str:
        """The Laue class, as gemmi's ``laue_str``."""
        return gemmi.SpaceGroup(self.spacegroup).laue_str()

    def groups(self, symbols) -> list[str]:
        """Those of some space groups that are of the box's Laue class."""
        return [symbol for symbol in symbols if gemmi.SpaceGroup(symbol).laue_str() == self.laue]

    @cached_property
    def redundant(self) -> np.ndarray:
        """(n,) bool, voxels whose equivalent under the Laue group stands elsewhere in the box (there with larger h, k, l)."""
        best = self.hkl
        for rot in self.rotations:
            hkl = self.hkl @ rot
            inside = ((hkl >= self.low) & (hkl <= self.high)).all(axis=1)
            better = inside & (_order(hkl) > _order(best))
            best = np.where(better[:, None], hkl, best)
        return (best != self.hkl).any(axis=1)

    @cached_property
    def representative(self) -> np.ndarray:
        """(n,) int, of each voxel the number of that equivalent one that counts in scores: itself, unless redundant."""
        return self.index(self.hkl)

    @cached_property
    def sphere(self) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
        """The box unfolded to all reflections on a periodic grid, as a Fourier transform wants them.

        The grid's size (3,), even, no prime factor above 7, with the index of 0 first; the voxel of each of its points in
        C order, -1 where there is none; the point of each voxel (n,).
        """
        reach = np.abs(self.hkl @ self.rotations).max(axis=(0, 1))  # of all equivalents: a fourfold axis brings h to k
        size = tuple(smooth_even(2 * n + 2) for n in reach.tolist())
        axes = [np.fft.fftfreq(points, 1 / points).round().astype(int) for points in size]
        every = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        return size, self.index(every), np.ravel_multi_index((self.hkl % size).T, size)

    def index(self, hkl) -> np.ndarray:
        """Flat voxel numbers of reflections hkl (n, 3), taken to an equivalent that is inside; -1 where none is."""
        found = np.full(len(hkl), -1)
        for rot in self.rotations:
            image = np.asarray(hkl) @ rot
            inside = ((image >= self.low) & (image <= self.high)).all(axis=1)
            voxel = np.ravel_multi_index(np.where(inside[:, None], image - self.low, 0).T, self.shape)
            inside &= (found < 0) | self.redundant[found]  # the voxel that counts in scores, where there is a choice
            found = np.where(inside, voxel, found)
        return found


def smooth_even(least) -> int:
    """The smallest even number from `least` on without a prime factor above 7: a length that transforms fast."""
    return next(n for n in range(least + least % 2, 10_000, 2) if 210**20 % n == 0)


def _order(hkl):
    """A number that sorts reflections by h, then k, then l (indices stay below 1000)."""
    return hkl @ np.array([1_000_000, 1_000, 1])


BOXES = {box.name: box for box in (
    Box("monoclinic", (-13, 0, 0), (12, 17, 22), "P 1 2/m 1"),
    Box("orthorhombic", (0, 0, 0), (16, 21, 28), "P m m m"),
    Box("triclinic", (-16, -14, 0), (16, 21, 28), "P -1"),
)}


class OwnBoxes:
    """In place of a Box: each crystal in one of its own (``Box.around``), for models that work in any."""

    name, largest = "own", 10_000  # Å³, of a cell

    def groups(self, symbols) -> list[str]:
        """All of some space groups."""
        return list(symbols)

    def __reduce__(self):
        return "OWN"  # there is one, in other processes too


OWN = OwnBoxes()


def find_box(name) -> Box | OwnBoxes:
    """The box of a name that was typed or stands in a file; UserError if there is none."""
    known = BOXES | {OWN.name: OWN}
    if name not in known:
        raise UserError(f"there is no box {name!r}: the boxes are {', '.join(known)}")
    return known[name]


def check_resolutions(d_input, d_target) -> None:
    """UserError if data to d_input (Å) leave nothing to predict to d_target (Å)."""
    if not 0 < d_target < d_input:
        raise UserError(f"d_target must be above 0 and below d_input, else nothing is left to predict: d_target is "
                        f"{d_target:g} Å and d_input {d_input:g} Å")


def to_box_setting(crystal: Crystal) -> Crystal:
    """A monoclinic crystal (unique axis b) with the shorter of a and c first, any other as it is."""
    if crystal.spacegroup.monoclinic_unique_axis() == "b" and crystal.cell.a > crystal.cell.c:
        return swap_a_and_c(crystal)
    return crystal


def check_fit(crystal: Crystal, box: Box, d_target: float) -> None:
    """Raise CrystalError, with the limit that is broken, if a reflection with d >= d_target has no voxel in the box."""
    if box is OWN:
        if crystal.cell.volume > OWN.largest:
            raise CrystalError(f"{crystal.name}: its cell of {crystal.cell.volume:.0f} Å³ is larger than {OWN.largest} Å³")
        return
    group = crystal.spacegroup
    if group.laue_str() != box.laue or (
            box.name == "monoclinic" and group.monoclinic_unique_axis() != "b"):
        raise CrystalError(f"{crystal.name}: space group {group.xhm()} is not of the {box.name} box"
                           + (" (unique axis b)" if box.name == "monoclinic" else ""))
    # |h| <= a / d: most crystals need no list of their reflections
    if all(int(edge / d_target) <= min(high, -low or high)
           for edge, low, high in zip((crystal.cell.a, crystal.cell.b, crystal.cell.c), box.low, box.high)):
        return
    if crystal.cell.volume / d_target**3 > MOST_POSSIBLE:
        raise CrystalError(f"{crystal.name}: its cell of {crystal.cell.volume:.0f} Å³ is far too large for the {box.name} box")
    hkl = gemmi.make_miller_array(crystal.cell, group, d_target)
    outside = hkl[box.index(hkl) < 0]
    if len(outside):
        # the equivalent nearest to the box, so that the message names the axes that are too long and no other
        images = np.stack([outside @ rot for rot in box.rotations])                             # (g, n, 3)
        # (one with a negative index on an axis that begins at zero is no candidate: it is the wrong half, not too long)
        below = np.maximum(box.low - images, 0) * np.where(np.array(box.low) == 0, 1000, 1)
        beyond = below + np.maximum(images - box.high, 0)
        nearest = images[beyond.sum(axis=2).argmin(axis=0), np.arange(len(outside))]            # (n, 3)
        axes = [f"{name} from {low} to {high}, the box holds {box.low[i]}..{box.high[i]}: {'abc'[i]} is too long"
                for i, (name, low, high) in enumerate(zip("hkl", nearest.min(axis=0), nearest.max(axis=0)))
                if low < box.low[i] or high > box.high[i]]
        raise CrystalError(f"{crystal.name}: {len(outside)} of {len(hkl)} reflections to {d_target} Å are outside the "
                           f"{box.name} box ({'; '.join(axes)})")


def select_fitting(crystals, box: Box, d_target: float):
    """Bring crystals to the box's setting and keep those that fit.

    Returns
    -------
    fitting : list of Crystal
    problems : list of str, a sentence for each crystal that was left out
    """
    fitting, problems = [], []
    for crystal in crystals:
        try:
            crystal = to_box_setting(crystal)
            check_fit(crystal, box, d_target)
            fitting.append(crystal)
        except CrystalError as error:
            problems.append(str(error))
    return fitting, problems


@lru_cache(maxsize=256)
def absences_and_epsilon(box: Box, symbol):
    """(absent (n,) bool, epsilon (n,)) of the voxels of a box in a space group; the same for every crystal of it."""
    group = gemmi.SpaceGroup(symbol).operations()
    hkl = np.ascontiguousarray(box.hkl, dtype=np.int32)
    epsilon = np.ones(len(hkl))
    present = (hkl != 0).any(axis=1)  # F(000) has no direction
    epsilon[present] = group.epsilon_factor_without_centering_array(hkl[present])
    return np.array(group.systematic_absences(hkl), bool), epsilon


def amplitude_boxes(crystals, box, d_input=1.5, d_target=0.8, **options) -> list[AmplitudeBoxes]:
    """One AmplitudeBoxes of all crystals, or one of each where each has a box of its own (``OWN``)."""
    parts = [(crystals, box)] if box is not OWN else [([c], Box.around(c.cell, c.spacegroup, d_target)) for c in crystals]
    return [AmplitudeBoxes.from_crystals(part, one, d_input, d_target, **options) for part, one in parts]


class Sample(NamedTuple):
    """What is known of a crystal before its structure is."""

    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    contents: dict[str, float]  # {symbol: atoms in the asymmetric unit}; empty where the formula is not known
    molecules: tuple = ()       # (KnownMolecule, count) each, where they are known


@dataclass
class AmplitudeBoxes:
    """Amplitudes of B crystals in one box, with masks. Tensors are (B, *box.shape) unless said otherwise.

    ``F`` is the true amplitude over ``scale`` (B,), the largest measured one; zero outside d_target. ``measured``
    is d >= d_input, ``target`` is d >= d_target, ``absent`` systematically absent; F(000) is in none of the first
    two. ``redundant`` (*box.shape) voxels repeat another voxel: they are filled and left out of every score.
    """

    box: Box
    F: torch.Tensor
    scale: torch.Tensor
    measured: torch.Tensor
    target: torch.Tensor
    absent: torch.Tensor
    redundant: torch.Tensor
    d: torch.Tensor        # Å; inf at (0, 0, 0)
    epsilon: torch.Tensor  # statistical weight of the reflection, without centring
    samples: tuple[Sample, ...] = ()  # (B,), for methods that look beyond the box

    @property
    def F_in(self) -> torch.Tensor:
        """What a model sees: the measured amplitudes, zero elsewhere."""
        return self.F * self.measured

    @property
    def known(self) -> torch.Tensor:
        """Bool, the reflections that were measured: in d_target, present, each once."""
        return self.target & self.measured & ~self.absent & ~self.redundant

    @property
    def extension(self) -> torch.Tensor:
        """Bool, the reflections that a model has to predict: in d_target, not measured, present, each once."""
        return self.target & ~self.measured & ~self.absent & ~self.redundant

    @classmethod
    def from_crystals(cls, crystals, box: Box = BOXES["monoclinic"], d_input=1.5, d_target=0.8,
                      dtype=torch.float32, device="cpu") -> AmplitudeBoxes:
        """Structure factors of crystals that fit the box (see ``select_fitting``), computed only where needed."""
        batch = CrystalBatch.from_crystals(crystals, dtype=dtype, device=device)
        hkl = torch.as_tensor(box.hkl, device=device)
        metric = torch.as_tensor(reciprocal_metric([crystal.cell for crystal in crystals]), device=device)
        # d in double precision on one route, so that a reflection at the limit falls on one side only
        # term by term: a matrix product may round differently for another batch
        inverse_d2 = torch.zeros(len(crystals), len(hkl), dtype=torch.float64, device=device)
        for i, j in np.ndindex(3, 3):
            inverse_d2.addcmul_(metric[:, i, j, None], hkl[:, i] * hkl[:, j])
        d = inverse_d2.clamp(min=1e-12).rsqrt()
        d[inverse_d2 == 0] = torch.inf
        target, measured = (d >= d_target) & d.isfinite(), (d >= d_input) & d.isfinite()
        symmetry = [absences_and_epsilon(box, crystal.spacegroup.xhm()) for crystal in crystals]
        absent = torch.as_tensor(np.array([s[0] for s in symmetry]), device=device)
        epsilon = torch.as_tensor(np.array([s[1] for s in symmetry]), dtype=dtype, device=device)
        needed = target.any(dim=0)
        F = torch.zeros(d.shape, dtype=dtype, device=device)
        F[:, needed] = batch.structure_factors(hkl[needed]).abs()
        F = F * (target & ~absent)
        scale = (F * measured).amax(dim=1)
        if (scale <= 0).any():
            names = [c.name for c, s in zip(crystals, scale) if s <= 0]
            raise CrystalError(f"no reflection with d >= {d_input} Å is above zero in {', '.join(names)}")
        grid = (len(crystals), *box.shape)
        return cls(box=box, F=(F / scale[:, None]).reshape(grid), scale=scale, measured=measured.reshape(grid),
                   target=target.reshape(grid), absent=absent.reshape(grid),
                   redundant=torch.as_tensor(box.redundant, device=device).reshape(box.shape),
                   d=d.to(dtype).reshape(grid), epsilon=epsilon.reshape(grid),
                   samples=tuple(Sample(c.cell, c.spacegroup, c.contents) for c in crystals))

    def __len__(self):
        return len(self.F)

    def __getitem__(self, rows) -> AmplitudeBoxes:
        """The boxes of some of the crystals; ``rows`` is a slice or a list of numbers."""
        per_crystal = ("F", "scale", "measured", "target", "absent", "d", "epsilon")
        every = range(len(self))[rows] if isinstance(rows, slice) else rows
        samples = tuple(self.samples[row] for row in every) if self.samples else ()
        return AmplitudeBoxes(box=self.box, redundant=self.redundant, samples=samples,
                              **{name: getattr(self, name)[rows] for name in per_crystal})

    def to(self, device) -> AmplitudeBoxes:
        """The same on another device."""
        return replace(self, **{name: x.to(device) for name, x in vars(self).items() if torch.is_tensor(x)})

    def reflections(self, row, F, which=None) -> tuple[np.ndarray, np.ndarray]:
        """(hkl (n, 3), F (n,) in electrons) of one crystal from a box of scaled amplitudes F (*box.shape).

        ``which`` is ``known``, ``extension``, or both where it is None.
        """
        keep = (self.known | self.extension if which is None else which)[row].flatten().cpu().numpy()
        F = torch.as_tensor(F).detach().cpu().double().flatten().numpy()
        return self.box.hkl[keep], F[keep] * float(self.scale[row])


def measured_box(merged: Reflections, box: Box, d_target=0.8, d_shown=0.0, name="the data", contents=None):
    """Measured amplitudes in a box, as a model sees them.

    `contents` is {symbol: atoms in the asymmetric unit}. Data with d >= d_shown (Å) are measured, systematic absences inside
    them too, as in training; F is zero elsewhere.

    Returns
    -------
    boxes : AmplitudeBoxes, a batch of one, in the box's setting
    swapped : bool, whether that is another than the setting of the data (see ``box_indices``)

    Raises
    ------
    CrystalError, ReflectionError
        If the reflections to d_target do not fit the box, or fewer than LEAST are measured in it; ``name`` begins it.
    """
    data = Crystal(name, merged.cell, merged.spacegroup, (), np.zeros((0, 3)), np.zeros(0), np.zeros(0))  # no atoms yet
    crystal = to_box_setting(data)
    check_fit(crystal, box, d_target)
    if box is OWN:
        box = Box.around(crystal.cell, crystal.spacegroup, d_target)
    absent, epsilon = absences_and_epsilon(box, crystal.spacegroup.xhm())
    with np.errstate(divide="ignore"):
        d = crystal.cell.calculate_1_d2_array(box.hkl.astype(np.int32)) ** -0.5
    target = (d >= d_target) & np.isfinite(d)
    inside = merged.d >= max(d_shown, d_target)
    voxel = box.index(box_indices(merged.hkl[inside], crystal is not data))
    if (voxel >= 0).sum() < LEAST or not merged.F[inside].max() > 0:
        raise ReflectionError(f"{name}: only {len(voxel)} reflections are measured to {max(d_shown, d_target):g} Å, "
                              f"of {LEAST} at least")
    F, measured = np.zeros(len(d)), np.zeros(len(d), bool)
    F[voxel[voxel >= 0]], measured[voxel[voxel >= 0]] = merged.F[inside][voxel >= 0], True
    F, measured = F[box.representative], measured[box.representative] | absent & target & (d >= merged.d[inside].min())
    F *= ~absent
    grid, scale = (1, *box.shape), F.max()
    tensors = {name: torch.as_tensor(x.reshape(grid)) for name, x in
               {"measured": measured, "target": target, "absent": absent}.items()}
    numbers = {name: torch.as_tensor(x.reshape(grid), dtype=torch.float32) for name, x in
               {"F": F / scale, "d": d, "epsilon": epsilon}.items()}
    boxes = AmplitudeBoxes(box=box, scale=torch.tensor([scale]), redundant=torch.as_tensor(box.redundant).reshape(box.shape),
                           samples=(Sample(crystal.cell, crystal.spacegroup, contents or {}),), **tensors, **numbers)
    return boxes, crystal is not data


def box_indices(hkl, swapped) -> np.ndarray:
    """Indices (n, 3) in the box's setting from those of the data, or back: a' = c, b' = -b, c' = a undoes itself."""
    return hkl[:, [2, 1, 0]] * [1, -1, 1] if swapped else hkl
