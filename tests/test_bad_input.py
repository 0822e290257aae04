"""What people hand in by mistake: a sentence that names the file and code 2, soon, or a right answer."""

import os
import sys
import time
from unittest import mock

import gemmi
import numpy as np
import pytest

from xrd_helpers import cli

CELL = "7.3 9.1 8.4 90 111 90"
INS = f"""TITL a
CELL 0.71073 {CELL}
ZERR 4 0.001 0.001 0.001 0 0.01 0
LATT 1
SYMM -X, 0.5+Y, 0.5-Z
SFAC C N O S
UNIT 12 4 8 4
HKLF 4
END
"""
INDICES = [(h, k, l) for h in range(-4, 5) for k in range(5) for l in range(1, 5)]
ROWS = [(*h, 100.0 + 7 * (i % 31), 2.5) for i, h in enumerate(INDICES)]


def fixed(rows):
    return "".join("%4d%4d%4d%8.2f%8.2f   1\n" % row for row in rows)


def free(rows):
    return "".join("%d %d %d %.2f %.2f\n" % row for row in rows)


HKL = fixed(ROWS)
CIF = ("data_a\n" + "".join(f"_cell_{name} {x}\n" for name, x in zip(
    ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"), CELL.split()))
    + "_space_group_name_H-M_alt 'P 1 21/c 1'\nloop_\n_refln_index_h\n_refln_index_k\n_refln_index_l\n_refln_F_squared_meas\n"
    "_refln_F_squared_sigma\n" + free(ROWS))
CELLS = ["0 0 0 90 90 90", "-7.3 9.1 8.4 90 111 90", "nan 9.1 8.4 90 111 90", "inf 9.1 8.4 90 111 90", "7.3 9.1 8.4",
         "7.3 9.1 8.4 90 0 90", "7.3 9.1 8.4 90 180 90", "7.3 9.1 8.4 90 200 90", "7.3 9.1 8.4 30 120 30",
         "1e9 9.1 8.4 90 111 90", "7,3 9,1 8,4 90 111 90", "7.3 9.1 8.4 80 111 90", "0.1 0.1 0.1 90 111 90"]
INS_FILES = {f"cell {cell}": INS.replace(CELL, cell) for cell in CELLS} | {
    f"cut at {n}": INS[:n] for n in (0, 10, 22, 30, 40)} | {
    f"unit {unit}": INS.replace("UNIT 12", f"UNIT {unit}") for unit in ("a", "inf", "nan", "-12")} | {
    "binary": bytes(range(256)) * 9, "a line of megabytes": "TITL a\nCELL " + "9" * 3_000_000, "equals": "CELL " + "= " * 10**6,
    "no element": INS.replace("SFAC C", "SFAC Xx"), "wavelength zero": INS.replace("0.71073", "0"),
    "HKLF 5": INS.replace("HKLF 4", "HKLF 5"), "HKLF in words": INS.replace("HKLF 4", "HKLF four"),
    "operators": INS.replace("SYMM -X", "SYMM " + "-X" * 4000)}
HKL_FILES = {
    "index 99999": free([(99999, 0, 0, 5, 1), *ROWS]), "index beyond 32 bits": free([(10**12, 0, 0, 5, 1), *ROWS]),
    "index 99": fixed([(99, 99, 99, 5, 1), *ROWS]), "axial": fixed([(h, 0, 0, 5 + h, 1) for h in range(1, 9)]),
    "a plane": fixed([(h, k, 0, 5 + h, 1) for h in range(1, 9) for k in range(1, 9)]), "five": fixed(ROWS[:40:8]),
    "all negative": fixed([(*row[:3], -5, 1) for row in ROWS]), "no sigma": fixed([(*row[:4], 0) for row in ROWS]),
    "not a number": HKL + "   1   2   3     nan    1.00   1\n", "a line of megabytes": "1" * 3_000_000,
    "spaces": " " * 3_000_000, "empty lines": "\n" * 3_000_000, "compressed": b"\x1f\x8b\x08" + bytes(99),
    "binary": b"\x00\xff\x01" * 999, "a page": "<html>\n<body>404</body>"}
CIF_FILES = {name: CIF.replace(old, new, 1) for name, old, new in [
    ("cell of nan", "7.3", "nan"), ("cell of zero", "7.3", "0"), ("cell of 1e9", "7.3", "1e9"), ("beta 0", "111", "0"),
    ("beta 200", "111", "200"), ("no such group", "P 1 21/c 1", "P 99"), ("half an index", "\n1 2 3 ", "\n1.5 2 3 "),
    ("cut off", CIF[len(CIF) // 2:], ""), ("cut in a row", "\n4 4 4 ", "\n4 4 ")]}
BAD = [*(("job.ins", name, {"job.hkl": HKL, "job.ins": text}) for name, text in INS_FILES.items()),
       *(("job.hkl", name, {"job.hkl": text, "job.ins": INS}) for name, text in HKL_FILES.items()),
       *(("job.cif", name, {"job.cif": text}) for name, text in CIF_FILES.items())]


def solve(path, capsys, *more):
    """(exit code, what was printed as an error) of the quickest `xrd solve`; it takes no longer than it may."""
    began = time.perf_counter()
    with mock.patch.object(sys, "argv", ["xrd", "solve", str(path), "--engine", "charge_flipping", "--trials", "1", "--effort",
                                         "quick", *more]), pytest.raises(SystemExit) as caught:
        cli.main()
    assert time.perf_counter() - began < 30
    return caught.value.code or 0, capsys.readouterr().err


def refused(path, named, capsys):
    code, message = solve(path, capsys)
    assert code == 2 and message.startswith("xrd: ") and message.count("\n") == 1 and len(message) < 400
    assert named in message and sorted(p.suffix for p in path.parent.iterdir() if p.is_dir()) == []


@pytest.mark.parametrize("named, name, files", BAD, ids=[f"{named} {name}" for named, name, _ in BAD])
def test_a_bad_file_is_one_sentence_that_names_it(named, name, files, tmp_path, capsys):
    for path, text in files.items():
        (tmp_path / path).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(tmp_path / next(iter(files)), named, capsys)


@pytest.mark.parametrize("damage", ["hkl nan", "hkl 1e30", "hkl half", "cell nan", "cell 1e9", "cell 0", "sigma nan"])
def test_damaged_floats_of_an_mtz_file(damage, tmp_path, capsys):
    table = np.array(ROWS, np.float32)
    mtz = gemmi.Mtz(with_base=True)
    mtz.cell, mtz.spacegroup = gemmi.UnitCell(*map(float, CELL.split())), gemmi.SpaceGroup("P 1 21/c 1")
    what, value = damage.split()
    value = 1.5 if value == "half" else float(value)
    if what == "cell":
        mtz.cell = gemmi.UnitCell(value, 9.1, 8.4, 90, 111, 90)
    else:
        table[(5, 0) if what == "hkl" else (slice(None), 4)] = value
    mtz.add_dataset("a")
    mtz.add_column("I", "J")
    mtz.add_column("SIGI", "Q")
    mtz.set_data(table)
    mtz.write_to_file(str(tmp_path / "job.mtz"))
    refused(tmp_path / "job.mtz", "job.mtz", capsys)


@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", os.mkdir), lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_waited_for(make, tmp_path, capsys):
    make(tmp_path / "job.hkl")
    (tmp_path / "job.ins").write_text(INS)
    code, message = solve(tmp_path / "job.hkl", capsys)
    assert code == 2 and "job.hkl is a folder or a device, and no file" in message


@pytest.mark.parametrize("ins", [INS.replace("TITL a", "TITL a =\n  CELL and so on"), INS.replace("LATT", "REM a =\nLATT"),
                                 INS.replace("LATT", "REM a =\n  LATT 7 =\n and on\nLATT"), INS.replace("ZERR 4 ", "ZERR 0 "),
                                 INS.replace("ZERR 4", "ZERR"), INS.replace("UNIT 12", "UNIT 1e30")])
def test_odd_files_that_are_read(ins, tmp_path, capsys):
    (tmp_path / "job.hkl").write_text(HKL)
    (tmp_path / "job.ins").write_text(ins)
    assert solve(tmp_path / "job.hkl", capsys)[0] in (0, 1)
