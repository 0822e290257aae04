"""Random crystals to train on.

Recipe ``atoms`` is the published one (github.com/blackwood168/xrd_phase_ml): 10-29 atoms of C, N, O, Cl with equal
odds, 14-22 Å³ an atom, at random places that keep a distance. Two things differ from it, because its cells are all
of one shape and its U reach 0.3 Å²: the cell shape is drawn, and U is that of real organic crystals.
"""

from __future__ import annotations

import gemmi
import numpy as np

from .crystals import Crystal, all_operators

ELEMENTS = ("C", "N", "O", "Cl")
SPACEGROUPS = ("P 1 21/c 1", "P 1 21 1", "C 1 2 1")
MIN_DISTANCE = 1.3       # Å, between any two atoms of the crystal
N_CANDIDATES = 32        # places tried at a time
MAX_ROUNDS = 50          # rounds of candidates before a crystal is begun anew


def random_crystals(n, seed, spacegroups=SPACEGROUPS, first=0) -> list[Crystal]:
    """n random crystals of recipe ``atoms``.

    Each crystal has a random stream of its own, (seed, number), so that the same seed gives the same crystals
    however many are asked for and in however many parts; ``first`` is the number of the first one.
    """
    return [_random_crystal(np.random.default_rng([seed, number]), f"random_{seed}_{number}", spacegroups)
            for number in range(first, first + n)]


def _random_crystal(rng, name, spacegroups):
    """One crystal; begun anew in the rare case that its atoms find no room."""
    while True:
        spacegroup = gemmi.SpaceGroup(str(rng.choice(spacegroups)))
        n_atoms = int(rng.integers(10, 30))
        cell = _random_cell(rng, n_atoms * rng.uniform(14, 22) * len(spacegroup.operations()), spacegroup.crystal_system_str())
        if not cell.is_compatible_with_spacegroup(spacegroup):
            raise ValueError(f"random monoclinic cells have the unique axis b, not that of {spacegroup.xhm()}")
        fract = _place_atoms(rng, n_atoms, cell, spacegroup)
        if fract is not None:
            u_mean = rng.uniform(0.015, 0.07)  # Å², of organic crystals between 100 K and room temperature
            return Crystal(name=name, cell=cell, spacegroup=spacegroup, elements=tuple(rng.choice(ELEMENTS, n_atoms).tolist()),
                           fract=fract, u_iso=u_mean * rng.uniform(0.75, 1.35, n_atoms), occ=np.ones(n_atoms),
                           source="recipe atoms")


def _random_cell(rng, volume, system):
    """A cell of the given volume (Å³): axes that differ by about a third, angles as the crystal system allows."""
    edges = np.exp(rng.normal(0, 0.3, 3))
    angles = np.full(3, 90.0)
    if system == "monoclinic":
        angles[1] = rng.uniform(90, 116)
    elif system == "triclinic":
        angles = rng.uniform(75, 115, 3)
    elif system != "orthorhombic":
        raise ValueError(f"random cells are triclinic, monoclinic or orthorhombic, not {system}")
    edges *= (volume / gemmi.UnitCell(*edges, *angles).volume) ** (1 / 3)
    return gemmi.UnitCell(*edges, *angles)


def _place_atoms(rng, n_atoms, cell, spacegroup):
    """(n_atoms, 3) fractional coordinates, no two atoms nearer than MIN_DISTANCE in the crystal; None if full."""
    rot, tran = all_operators(spacegroup)
    orth = np.array(cell.orth.mat.tolist())

    def nearest(difference):
        # the rounded difference is the shortest one as long as the cell is much wider than MIN_DISTANCE
        return np.linalg.norm((difference - np.round(difference)) @ orth.T, axis=-1)

    placed = np.empty((0, 3))
    for _ in range(MAX_ROUNDS):
        candidates = rng.random((N_CANDIDATES, 3))
        images = np.einsum("gij,cj->cgi", rot, candidates) + tran                    # (c, g, 3)
        free = (nearest(images[:, 1:] - candidates[:, None]) >= MIN_DISTANCE).all(axis=1)  # off special positions
        for x, own, is_free in zip(candidates, images, free):
            if is_free and (nearest(own[:, None] - placed) >= MIN_DISTANCE).all():
                placed = np.vstack([placed, x])
                if len(placed) == n_atoms:
                    return placed
    return None
