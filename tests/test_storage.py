"""The parquet file of crystals."""

from pathlib import Path

import gemmi
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from xrd_helpers import storage as module
from xrd_helpers.crystals import Crystal, CrystalError
from xrd_helpers.storage import read_crystals, write_crystals

MONOCLINIC = (12.1, 6.3, 9.2, 90, 104, 90)


def made(name, n=4, seed=1):
    rng = np.random.default_rng(seed)
    return Crystal(name, gemmi.UnitCell(*MONOCLINIC), gemmi.SpaceGroup(name), ("C", "N", "O", "S")[:n],
                   rng.random((n, 3)), rng.uniform(0.02, 0.06, n), rng.uniform(0.5, 1, n))


def several():
    return [made(name, n, seed) for n, seed, name in ((4, 1, "P 1 21/n 1"), (1, 2, "I 1 2/a 1"), (3, 3, "C 1 2/c 1"))]


def test_parquet_gives_back_what_was_written(tmp_path):
    written = several() + [Crystal("β-Ge", gemmi.UnitCell(5.65, 5.65, 5.65, 90, 90, 90), gemmi.SpaceGroup("F d -3 m:2"),
                                   ("Ge",), np.full((1, 3), 1 / 8), np.array([0.01]), np.array([1 / 24]), source="ge.cif")]
    write_crystals(tmp_path / "sub" / "crystals.parquet", written)
    crystals = read_crystals(tmp_path / "sub" / "crystals.parquet")
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["crystals.parquet"]
    assert len(crystals) == 4
    for one, other in zip(written, crystals):
        assert (other.name, other.source, other.elements) == (one.name, one.source, one.elements)
        assert other.spacegroup.xhm() == one.spacegroup.xhm()
        assert other.spacegroup.operations() == one.spacegroup.operations()
        assert other.cell.parameters == one.cell.parameters
        np.testing.assert_array_equal(other.fract, one.fract)
        np.testing.assert_allclose(other.u_iso, one.u_iso, rtol=1e-7)  # single precision in the file
        np.testing.assert_allclose(other.occ, one.occ, rtol=1e-7)


def test_every_setting_has_a_symbol_that_finds_it():
    """The parquet file keeps the extended symbol alone."""
    for group in gemmi.spacegroup_table():
        assert gemmi.SpaceGroup(group.xhm()).operations() == group.operations(), group.xhm()


def test_a_truncated_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "crystals.parquet"
    write_crystals(path, several())
    content = path.read_bytes()
    for length in (0, 3, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CrystalError, match="crystals.parquet is damaged or no crystal file"):
            read_crystals(path)


@pytest.mark.parametrize("columns", [{"a": [1, 2]}, {"name": ["x"], "cell": ["6 7 8"]}, {"name": [1], "fract": [2.5]}])
def test_a_parquet_file_of_something_else_is_an_error_that_names_it(tmp_path, columns):
    path = tmp_path / "other.parquet"
    pd.DataFrame(columns).to_parquet(path)
    with pytest.raises(CrystalError, match="other.parquet is.* no crystal file"):
        read_crystals(path)


def test_rows_that_are_no_crystal_are_named(tmp_path):
    path = tmp_path / "crystals.parquet"
    write_crystals(path, several())
    table = pq.read_table(path)
    for field, value, words in (("occ", None, "no occ"), ("spacegroup", "P 99", "'P 99' is no known space group")):
        rows = table.to_pylist()
        rows[1][field] = value
        pq.write_table(table.from_pylist(rows, schema=table.schema), path)
        with pytest.raises(CrystalError, match=f"crystals.parquet.*{words}"):
            read_crystals(path)


def test_a_missing_file_says_what_to_run(tmp_path):
    with pytest.raises(CrystalError, match="crystals.parquet does not exist.*01_generate_crystals"):
        read_crystals(tmp_path / "crystals.parquet")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "crystals.parquet"
    write_crystals(path, several())
    old = path.read_bytes()

    def half(table, where):
        Path(where).write_bytes(old[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(module.pq, "write_table", half)
    with pytest.raises(KeyboardInterrupt):
        write_crystals(path, several()[:1])
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
