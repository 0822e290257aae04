"""CIF files: what one says and does not say, and folders of them."""

import csv
import os
import re
from collections import Counter
from pathlib import Path

import gemmi
import numpy as np
import pytest

from xrd_helpers import ROOT
from xrd_helpers.cif import (DEFAULT_U, REASONS, CifError, count_fitting, find_cifs, read_cif, read_cif_file,
                             read_cif_folders, read_cifs, set_aside_duplicates, set_aside_unfit, summarise, write_left_out)
from xrd_helpers.crystals import CrystalError
from xrd_helpers.gridding import BOXES

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


@pytest.mark.parametrize("factor, kept", [(1, True), (1e4, False)])
def test_tensors_on_another_scale_than_their_equivalents_are_not_believed(tmp_path, factor, kept):
    """As in COD 2000642, whose tensors are 10⁴ times too large."""
    u = [0.031, 0.052, 0.043, 0.013, -0.007, 0.011]
    names = ("U_11", "U_22", "U_33", "U_12", "U_13", "U_23")
    aniso = "\n".join(["loop_", "_atom_site_aniso_label", *(f"_atom_site_aniso_{name}" for name in names),
                       *(label + " " + " ".join(f"{factor * x:.4f}" for x in u) for label in ("C1", "O1"))]) + "\n"
    crystal = read(tmp_path, cell=TRICLINIC, symbol="P -1", extra=aniso)
    np.testing.assert_allclose(crystal.u_iso, [0.04, 0.05])
    if kept:
        np.testing.assert_allclose(crystal.u_aniso, [u, u])
    else:
        assert crystal.u_aniso is None


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
    small = crystal.small_structure()
    total = gemmi.StructureFactorCalculatorX(small.cell).calculate_sf_from_small_structure(small, [0, 0, 0])
    assert total.real == pytest.approx(expected, rel=1e-6)


def test_a_block_without_atoms_is_passed_over(tmp_path):
    path = tmp_path / "made.cif"
    path.write_text("data_global\n_journal_name_full 'Acta'\n" + cif(symbol="P 21/n"))
    assert read_cif(path).elements == ("C", "O")


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


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path, case):
    content, words, reason = BAD[case]
    path = tmp_path / "broken.cif"
    path.write_bytes(content)
    with pytest.raises(CifError) as caught:
        read_cif(path)
    assert caught.value.reason == reason
    message = str(caught.value)
    assert "broken.cif" in message and words in message and "\n" not in message
    (entry,) = read_cif_file(path)  # among thousands, the same without an exception
    assert (entry.crystal, entry.reason, entry.message) == (None, reason, message)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CrystalError, match="nowhere.cif cannot be read.*No such file"):
        read_cif(tmp_path / "nowhere.cif")


def test_folders_keep_the_good_files(tmp_path):
    """Every kind of bad file among good ones: nothing is lost, each problem names its file."""
    first, second = tmp_path / "b", tmp_path / "a"
    for folder in (first, second):
        folder.mkdir()
    for i, (content, *_) in enumerate(BAD.values()):
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


# --- What else a file may say ---


@pytest.mark.parametrize("tags, expected", [
    ("_space_group_name_Hall '-P 2yn'", "P 1 21/n 1"),
    ("_symmetry_space_group_name_Hall -P_2ybc", "P 1 21/c 1"),       # as one file of COD has it
    ("_space_group_name_Hall '-I 2ya'", "I 1 2/a 1"),
    ("_space_group_IT_number 14", "P 1 21/c 1"),                     # the reference setting
    ("_symmetry_Int_Tables_number 15", "C 1 2/c 1"),
    ("_space_group_name_Hall '-P 2yn'\n_space_group_IT_number 4", "P 1 21/n 1"),
    ("_space_group_name_Hall ?\n_space_group_IT_number 14", "P 1 21/c 1"),
])
def test_hall_symbol_or_number_alone_is_enough(tmp_path, tags, expected):
    assert read(tmp_path, symbol="", extra=tags + "\n").spacegroup.xhm() == expected


def test_the_order_is_operators_then_hall_then_symbol(tmp_path):
    hall = "_space_group_name_Hall '-P 2yn'\n"
    assert read(tmp_path, symbol="P 21/c", extra=hall).spacegroup.xhm() == "P 1 21/n 1"
    assert read(tmp_path, symbol="P 21/n", ops=P21C, extra=hall).spacegroup.xhm() == "P 1 21/c 1"


@pytest.mark.parametrize("symbol, ops, other", [
    ("P 21/c", P21C, False), ("P 21/c", P21N, False),  # the symbol of the type, not of the setting: no contradiction
    ("P 21", P21C, True), ("C 2/c", ["x,y,z"], True), ("", P21N, False),
])
def test_a_symbol_of_another_group_is_noted(tmp_path, symbol, ops, other):
    (tmp_path / "made.cif").write_text(cif(symbol=symbol, ops=ops))
    (entry,) = read_cif_file(tmp_path / "made.cif")
    assert entry.crystal and entry.other_symbol is other


def test_sites_without_u_get_the_default_and_are_counted(tmp_path):
    sites = ["C1 C 0.11 0.22 0.33 0.03 1", "O1 O 0.41 0.27 0.68 ? 1", "N1 N 0.1 0.7 0.2 0 1", "N2 N 0.3 0.7 0.2 -0.02 1"]
    (tmp_path / "made.cif").write_text(cif(sites=sites))
    (entry,) = read_cif_file(tmp_path / "made.cif")
    assert entry.without_u == 3 and DEFAULT_U == 0.05
    np.testing.assert_array_equal(entry.crystal.u_iso, [0.03, 0.05, 0.05, 0.05])
    assert entry.crystal.u_aniso is None


def test_a_tensor_with_a_negative_trace_is_not_kept(tmp_path):
    names = "U_11 U_22 U_33 U_23 U_13 U_12".split()
    aniso = "\n".join(["loop_", "_atom_site_aniso_label", *(f"_atom_site_aniso_{name}" for name in names),
                       "C1 0.01 0.01 -0.05 0 0 0", "O1 0.02 0.03 0.04 0.001 0.002 0.003"]) + "\n"
    crystal = read(tmp_path, cell=TRICLINIC, symbol="P -1", extra=aniso,
                   sites=["C1 C 0.11 0.22 0.33 ? 1", "O1 O 0.41 0.27 0.68 0.05 1"])
    np.testing.assert_array_equal(crystal.u_iso, [0.05, 0.05])
    np.testing.assert_array_equal(crystal.u_aniso, [[0] * 6, [0.02, 0.03, 0.04, 0.003, 0.002, 0.001]])


def with_column(name, values, sites=SITES, **kwargs):
    """A CIF whose atom sites have one column more."""
    text = cif(sites=[f"{site} {value}" for site, value in zip(sites, values, strict=True)], **kwargs)
    return text.replace("_atom_site_occupancy", f"_atom_site_occupancy\n_atom_site_{name}")


THREE = [*SITES, "H1 H 0.3 0.4 0.5 0.06 1"]


@pytest.mark.parametrize("text, words", [
    (cif(sites=[SITES[0], "O1 O 0.41 0.27 0.68 0.05 0.5"]), "O1 has an occupancy of 0.5"),
    (cif(sites=[*SITES, "H1 H 0.3 0.4 0.5 0.06 0.33"]), "H1 has an occupancy of 0.33"),  # hydrogen like every other
    (cif(sites=[*SITES, "O2 O 0.3 0.4 0.5 0.06 2"]), "O2 has an occupancy of 2"),
    (with_column("disorder_group", ["1", "2", "."], THREE), "disorder groups 1, 2"),
    (with_column("disorder_group", [".", ".", "-1"], THREE), "disorder groups -1"),
    (with_column("disorder_group", ["A", "B", "?"], THREE), "disorder groups A, B"),
])
def test_disorder_is_set_aside_unless_it_is_wanted(tmp_path, text, words):
    (tmp_path / "made.cif").write_text(text)
    (entry,) = read_cif_file(tmp_path / "made.cif")
    assert (entry.crystal, entry.reason) == (None, "disorder") and words in entry.message and "made.cif" in entry.message
    (entry,) = read_cif_file(tmp_path / "made.cif", keep_disordered=True)
    assert len(entry.crystal.elements) == text.count(" 0.0") and entry.reason == ""


@pytest.mark.parametrize("text", [
    with_column("disorder_group", ["1", "1", "."], THREE),                       # one group alone, filled
    cif(sites=[*SITES, "O2 O 0.3 0.4 0.5 0.06 0.995"]),                          # 1 within its error
    with_column("disorder_group", ["1", "2", "1"], [SITES[0], "O2 O 0.3 0.4 0.5 0.06 0", SITES[1]]),  # the other is empty
])
def test_what_only_looks_like_disorder_is_kept(tmp_path, text):
    (tmp_path / "made.cif").write_text(text)
    assert read_cif_file(tmp_path / "made.cif")[0].reason == ""


def test_dummy_sites_are_no_atoms(tmp_path):
    sites = [*SITES, "H3 H -1 -1 -1 0.05 4"]
    (tmp_path / "made.cif").write_text(with_column("calc_flag", ["d", "calc", "dum"], sites))
    assert read_cif_file(tmp_path / "made.cif")[0].crystal.elements == ("C", "O")


@pytest.mark.parametrize("formula, reason, occ", [
    ("C2 Fe O", "", [0.5, 1, 0.5]),            # Fe on the centre and O on the axis are full: the file has divided by two
    ("C4 Fe O", "disorder", [0.25, 1, 0.25]),  # half filled: then they are a quarter of a general position
    ("", "disorder", [0.25, 1, 0.25]),         # nothing says so: occupancy as CIF defines it
])
def test_occupancies_that_are_divided_already(tmp_path, formula, reason, occ):
    """C 2/c holds 4 Fe (-1), 8 C and 4 O (2) if all are full: C2 Fe O; half of Fe and O is C4 Fe O."""
    text = cif(symbol="C 2/c", extra=f"_chemical_formula_sum '{formula}'\n" if formula else "",
               sites=["Fe Fe 0 0 0 0.02 0.5", "C1 C 0.11 0.22 0.33 0.04 1", "O1 O 0 0.3 0.25 0.03 0.5"])
    (tmp_path / "made.cif").write_text(text)
    assert read_cif_file(tmp_path / "made.cif")[0].reason == reason
    np.testing.assert_allclose(read_cif(tmp_path / "made.cif").occ, occ)


def test_every_block_with_atoms_is_a_structure(tmp_path):
    path = tmp_path / "two.cif"
    path.write_text("data_global\n_journal_year 2001\n" + cif(symbol="P 21/n").replace("data_made", "data_I")
                    + cif(cell=("?", 6.3, 9.2, 90, 104, 90)).replace("data_made", "data_II")
                    + cif(symbol="P -1", cell=TRICLINIC).replace("data_made", "data_III"))
    entries = read_cif_file(path)
    assert [(e.name, e.reason) for e in entries] == [("two_I", ""), ("two_II", "no cell"), ("two_III", "")]
    assert [e.crystal.spacegroup.xhm() for e in entries if e.crystal] == ["P 1 21/n 1", "P -1"]
    assert entries[0].crystal.name == "two_I" and read_cif(path).name == "two"


# --- Folders of many ---


def test_folders_below_and_upper_case_are_found(tmp_path):
    for name in ("1/00/00/1000000.cif", "1/00/01/1000100.CIF", "a.Cif", "1/.1000.ab12.cif", "readme.txt", "1/odd.cif.bak"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(cif())
    found = ["1/00/00/1000000.cif", "1/00/01/1000100.CIF", "a.Cif"]
    assert find_cifs([tmp_path]) == [tmp_path / name for name in found]
    assert find_cifs([tmp_path, tmp_path / "1"]) == find_cifs([tmp_path])  # no file twice


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_a_file_that_holds_up_the_reader_is_named_and_the_others_are_read(tmp_path):
    """A pipe that nobody writes to is a file whose reading never ends; its process is killed, with all it had in hand."""
    for i in range(70):
        (tmp_path / f"{i:02}.cif").write_text(cif())
    for name in ("05x.cif", "60x.cif"):
        os.mkfifo(tmp_path / name)
    entries = list(read_cifs(find_cifs([tmp_path]), workers=2, seconds=0.7))
    assert sorted(e.name for e in entries) == sorted(p.stem for p in find_cifs([tmp_path]))
    assert {e.name: e.reason for e in entries if not e.crystal} == {name: "stopped the reader" for name in ("05x", "60x")}
    assert all(f"{e.name}.cif: reading it" in e.message for e in entries if not e.crystal)


def test_several_processes_read_what_one_does(tmp_path):
    for i, (content, *_) in enumerate(BAD.values()):
        (tmp_path / f"bad{i:02}.cif").write_bytes(content)
    (tmp_path / "good.cif").write_text(cif(symbol="P 21/c", ops=P21N))
    def told(entries):
        return sorted((e.path, e.reason, e.message, e.crystal and e.crystal.spacegroup.xhm()) for e in entries)
    paths = find_cifs([tmp_path])
    assert told(read_cifs(paths, workers=2)) == told(read_cifs(paths, workers=0))


def entry(folder, name, **kwargs):
    (folder / f"{name}.cif").write_text(cif(**kwargs))
    return read_cif_file(folder / f"{name}.cif")[0]


def transformed(cell, rows):
    """The cell with the axes ``rows`` (3, 3) in terms of the old ones, as the six numbers."""
    a, b, c, *angles = cell
    ca, cb, cg = np.cos(np.radians(angles))
    metric = np.array([[a * a, a * b * cg, a * c * cb], [a * b * cg, b * b, b * c * ca], [a * c * cb, b * c * ca, c * c]])
    metric = np.array(rows) @ metric @ np.transpose(rows)
    lengths = np.sqrt(np.diag(metric))
    cosines = [metric[i, j] / lengths[i] / lengths[j] for i, j in ((1, 2), (0, 2), (0, 1))]
    return (*lengths, *np.degrees(np.arccos(cosines)))


def test_duplicates_are_known_in_any_setting(tmp_path):
    """One lattice on other axes, smaller by 0.7 %, with hydrogen: the same. By 5 %, or with N for O: another."""
    smaller = tuple(np.array(TRICLINIC) * ([0.993] * 3 + [1] * 3))
    larger = tuple(np.array(TRICLINIC) * ([1.05] * 3 + [1] * 3))
    entries = [
        entry(tmp_path, "first", cell=TRICLINIC, symbol="P -1"),
        entry(tmp_path, "axes", cell=transformed(TRICLINIC, [[1, 1, 0], [0, -1, 0], [2, 0, -1]]), symbol="P -1"),
        entry(tmp_path, "cold", cell=smaller, symbol="P -1", sites=THREE),
        entry(tmp_path, "larger", cell=larger, symbol="P -1"),
        entry(tmp_path, "other", cell=TRICLINIC, symbol="P -1", sites=[SITES[0], SITES[1].replace("O1 O", "N1 N")]),
        entry(tmp_path, "C2c", cell=MONOCLINIC, symbol="C 2/c"),
        # I 2/a describes the lattice of C 2/c on a' = -a-c, b' = b, c' = c: (a' + b' + c')/2 is (b - a)/2
        entry(tmp_path, "I2a", cell=transformed(MONOCLINIC, [[-1, 0, -1], [0, 1, 0], [0, 0, 1]]), symbol="I 2/a"),
        entry(tmp_path, "P2c", cell=MONOCLINIC, symbol="P 2/c"),  # same cell and sites, half as many lattice points
    ]
    found = set_aside_duplicates(entries)
    assert {e.name: e.reason for e in found if not e.crystal} == {name: "duplicate" for name in ("axes", "cold", "I2a")}
    assert "axes.cif" in found[1].message and "formula of first" in found[1].message and "first.cif" in found[1].message
    assert [e.name for e in found] == [e.name for e in entries]


def test_duplicates_near_ninety_degrees(tmp_path):
    """The Niggli cell of one is all acute, of the other all obtuse, 0.4° apart: the same crystal measured twice."""
    entries = [entry(tmp_path, name, symbol="P -1", cell=(6.1, 8.3, 11.7, 90 + d, 90 + d, 90 + d))
               for name, d in (("acute", -0.2), ("obtuse", 0.2))]
    assert [e.reason for e in set_aside_duplicates(entries)] == ["", "duplicate"]


def test_what_does_not_fit_the_box_is_set_aside(tmp_path):
    long = (30.0, 6.3, 9.2, 90, 104, 90)  # a / 0.8 Å is 36, the box holds 26
    entries = [entry(tmp_path, "fits"), entry(tmp_path, "long", cell=long),
               entry(tmp_path, "P1", cell=TRICLINIC, symbol="P -1"), entry(tmp_path, "no", symbol="P 99")]
    found = set_aside_unfit(entries, BOXES["monoclinic"], 0.8)
    assert [e.reason for e in found] == ["", "too big for the box", "not of the box", "symmetry"]
    assert "long.cif" in found[1].message and "too long" in found[1].message and "\n" not in found[1].message
    assert count_fitting(entries, 0.8) == {"monoclinic": 1, "orthorhombic": 0, "triclinic": 1}
    assert count_fitting(entries, 2.5)["monoclinic"] == 2


def test_the_table_and_the_list_account_for_every_file(tmp_path):
    sites = ["C1 C 0.11 0.22 0.33 ? 1", "O1 O 0.41 0.27 0.68 ? 1"]
    entries = set_aside_duplicates([
        entry(tmp_path, "a"), entry(tmp_path, "b"), entry(tmp_path, "c", symbol="P 21", ops=P21C, sites=sites),
        entry(tmp_path, "d", symbol="P 99"), entry(tmp_path, "e", sites=["C1 C 0.1 0.2 0.3 0.04 0.5"])])
    rows = dict(summarise(entries))
    assert rows == {"files": 5, "structures in them": 5, "read": 1, "left out: symmetry": 1, "left out: disorder": 1,
                    "left out: duplicate": 2, "read, with sites that got U = 0.05 Å²": 0, "  such sites": 0,
                    "read, with a symbol of another space group": 0}
    rows = dict(summarise(entries[2:3] + [entry(tmp_path, "f", symbol="P 21", ops=P21C, sites=sites)]))
    assert list(rows.values())[-3:] == [1, 2, 1]
    write_left_out(tmp_path / "left_out.csv", entries)
    table = list(csv.DictReader((tmp_path / "left_out.csv").open(encoding="utf-8")))
    assert [(Path(row["path"]).name, row["reason"]) for row in table] == [
        ("b.cif", "duplicate"), ("c.cif", "duplicate"), ("d.cif", "symmetry"), ("e.cif", "disorder")]
    assert all(row["reason"] in REASONS and Path(row["path"]).name in row["message"] for row in table)


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


def test_all_real_files_agree_with_their_formula_and_volume():
    """Every structure is ordered, and holds its atoms in the ratio of the formula that the source states."""
    if not (REAL / "crystals" / "SOURCES.csv").exists():
        pytest.skip(f"{REAL} has no crystals/SOURCES.csv: set XRD_REAL_DATA")
    sources = {}
    for folder in ("crystals", "simple"):
        for row in csv.DictReader((REAL / folder / "SOURCES.csv").open(encoding="utf-8")):
            sources[str(REAL / folder / row["name"])] = row
    entries = list(read_cifs(find_cifs([REAL / "crystals", REAL / "simple"]), workers=0))
    assert [e.message for e in entries if not e.crystal] == [] and len(entries) == len(sources)
    assert sum(e.without_u > 0 for e in entries) == 48
    for e in entries:
        row, c = sources[e.path], e.crystal
        if row.get("volume"):
            assert c.cell.volume == pytest.approx(float(row["volume"]), rel=1e-3), e.path
        formula = {el: float(n or 1) for el, n in re.findall(r"([A-Z][a-z]?)([\d.]*)", row["formula"]) if el not in "HD"}
        content = Counter()
        for element, occ in zip(np.array(c.elements)[c.heavy], c.occ[c.heavy]):
            content[element] += occ / formula[element]
        assert set(content) == set(formula) and max(content.values()) < 1.02 * min(content.values()), e.path
