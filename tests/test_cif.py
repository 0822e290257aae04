"""CIF files: what one says and does not say, and folders of them."""

import os
from pathlib import Path

import gemmi
import numpy as np
import pytest

from xrd_helpers import ROOT
from xrd_helpers.cif import read_cif, read_cif_folders
from xrd_helpers.crystals import CrystalError

REAL = Path(os.environ.get("XRD_REAL_DATA") or ROOT.parent / "shared" / "data")
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


def read(tmp_path, *args, **kwargs):
    path = tmp_path / "made.cif"
    path.write_text(cif(*args, **kwargs), encoding="utf-8")
    return read_cif(path)


def gemmi_sf(crystal, hkl):
    small = crystal.small_structure()
    direct = gemmi.StructureFactorCalculatorX(small.cell)
    return np.array([direct.calculate_sf_from_small_structure(small, list(map(int, h))) for h in hkl])


def images(crystal):
    """Every operator applied to every atom: (g, n, 3)."""
    return np.array([[op.apply_to_xyz(list(x)) for x in crystal.fract] for op in crystal.spacegroup.operations()])


def some_hkl(n=40, seed=0):
    return np.random.default_rng(seed).integers(-7, 8, (n, 3))


def test_numbers_are_those_of_the_file(tmp_path):
    crystal = read(tmp_path, cell=("6.100(2)", "8.30", 11.7, 81, 95, 104), symbol="P -1",
                   sites=["C1 C 0.11(3) 0.22 -0.33 0.040(1) 1", "Na Na1+ 1.41 0.27 0.68 0.05 0.75"])
    assert crystal.name == "made" and crystal.source == "made.cif" and crystal.spacegroup.hm == "P -1"
    assert crystal.cell.parameters == TRICLINIC
    assert crystal.elements == ("C", "Na")
    np.testing.assert_array_equal(crystal.fract, [[0.11, 0.22, -0.33], [1.41, 0.27, 0.68]])
    np.testing.assert_array_equal(crystal.u_iso, [0.04, 0.05])
    np.testing.assert_array_equal(crystal.occ, [1, 0.75])


@pytest.mark.parametrize("symbol, ops, expected", [
    ("P 21/n", [], "P 1 21/n 1"), ("I 2/a", [], "I 1 2/a 1"), ("P 1 21/a 1", [], "P 1 21/a 1"),
    ("P 21/c", P21N, "P 1 21/n 1"),                  # the symbol names the type, the operators the setting
    ("C 2/c", centred(I2A, BODY), "I 1 2/a 1"),
    ("P 21/c", P21C, "P 1 21/c 1"),
    ("", P21N, "P 1 21/n 1"),                        # no symbol
    ("P2~1~/n", P21N, "P 1 21/n 1"),                 # a symbol as a typesetter writes it
    ("P 21/n", ["?"], "P 1 21/n 1"),                 # no operators
    ("C 2/c", C2C, "C 1 2/c 1"),                     # centring left out: C2C alone is P 2/c
    ("I 2/a", I2A, "I 1 2/a 1"),                     # I2A alone is P 2/a
    ("C 2/c", C2C + C2C, "C 1 2/c 1"),               # every operator twice instead
    ("P 2/c", C2C, "P 1 2/c 1"),
    ("C 2/c", centred(C2, FACE), "C 1 2 1"),         # complete as it stands: a smaller group than the symbol's
    ("C 2/c", ["x,y,z"], "P 1"),
    ("P 21/c", P21C[:3], "P 1 21/c 1"),              # one forgotten: no group as it stands
])
def test_space_group_and_setting(tmp_path, symbol, ops, expected):
    crystal = read(tmp_path, symbol=symbol, ops=ops)
    assert crystal.spacegroup.xhm() == expected
    if len(ops) > 1:  # every listed operator is one of the group
        group = {op.triplet() for op in crystal.spacegroup.operations()}
        assert {gemmi.Op(op).wrap().triplet() for op in ops} <= group


B_SITES = ("C1 C 0.1 0.2 0.3 3.2 1", "O1 O 0.6 0.4 0.2 2.4 1")


def test_b_in_the_column_of_u_is_converted_where_the_file_says_so(tmp_path):
    text = cif(sites=[f"{site} Biso" for site in B_SITES]).replace(
        "_atom_site_occupancy", "_atom_site_occupancy\n_atom_site_adp_type")
    (tmp_path / "b.cif").write_text(text)
    assert read_cif(tmp_path / "b.cif").u_iso == pytest.approx([0.040528, 0.030396], rel=1e-4)  # B / 78.957


def test_displacements_that_no_crystal_has_are_refused(tmp_path):
    with pytest.raises(CrystalError, match=r"made.cif: half .* above 2.80 Å².*B = 8π²U"):
        read(tmp_path, sites=B_SITES)


def test_anisotropic_displacements_alone_give_their_equivalent(tmp_path):
    """U_eq = Σ_ij U_ij a*_i a*_j a_i·a_j / 3 (Fischer & Tillmanns, 1988), written out for a triclinic cell."""
    u = dict(U_11=0.031, U_22=0.052, U_33=0.043, U_23=0.011, U_13=-0.007, U_12=0.013)
    aniso = "\n".join(["loop_", "_atom_site_aniso_label", *(f"_atom_site_aniso_{name}" for name in u),
                       "C1 " + " ".join(map(str, u.values())), "O1 " + " ".join(map(str, u.values()))]) + "\n"
    crystal = read(tmp_path, cell=TRICLINIC, symbol="P -1", extra=aniso,
                   sites=["C1 C 0.11 0.22 0.33 ? 1", "O1 O 0.41 0.27 0.68 0.05 1"])
    a, b, c, *angles = TRICLINIC
    (ca, cb, cg), (sa, sb, sg) = np.cos(np.radians(angles)), np.sin(np.radians(angles))
    v = np.sqrt(1 - ca**2 - cb**2 - cg**2 + 2 * ca * cb * cg)
    aa, bb, cc = sa / v, sb / v, sg / v  # a a*, b b*, c c*
    expected = (u["U_11"] * aa**2 + u["U_22"] * bb**2 + u["U_33"] * cc**2 + 2 * u["U_23"] * bb * cc * ca
                + 2 * u["U_13"] * aa * cc * cb + 2 * u["U_12"] * aa * bb * cg) / 3
    assert crystal.u_iso[0] == pytest.approx(expected, rel=1e-10)
    assert abs(expected - (0.031 + 0.052 + 0.043) / 3) > 0.001  # not the mean of the diagonal
    assert crystal.u_iso[1] == 0.05                             # the file's own value goes first


def test_occupancy_is_divided_by_the_operators_that_keep_the_site(tmp_path):
    """C 2/c: the inversion centre (0, 0, 0), the twofold axis (0, y, 1/4), and general positions."""
    sites = ["Fe Fe 0 0 0 0.02 1", "O1 O 0 0.3 0.25 0.03 0.8", "C1 C 0.11 0.22 0.33 0.04 0.6",
             "C2 C 0.14 0.24 0.31 0.04 0.4", "N1 N 0.3 0.1 0.2 0.04 0", "S1 S 0.25 0.25 0 0.04 1"]
    crystal = read(tmp_path, symbol="C 2/c", sites=sites)
    assert crystal.elements == ("Fe", "O", "C", "C", "S")  # both sites of the disorder, none that is empty
    # 1/4, 1/4, 0 is an inversion centre too, through the centring
    np.testing.assert_allclose(crystal.occ, [0.5, 0.4, 0.6, 0.4, 0.5], atol=1e-6)
    # so that a sum over all operators counts 4 Fe, 8 · 0.4 O, 8 C and 4 S
    expected = sum(8 * occ * gemmi.Element(e).it92.calculate_sf(stol2=0)
                   for e, occ in zip("Fe O C C S".split(), [0.5, 0.4, 0.6, 0.4, 0.5]))
    assert gemmi_sf(crystal, [(0, 0, 0)])[0].real == pytest.approx(expected, rel=1e-6)


def test_a_block_without_atoms_is_passed_over(tmp_path):
    path = tmp_path / "made.cif"
    path.write_text("data_global\n_journal_name_full 'Acta'\n" + cif(symbol="P 21/n"))
    assert read_cif(path).elements == ("C", "O")


GARBAGE = np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8).tobytes()
BAD = {
    "binary garbage": (GARBAGE, "not a CIF file"),
    "empty": (b"", "no atom sites"),
    "a block alone": (b"data_x\n", "no atom sites"),
    "cut off": (cif()[:-10].encode(), "not a CIF file"),
    "no cell": ("\n".join(x for x in cif().splitlines() if "_cell_" not in x).encode(), "unit cell"),
    "unknown cell": (cif(("?", 6.3, 9.2, 90, 104, 90)).encode(), "unit cell"),
    "angle zero": (cif((12.1, 6.3, 9.2, 90, 0, 90)).encode(), "unit cell"),
    "impossible angles": (cif((6.1, 8.3, 11.7, 150, 104, 30), "P -1").encode(), "unit cell"),
    "cell against group": (cif((6.1, 8.3, 11.7, 81, 95, 104), "P 21/c").encode(), "P 1 21/c 1"),
    "no sites": (cif(sites=[]).encode(), "no atom sites"),
    "all sites empty": (cif(sites=["C1 C 0.1 0.2 0.3 0.04 0"]).encode(), "occupied"),
    "? coordinates": (cif(sites=SITES + ["C7 C ? ? ? 0.04 1"]).encode(), "C7 has no coordinates"),
    "half of the coordinates": (cif(sites=SITES + ["C7 C 0.1 0.2 . 0.04 1"]).encode(), "C7 has no coordinates"),
    "unknown element": (cif(sites=SITES + ["Qq7 Qq 0.3 0.3 0.3 0.04 1"]).encode(), "Qq7"),
    "operator of two parts": (cif(ops=["x,y,z", "-x,-y"]).encode(), "operator"),
    "operator that is a word": (cif(ops=["x,y,z", "inversion"]).encode(), "operator"),
    "operator with 1/7": (cif(ops=["x,y,z", "x+1/7,-y,z"]).encode(), "operator"),
    "one operator unknown": (cif(ops=["x,y,z", "?"]).encode(), "operator"),
    "operators of no group": (cif(ops=["x,y,z", "-z,-x,y"]).encode(), "operators form no space group"),
    "unknown symbol": (cif(symbol="P 99").encode(), "P 99"),
    "no symmetry": (cif(symbol="").encode(), "space group"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path, case):
    content, words = BAD[case]
    path = tmp_path / "broken.cif"
    path.write_bytes(content)
    with pytest.raises(CrystalError) as caught:
        read_cif(path)
    message = str(caught.value)
    assert "broken.cif" in message and words in message and "\n" not in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CrystalError, match="nowhere.cif cannot be read.*No such file"):
        read_cif(tmp_path / "nowhere.cif")


def test_folders_keep_the_good_files(tmp_path):
    """Every kind of bad file among good ones: nothing is lost, each problem names its file."""
    first, second = tmp_path / "b", tmp_path / "a"
    for folder in (first, second):
        folder.mkdir()
    for i, (content, _) in enumerate(BAD.values()):
        (first / f"bad{i:02}.cif").write_bytes(content)
    for path in (first / "aa.cif", first / "zz.cif", second / "mm.cif"):
        path.write_text(cif())
    (first / "notes.txt").write_text("no crystal")
    crystals, problems = read_cif_folders([first, second])
    assert [c.name for c in crystals] == ["aa", "zz", "mm"]
    assert len(problems) == len(BAD)
    assert all(f"bad{i:02}.cif" in problem for i, problem in enumerate(problems))


def test_folders_that_are_missing_or_empty(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "x.cif").write_text(cif())
    (tmp_path / "empty").mkdir()
    for name, words in (("absent", "no folder"), ("empty", "no .cif file")):
        with pytest.raises(CrystalError, match=rf"{name}, which .*{words}"):
            read_cif_folders([tmp_path / "good", tmp_path / name])
    assert read_cif_folders([]) == ([], [])


def test_all_real_files_can_be_read():
    folders = [REAL / "crystals", REAL / "simple"]
    if not all(folder.is_dir() for folder in folders):
        pytest.skip(f"{REAL} has no crystals/ and simple/: set XRD_REAL_DATA")
    crystals, problems = read_cif_folders(folders)
    assert problems == []
    assert len(crystals) == sum(len(list(folder.glob("*.cif"))) for folder in folders) > 300
    # COD 1000003 lists 0.63-1.40 in the column of U, of type Biso
    assert max(np.median(c.u_iso) for c in crystals) < 0.25
    for c in crystals:
        assert np.isfinite(c.fract).all() and np.isfinite(c.u_iso).all() and (c.occ > 0).all()
        assert c.cell.is_compatible_with_spacegroup(c.spacegroup)
