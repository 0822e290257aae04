"""The SHELXT driver: texts in the format of SHELXT, and a stand-in program that behaves as SHELXT does."""

import stat
import sys
import time

import gemmi
import numpy as np
import pytest

from xrd_helpers.phasing import PhasingError, shelxt
from xrd_helpers.phasing.job import solve_with_shelxt
from xrd_helpers.reflections import Measured, Reflections, unique_hkl

TABLE = """
   R1  Rweak Alpha SysAbs  Orientation      Space group  Flack_x  File  Formula
 0.081 0.012 0.021 0.00      as input       P2(1)/c              job_a  C12 O3 N
 0.327 0.069 0.109 0.00    a'=c, b'=-b, c'=a   P2(1)/n           job_b  C121 O90 Zr6
 0.112 0.020 0.030 0.02      as input       P2(1)         0.48   job_c  C13 O3
"""

LISTING = f""" +  SHELXT  -  CRYSTAL STRUCTURE SOLUTION  +
 Laue group identified as number  2:   2/m
 Try  N(iter)  CC   R(weak)   CHEM    CFOM    best  Sig(min) N(P1) Vol/N
   1    100  88.11  0.1500  0.6000  0.7370  0.7370    1.20    80  18.2
 12 attempts, solution 10 selected with best CFOM = 0.7370, Alpha0 = 0.185
 Structure solution:   4.820 secs
 4 Centrosymmetric and  14 non-centrosymmetric space groups evaluated
 Space group determination:   1.100 secs
{TABLE}
 ++  SHELXT finished at 10:11:12   Total time:        5.9 secs  ++
"""

RES = """TITL job in P2(1)/c
REM SHELXT solution in P2(1)/c
REM R1 0.081, Rweak 0.012, Alpha 0.021, Orientation as input
REM Formula found by SHELXT: C12 O3 N
CELL 0.71073 7.3000 9.1000 8.4000 90.000 111.000 90.000
ZERR 4 0.001 0.001 0.001 0.000 0.010 0.000
LATT 1
SYMM -X, 0.5+Y, 0.5-Z
SFAC C H N O ZN
UNIT 48 4 4 12 4
TEMP -173
L.S. 10
FVAR 0.5
ZN01 5 10.500000 0.500000 10.000000 10.50000 0.02000
O001 4 0.123400 0.234500 0.345600 11.00000 0.04000
C002 1 -0.10000 0.650000 1.200000 11.00000 0.05000 =
 12.30
Q1 1 0.2 0.2 0.2 11.00000 0.05 1.00
HKLF 4
END
"""


@pytest.fixture
def reflections():
    cell, spacegroup = gemmi.UnitCell(7.3, 9.1, 8.4, 90, 111, 90), gemmi.SpaceGroup("P 1 21/c 1")
    hkl = unique_hkl(cell, spacegroup, 1.5)
    F = 1 + np.arange(len(hkl), dtype=float)
    return Reflections(hkl, F, 0.02 * F, cell, spacegroup)


def stand_in(path, body):
    """A program that takes the command line of SHELXT and then does `body`."""
    path.write_text(f"""#!{sys.executable}
import sys, time, pathlib
assert sys.stdin.read() == ""          # a program that waits for an answer would hang for ever
assert sys.argv[1].startswith("-t") and sys.argv[-1] == "job", sys.argv
assert pathlib.Path("job.ins").read_text().startswith("TITL") and pathlib.Path("job.hkl").exists()
LISTING, RES = {LISTING!r}, {RES!r}
{body}
""")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_table_of_solutions_is_read(tmp_path):
    (tmp_path / "job.lxt").write_text(LISTING)
    a, b, c = shelxt.read_lxt(tmp_path / "job.lxt")
    assert a == shelxt.ListedSolution(0.081, 0.012, 0.021, 0.0, "as input", "P2(1)/c", None, "job_a", "C12 O3 N")
    assert (b.orientation, b.spacegroup, b.file) == ("a'=c, b'=-b, c'=a", "P2(1)/n", "job_b")
    assert (c.flack_x, c.sys_abs, c.formula) == (0.48, 0.02, "C13 O3")
    assert shelxt.read_lxt(tmp_path / "absent.lxt") == []


def test_a_res_file_is_read(tmp_path):
    (tmp_path / "job_a.res").write_text(RES)
    found = shelxt.read_res(tmp_path / "job_a.res")
    assert found.spacegroup.xhm() == "P 1 21/c 1" and found.cell.beta == 111
    assert found.elements == ("Zn", "O", "C") and found.r1 == 0.081 and found.orientation == "as input"
    np.testing.assert_allclose(found.fract, [[0.5, 0.5, 0], [0.1234, 0.2345, 0.3456], [0.9, 0.65, 0.2]], atol=1e-9)
    np.testing.assert_allclose(found.occ, [0.5, 1, 1])
    np.testing.assert_allclose(found.u_iso, [0.02, 0.04, 0.05])
    assert found.heights[2] == 12.3 and np.isnan(found.heights[0])


@pytest.mark.parametrize("latt, symm, name", [
    (-1, [], "P 1"), (1, [], "P -1"), (-1, ["-X, 0.5+Y, -Z"], "P 1 21 1"), (7, ["-X, +Y, 1/2-Z"], "C 1 2/c 1"),
    (-7, ["X, -Y, 0.50000+Z"], "C 1 c 1"), (-1, ["0.5-X, -Y, 0.5+Z", "-X, 0.5+Y, 0.5-Z", "0.5+X, 0.5-Y, -Z"],
                                           "P 21 21 21"), (-1, ["-Y, X-Y, 0.33333+Z", "-X+Y, -X, 2/3+Z"], "P 31")])
def test_latt_and_symm_make_the_space_group(tmp_path, latt, symm, name):
    text = RES.replace("LATT 1\nSYMM -X, 0.5+Y, 0.5-Z\n", f"LATT {latt}\n" + "".join(f"SYMM {s}\n" for s in symm))
    (tmp_path / "a.res").write_text(text)
    assert shelxt.read_res(tmp_path / "a.res").spacegroup.xhm() == name


@pytest.mark.parametrize("old, new", [("O001 4 0.1234", "O001 4 x"), ("O001 4", "O001 9"), ("O001 4", "O001 0")])
def test_a_damaged_res_file_is_named(tmp_path, old, new):
    (tmp_path / "a.res").write_text(RES.replace(old, new))
    with pytest.raises(PhasingError, match="a.res has a line that cannot be read: 'O001"):
        shelxt.read_res(tmp_path / "a.res")


def test_a_solution_comes_back(tmp_path, reflections):
    program = stand_in(tmp_path / "shelxt", """
pathlib.Path("job.lxt").write_text(LISTING)
pathlib.Path("job_a.res").write_text(RES)
print("done")""")
    found = shelxt.run_shelxt(reflections, ["C", "O"], tmp_path / "run", timeout=30, executable=program, threads=1)
    assert found.engine == "SHELXT" and found.trials == 12 and found.r1 == 0.081 and len(found.fract) == 3
    assert found.figure_of_merit == pytest.approx(1 - 0.021) and 0 < found.seconds < 30
    assert (tmp_path / "run" / "job.out").read_text() == "done\n"


def test_no_solution_is_an_error_even_beside_the_files_of_an_earlier_run(tmp_path, reflections):
    program = stand_in(tmp_path / "shelxt", """
pathlib.Path("job.lxt").write_text(" ** No acceptable solution **\\n")""")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job_a.res").write_text(RES)
    (tmp_path / "run" / "job.lxt").write_text(LISTING)
    with pytest.raises(PhasingError, match="no solution .*No acceptable solution"):
        shelxt.run_shelxt(reflections, ["C"], tmp_path / "run", timeout=30, executable=program)


def test_a_program_that_hangs_is_stopped(tmp_path, reflections):
    program = stand_in(tmp_path / "shelxt", """
pathlib.Path("job.lxt").write_text(LISTING.split("4 Centro")[0])
time.sleep(60)""")
    began = time.perf_counter()
    with pytest.raises(PhasingError, match="within 1 s .it was searching for the space group."):
        shelxt.run_shelxt(reflections, ["C"], tmp_path / "run", timeout=1, executable=program)
    assert time.perf_counter() - began < 10


def test_find_shelxt(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shelxt.find_shelxt() is None
    program = stand_in(tmp_path / "shelxt", "")
    assert shelxt.find_shelxt() == program.resolve()
    assert shelxt.find_shelxt(str(program)) == program.resolve()
    with pytest.raises(PhasingError, match="nowhere"):
        shelxt.find_shelxt(str(tmp_path / "nowhere"))


def test_a_missing_program_is_an_error(tmp_path, reflections, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PhasingError, match="SHELXT was not found"):
        shelxt.run_shelxt(reflections, ["C"], tmp_path / "run")
    (tmp_path / "shelxt").write_text("not a program")
    with pytest.raises(PhasingError, match="cannot be started"):
        shelxt.run_shelxt(reflections, ["C"], tmp_path / "run", executable=tmp_path / "shelxt")


def test_shelxt_is_given_what_was_predicted_and_judged_by_what_was_measured(tmp_path, reflections):
    program = stand_in(tmp_path / "shelxt", """
pathlib.Path("job.lxt").write_text(LISTING)
pathlib.Path("job_a.res").write_text(RES)""")
    measured = Measured(reflections.hkl, reflections.F**2, 0.1 * reflections.F**2, reflections.cell, reflections.spacegroup,
                        {"Zn": 0.5, "O": 1, "C": 1}, 0.71073, (tmp_path / "made.hkl",), "made up")
    more = unique_hkl(reflections.cell, reflections.spacegroup, 1.3)[::2]
    more = more[reflections.cell.calculate_d_array(more.astype(np.int32)) < 1.5]
    found = []
    for i, factor in enumerate((None, 5.0, 35.0)):
        F = np.full(len(more), factor or 1.0)
        extra = factor and Reflections(more, F, 0.3 * F, reflections.cell, reflections.spacegroup)
        found.append(solve_with_shelxt(measured, tmp_path / str(i), program, extra).solution)
        given = np.array([line.split()[:3] for line in (tmp_path / str(i) / "job.hkl").read_text().splitlines() if line], int)
        given = set(map(tuple, given[:list(map(tuple, given)).index((0, 0, 0))].tolist()))
        assert given == set(map(tuple, measured.merge().hkl.tolist())) | (set(map(tuple, more.tolist())) if factor else set())
    assert found[1].evidence == found[2].evidence and 0 < found[1].evidence.r1 < 5
    np.testing.assert_array_equal(found[0].fract, found[1].fract)
