"""SHELX files against the manual's format and gemmi's symmetry."""

import gemmi
import numpy as np
import pytest

from reflection_makers import CELL, CELLS, INS, shelx_text
from xrd_helpers import reflections as refl
from xrd_helpers import shelx
from xrd_helpers.crystals import Crystal
from xrd_helpers.reflection_files import read_measured


@pytest.mark.parametrize("name, latt, symm", [  # the SHELX manual's tables, written out by hand
    ("P 1", -1, []), ("P -1", 1, []), ("P 1 21 1", -1, ["-X, 0.5+Y, -Z"]),
    ("P 1 21/c 1", 1, ["-X, 0.5+Y, 0.5-Z"]), ("C 1 2 1", -7, ["-X, Y, -Z"]), ("C 1 2/c 1", 7, ["-X, Y, 0.5-Z"]),
    ("C 1 c 1", -7, ["X, -Y, 0.5+Z"]), ("P 31", -1, ["-Y, X-Y, 2/6+Z", "-X+Y, -X, 4/6+Z"]),
    ("P 21 21 21", -1, ["0.5-X, -Y, 0.5+Z", "-X, 0.5+Y, 0.5-Z", "0.5+X, 0.5-Y, -Z"])])
def test_shelx_symmetry(name, latt, symm):
    found = shelx.shelx_symmetry(gemmi.SpaceGroup(name))
    assert found[0] == latt and sorted(found[1]) == sorted(symm)


@pytest.mark.parametrize("name", [sg.xhm() for sg in gemmi.spacegroup_table_itb()][::3])
def test_shelx_symmetry_generates_the_group(name):
    spacegroup = gemmi.SpaceGroup(name)
    try:
        latt, symm = shelx.shelx_symmetry(spacegroup)
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
    shelx.write_shelx(tmp_path / "job", table, ["O", "C", "C", "H"], title="a test")
    lines = (tmp_path / "job.ins").read_text().splitlines()
    assert lines[0] == "TITL a test"
    assert lines[1] == "CELL 0.71073 7.3000 9.1000 8.4000 90.000 111.000 90.000"
    assert lines[2] == "ZERR 4 0 0 0 0 0 0", "what nobody stated"
    assert lines[3:] == ["LATT 1", "SYMM -X, 0.5+Y, 0.5-Z", "SFAC C H O", "UNIT 8 4 4", "HKLF 4", "END"]
    records = (tmp_path / "job.hkl").read_text().splitlines()
    assert all(len(record) == 32 for record in records) and len(records) == len(table) + 1
    assert records[-1] == "   0   0   0    0.00    0.00   0"
    back = refl.merge(*shelx.read_shelx_records(tmp_path / "job.hkl"), table.cell, table.spacegroup)
    order = {tuple(h): i for i, h in enumerate(back.hkl)}
    rows = [order[tuple(h)] for h in table.hkl]
    scale = np.sqrt(9999.0) / table.F.max()
    np.testing.assert_allclose(back.F[rows] ** 2, (table.F * scale) ** 2, atol=0.0051)
    np.testing.assert_allclose(back.sigF[rows], 0.02 * table.F * scale, rtol=0.03, atol=0.01)


def test_sigma_is_never_written_as_zero(table, tmp_path):
    shelx.write_shelx(tmp_path / "job", refl.Reflections(table.hkl, table.F, 0 * table.F, table.cell, table.spacegroup),
                     ["C"])
    assert shelx.read_shelx_records(tmp_path / "job.hkl")[2].min() >= 0.01


def test_hklf_3_holds_amplitudes(tmp_path):
    (tmp_path / "a.hkl").write_text("   1   2   3   12.00    0.10   1\n   0   0   0    0.00    0.00   0\n")
    cell, spacegroup = gemmi.UnitCell(*CELLS["P -1"]), gemmi.SpaceGroup("P -1")
    hkl, value, sigma = shelx.read_shelx_records(tmp_path / "a.hkl")
    assert refl.merge(hkl, *refl.squared(value, sigma), cell, spacegroup).F[0] == pytest.approx(12)
    assert refl.merge(hkl, value, sigma, cell, spacegroup).F[0] == pytest.approx(12**0.5)


def test_fortran_numbers_without_a_point_have_two_decimals(tmp_path):
    (tmp_path / "a.hkl").write_text("   1   2   3    1200      10\n")
    assert shelx.read_shelx_records(tmp_path / "a.hkl")[1:] == (12.0, 0.1)


@pytest.mark.parametrize("line", ["   1   2", "   1   2   x   12.00    0.10", "   1   2   3     nan    0.10"])
def test_a_malformed_line_is_named(tmp_path, line):
    path = tmp_path / "bad.hkl"
    path.write_text("   1   2   3   12.00    0.10   1\n" + line + "\n")
    with pytest.raises(refl.ReflectionError, match="bad.hkl, line 2"):
        shelx.read_shelx_records(path)


def test_weak_reflections_keep_their_uncertainty(tmp_path):
    cell, spacegroup = gemmi.UnitCell(*CELLS["P -1"]), gemmi.SpaceGroup("P -1")
    merged = refl.merge([[1, 2, 3], [1, 1, 1], [2, 0, 0]], [9999, -3, 4], [10, 5, 3], cell, spacegroup)
    shelx.write_shelx(tmp_path / "a", merged, ["C"])
    hkl, value, sigma = shelx.read_shelx_records(tmp_path / "a.hkl")
    assert {tuple(h): (v, s) for h, v, s in zip(hkl.tolist(), value, sigma)} == {
        (1, 2, 3): (9999, 10), (1, 1, 1): (0, 5), (2, 0, 0): (4, 3)}


@pytest.mark.parametrize("old, new, message", [
    ("CELL 1.54178", "CEL", "has no CELL"), ("CELL 1.54178 10.1", "CELL 1.54178 x", "has no CELL"),
    ("LATT 1", "LATT 9", "has no CELL"),
    ("0.5-X", "0.25-X", "space group"), ("0.5-X", "Q", "has no CELL"), ("HKLF 4", "HKLF 5", "HKLF 5 is not supported"),
    ("HKLF 4", "HKLF 4 1 0 0 1 0 1 0 1 0 0", "with a matrix")])
def test_ins_files_that_cannot_be_used(old, new, message, tmp_path):
    (tmp_path / "a.hkl").write_text(shelx_text())
    (tmp_path / "a.ins").write_text(INS.replace(old, new))
    with pytest.raises(refl.ReflectionError, match=message):
        read_measured(tmp_path / "a.hkl")


@pytest.mark.parametrize("latt, symm, name", [  # the SHELX manual's conventions
    (-1, [], "P 1"), (1, [], "P -1"), (7, ["-X, Y, 0.5-Z"], "C 1 2/c 1"), (-7, ["-X, Y, -Z"], "C 1 2 1"),
    (2, ["0.5-X, Y, -Z"], "I 1 2/a 1"), (-1, ["0.5-x, -y, 0.5+z", "-x, 0.5+y, 0.5-z", "0.5+x, 0.5-y, -z"], "P 21 21 21"),
    (-1, ["-X, 1/2+Y, -Z"], "P 1 21 1")])
def test_symmetry_of_ins_files(latt, symm, name, tmp_path):
    (tmp_path / "a.hkl").write_text(shelx_text())
    lines = "".join(f"SYMM {op}\n" for op in symm)
    made = INS.replace("LATT 1\nSYMM 0.5-X, 0.5+Y, 0.5-Z\n", f"LATT {latt}\n{lines}")
    (tmp_path / "a.ins").write_text(made.replace(CELL, CELL.replace("99", "90")) if "21 21" in name else made)
    assert read_measured(tmp_path / "a.hkl").spacegroup.xhm() == name


def test_equals_signs_continue_instructions_but_not_titles_and_remarks(tmp_path):
    text = INS.replace("TITL made", "TITL made, a=10.1").replace("LATT 1", "REM R1 = 0.05 before\nLATT 1")
    (tmp_path / "a.ins").write_text(text.replace("UNIT 16 20 4 8", "UNIT 16 20 = more\n 4 8"))
    found = shelx.read_instructions(tmp_path / "a.ins")
    assert found.cell.a == 10.1 and found.spacegroup.xhm() == "P 1 21/n 1" and found.symbols == ("C", "H", "N", "O")
    assert found.elements == {"O": 2, "N": 1, "C": 4, "H": 5} and found.remarks[0] == "REM R1 = 0.05 before"


@pytest.mark.parametrize("group", ["P 1 21/c 1", "C 1 2/c 1", "R -3:H", "F d d 2", "I 41/a:2", "P 61"])
def test_what_is_written_as_latt_and_symm_is_read_as_the_same_group(group):
    spacegroup = gemmi.SpaceGroup(group)
    assert shelx.spacegroup_of_shelx(*shelx.shelx_symmetry(spacegroup)).xhm() == spacegroup.xhm()


def test_a_res_file_holds_the_atoms_that_were_written(tmp_path):
    cell, spacegroup = gemmi.UnitCell(*CELLS["P 1 21/c 1"]), gemmi.SpaceGroup("P 1 21/c 1")
    crystal = Crystal("made", cell, spacegroup, ("Zn", "C"), np.array([[0.5, 0.5, 0], [-0.1, 0.65, 1.2]]),
                      np.array([0.02, 0.05]), np.array([0.5, 1.0]))
    shelx.write_shelx_res(tmp_path / "a.b.res", crystal, ["Zn1", "C1"], crystal.contents | {"H": 1}, 0.71073, 3.2,
                          ["made: yes"])
    lines = (tmp_path / "a.b.res").read_text().splitlines()
    assert lines[0] == "TITL a.b" and "SFAC C H ZN" in (line.upper() for line in lines) and "FVAR 3.20000" in lines
    assert "Zn1   3   0.50000   0.50000   0.00000  10.50000  0.02000" in lines  # as SHELXL has it: half, held fixed
    found = shelx.read_instructions(tmp_path / "a.b.res")
    atoms = found.atoms()
    assert found.spacegroup.xhm() == "P 1 21/c 1" and found.hklf == 4 and found.remarks == ("REM made: yes",)
    assert atoms.elements == ("Zn", "C") and np.isnan(atoms.heights).all()
    np.testing.assert_allclose(atoms.fract, crystal.fract)
    np.testing.assert_allclose(atoms.occ, crystal.occ)
    np.testing.assert_allclose(atoms.u_iso, crystal.u_iso)


HEADER = """TITL as it was = so
CELL  1.54178   7.3000 9.1 8.40000  90 111 90
ZERR 4.00 0.0012 0.0004 0.0011 0 0.006 0
LATT  1
SYMM -x, 1/2+y, 1/2-z
SFAC  O C Zn
DISP Zn 0.28 1.43 =
  222
UNIT 8 40 =
  4
TEMP -153.000
SIZE 0.1 0.2 0.3
TWIN -1 0 0 0 -1 0 0 0 1
BASF 0.2
OMIT -3 132
OMIT 0 2 1
MERG 2
L.S. 20
C9 2 0.1 0.2 0.3
HKLF 4
END
"""


def test_the_header_that_was_read_is_written_as_it_stood(tmp_path):
    (tmp_path / "a.ins").write_text(HEADER)
    found = shelx.read_instructions(tmp_path / "a.ins")
    before = HEADER.splitlines()[:17]

    def written(cell=found.cell, group="P 1 21/c 1", elements=("C", "O", "Zn")):
        crystal = Crystal("a", cell, gemmi.SpaceGroup(group), ("O",), np.array([[0.1, 0.2, 0.3]]), np.array([0.02]), np.ones(1))
        shelx.write_shelx_res(tmp_path / "b.res", crystal, ["O1"], elements, found.wavelength, 1.0, ["R1 " + "0.1234 " * 20],
                              found.header, ["DFIX 1.4 O1 C1"])
        return (tmp_path / "b.res").read_text().splitlines()

    lines = written()
    assert lines[:17] == before and lines[17].startswith("REM R1 0.1234") and max(map(len, lines)) <= 80
    assert lines.index("DFIX 1.4 O1 C1") < lines.index("FVAR 1.00000") and any(line.startswith("O1    1 ") for line in lines)
    more = written(elements={"C": 10, "O": 2, "Zn": 1, "N": 3})
    assert "SFAC N" in more and "UNIT 8 40 4 12" in more and before[0] in more
    other = written(gemmi.UnitCell(8.4, 9.1, 7.3, 90, 111, 90), "P 1 21/a 1")
    assert "CELL 1.54178 8.4000 9.1000 7.3000 90.000 111.000 90.000" in other and "ZERR 4 0 0 0 0 0 0" in other
    assert "SYMM 0.5-X, 0.5+Y, -Z" in other and "TEMP -153.000" in other and shelx.read_instructions(
        tmp_path / "b.res").spacegroup.xhm() == "P 1 21/a 1"


@pytest.mark.parametrize("old, new", [("\n", " ! x\n"), ("7.3 9.1", "7.3 =\n 9.1"), ("0.5+Y, ", "0.5+Y, =\n  ")])
def test_a_header_with_comments_or_continued_lines_stands_as_it_was(tmp_path, old, new):
    text = ("CELL 0.71073 7.3 9.1 8.4 90 111 90\nZERR 4 0.001 0.001 0.001 0 0.01 0\nLATT 1\nSYMM -X, 0.5+Y, 0.5-Z\n"
            "SFAC C N\nUNIT 12 4\nHKLF 4\n").replace(old, new)
    read = shelx.parse_instructions(text, tmp_path / "a.ins")
    lines = shelx.shelx_header(read.cell, gemmi.SpaceGroup("P 1 21/c 1"), {"C": 3, "N": 1}, "a", 0.71073, read.header)
    assert "\n".join(lines[1:]) == text[:text.index("\nHKLF")]
    assert shelx.formula_units(read.header) == 4
