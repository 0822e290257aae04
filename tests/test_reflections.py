"""Reflections: expansion to P1 against direct summation, SHELX files against the format and gemmi's symmetry."""

import csv
import os
import re
from pathlib import Path

import gemmi
import numpy as np
import pytest

from xrd_helpers import ROOT
from xrd_helpers import reflections as refl
from xrd_helpers.config import UserError
from xrd_helpers.reflections import Measured, look_like_amplitudes, read_measured, unique_hkl

CELLS = {"P 1": (6.1, 8.3, 11.7, 81, 95, 104), "P -1": (6.1, 8.3, 11.7, 81, 95, 104),
         "P 1 21 1": (7.1, 9.3, 6.2, 90, 103, 90), "C 1 2 1": (12.1, 6.3, 7.2, 90, 108, 90),
         "P 1 21/c 1": (7.3, 9.1, 8.4, 90, 111, 90), "P 1 21/n 1": (7.3, 9.1, 8.4, 90, 99, 90),
         "I 1 2/a 1": (11.3, 5.1, 9.4, 90, 97, 90), "C 1 2/c 1": (12.3, 6.1, 9.4, 90, 107, 90)}


def brute_force(hkl, fract, weights, spacegroup):
    """F(h) = Σ_ops Σ_atoms w exp(2πi h·(R x + t)), over all operators, centring included: (n,) complex."""
    sf = np.zeros(len(hkl), complex)
    for op in spacegroup.operations():
        for x, w in zip(fract, weights):
            sf += w * np.exp(2j * np.pi * (hkl @ np.array(op.apply_to_xyz(list(x)))))
    return sf


@pytest.mark.parametrize("name", CELLS)
def test_expansion_agrees_with_direct_summation_on_the_whole_sphere(name):
    cell, spacegroup = gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name)
    rng = np.random.default_rng(1)
    fract, weights = rng.random((3, 3)), [3.0, 1.0, 2.0]
    hkl = refl.unique_hkl(cell, spacegroup, 1.2)
    p1 = refl.expand_to_p1(hkl, spacegroup)
    sf = p1.structure_factors(brute_force(hkl, fract, weights, spacegroup))
    np.testing.assert_allclose(sf, brute_force(p1.hkl, fract, weights, spacegroup), atol=1e-9)
    # every reflection of the sphere once, except the systematic absences
    sphere = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), 1.2)
    absent = spacegroup.operations().systematic_absences(sphere)
    sphere = sphere[~absent]
    expected = {tuple(h) for h in np.concatenate([sphere, -sphere])}
    assert {tuple(h) for h in p1.hkl} == expected and len(p1.hkl) == len(expected)


def test_table_refuses_what_is_not_merged():
    cell, spacegroup = gemmi.UnitCell(*CELLS["P -1"]), gemmi.SpaceGroup("P -1")
    for hkl, F in [([[1, 0, 0], [1, 0, 0]], [1, 1]), ([[0, 0, 0]], [1]), ([[1, 0, 0]], [-1]), ([[1, 0, 0]], [np.nan])]:
        with pytest.raises(refl.ReflectionError):
            refl.Reflections(np.array(hkl), np.array(F, float), np.ones(len(F)), cell, spacegroup)


def test_d_is_that_of_the_cell():
    cell = gemmi.UnitCell(*CELLS["P -1"])
    table = refl.Reflections(np.array([[1, -2, 3]]), [1.0], [0.1], cell, gemmi.SpaceGroup("P -1"))
    star = np.linalg.inv(np.array(cell.orth.mat.tolist()))
    assert table.d[0] == pytest.approx(1 / np.linalg.norm(np.array([1, -2, 3]) @ star), rel=1e-12)


@pytest.mark.parametrize("name, latt, symm", [  # the SHELX manual's tables, written out by hand
    ("P 1", -1, []), ("P -1", 1, []), ("P 1 21 1", -1, ["-X, 0.5+Y, -Z"]),
    ("P 1 21/c 1", 1, ["-X, 0.5+Y, 0.5-Z"]), ("C 1 2 1", -7, ["-X, Y, -Z"]), ("C 1 2/c 1", 7, ["-X, Y, 0.5-Z"]),
    ("C 1 c 1", -7, ["X, -Y, 0.5+Z"]), ("P 31", -1, ["-Y, X-Y, 2/6+Z", "-X+Y, -X, 4/6+Z"]),
    ("P 21 21 21", -1, ["0.5-X, -Y, 0.5+Z", "-X, 0.5+Y, 0.5-Z", "0.5+X, 0.5-Y, -Z"])])
def test_shelx_symmetry(name, latt, symm):
    found = refl.shelx_symmetry(gemmi.SpaceGroup(name))
    assert found[0] == latt and sorted(found[1]) == sorted(symm)


@pytest.mark.parametrize("name", [sg.xhm() for sg in gemmi.spacegroup_table_itb()][::3])
def test_shelx_symmetry_generates_the_group(name):
    spacegroup = gemmi.SpaceGroup(name)
    try:
        latt, symm = refl.shelx_symmetry(spacegroup)
    except refl.ReflectionError as error:
        assert "origin choice 2" in str(error) or "LATT" in str(error)
        return
    ops = [gemmi.Op("x,y,z")] + [gemmi.Op(s.lower().replace(" ", "")) for s in symm]
    if latt > 0:
        ops += [gemmi.Op("-x,-y,-z").combine(op).wrap() for op in ops]
    ops = [op.translated(list(c)).wrap() for op in ops for c in spacegroup.operations().cen_ops]
    assert len(ops) == len(spacegroup.operations())
    assert {op.triplet() for op in ops} == {op.triplet() for op in spacegroup.operations()}


@pytest.fixture
def table():
    cell, spacegroup = gemmi.UnitCell(*CELLS["P 1 21/c 1"]), gemmi.SpaceGroup("P 1 21/c 1")
    hkl = refl.unique_hkl(cell, spacegroup, 1.0)
    F = 5 + 200 * np.random.default_rng(2).random(len(hkl))
    return refl.Reflections(hkl, F, 0.02 * F, cell, spacegroup)


def test_shelx_files_read_back(table, tmp_path):
    refl.write_shelx(tmp_path / "job", table, ["O", "C", "C", "H"], title="a test")
    lines = (tmp_path / "job.ins").read_text().splitlines()
    assert lines[0] == "TITL a test"
    assert lines[1] == "CELL 0.71073 7.3000 9.1000 8.4000 90.000 111.000 90.000"
    assert lines[2] == "ZERR 4 0.001 0.001 0.001 0.000 0.010 0.000"
    assert lines[3:] == ["LATT 1", "SYMM -X, 0.5+Y, 0.5-Z", "SFAC C H O", "UNIT 8 4 4", "HKLF 4", "END"]
    records = (tmp_path / "job.hkl").read_text().splitlines()
    assert all(len(record) == 32 for record in records) and len(records) == len(table) + 1
    assert records[-1] == "   0   0   0    0.00    0.00   0"
    back = refl.read_shelx_hkl(tmp_path / "job.hkl", table.cell, table.spacegroup)
    order = {tuple(h): i for i, h in enumerate(back.hkl)}
    rows = [order[tuple(h)] for h in table.hkl]
    scale = np.sqrt(9999.0) / table.F.max()
    np.testing.assert_allclose(back.F[rows] ** 2, (table.F * scale) ** 2, atol=0.0051)
    np.testing.assert_allclose(back.sigF[rows], 0.02 * table.F * scale, rtol=0.03, atol=0.01)


def test_sigma_is_never_written_as_zero(table, tmp_path):
    refl.write_shelx(tmp_path / "job", refl.Reflections(table.hkl, table.F, 0 * table.F, table.cell, table.spacegroup),
                     ["C"])
    assert refl.read_shelx_records(tmp_path / "job.hkl")[2].min() >= 0.01


def test_merging_weights_equivalents(tmp_path):
    # P21/c: (1 2 3) and (-1 2 -3) are equivalent, and their Friedel mates; F² 100 ± 1 and 110 ± 2
    cell, spacegroup = gemmi.UnitCell(*CELLS["P 1 21/c 1"]), gemmi.SpaceGroup("P 1 21/c 1")
    merged = refl.merge([[1, 2, 3], [-1, 2, -3], [2, 1, 1]], [100, 110, -3], [1, 2, 1], cell, spacegroup)
    by_F = sorted(zip(merged.F, merged.sigF))
    assert len(merged) == 2 and by_F[0] == (0.0, 1.0)
    assert by_F[1][0] ** 2 == pytest.approx((100 / 1 + 110 / 4) / (1 + 1 / 4))


def test_hklf_3_holds_amplitudes(tmp_path):
    (tmp_path / "a.hkl").write_text("   1   2   3   12.00    0.10   1\n   0   0   0    0.00    0.00   0\n")
    cell, spacegroup = gemmi.UnitCell(*CELLS["P -1"]), gemmi.SpaceGroup("P -1")
    assert refl.read_shelx_hkl(tmp_path / "a.hkl", cell, spacegroup, hklf=3).F[0] == pytest.approx(12)
    assert refl.read_shelx_hkl(tmp_path / "a.hkl", cell, spacegroup).F[0] == pytest.approx(12**0.5)


def test_fortran_numbers_without_a_point_have_two_decimals(tmp_path):
    (tmp_path / "a.hkl").write_text("   1   2   3    1200      10\n")
    assert refl.read_shelx_records(tmp_path / "a.hkl")[1:] == (12.0, 0.1)


@pytest.mark.parametrize("line", ["   1   2", "   1   2   x   12.00    0.10", "   1   2   3     nan    0.10"])
def test_a_malformed_line_is_named(tmp_path, line):
    path = tmp_path / "bad.hkl"
    path.write_text("   1   2   3   12.00    0.10   1\n" + line + "\n")
    with pytest.raises(refl.ReflectionError, match="bad.hkl, line 2"):
        refl.read_shelx_records(path)


# --- files of measured reflections ---

REAL = Path(os.environ.get("XRD_REAL_DATA", ROOT / "../shared/data")) / "measured"
CELL = "10.1 6.2 8.3 90 99 90"
INS = f"""TITL made
CELL 1.54178 {CELL}
ZERR 4 0.001 0.001 0.001 0 0.01 0
LATT 1
SYMM 0.5-X, 0.5+Y, 0.5-Z
SFAC C H N =
  O
UNIT 16 20 4 8
REM SYMM is what this line does not mean
HKLF 4
END
SYMM x, y, z
"""
CIF_CELL = "".join(f"_cell_{name} {x}\n" for name, x in zip(
    ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"), CELL.split()))
CIF_HEAD = (f"data_a\n{CIF_CELL}_chemical_formula_sum 'C4 H5 N O2'\n_cell_formula_units_Z 4\n"
            "_diffrn_radiation_wavelength 1.54178\n"
            "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n'-x+1/2, y+1/2, -z+1/2'\n-x,-y,-z\n'x+1/2, -y+1/2, z+1/2'\n")
# equivalents: (1 2 3) and (-1 2 -3), and Friedel's mate; a negative one, and a zero with its uncertainty
ROWS = [(1, 2, 3, 121.0, 2.0), (-1, 2, -3, 100.0, 4.0), (2, 0, 0, 49.0, 1.0), (0, 1, 1, -0.5, 0.4), (3, 1, -1, 16.0, 0.5)]


def shelx_text(rows=ROWS):
    return "".join("%4d%4d%4d%8.2f%8.2f   1\n" % row for row in rows) + "   0   0   0    0.00    0.00   0\n"


def loop(*columns, rows=ROWS):
    return "loop_\n" + "".join(column + "\n" for column in columns) + "".join(" ".join(map(str, r)) + "\n" for r in rows)


def hkl_of(prefix):
    return [prefix + "index_" + x for x in "hkl"]


def mtz_file(path, columns, rows):
    mtz = gemmi.Mtz(with_base=True)
    mtz.cell, mtz.spacegroup = gemmi.UnitCell(*map(float, CELL.split())), gemmi.SpaceGroup("P 1 21/n 1")
    mtz.add_dataset("a").wavelength = 1.54178
    for label, kind in columns:
        mtz.add_column(label, kind)
    mtz.set_data(np.array(rows, np.float32))
    mtz.write_to_file(str(path))


def check_made(measured, elements=True):
    assert measured.spacegroup.xhm() == "P 1 21/n 1" and measured.wavelength == pytest.approx(1.54178)
    assert measured.cell.parameters == pytest.approx([float(x) for x in CELL.split()], abs=1e-4)
    assert measured.elements == ({"O": 2, "N": 1, "C": 4, "H": 5} if elements else {})
    assert [tuple(h) for h in measured.hkl] == [row[:3] for row in ROWS]
    np.testing.assert_allclose(measured.intensity, [row[3] for row in ROWS], rtol=1e-5)
    np.testing.assert_allclose(measured.sigma, [row[4] for row in ROWS], rtol=1e-5)
    merged = measured.merge()
    assert len(merged) == 4 and merged.F.max() ** 2 == pytest.approx((121 / 4 + 100 / 16) / (1 / 4 + 1 / 16), rel=1e-4)


CIFS = {
    "F²": CIF_HEAD + loop(*hkl_of("_refln_"), "_refln_F_squared_meas", "_refln_F_squared_sigma"),
    "flags": CIF_HEAD + loop(*hkl_of("_refln_"), "_refln_F_squared_calc", "_refln_F_squared_meas", "_refln_F_squared_sigma",
                             "_refln_observed_status", rows=[(*r[:3], 7, *r[3:], "o") for r in ROWS]
                             + [(5, 1, 1, 7, 99, 1, "x"), (6, 1, 1, 7, "?", ".", "o")]),
    "raw": CIF_HEAD + loop(*hkl_of("_diffrn_refln_"), "_diffrn_refln_intensity_net", "_diffrn_refln_intensity_u"),
    "text": CIF_HEAD + "_shelx_hkl_file\n;\n" + shelx_text() + " _comment after the end\n;\n",
    "two blocks": CIF_HEAD + "data_b\n" + loop(*hkl_of("_refln_"), "_refln_intensity_meas", "_refln_intensity_sigma")}


@pytest.mark.parametrize("kind", CIFS)
def test_reflection_cifs(kind, tmp_path):
    path = tmp_path / "a.fcf"
    path.write_text(CIFS[kind])
    check_made(refl.read_measured(path))
    path.rename(tmp_path / "a.hkl")  # the COD gives them this name
    check_made(refl.read_measured(tmp_path / "a.hkl"))


def test_shelx_reflections_with_their_ins(tmp_path):
    (tmp_path / "a.hkl").write_text(shelx_text())
    with pytest.raises(refl.ReflectionError, match="a.hkl holds no cell or no symmetry: put the .ins"):
        refl.read_measured(tmp_path / "a.hkl")
    (tmp_path / "a.cif").write_text(CIF_HEAD)
    check_made(refl.read_measured(tmp_path / "a.hkl"))
    (tmp_path / "other.ins").write_text(INS)
    measured = refl.read_measured(tmp_path / "a.hkl", tmp_path / "other.ins")
    check_made(measured)
    assert measured.files == (tmp_path / "a.hkl", tmp_path / "other.ins")
    (tmp_path / "other.ins").rename(tmp_path / "a.ins")
    check_made(refl.read_measured(tmp_path / "a.ins"))


def test_amplitudes_are_squared_with_their_uncertainty(tmp_path):
    (tmp_path / "a.hkl").write_text(shelx_text([(1, 2, 3, 11.0, 0.5), (2, 0, 0, 0.0, 3.0)]))
    (tmp_path / "a.ins").write_text(INS.replace("HKLF 4", "HKLF 3"))
    (tmp_path / "b.cif").write_text(CIF_HEAD + loop(*hkl_of("_refln_"), "_refln_F_meas", "_refln_F_sigma",
                                                    rows=[(1, 2, 3, "11.0", 0.5), (2, 0, 0, 0, 3)]))
    mtz_file(tmp_path / "c.mtz", [("FC", "F"), ("FP", "F"), ("SIGFP", "Q")], [(1, 2, 3, 8, 11, 0.5), (2, 0, 0, 8, 0, 3)])
    for name in ("a.hkl", "b.cif", "c.mtz"):
        measured = refl.read_measured(tmp_path / name)
        assert measured.intensity.tolist() == [121, 0] and measured.sigma.tolist() == [11, 9], name  # 2 F σ, or σ² at zero


def test_mtz(tmp_path):
    mtz_file(tmp_path / "a.mtz", [("I", "J"), ("SIGI", "Q")], [*ROWS, (4, 4, 4, np.nan, np.nan)])
    check_made(refl.read_measured(tmp_path / "a.mtz"), elements=False)
    (tmp_path / "a.cif").write_text(CIF_HEAD)
    check_made(refl.read_measured(tmp_path / "a.mtz"))
    mtz_file(tmp_path / "b.mtz", [("I(+)", "K"), ("SIGI(+)", "M"), ("I(-)", "K"), ("SIGI(-)", "M")],
             [(1, 2, 3, 121, 2, 100, 4), (2, 0, 0, 49, 1, np.nan, np.nan)])
    merged = refl.read_measured(tmp_path / "b.mtz").merge()
    assert len(merged) == 2 and merged.F.max() ** 2 == pytest.approx((121 / 4 + 100 / 16) / (1 / 4 + 1 / 16))


BROKEN = {"a.hkl": [("   1   2   x    1.00    1.00\n", "line 1"), ("", "holds no reflections")],
          "a.cif": [("data_a\nloop_\n_x", "is not a CIF file that can be read"),
                    ("data_a\n_cell_length_a 3\n", "no measured refl"),
                    (CIFS["text"].replace("   1   2   3", "   1   2   y"), "line 1"),
                    (CIFS["F²"].replace("angle_beta 99", "angle_beta 0"), "a.cif"),
                    (CIFS["F²"].replace("angle_alpha 90", "angle_alpha 80"), "does not have the symmetry of P 1 21/n 1"),
                    (CIFS["F²"].replace("_cell_length_a 10.1", ""), "no cell")],
          "a.mtz": [("MTZ of nothing", "is not an MTZ file"), ("nothing", "line 1")]}


@pytest.mark.parametrize("name, content, message", [(name, *case) for name, cases in BROKEN.items() for case in cases])
def test_broken_files_are_a_sentence(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    (tmp_path / "about.ins").write_text(INS)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        refl.read_measured(tmp_path / name, tmp_path / "about.ins" if name != "a.cif" else None)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("old, new, message", [
    ("CELL 1.54178", "CEL", "has no CELL"), ("CELL 1.54178 10.1", "CELL 1.54178 x", "has no CELL"),
    ("LATT 1", "LATT 9", "has no CELL"),
    ("0.5-X", "0.25-X", "space group"), ("0.5-X", "Q", "has no CELL"), ("HKLF 4", "HKLF 5", "HKLF 5 is not supported"),
    ("HKLF 4", "HKLF 4 1 0 0 1 0 1 0 1 0 0", "with a matrix")])
def test_ins_files_that_cannot_be_used(old, new, message, tmp_path):
    (tmp_path / "a.hkl").write_text(shelx_text())
    (tmp_path / "a.ins").write_text(INS.replace(old, new))
    with pytest.raises(refl.ReflectionError, match=message):
        refl.read_measured(tmp_path / "a.hkl")


def test_an_uncertainty_of_zero_is_named_with_its_file(tmp_path):
    (tmp_path / "a.hkl").write_text(shelx_text([*ROWS, (4, 1, 1, 3.0, 0.0)]))
    (tmp_path / "a.ins").write_text(INS)
    with pytest.raises(refl.ReflectionError, match=r"a.hkl: reflection \(4, 1, 1\) has sigma 0: give it a positive one"):
        refl.read_measured(tmp_path / "a.hkl").merge()


@pytest.mark.parametrize("latt, symm, name", [  # the SHELX manual's conventions
    (-1, [], "P 1"), (1, [], "P -1"), (7, ["-X, Y, 0.5-Z"], "C 1 2/c 1"), (-7, ["-X, Y, -Z"], "C 1 2 1"),
    (2, ["0.5-X, Y, -Z"], "I 1 2/a 1"), (-1, ["0.5-x, -y, 0.5+z", "-x, 0.5+y, 0.5-z", "0.5+x, 0.5-y, -z"], "P 21 21 21"),
    (-1, ["-X, 1/2+Y, -Z"], "P 1 21 1")])
def test_symmetry_of_ins_files(latt, symm, name, tmp_path):
    (tmp_path / "a.hkl").write_text(shelx_text())
    lines = "".join(f"SYMM {op}\n" for op in symm)
    made = INS.replace("LATT 1\nSYMM 0.5-X, 0.5+Y, 0.5-Z\n", f"LATT {latt}\n{lines}")
    (tmp_path / "a.ins").write_text(made.replace(CELL, CELL.replace("99", "90")) if "21 21" in name else made)
    assert refl.read_measured(tmp_path / "a.hkl").spacegroup.xhm() == name


def test_weak_reflections_keep_their_uncertainty(tmp_path):
    cell, spacegroup = gemmi.UnitCell(*CELLS["P -1"]), gemmi.SpaceGroup("P -1")
    merged = refl.merge([[1, 2, 3], [1, 1, 1], [2, 0, 0]], [9999, -3, 4], [10, 5, 3], cell, spacegroup)
    refl.write_shelx(tmp_path / "a", merged, ["C"])
    hkl, value, sigma = refl.read_shelx_records(tmp_path / "a.hkl")
    assert {tuple(h): (v, s) for h, v, s in zip(hkl.tolist(), value, sigma)} == {
        (1, 2, 3): (9999, 10), (1, 1, 1): (0, 5), (2, 0, 0): (4, 3)}


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no measured reflections in {REAL}")
def test_real_files_hold_as_many_reflections_as_their_authors_say():
    with open(REAL / "SOURCES.csv", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            measured = refl.read_measured(REAL / row["file"], REAL / row["model"] if row["file"] != row["model"] else None)
            merged = measured.merge()
            assert len(measured.hkl) == int(row["n_refl"]) and len(merged) == int(row["n_asu"]), row["id"]
            assert merged.d_min == pytest.approx(float(row["d_min"]), abs=0.0015), row["id"]
            assert merged.spacegroup.xhm() == row["sg_hm"] and measured.wavelength == pytest.approx(float(row["wavelength"]))
            assert set(measured.elements) == set(re.findall("[A-Z][a-z]?", row["formula"])), row["id"]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no measured reflections in {REAL}")
@pytest.mark.parametrize("name", ["4035731", "2021921", "1517337", "2241551"])
def test_the_ins_and_hkl_files_of_real_cifs_say_the_same(name, tmp_path):
    block = gemmi.cif.read(str(REAL / f"{name}.cif")).sole_block()
    for suffix, tag in ((".hkl", "_shelx_hkl_file"), (".res", "_shelx_res_file")):
        (tmp_path / f"a{suffix}").write_text(gemmi.cif.as_string(block.find_value(tag)).lstrip("\n"))
    inside, beside = refl.read_measured(REAL / f"{name}.cif"), refl.read_measured(tmp_path / "a.hkl")
    assert beside.spacegroup.xhm() == inside.spacegroup.xhm() and beside.wavelength == pytest.approx(inside.wavelength)
    assert beside.cell.parameters == pytest.approx(inside.cell.parameters, abs=0.006)
    assert beside.elements == pytest.approx(inside.elements, abs=0.01)
    assert np.array_equal(beside.hkl, inside.hkl) and np.array_equal(beside.intensity, inside.intensity)


# ---- F or F², and what the data are worth ----

def wilson(centric, n=3000, seed=0):
    """Intensities of Wilson statistics that fall off with resolution -> (I, d)."""
    rng = np.random.default_rng(seed)
    s2 = rng.uniform(0.05, 1.5, n)
    I = (rng.standard_normal(n) ** 2 if centric else rng.exponential(1, n)) * np.exp(-4 * s2)
    return I, s2**-0.5


@pytest.mark.parametrize("centric", [False, True])
def test_amplitudes_are_told_from_their_squares(centric):
    I, d = wilson(centric)
    assert not look_like_amplitudes(I, d) and look_like_amplitudes(np.sqrt(I), d)
    assert not look_like_amplitudes(np.sqrt(I) - 0.1 * np.sqrt(I).mean(), d), "F is never below zero"


@pytest.mark.parametrize("hklf", ["HKLF 3", "HKLF 4", ""])
def test_what_the_ins_file_says_of_the_values_counts(tmp_path, hklf):
    I, d = wilson(True, 900)
    spacegroup, cell = gemmi.SpaceGroup("P 1 21/c 1"), gemmi.UnitCell(7.3, 9.1, 8.4, 90, 111, 90)
    hkl = unique_hkl(cell, spacegroup, 0.85)[:900]
    I = 1000 * I[np.argsort(-d)][np.argsort(np.argsort(-cell.calculate_d_array(hkl.astype("i4"))))]
    value = np.sqrt(I) if hklf != "HKLF 4" else I
    (tmp_path / "job.hkl").write_text("".join("%4d%4d%4d%8.2f%8.2f\n" % (*h, x, 1) for h, x in zip(hkl, value)))
    (tmp_path / "job.ins").write_text("TITL x\nCELL 0.71073 7.3 9.1 8.4 90 111 90\nLATT 1\nSYMM -X, 0.5+Y, 0.5-Z\nSFAC C\n"
                                      f"UNIT 40\n{hklf}\n")
    measured = read_measured(tmp_path / "job.hkl")
    assert measured.kind == {"HKLF 3": "SHELX, F by HKLF 3", "HKLF 4": "SHELX, F² by HKLF 4",
                             "": "SHELX, F by their distribution"}[hklf]
    assert measured.intensity == pytest.approx(I, rel=0.02, abs=0.6)


def test_quality_against_sums_by_hand():
    """Two reflections of P-1, the first measured twice and its Friedel mate once; the third index is absent in P21/c only."""
    cell, spacegroup = gemmi.UnitCell(5.1, 6.3, 7.7, 81, 95, 104), gemmi.SpaceGroup("P -1")
    hkl = np.array([[1, 2, 1], [1, 2, 1], [-1, -2, -1], [0, 1, 1]])
    measured = Measured(hkl, np.array([10.0, 14, 12, 5]), np.array([1.0, 1, 1, 2]), cell, spacegroup, {}, 0.7, (Path("x"),), "")
    merged = measured.merge()
    found = measured.quality(merged)
    assert found.n_measured == 4 and found.n_unique == 2
    assert found.r_int == pytest.approx((2 + 2 + 0) / 36) and found.i_over_sigma == pytest.approx((10 + 14 + 12 + 2.5) / 4)
    # the reflections of half the sphere to that resolution, counted one by one
    box = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), -1).reshape(-1, 3)
    box = box[(box != 0).any(1)].astype("i4")
    possible = (cell.calculate_d_array(box) >= merged.d_min - 1e-6).sum() / 2
    assert found.completeness == pytest.approx(2 / possible)
    once = Measured(hkl[2:], np.array([1.0, 1]), np.ones(2), cell, spacegroup, {}, 0.7, (Path("x"),), "")
    assert once.quality(once.merge()).r_int is None
