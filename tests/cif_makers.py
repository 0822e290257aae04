"""CIF files made up for the tests: good ones from a cell and sites, and every kind of bad one."""

import gemmi
import numpy as np

MONOCLINIC = (12.1, 6.3, 9.2, 90, 104, 90)
TRICLINIC = (6.1, 8.3, 11.7, 81, 95, 104)
SITES = ["C1 C 0.11 0.22 0.33 0.04 1", "O1 O 0.41 0.27 0.68 0.05 1"]

# general positions copied from International Tables A
P21N = ["x,y,z", "1/2-x,1/2+y,1/2-z", "-x,-y,-z", "1/2+x,1/2-y,1/2+z"]
P21C = ["x,y,z", "-x,1/2+y,1/2-z", "-x,-y,-z", "x,1/2-y,1/2+z"]
I2A = ["x,y,z", "1/2-x,y,-z", "-x,-y,-z", "1/2+x,-y,z"]
C2C = ["x,y,z", "-x,y,1/2-z", "-x,-y,-z", "x,-y,1/2+z"]
C2 = ["x,y,z", "-x,y,-z"]
BODY, FACE = ["x+1/2", "y+1/2", "z+1/2"], ["x+1/2", "y+1/2", "z"]


def centred(ops, vector):
    """The operators and their copies under a centring vector, as text."""
    return ops + [gemmi.Op(",".join(vector)).combine(gemmi.Op(op)).wrap().triplet() for op in ops]


def cif(cell=MONOCLINIC, symbol="P 21/c", ops=(), sites=SITES, extra=""):
    lines = ["data_made"]
    lines += [f"_cell_{name} {value}" for name, value in zip(
        ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"), cell)]
    if symbol:
        lines += [f"_symmetry_space_group_name_H-M '{symbol}'"]
    if ops:
        lines += ["loop_", "_symmetry_equiv_pos_as_xyz", *(f"'{op}'" for op in ops)]
    lines += ["loop_", *("_atom_site_" + name for name in (
        "label", "type_symbol", "fract_x", "fract_y", "fract_z", "U_iso_or_equiv", "occupancy")), *sites]
    return "\n".join(lines) + "\n" + extra


B_SITES = ("C1 C 0.1 0.2 0.3 3.2 1", "O1 O 0.6 0.4 0.2 2.4 1")
THREE = [*SITES, "H1 H 0.3 0.4 0.5 0.06 1"]

GARBAGE = np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8).tobytes()
BAD = {
    "binary garbage": (GARBAGE, "not a CIF file", "does not parse"),
    "empty": (b"", "no atom sites", "no coordinates"),
    "a block alone": (b"data_x\n", "no atom sites", "no coordinates"),
    "cut off": (cif()[:-10].encode(), "not a CIF file", "does not parse"),
    "no cell": ("\n".join(x for x in cif().splitlines() if "_cell_" not in x).encode(), "unit cell", "no cell"),
    "unknown cell": (cif(("?", 6.3, 9.2, 90, 104, 90)).encode(), "unit cell", "no cell"),
    "angle zero": (cif((12.1, 6.3, 9.2, 90, 0, 90)).encode(), "unit cell", "no cell"),
    "impossible angles": (cif((6.1, 8.3, 11.7, 150, 104, 30), "P -1").encode(), "unit cell", "no cell"),
    "cell against group": (cif((6.1, 8.3, 11.7, 81, 95, 104), "P 21/c").encode(), "P 1 21/c 1", "symmetry"),
    "no sites": (cif(sites=[]).encode(), "no atom sites", "no coordinates"),
    "all sites empty": (cif(sites=["C1 C 0.1 0.2 0.3 0.04 0"]).encode(), "occupied", "no coordinates"),
    "? coordinates": (cif(sites=SITES + ["C7 C ? ? ? 0.04 1"]).encode(), "C7 has no coordinates", "no coordinates"),
    "half of the coordinates": (cif(sites=SITES + ["C7 C 0.1 0.2 . 0.04 1"]).encode(), "C7 has no", "no coordinates"),
    "unknown element": (cif(sites=SITES + ["Qq7 Qq 0.3 0.3 0.3 0.04 1"]).encode(), "Qq7", "unknown element"),
    "no form factor": (cif(sites=SITES + ["Lr1 Lr 0.3 0.3 0.3 0.04 1"]).encode(), "Lr1", "unknown element"),
    "B in place of U": (cif(sites=B_SITES).encode(), "B = 8π²U", "displacements"),
    "a label in Latin-1": (cif(sites=["'Cé' Qq 0.1 0.2 0.3 0.04 1"]).encode("latin-1"), "codec", "does not parse"),
    "operator of two parts": (cif(ops=["x,y,z", "-x,-y"]).encode(), "operator", "symmetry"),
    "operator that is a word": (cif(ops=["x,y,z", "inversion"]).encode(), "operator", "symmetry"),
    "operator with 1/7": (cif(ops=["x,y,z", "x+1/7,-y,z"]).encode(), "operator", "symmetry"),
    "one operator unknown": (cif(ops=["x,y,z", "?"]).encode(), "operator", "symmetry"),
    "operators of no group": (cif(ops=["x,y,z", "-z,-x,y"]).encode(), "operators form no space group", "symmetry"),
    "unknown symbol": (cif(symbol="P 99").encode(), "P 99", "symmetry"),
    "no symmetry": (cif(symbol="").encode(), "space group", "symmetry"),
}
