"""What people, programs and strangers hand in by mistake: a sentence that names the file and code 2, or a right answer.

The cases are those of bad_input/make.py, here in this process and by one command each; ``benchmarks/bad_files.py`` runs all.
"""

import sys
import time
from functools import partial

import gemmi
import numpy as np
import pytest

from bad_input.make import CASES, CELL, INS, ROWS, complaint, fixed, present
from xrd_helpers import cli, pipeline
from xrd_helpers.reflection_files import read_measured

SMALL = [case for case in CASES if not case.big]
QUICK = [case for case in SMALL if not case.reads and not (case.kind == "out" and case.name == "this folder")]
ODD = [case for case in SMALL if case.reads and case.kind == "reflections"]


def named(cases):
    return dict(argvalues=cases, ids=[f"{case.kind} {case.name}"[:60] for case in cases])


@pytest.fixture
def xrd(monkeypatch, capsys):
    """(exit code, output, errors, seconds of a processor) of the command line."""
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["xrd", *arguments])
        began = time.process_time()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, *capsys.readouterr(), time.process_time() - began
    return call


def test_there_are_enough_of_them():
    assert len(CASES) > 400 and len({(case.kind, case.name) for case in CASES}) == len(CASES)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("case", **named(QUICK))
def test_a_bad_file_is_one_sentence_that_names_it(case, tmp_path, monkeypatch, xrd):
    folder = case.write(tmp_path / "folder")
    monkeypatch.chdir(folder)
    config = {"config": folder / "config.yaml"} if case.kind == "config" else {}
    monkeypatch.setattr(pipeline, "run", partial(pipeline.run, runs=folder / "runs", **config))
    before = present(folder)
    code, out, err, seconds = xrd(*next(iter(case.commands.values())))
    assert complaint(case, code, out, err, seconds, 0, before, present(folder)) == ""


@pytest.mark.parametrize("case", **named(ODD))
def test_an_odd_file_gives_the_intensities_that_are_in_it(case, tmp_path):
    """As they were written into it, whatever its form: none of ROWS has an equivalent, and 18 are absent."""
    case.write(tmp_path)
    merged = read_measured(tmp_path / case.file).merge()
    ops = gemmi.SpaceGroup("P 1 21/c 1").operations()
    asu = gemmi.ReciprocalAsu(gemmi.SpaceGroup("P 1 21/c 1"))
    expected = {tuple(asu.to_asu([h, k, l], ops)[0]): I for h, k, l, I, _ in ROWS if k or not l % 2}
    found = {tuple(h): F**2 for h, F in zip(merged.hkl.tolist(), merged.F)}
    assert found.keys() == expected.keys() and len(found) == 162
    for h in found:
        assert found[h] == pytest.approx(expected[h], rel=1e-4)


@pytest.mark.parametrize("kind", ["hkl", "cif", "mtz"])
def test_equivalents_are_merged_as_gemmi_merges_them(kind, tmp_path):
    """Rows of equivalents and Friedel mates with other values and sigmas, read by gemmi where it reads the format."""
    rng, cell, group = np.random.default_rng(3), gemmi.UnitCell(*map(float, CELL.split())), gemmi.SpaceGroup("P 1 21/c 1")
    rows = [(*(sign * np.array([h, k, l]) * [1, turn, 1]), round(I * rng.uniform(0.8, 1.2), 2), round(rng.uniform(1, 5), 2))
            for h, k, l, I, _ in ROWS for sign, turn in ((1, 1), (-1, 1), (1, -1))]
    data = gemmi.Intensities()
    if kind == "hkl":
        (tmp_path / "job.hkl").write_text(fixed(rows))
        (tmp_path / "job.ins").write_text(INS)
        table = np.array(rows)
        data.set_data(cell, group, table[:, :3].astype(np.int32), table[:, 3].copy(), table[:, 4].copy())
    elif kind == "cif":
        block = gemmi.cif.Document().add_new_block("a")
        for name, x in zip(("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"), CELL.split()):
            block.set_pair(f"_cell.{name}", x)
        block.set_pair("_symmetry.space_group_name_H-M", "'P 1 21/c 1'")
        loop = block.init_loop("_diffrn_refln.", ["index_h", "index_k", "index_l", "intensity_net", "intensity_sigma"])
        for row in rows:
            loop.add_row([str(x) for x in row])
        (tmp_path / "job.cif").write_text(block.as_string())
        (tmp_path / "job.ins").write_text(INS)
        data.import_refln_block(gemmi.as_refln_blocks(gemmi.cif.read(str(tmp_path / "job.cif")))[0], gemmi.DataType.Unmerged)
    else:
        mtz = gemmi.Mtz(with_base=True)
        mtz.cell, mtz.spacegroup = cell, group
        mtz.add_dataset("a")
        for label, column in (("M/ISYM", "Y"), ("BATCH", "B"), ("I", "J"), ("SIGI", "Q")):
            mtz.add_column(label, column)
        mtz.set_data(np.array([(*row[:3], 0, 1, *row[3:]) for row in rows], np.float32))
        mtz.write_to_file(str(tmp_path / "job.mtz"))
        table = gemmi.read_mtz_file(str(tmp_path / "job.mtz")).array
        data.set_data(cell, group, table[:, :3].astype(np.int32), *(table[:, i].astype(float) for i in (5, 6)))
    data.remove_systematic_absences()
    data.merge_in_place(gemmi.DataType.Mean)
    expected = {tuple(h): (I, s) for h, I, s in zip(data.miller_array.tolist(), data.value_array, data.sigma_array)}
    merged = read_measured(tmp_path / f"job.{kind}").merge()
    assert {tuple(h) for h in merged.hkl.tolist()} == expected.keys() and len(merged) == 162
    for h, I, s in zip(merged.hkl.tolist(), *merged.intensities()):
        assert (I, s) == pytest.approx(expected[tuple(h)], rel=1e-5)
    # and not by gemmi: 1/sigma² weights, Σ(I/σ²)/Σ(1/σ²)
    some = np.array([row[3:] for row in rows if np.abs(row[:3]).tolist() == [1, 2, 3] and row[0] * row[2] > 0])
    value = (some[:, 0] / some[:, 1] ** 2).sum() / (some[:, 1] ** -2).sum()
    assert len(some) == 3 and min(abs(I / value - 1) for I, _ in expected.values()) < 1e-5


def test_odd_files_are_solved(tmp_path, monkeypatch, xrd):
    """One of them as `xrd solve` takes it, to the end."""
    case = next(case for case in ODD if case.name == "odd ins REM = and more")
    monkeypatch.chdir(case.write(tmp_path / "folder"))
    assert xrd("solve", "job.hkl", "--engine", "charge_flipping", "--trials", "1", "--effort", "quick")[0] in (0, 1)
