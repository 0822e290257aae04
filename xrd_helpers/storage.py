"""Crystals kept in parquet, a row a crystal, written and read row group by row group, and never unpickled."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import gemmi
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .config import atomic_path, refuse_devices
from .crystals import Crystal, CrystalError, checked_cell, wrong_atoms, wrong_symmetry

ROWS = 512  # crystals a row group, 0.3 MB: what a worker makes at a time, and a reader holds in memory

# The row of a crystal: 600 bytes for 22 heavy atoms and their hydrogen. Structures are stored, amplitudes are computed
# when needed. Single precision keeps a coordinate to 6e-8 of the cell, a hundredth of what a CIF gives.
SCHEMA = pa.schema([
    ("name", pa.string()),
    ("source", pa.string()),
    ("spacegroup", pa.string()),            # extended Hermann-Mauguin symbol, which names the setting too
    ("cell", pa.list_(pa.float64(), 6)),    # a, b, c in Å, alpha, beta, gamma in degrees
    ("elements", pa.list_(pa.string())),    # symbols: by atomic number, the D of a neutron structure would become H
    ("fract", pa.list_(pa.float32())),      # x, y, z of atom 1, then of atom 2, ...
    ("u_iso", pa.list_(pa.float32())),      # Å²
    ("occ", pa.list_(pa.float32())),
    ("u_aniso", pa.list_(pa.float32())),    # Å², six of atom 1, then of atom 2, ...; empty if all are isotropic
])

# Dictionaries for what repeats. Of other numbers all first bytes, then all second ones, ...: 7 % smaller. Checksums,
# because a page that the disk has damaged would else be read as atoms at other places.
ENCODING = {
    "compression": "zstd",
    "write_page_checksum": True,
    "use_dictionary": ["source", "spacegroup", "elements.list.element", "occ.list.element"],
    "column_encoding": {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in ("cell", "fract", "u_iso", "u_aniso")},
}
METADATA = b"xrd_helpers"  # key of the file's metadata


def write_crystals(path, crystals, metadata=None, rows=ROWS):
    """Write crystals to a parquet file (to a temporary name first, then renamed).

    Parameters
    ----------
    path : str or Path
        The file; missing folders are made.
    crystals : iterable of Crystal
        Of a generator, `rows` crystals are in memory at a time.
    metadata : dict, optional
        What ``read_metadata`` gives back: where the crystals are from, in JSON's types.
    rows : int
        Crystals a row group.
    """
    crystals = iter(crystals)
    with atomic_path(path) as temporary, _writer(str(temporary), metadata) as writer:
        while some := list(islice(crystals, rows)):
            writer.write_table(_to_table(some))


def to_bytes(crystals, metadata=None) -> bytes:
    """A parquet file of one row group, as the bytes that a worker sends."""
    sink = pa.BufferOutputStream()
    with _writer(sink, metadata) as writer:
        writer.write_table(_to_table(crystals))
    return sink.getvalue().to_pybytes()


def join_parts(parts, path, metadata=None):
    """Write the row groups of the files `parts` to one file, in their order, one in memory at a time."""
    with _writer(str(path), metadata) as writer:
        for part, file, group, _, _ in _row_groups(*parts):
            writer.write_table(_read(part, file, group))


def parts_folder(path) -> Path:
    """The folder beside `path` where its row groups stand, a file each, until all of them are finished."""
    return Path(f"{path}.parts")


def read_metadata(path) -> dict:
    """What the writer of the file said of its crystals; {} if nothing."""
    try:
        return json.loads((_open(_files(path)[0]).schema_arrow.metadata or {}).get(METADATA, b"{}"))
    except ValueError as error:
        raise _damaged(path, error) from None


def row_groups(path) -> list[tuple[int, int]]:
    """(start, stop) of each row group: with these, ``read_crystals`` reads no row in vain."""
    return [(start, stop) for *_, start, stop in _row_groups(*_files(path))]


def read_crystals(path, start=0, stop=None) -> list[Crystal]:
    """Read the crystals of the rows `start` to `stop` - 1, counted from zero; by default all.

    Parameters
    ----------
    path : str or Path
        A file that ``write_crystals`` or ``xrd generate`` wrote; or the folder ``*.parts`` that an interrupted
        ``xrd generate`` leaves, of which the finished row groups are read in their order.
    start, stop : int
        Only row groups with some of these rows are read.

    Raises
    ------
    CrystalError
        If the file is missing, not finished, damaged or no crystal file.
    """
    return list(iter_crystals(path, start, stop))


def iter_crystals(path, start=0, stop=None):
    """The crystals of ``read_crystals`` one by one, with one row group in memory (their arrays are views into it)."""
    for part, file, group, first, last in _row_groups(*_files(path)):
        if stop is not None and stop <= first:
            break
        begin, end = max(start, first), last if stop is None else min(stop, last)
        if begin < end:
            yield from _from_table(part, _read(part, file, group)[begin - first:end - first])


# --- files ---


def _writer(sink, metadata):
    text = json.dumps(metadata or {}, ensure_ascii=False)
    return pq.ParquetWriter(sink, SCHEMA.with_metadata({METADATA: text.encode()}), **ENCODING)


def _files(path):
    """The parquet files that `path` means: itself, or the finished parts in it."""
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("[0-9]*.parquet"))  # one being written begins with a dot
        if not files:
            raise CrystalError(f"{path} has no finished row group")
        return files
    if not path.exists():
        if parts_folder(path).is_dir():
            raise CrystalError(f"{path} is not finished: run xrd generate again, or read what is in {parts_folder(path)}")
        raise CrystalError(f"{path} does not exist: run notebook 01_generate_crystals first")
    return [path]


def _open(path):
    refuse_devices(path, CrystalError)
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise _damaged(path, error) from None


def _row_groups(*files):
    """Path, open file, number in that file, first row and last row + 1 of each row group."""
    stop = 0
    for path in files:
        file = _open(path)
        for group in range(file.num_row_groups):
            start, stop = stop, stop + file.metadata.row_group(group).num_rows
            yield path, file, group, start, stop


def _read(path, file, group):
    """One row group as a table of SCHEMA."""
    if missing := [name for name in SCHEMA.names if name not in file.schema_arrow.names]:
        raise CrystalError(f"{path} is no crystal file: it has no {', '.join(missing)}")
    if wrong := [name for name in ("name", "source", "spacegroup") if not _is_text(file.schema_arrow.field(name).type)]:
        raise CrystalError(f"{path} is no crystal file: {', '.join(wrong)} should be text")  # numbers would become such
    try:
        return file.read_row_group(group, columns=SCHEMA.names).select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise _damaged(path, error) from None


def _is_text(kind):
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _damaged(path, error):
    return CrystalError(f"{path} is damaged or no crystal file: {str(error).splitlines()[0]}")


# --- rows and crystals ---


def _to_table(crystals):
    def lists(column, kind=pa.float32(), flatten=np.concatenate):
        offsets = np.cumsum([0, *map(len, column)]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(flatten(column), kind))

    cells = np.array([c.cell.parameters for c in crystals], float)
    return pa.table([
        pa.array([c.name for c in crystals]),
        pa.array([c.source for c in crystals]),
        pa.array([c.spacegroup.xhm() for c in crystals]),
        pa.FixedSizeListArray.from_arrays(cells.ravel(), 6),
        lists([c.elements for c in crystals], pa.string(), lambda column: [element for row in column for element in row]),
        lists([np.ravel(c.fract) for c in crystals]),
        lists([c.u_iso for c in crystals]),
        lists([c.occ for c in crystals]),
        lists([() if c.u_aniso is None else np.ravel(c.u_aniso) for c in crystals]),
    ], schema=SCHEMA)


def _from_table(path, table):
    columns = {name: table[name].combine_chunks() for name in SCHEMA.names}
    lists = {name: columns[name].flatten() for name in ("cell", "elements", "fract", "u_iso", "occ", "u_aniso")}
    if empty := [name for name in SCHEMA.names if columns[name].null_count or name in lists and lists[name].null_count]:
        raise CrystalError(f"{path} is no crystal file: rows have no {', '.join(empty)}")
    sizes = {name: columns[name].value_lengths().to_numpy() for name in ("elements", "fract", "u_iso", "occ", "u_aniso")}
    n_atoms, n_aniso = sizes["elements"], sizes["u_aniso"]
    if not all((sizes[name] == per_atom * n_atoms).all() for name, per_atom in (("fract", 3), ("u_iso", 1), ("occ", 1))) \
            or not ((n_aniso == 0) | (n_aniso == 6 * n_atoms)).all():
        raise CrystalError(f"{path} is no crystal file: columns tell different numbers of atoms")
    symbols = columns["spacegroup"].to_pylist()
    groups = {symbol: gemmi.find_spacegroup_by_name(symbol) for symbol in set(symbols)}
    for symbol, group in groups.items():
        if group is None:
            raise CrystalError(f"{path}: {symbol!r} is no known space group")

    encoded = lists["elements"].dictionary_encode()  # objects are made of a few different texts only, not one an atom
    elements = np.array(encoded.dictionary.to_pylist(), object)[encoded.indices.to_numpy()].tolist()
    cell, fract, u_iso, occ, u_aniso = (lists[name].to_numpy(zero_copy_only=False).astype(float)
                                        for name in ("cell", "fract", "u_iso", "occ", "u_aniso"))
    cell, fract, u_aniso = cell.reshape(-1, 6).tolist(), fract.reshape(-1, 3), u_aniso.reshape(-1, 6)
    names, sources = columns["name"].to_pylist(), columns["source"].to_pylist()
    # all rows at once, and one by one where something is wrong with them, to name it
    each = n_atoms.min(initial=1) < 1 or wrong_atoms(encoded.dictionary.to_pylist(), fract, u_iso, occ, u_aniso)
    stop, stop_aniso = np.cumsum(n_atoms).tolist(), np.cumsum(n_aniso // 6).tolist()
    for i, (n, n_u) in enumerate(zip(n_atoms.tolist(), (n_aniso // 6).tolist())):
        atoms = slice(stop[i] - n, stop[i])
        crystal = Crystal(name=names[i], source=sources[i], cell=checked_cell(cell[i], path), spacegroup=groups[symbols[i]],
                          elements=tuple(elements[atoms]), fract=fract[atoms], u_iso=u_iso[atoms], occ=occ[atoms],
                          u_aniso=u_aniso[stop_aniso[i] - n_u:stop_aniso[i]] if n_u else None)
        if wrong := wrong_symmetry(crystal.cell, crystal.spacegroup) or each and wrong_atoms(
                crystal.elements, crystal.fract, crystal.u_iso, crystal.occ, crystal.u_aniso):
            raise CrystalError(f"{path}, crystal {names[i][:80]!r}: {wrong}")
        yield crystal
