"""The parquet file of crystals."""

import weakref
from dataclasses import replace

import gemmi
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from makers import MONOCLINIC, make_crystal
from xrd_helpers import storage as module
from xrd_helpers.crystals import Crystal, CrystalError
from xrd_helpers.storage import iter_crystals, read_crystals, read_metadata, row_groups, write_crystals

TRICLINIC = (7.123456789, 8.2, 9.3, 81.5, 77.25, 112.125)


def monoclinic(name, n=4, seed=1):
    return make_crystal("CNOS"[:n], name, MONOCLINIC, u=(0.02, 0.06), occ=(0.5, 1), seed=seed, name=name)


def several():
    return [monoclinic(name, n, seed) for n, seed, name in ((4, 1, "P 1 21/n 1"), (1, 2, "I 1 2/a 1"), (3, 3, "C 1 2/c 1"))]


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
        assert other.fract.dtype == float
        np.testing.assert_allclose(other.fract, one.fract, rtol=1e-7)
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


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "crystals.parquet"
    write_crystals(path, several())
    old = path.read_bytes()

    def stopping():
        yield from several()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_crystals(path, stopping(), rows=2)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def numbered(n, cell=TRICLINIC, name="P -1"):
    """n crystals of 1 to 7 atoms, each with numbers that no other one has."""
    for i in range(n):
        m = 1 + i % 7
        yield Crystal(f"c{i}", gemmi.UnitCell(*cell), gemmi.SpaceGroup(name), ("C", "D", "Cl", "H", "U", "N", "O")[:m],
                      np.arange(3.0 * m).reshape(m, 3) / 32 - i, np.full(m, i / 64), np.full(m, 1 / (1 + i % 2)))


def test_other_programs_read_the_columns(tmp_path):
    """pandas finds the numbers of a triclinic and a monoclinic crystal where SCHEMA says that they are."""
    u_aniso = np.array([[1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]]) / 64
    one = Crystal("a", gemmi.UnitCell(*TRICLINIC), gemmi.SpaceGroup("P -1"), ("D", "Cl"),
                  np.array([[0.125, 0.25, -0.5], [1.5, 0.75, 0]]), np.array([2 / 64, 0.5]), np.array([1, 0.5]),
                  source="a.cif", u_aniso=u_aniso)
    two = replace(one, name="b", cell=gemmi.UnitCell(*MONOCLINIC), spacegroup=gemmi.SpaceGroup("P 1 21/n 1"), u_aniso=None)
    write_crystals(tmp_path / "c.parquet", [one, two])
    frame = pd.read_parquet(tmp_path / "c.parquet")
    assert frame.name.tolist() == ["a", "b"] and frame.source.tolist() == ["a.cif"] * 2
    assert frame.spacegroup.tolist() == ["P -1", "P 1 21/n 1"]
    assert [list(cell) for cell in frame.cell] == [list(TRICLINIC), list(MONOCLINIC)]
    assert list(frame.elements[1]) == ["D", "Cl"] and list(frame.fract[1]) == [0.125, 0.25, -0.5, 1.5, 0.75, 0]
    assert list(frame.u_iso[0]) == [2 / 64, 0.5] and list(frame.occ[0]) == [1, 0.5]
    assert list(frame.u_aniso[0] * 64) == [1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0] and len(frame.u_aniso[1]) == 0
    first, second = read_crystals(tmp_path / "c.parquet")
    np.testing.assert_array_equal(first.u_aniso, u_aniso)
    assert second.u_aniso is None


def test_any_rows_are_read_from_no_more_row_groups_than_hold_them(tmp_path, monkeypatch):
    path = tmp_path / "c.parquet"
    write_crystals(path, numbered(11), rows=4)
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 4, 3]
    assert row_groups(path) == [(0, 4), (4, 8), (8, 11)]
    read = []
    monkeypatch.setattr(module, "_read", lambda *args, original=module._read: read.append(args[2]) or original(*args))
    for start in range(13):
        for stop in [*range(13), None]:
            read.clear()
            crystals = read_crystals(path, start, stop)
            wanted = list(range(11))[start:stop]
            assert [c.name for c in crystals] == [f"c{i}" for i in wanted]
            assert [c.fract[0, 0] for c in crystals] == [-i for i in wanted]
            assert [len(c.elements) for c in crystals] == [len(c.u_iso) for c in crystals] == [1 + i % 7 for i in wanted]
            assert set(read) == {i // 4 for i in wanted}


def test_no_more_than_two_row_groups_are_in_memory(tmp_path):
    """The one at work and, until that is complete, the one before."""
    alive, most = weakref.WeakValueDictionary(), 0

    def watched(crystals, part):
        nonlocal most
        for i, crystal in enumerate(crystals):
            alive[i] = part(crystal)
            most = max(most, len({id(value) for value in alive.values()}))
            yield crystal

    write_crystals(tmp_path / "c.parquet", watched(numbered(100), lambda crystal: crystal), rows=8)
    assert 8 <= most <= 17
    most = 0
    for _ in watched(iter_crystals(tmp_path / "c.parquet"), lambda crystal: crystal.fract.base):
        pass
    assert 1 <= most <= 2


def test_a_million_molecules_fit_in_a_gigabyte(tmp_path):
    """Of 22 heavy atoms and 20 hydrogen atoms each; random numbers, which nothing can compress."""
    rng = np.random.default_rng(0)
    groups = [gemmi.SpaceGroup(name) for name in ("P -1", "P 1 21/c 1", "P 1 21 1", "C 1 2/c 1")]
    made = [Crystal(f"molecules_7_{i}", gemmi.UnitCell(*rng.uniform(5, 20, 3), *rng.uniform(75, 115, 3)), groups[i % 4],
                    (*rng.choice(["C", "N", "O", "S"], 22).tolist(), *["H"] * 20), rng.random((42, 3)),
                    rng.uniform(0.02, 0.07, 42), np.ones(42), "recipe molecules") for i in range(1024)]
    write_crystals(tmp_path / "c.parquet", made)
    assert (tmp_path / "c.parquet").stat().st_size < 1024 * 700


def test_a_damaged_byte_is_noticed(tmp_path):
    """Somewhere among the coordinates, where each byte means an atom at another place."""
    path = tmp_path / "c.parquet"
    write_crystals(path, numbered(500))
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(5)
    assert chunk.path_in_schema.startswith("fract")
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CrystalError, match="c.parquet is damaged"):
        read_crystals(path)


@pytest.mark.parametrize("field, value", [("fract", [0.5] * 4), ("u_iso", [0.1]), ("occ", []), ("u_aniso", [0.1] * 6)])
def test_columns_that_do_not_fit_together_are_refused(tmp_path, field, value):
    path = tmp_path / "c.parquet"
    write_crystals(path, several())
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0][field] = value
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(CrystalError, match="c.parquet is no crystal file: columns tell different numbers of atoms"):
        read_crystals(path)


def test_metadata_are_kept(tmp_path):
    write_crystals(tmp_path / "a.parquet", several(), {"seed": 7, "spacegroups": None, "source": "β"})
    assert read_metadata(tmp_path / "a.parquet") == {"seed": 7, "spacegroups": None, "source": "β"}
    write_crystals(tmp_path / "b.parquet", [])
    assert read_metadata(tmp_path / "b.parquet") == {} and read_crystals(tmp_path / "b.parquet") == []
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "c.parquet")
    assert read_metadata(tmp_path / "c.parquet") == {}


def test_what_an_interrupted_run_leaves_is_read_as_a_folder(tmp_path):
    path, folder = tmp_path / "c.parquet", tmp_path / "c.parquet.parts"
    folder.mkdir()
    with pytest.raises(CrystalError, match="c.parquet.parts has no finished row group"):
        read_crystals(folder)
    every = list(numbered(12))
    write_crystals(folder / "000000008.parquet", every[8:])
    write_crystals(folder / "000000000.parquet", every[:4])
    (folder / ".000000004.1a2b.parquet").write_bytes(b"half a file")
    assert [c.name for c in read_crystals(folder)] == [f"c{i}" for i in (0, 1, 2, 3, 8, 9, 10, 11)]
    assert row_groups(folder) == [(0, 4), (4, 8)]
    with pytest.raises(CrystalError, match="c.parquet is not finished: run xrd generate again.*c.parquet.parts"):
        read_crystals(path)
