"""Which real crystals each method has solved, with the numbers by which others can get the same files and compare.

It runs nothing: rows of ``building.csv`` (this engine, the formula known), ``phasing.csv`` (cctbx, the formula known) and
``known_molecule.csv`` (the molecule known) in --results are brought together. A row is a crystal, d_min and method: amplitudes
calculated from the published atoms to d_min, without errors; solved: 80 % of the non-H atoms within 0.5 Å at the best allowed
origin and hand; claimed: the program said so itself. sha256 is that of the CIF that was read; ``xrd fetch-cod --ids
open_benchmark.csv --out FOLDER`` gets them, and names those that COD has revised since.

Usage: python benchmarks/open_benchmark.py --crystals FOLDER [--results benchmarks/results]
It writes open_benchmark.csv and .json (solved of how many by method, light or heavier, and d_min) into --results.
"""

import argparse
import hashlib
import json
from pathlib import Path

import pandas as pd

from xrd_helpers.cif_folders import read_cif_folders
from xrd_helpers.config import UserError, atomic_path, write_json

COLUMNS = ["cod", "sha256", "crystal", "spacegroup", "light", "atoms", "d_min", "known", "method", "solved", "claimed",
           "seconds"]


def rows_of(results):
    """Rows of every method, with the name of the CIF file, and {method: what its file says of how it was made}."""
    building = pd.read_csv(results / "building.csv").query("variant == 'engine' and part == 'report'")
    engine = building.assign(crystal=building.file.str.removesuffix(".cif"), known="formula", method="this engine")
    phasing = pd.read_csv(results / "phasing.csv", dtype={"name": str})
    cctbx = phasing.query("set in ('light', 'heavier') and program == 'cctbx'")
    cctbx = cctbx.assign(crystal=cctbx.name, known="formula", method="cctbx charge flipping")
    placed = pd.read_csv(results / "known_molecule.csv", dtype={"crystal": str})
    placed = placed[(placed.noise.fillna(0) == 0) & (placed.set != "measured")]
    placed = placed.assign(known=placed.known.map({"smiles": "molecule", "geometry": "molecule, its geometry"}),
                           method="known molecule", claimed=placed.verdict == "solved")
    about = {}
    for method, file in (("this engine", "building"), ("cctbx charge flipping", "phasing"),
                         ("known molecule", "known_molecule")):
        stored = json.loads((results / f"{file}.json").read_text(encoding="utf-8"))
        about[method] = {key: stored[key] for key in ("seed", "commit", "machine", "minutes", "options") if key in stored}
    return pd.concat([engine, cctbx, placed]), about


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crystals", required=True)
    parser.add_argument("--results", default="benchmarks/results")
    args = parser.parse_args()
    results, folder = Path(args.results), Path(args.crystals)
    sources = pd.read_csv(folder / "SOURCES.csv", dtype=str)
    cod = dict(zip(sources.name.str.removesuffix(".cif"), sources.cod_id.fillna("")))
    crystals = {crystal.name: crystal for crystal in read_cif_folders([folder])[0]}
    rows, about = rows_of(results)
    if unknown := sorted(set(rows.crystal) - set(crystals)):
        raise UserError(f"{folder} has no {unknown[0]}.cif, one of {len(unknown)} that the results name")
    digest = {name: hashlib.sha256((folder / f"{name}.cif").read_bytes()).hexdigest() for name in set(rows.crystal)}
    rows = rows.assign(cod=rows.crystal.map(cod), sha256=rows.crystal.map(digest),
                       spacegroup=[crystals[name].spacegroup.xhm() for name in rows.crystal],
                       light=[crystals[name].light for name in rows.crystal],
                       atoms=[int(crystals[name].heavy.sum()) for name in rows.crystal], seconds=rows.seconds.round(2))
    rows = rows[COLUMNS].sort_values(["crystal", "method", "d_min"])
    with atomic_path(results / "open_benchmark.csv") as temporary:
        rows.to_csv(temporary, index=False)
    table = rows.groupby(["known", "method", "light", "d_min"]).agg(
        crystals=("solved", "size"), solved=("solved", "sum"), claimed=("claimed", "sum"), seconds=("seconds", "median"))
    print(table.to_string())
    write_json(results / "open_benchmark.json", {"rows": table.reset_index().to_dict("records"), "made": about})


if __name__ == "__main__":
    main()
