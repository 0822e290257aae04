"""Folders of CIF files: all are read or named, and what is set aside among them."""

import csv
import re
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cif_makers import BAD, MONOCLINIC, P21C, P21N, SITES, THREE, TRICLINIC, cif
from makers import REAL
from xrd_helpers.cif import REASONS, read_cif_file
from xrd_helpers.cif_folders import (
    collect,
    count_fitting,
    find_cifs,
    read_cif_folders,
    read_cifs,
    set_aside_duplicates,
    set_aside_unfit,
    summarise,
    write_left_out,
)
from xrd_helpers.crystals import CrystalError
from xrd_helpers.gridding import BOXES
from xrd_helpers.storage import write_crystals


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


def test_folders_below_and_upper_case_are_found(tmp_path):
    for name in ("1/00/00/1000000.cif", "1/00/01/1000100.CIF", "a.Cif", "1/.1000.ab12.cif", "readme.txt", "1/odd.cif.bak"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(cif())
    found = ["1/00/00/1000000.cif", "1/00/01/1000100.CIF", "a.Cif"]
    assert find_cifs([tmp_path]) == [tmp_path / name for name in found]
    assert find_cifs([tmp_path, tmp_path / "1"]) == find_cifs([tmp_path])  # no file twice


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an alarm")
def test_a_file_that_holds_up_the_reader_is_named_and_the_others_are_read(tmp_path):
    """A list of millions of values takes longer than it may; its process is killed, with all it had in hand."""
    for i in range(70):
        (tmp_path / f"{i:02}.cif").write_text(cif())
    for name in ("05x.cif", "60x.cif"):
        (tmp_path / name).write_text("data_x\nloop_\n_a\n" + "1\n" * 12_000_000)
    entries = list(read_cifs(find_cifs([tmp_path]), workers=2, seconds=0.5))
    assert sorted(e.name for e in entries) == sorted(p.stem for p in find_cifs([tmp_path]))
    assert {e.name: e.reason for e in entries if not e.crystal} == dict.fromkeys(("05x", "60x"), "stopped the reader")
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
    assert {e.name: e.reason for e in found if not e.crystal} == dict.fromkeys(("axes", "cold", "I2a"), "duplicate")
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
    table = list(csv.DictReader((tmp_path / "left_out.csv").read_text(encoding="utf-8").splitlines()))
    assert [(Path(row["path"]).name, row["reason"]) for row in table] == [
        ("b.cif", "duplicate"), ("c.cif", "duplicate"), ("d.cif", "symmetry"), ("e.cif", "disorder")]
    assert all(row["reason"] in REASONS and Path(row["path"]).name in row["message"] for row in table)


def test_collecting_accounts_for_every_crystal_of_folders_and_files(tmp_path):
    (tmp_path / "cifs").mkdir()
    for name, options in {"b": {}, "a": {}, "c": {"cell": TRICLINIC, "symbol": "P -1"}, "d": {"symbol": "P 99"}}.items():
        (tmp_path / "cifs" / f"{name}.cif").write_text(cif(**options))
    stored = tmp_path / "made.parquet"
    write_crystals(stored, [entry(tmp_path, "again").crystal])  # of a file of crystals each is taken
    found = collect([stored, tmp_path / "cifs"], BOXES["monoclinic"], workers=0)
    assert [c.name for c in found.crystals] == ["a", "again"] and found.n_files == 5
    assert {e.name: e.reason for e in found.left_out} == {"b": "duplicate", "c": "not of the box", "d": "symmetry"}
    found = collect([tmp_path / "cifs"], workers=0)
    assert [c.name for c in found.crystals] == ["a", "c"]
    assert found.rows[-3:] == [("read, fit the monoclinic box to 0.8 Å", 1), ("read, fit the orthorhombic box to 0.8 Å", 0),
                               ("read, fit the triclinic box to 0.8 Å", 1)]


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
        for row in csv.DictReader((REAL / folder / "SOURCES.csv").read_text(encoding="utf-8").splitlines()):
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
