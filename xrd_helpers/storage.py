"""Crystals kept in one parquet file, a row a crystal, and never unpickled."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .config import atomic_path
from .crystals import Crystal, CrystalError

# The row of a crystal: about half a kilobyte for 20 atoms. Structures are stored, amplitudes are computed when needed.
SCHEMA = pa.schema([
    ("name", pa.string()),
    ("source", pa.string()),
    ("spacegroup", pa.string()),            # extended Hermann-Mauguin symbol, which names the setting too
    ("cell", pa.list_(pa.float64(), 6)),    # a, b, c in Å, alpha, beta, gamma in degrees
    ("elements", pa.list_(pa.string())),
    ("fract", pa.list_(pa.float64())),      # x, y, z of atom 1, then of atom 2, ...
    ("u_iso", pa.list_(pa.float32())),      # Å²
    ("occ", pa.list_(pa.float32())),
    ("u_aniso", pa.list_(pa.float32())),    # Å², six of atom 1, then of atom 2, ...; empty if all are isotropic
])


def write_crystals(path, crystals):
    """Write crystals to a parquet file (to a temporary name first, then renamed)."""
    rows = [{"name": c.name, "source": c.source, "spacegroup": c.spacegroup.xhm(), "cell": list(c.cell.parameters),
             "elements": list(c.elements), "fract": np.ravel(c.fract).tolist(), "u_iso": list(map(float, c.u_iso)),
             "occ": list(map(float, c.occ)), "u_aniso": [] if c.u_aniso is None else np.ravel(c.u_aniso).tolist()} for c in crystals]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)


def read_crystals(path) -> list[Crystal]:
    """Read the crystals that ``write_crystals`` wrote."""
    path = Path(path)
    if not path.exists():
        raise CrystalError(f"{path} does not exist: run notebook 01_generate_crystals first")
    try:
        rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise CrystalError(f"{path} is damaged or no crystal file: {str(error).splitlines()[0]}") from None
    for row in rows:  # a column that the file does not have is read as empty
        if empty := [column for column, value in row.items() if value is None]:
            raise CrystalError(f"{path} is no crystal file: it has no {', '.join(empty)}")
        if gemmi.find_spacegroup_by_name(row["spacegroup"]) is None:
            raise CrystalError(f"{path}: {row['spacegroup']!r} is no known space group")
    return [Crystal(name=row["name"], source=row["source"], cell=gemmi.UnitCell(*row["cell"]),
                    spacegroup=gemmi.SpaceGroup(row["spacegroup"]), elements=tuple(row["elements"]),
                    fract=np.reshape(row["fract"], (-1, 3)), u_iso=np.array(row["u_iso"], float),
                    occ=np.array(row["occ"], float),
                    u_aniso=np.reshape(row["u_aniso"], (-1, 6)) if row["u_aniso"] else None) for row in rows]
