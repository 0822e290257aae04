"""What several test files make: crystals, amplitudes that our code did not calculate, tiny notebooks."""

import os
from pathlib import Path

import gemmi
import numpy as np

from xrd_helpers import ROOT
from xrd_helpers.crystals import Crystal
from xrd_helpers.reflections import Reflections, unique_hkl
from xrd_helpers.structure_factors import structure_factors

REAL = Path(os.environ.get("XRD_REAL_DATA") or ROOT.parent / "shared" / "data")
"""Real crystals and measured data that cannot be shipped: crystals/, simple/ and measured/. Who needs them skips without."""

TRICLINIC = (6.1, 8.3, 11.7, 81, 95, 104)
MONOCLINIC = (12.1, 6.3, 9.2, 90, 104, 90)


def make_crystal(elements, spacegroup="P -1", cell=TRICLINIC, fract=None, *, u=0.03, occ=1.0, seed=0, name="made"):
    """A crystal with atoms where `fract` (n, 3) says, or in general positions drawn with the seed.

    ``u`` (Å²) and ``occ`` are a number, one for each atom, or a tuple (low, high) to draw from, after the positions.
    """
    rng, n = np.random.default_rng(seed), len(elements)
    fract = rng.random((n, 3)) if fract is None else np.array(fract, float)
    u, occ = (rng.uniform(*x, n) if isinstance(x, tuple) else np.broadcast_to(x, n).astype(float) for x in (u, occ))
    cell = cell if isinstance(cell, gemmi.UnitCell) else gemmi.UnitCell(*cell)
    return Crystal(name, cell, gemmi.SpaceGroup(spacegroup), tuple(elements), fract, u, occ)


CELLS = {"P 1": (5.1, 6.3, 7.7, 81, 95, 104), "P -1": (6.1, 7.3, 8.7, 81, 95, 104),
         "P 1 21 1": (6.1, 8.3, 6.2, 90, 103, 90), "P 1 21/c 1": (7.3, 9.1, 8.4, 90, 111, 90),
         "C 1 2 1": (12.1, 6.3, 7.2, 90, 108, 90), "C 1 c 1": (12.3, 6.1, 9.4, 90, 107, 90)}  # of crystals to phase


def random_crystal(name, n_atoms=7, seed=3):
    """A crystal in one of CELLS: atoms at least 1.5 Å apart, images included, in general positions."""
    cell, spacegroup = gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name)
    rng, fract = np.random.default_rng(seed), []
    while len(fract) < n_atoms:
        x = rng.random(3)
        images = [np.array(op.apply_to_xyz(list(y))) for op in spacegroup.operations() for y in [*fract, x]]
        vectors = [(x - y + 0.5) % 1 - 0.5 for y in images]
        lengths = sorted(cell.orthogonalize(gemmi.Fractional(*v)).length() for v in vectors)
        if min(lengths[1:], default=9) > 1.5:  # the shortest is the atom itself
            fract.append(x)
    return make_crystal("SOONCCC"[:n_atoms], name, cell, fract, u=np.linspace(0.02, 0.06, n_atoms), name=name)


def reflections_of(crystal, d_min):
    """Reflections with the exact amplitudes of a crystal, each known to 2 %."""
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
    F = np.abs(structure_factors(crystal, hkl))
    return Reflections(hkl, F, 0.02 * F, crystal.cell, crystal.spacegroup)


def direct_sum(crystal, hkl):
    """Complex structure factors (n,) in electrons at hkl (n, 3), by gemmi's direct summation."""
    small = crystal.small_structure()
    calculator = gemmi.StructureFactorCalculatorX(small.cell)  # with the images that symmetry makes
    return np.array([calculator.calculate_sf_from_small_structure(small, h) for h in np.asarray(hkl).tolist()])


# --- notebooks ---

PARAMETERS = """seed = 0            # draws follow from it
d_input = 1.5       # Å
n_grid = [8, 8, 8]  # voxels
device = "cpu"
cif_dirs = []
shuffle = True"""


def make_notebook(folder, name, *cells, parameters=PARAMETERS):
    """Write a clean notebook `folder`/`name`.ipynb: title, parameters cell, then `cells` of code."""
    import nbformat  # half a second that most tests need not wait for

    v4 = nbformat.v4
    nb = v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    nb.cells = [v4.new_markdown_cell(f"# {name[:2]} A title"), v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    nb.cells += [v4.new_code_cell(source) for source in cells]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"
