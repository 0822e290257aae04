"""Random crystals to train on, by one of two recipes.

``atoms`` is the published one (github.com/blackwood168/xrd_phase_ml): 10-29 atoms of C, N, O, Cl with equal odds,
14-22 Å³ an atom, at random places that keep a distance. Two things differ from it, because its cells are all of one
shape and its U reach 0.3 Å²: the cell shape is drawn, and U is that of real organic crystals.

``molecules`` fills cells of the density of real crystals with bonded molecules, ions and metal complexes, H included,
packed without clashes (see ``molecules`` and ``packing``).
"""

from __future__ import annotations

from functools import cache

import gemmi
import numpy as np

from ..compiled import compiled
from ..config import UserError
from ..crystals import Crystal, all_operators
from .molecules import METALS, Molecule, draw_taste, ions, metal_core, organic_core
from .packing import Contents, pack

ELEMENTS = ("C", "N", "O", "Cl")
SPACEGROUPS = ("P 1 21/c 1", "P 1 21 1", "C 1 2 1")
MIN_DISTANCE = 1.3       # Å, between any two atoms of recipe ``atoms``
PLACES = 12              # tried for each atom before a crystal is begun anew

# recipe ``molecules``: groups and their shares, near those of the Cambridge Structural Database
MOLECULE_SPACEGROUPS = {"P 1 21/c 1": 0.22, "P 1 21/n 1": 0.14, "P -1": 0.27, "C 1 2/c 1": 0.08, "P 21 21 21": 0.09,
                        "P 1 21 1": 0.07, "P b c a": 0.04, "P n a 21": 0.02, "P 1": 0.02, "C 1 2 1": 0.02,
                        "C 1 c 1": 0.015, "P 1 c 1": 0.015}
# Å³ an atom in organic crystals (Hofmann, Acta Cryst. B58 (2002) 489); 32 for a metal
VOLUMES = {"H": 5.08, "C": 13.87, "N": 11.8, "O": 11.39, "F": 11.17, "B": 13.24, "Si": 37.3, "P": 29.5, "S": 25.2,
           "Cl": 25.8, "Br": 32.7, "I": 46.2}
FREE_ATTEMPTS = 3        # at packing, before the cell is allowed to grow
ATTEMPTS = 20            # at packing, before the molecules are drawn anew
RECIPES = ("atoms", "molecules")


def random_crystals(n, seed, spacegroups=None, first=0, recipe="atoms") -> list[Crystal]:
    """n random crystals of a recipe.

    Each crystal has a random stream of its own, (seed, number), so that the same seed gives the same crystals
    however many are asked for and in however many parts; ``first`` is the number of the first one. ``spacegroups``
    is a list of Hermann-Mauguin symbols, drawn with equal odds (repeat one to draw it more often); None is the
    mixture of the recipe. All work is done on the CPU in double precision, whatever device trains.

    Raises
    ------
    UserError
        If the recipe or a space group is unknown, or the recipe cannot do the group.
    """
    shares = mixture(recipe)
    groups = [_group(symbol, recipe) for symbol in spacegroups or shares]
    odds = [1.0] * len(groups) if spacegroups else list(shares.values())
    make = _atoms if recipe == "atoms" else _molecules
    return [make(np.random.default_rng([seed, number]), f"{recipe}_{seed}_{number}", groups, np.cumsum(odds))
            for number in range(first, first + n)]


def mixture(recipe) -> dict[str, float]:
    """{space group: how often} of a recipe; UserError if there is no such recipe."""
    if recipe not in RECIPES:
        raise UserError(f"there is no recipe {recipe!r}: the recipes are {' and '.join(RECIPES)}")
    return MOLECULE_SPACEGROUPS if recipe == "molecules" else dict.fromkeys(SPACEGROUPS, 1.0)


def can_make(spacegroup: gemmi.SpaceGroup, recipe) -> bool:
    """Whether the recipe makes crystals of this space group."""
    try:
        _group(spacegroup.xhm(), recipe)
    except UserError:
        return False
    return True


def _group(symbol, recipe):
    try:
        group = gemmi.SpaceGroup(symbol)
    except ValueError:
        raise UserError(f"{symbol!r} is no space group of the tables") from None
    if recipe == "molecules" and not all((rot == np.diag(np.diag(rot))).all() for rot in all_operators(group)[0]):
        raise UserError("recipe molecules makes triclinic, monoclinic and orthorhombic crystals, not "
                        f"{group.crystal_system_str()} {group.xhm()}: recipe atoms can")
    if recipe == "molecules" and group.crystal_system_str() == "triclinic" and group.centring_type() != "P":
        raise UserError(f"recipe molecules makes triclinic crystals with a primitive cell, not {group.xhm()}")
    if recipe == "molecules" and group.crystal_system_str() == "monoclinic" and group.monoclinic_unique_axis() != "b":
        raise UserError(f"recipe molecules makes monoclinic crystals with the unique axis b, not {group.xhm()}")
    return group


def _drawn(rng, items, cumulative):
    """One of the items, by their cumulative weights."""
    return items[int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))]


# ---- recipe atoms ----

def _atoms(rng, name, groups, odds):
    """One crystal; begun anew in the rare case that its atoms find no room."""
    while True:
        spacegroup = _drawn(rng, groups, odds)
        n_atoms = int(rng.integers(10, 30))
        rot, tran = _operators(spacegroup.xhm())
        cell = _random_cell(rng, n_atoms * rng.uniform(14, 22) * len(rot), spacegroup)
        # one place in three or four is taken, so that these almost always suffice
        fract = _place_atoms(rng.random((PLACES * n_atoms, 3)), n_atoms, rot, tran, np.array(cell.orth.mat.tolist()))
        if len(fract) == n_atoms:
            u_mean = rng.uniform(0.015, 0.07)  # Å², of organic crystals between 100 K and room temperature
            return Crystal(name=name, cell=cell, spacegroup=spacegroup, fract=fract,
                           elements=tuple(ELEMENTS[number] for number in rng.integers(len(ELEMENTS), size=n_atoms).tolist()),
                           u_iso=u_mean * rng.uniform(0.75, 1.35, n_atoms), occ=np.ones(n_atoms), source="recipe atoms")


@cache
def _operators(symbol):
    """rot (g, 3, 3) and tran (g, 3) of a space group, as floats."""
    rot, tran = all_operators(gemmi.SpaceGroup(symbol))
    return rot.astype(float), np.ascontiguousarray(tran)


def _random_cell(rng, volume, spacegroup):
    """A cell of the given volume (Å³): axes that differ by about a third, edges and angles as the group allows."""
    edges = np.exp(rng.normal(0, 0.3, 3))
    angles = np.full(3, 90.0)
    system = spacegroup.crystal_system_str()
    if system == "triclinic":
        angles = rng.uniform(75, 115, 3)
    elif system == "monoclinic":
        angles["abc".index(spacegroup.monoclinic_unique_axis())] = rng.uniform(90, 116)
    elif spacegroup.ext == "R":  # rhombohedral axes
        edges, angles = np.ones(3), np.full(3, rng.uniform(70, 110))
    elif system in ("trigonal", "hexagonal"):
        edges[1], angles[2] = edges[0], 120
    elif system == "tetragonal":
        edges[1] = edges[0]
    elif system == "cubic":
        edges[:] = 1
    edges *= (volume / gemmi.UnitCell(*edges, *angles).volume) ** (1 / 3)
    return gemmi.UnitCell(*edges, *angles)


@compiled(fastmath=False)
def _place_atoms(candidates, n_atoms, rot, tran, orth):
    """The first n_atoms of the candidates (m, 3) that keep MIN_DISTANCE from their own images and from all images of those
    before; fewer if there are not so many."""
    placed, n = np.empty((n_atoms, 3)), 0
    image, vector = np.empty(3), np.empty(3)
    for x in candidates:
        free = True
        for g in range(len(rot)):
            for k in range(3):
                image[k] = rot[g, k, 0] * x[0] + rot[g, k, 1] * x[1] + rot[g, k, 2] * x[2] + tran[g, k]
            for other in range(n + (g > 0)):  # the first operator is the identity
                for k in range(3):
                    # the rounded difference is the shortest one as long as the cell is much wider than MIN_DISTANCE
                    vector[k] = image[k] - (placed[other, k] if other < n else x[k])
                    vector[k] -= np.round(vector[k])
                squared = 0.0
                for k in range(3):
                    squared += (orth[k, 0] * vector[0] + orth[k, 1] * vector[1] + orth[k, 2] * vector[2]) ** 2
                if squared < MIN_DISTANCE**2:
                    free = False
                    break
            if not free:
                break
        if free:
            placed[n] = x
            n += 1
            if n == n_atoms:
                break
    return placed[:n]


# ---- recipe molecules ----

def _molecules(rng, name, groups, odds):
    """One crystal: molecules are drawn, then packed from random starts until they lie free of clashes."""
    while True:
        contents = _contents(rng, groups, odds)
        for attempt in range(ATTEMPTS):
            cell, fract = pack(contents, rng)
            if cell is not None:
                return _crystal(rng, contents, cell, fract, name)
            if attempt >= FREE_ATTEMPTS:
                contents.volume *= 1.01  # a molecule that packs badly gets the room that it needs


@cache
def inversion_centres(symbol):
    """(n, 3) fractional, the points of the cell in steps of a quarter whose site symmetry is -1 and nothing more."""
    rot, tran = all_operators(gemmi.SpaceGroup(symbol))
    points = np.stack(np.meshgrid(*[np.arange(4) / 4] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    moved = np.einsum("gij,nj->ngi", rot, points) + tran - points[:, None]
    stays = np.abs(moved - np.round(moved)).max(axis=2) < 1e-6                                   # (n, g)
    inverts = (rot == -np.eye(3, dtype=int)).all(axis=(1, 2))
    return points[(stays.sum(axis=1) == 2) & (stays & inverts).any(axis=1)]


def _contents(rng, groups, odds) -> Contents:
    """Space group, molecules and volume of one crystal; shares and spreads are those of real crystals."""
    group = _drawn(rng, groups, odds)
    centres = inversion_centres(group.xhm())
    while True:
        n_heavy = int(round(np.exp(rng.normal(np.log(20), 0.64))))
        if not 4 <= n_heavy <= 50:
            continue
        molecules, fixed = [], []
        beside, copies = None, 1
        if rng.random() < 0.28 and n_heavy >= 8:  # more than one molecule in the asymmetric unit
            kind = rng.random()
            if kind < 0.35:
                copies = 2
            elif kind < 0.8:
                beside = Molecule(list(ions().values())[rng.integers(len(ions()))])
            else:
                taste = draw_taste(rng, n_heavy // 3)
                beside = Molecule(organic_core(rng, n_heavy // 3, taste), taste)
                if not beside.grow(rng, n_heavy // 3):
                    continue
            if beside is not None and beside.n_heavy > n_heavy - 4:
                continue
        size = (n_heavy - (beside.n_heavy if beside else 0)) // copies
        metal = rng.random() < (0.26 if size > 9 else 0.15) and size >= 5
        at_centre = len(centres) > 0 and copies == 1 and rng.random() < (0.3 if metal else 0.06)
        taste = draw_taste(rng, size)
        if metal:
            core, at_centre = metal_core(rng, size, at_centre)
        else:
            core = organic_core(rng, size, taste, at_centre)
        molecule = Molecule(core, taste, at_centre)
        if not molecule.grow(rng, size):
            continue
        molecules = [molecule] * copies + ([beside] if beside else [])
        centre = centres[rng.integers(len(centres))] if molecule.inversion else None
        fixed = [centre] * copies + ([None] if beside else [])
        break
    xyz = [m.xyz + rng.normal(0, 0.015, m.xyz.shape) * (np.abs(m.xyz).max(axis=1, keepdims=True) > 1e-6) for m in molecules]
    volume = sum(VOLUMES.get(e, 32) * o for m in molecules for e, o in zip(m.elements, m.occupancies))
    volume *= np.clip(rng.normal(0.948, 0.05), 0.83, 1.08) * len(group.operations())
    return Contents(group, volume, [m.elements for m in molecules], xyz, [m.parent for m in molecules], fixed,
                    np.concatenate([m.occupancies for m in molecules]))


def _crystal(rng, contents, cell, fract, name) -> Crystal:
    """The packed crystal in a conventional setting, with displacements."""
    # some crystals are measured near 100 K, more near room temperature
    u_mean = np.clip(rng.normal(*((0.024, 0.006) if rng.random() < 0.4 else (0.047, 0.012))), 0.010, 0.085)  # Å²
    n_heavy = sum(int((np.array(parents) < 0).sum()) for parents in contents.parents)
    spread, u_iso = np.clip(0.215 * (n_heavy / 18) ** 0.45 * np.exp(rng.normal(0, 0.42)), 0.05, 0.7), []
    for elements, xyz, parents in zip(contents.elements, contents.xyz, contents.parents):
        u_iso.append(_displacements(rng, elements, xyz, np.array(parents), u_mean, spread))
    group = contents.spacegroup
    if group.crystal_system_str() == "triclinic":
        reduced = gemmi.GruberVector(cell, group, track_change_of_basis=True)
        reduced.niggli_reduce()
        op = reduced.change_of_basis.inverse()
        cell, fract = reduced.get_cell(), np.array([op.apply_to_xyz(x) for x in fract.tolist()])
    elif cell.beta < 90:  # a and b reversed, which no group in use notices
        a, b, c, alpha, beta, gamma = cell.parameters
        cell, fract = gemmi.UnitCell(a, b, c, alpha, 180 - beta, gamma), fract * [-1, -1, 1]
    elements = tuple(element for symbols in contents.elements for element in symbols)
    return Crystal(name=name, cell=cell, spacegroup=group, elements=elements, fract=fract, u_iso=np.concatenate(u_iso),
                   occ=contents.occ, source="recipe molecules")


def _displacements(rng, elements, xyz, parents, u_mean, spread):
    """(n,) Å²: larger far from the middle of the molecule, as rigid bodies that rock have it; H 1.2 times its parent's."""
    heavy = parents < 0
    r2 = ((xyz - (0 if np.abs(xyz).max(axis=1).min() < 1e-6 else xyz[heavy].mean(axis=0))) ** 2).sum(axis=1)
    z = (r2 - r2[heavy].mean()) / (r2[heavy].std() + 1e-9) if heavy.sum() > 1 else np.zeros(len(xyz))
    u = u_mean * np.clip(1 + spread * z, 0.3, 4) * np.exp(rng.normal(0, 0.06, len(xyz)))
    u *= np.where([e in METALS for e in elements], 0.8, 1.0)
    u = np.maximum(u, 0.006)
    return np.where(heavy, u, 1.2 * u[np.where(heavy, 0, parents)])
