"""Known molecules placed in their cells: how many crystals are solved at 1.5 to 3.0 Å, and in what time.

Amplitudes are calculated from the published atoms, hydrogen and anisotropy included; what is known is the molecules (rows
*smiles*: the bonds of the published structure as a SMILES, conformers by RDKit alone; rows *geometry*, where RDKit reads no
molecule from it, metal complexes mostly: published distances and angles with every torsion at random), the cell and the space
group. How many molecules there are in the cell is found from its volume. Set *one*: a single molecule in a general
position; *several*: all others. Solved: 80 % of the non-H atoms within 0.5 Å, at the best allowed origin and hand.
*measured*: measured intensities cut at d_min. r_ext and cc_ext: of the amplitudes beyond d_min, to 0.8 Å. turns_right: of the
torsions of the solved ones about bonds outside rings, the share within 10° of the published one.

--torsions: chains with so many torsions, --n of each (5), drawn unit by unit, a conformer of RDKit (not one of those searched)
with its torsions off by 15° and its atoms by 0.03 Å (standard deviations), packed without clashes in P21/c.
--fragment: of each crystal of the set *one* a part is known, cut out at one or two bonds outside rings so that it has nearest
to such a share of the scattering (ΣZ²); placed, and completed from maps.

A row is written as soon as it is there, and none is done twice: a run goes on where the last one stopped. With --table
nothing is run.

Usage: python benchmarks/known_molecule.py --crystals FOLDER [--measured FOLDER] [--part tune|report|all]
       [--set one|several|all] [--d 1.5 2.0 2.5 3.0] [--minutes 1] [--noise 0.1] [--n 0] [--out FOLDER] [--table]
       python benchmarks/known_molecule.py --torsions 2 4 6 8 10 12 14 16 [--n 5] [--d 2.0] [--minutes 1] [--out FOLDER]
       python benchmarks/known_molecule.py --crystals FOLDER --fragment 0.3 0.5 0.7 [--n 8] [--d 1.2 1.5 2.0] [--out FOLDER]
It writes known_molecule.csv (a row a crystal and resolution) and known_molecule.json (the table) into --out; with --torsions
and --fragment known_molecule_torsions and known_molecule_fragments.
"""

import argparse
import os
import re
import time
from dataclasses import replace
from itertools import combinations, count, product
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import gemmi
import networkx as nx
import numpy as np
import pandas as pd
from rdkit import Chem, RDLogger
from tqdm import tqdm

from xrd_helpers.bonds import SLACK, covalent_radii, whole_molecules
from xrd_helpers.cif import read_cif
from xrd_helpers.cif_folders import read_cif_folders
from xrd_helpers.config import UserError, run_folder, write_json
from xrd_helpers.crystals import Crystal
from xrd_helpers.known_molecule import (
    drawn_molecules,
    formula_unit,
    from_geometry,
    molecules_in,
    read_molecules,
    scrambled,
    with_more_conformers,
)
from xrd_helpers.metrics import correlation, r_factor
from xrd_helpers.phasing.job import solve_with_fragment
from xrd_helpers.phasing.origin import match_atoms
from xrd_helpers.phasing.placing import place
from xrd_helpers.random_crystals.packing import Contents, pack
from xrd_helpers.reflection_files import read_measured
from xrd_helpers.reflections import Measured, Reflections, unique_hkl
from xrd_helpers.structure_factors import fit_scale, structure_factors
from xrd_helpers.summary import git_state, machine

RDLogger.DisableLog("rdApp.*")

CONFORMERS = 24  # with random torsions, of a geometry


def perceive(crystal):
    """(kind, [(KnownMolecule, count)]): kind "smiles", or "geometry" where RDKit reads no molecule from it."""
    if found := drawn_molecules(crystal):
        return "smiles", found
    molecules = molecules_in(crystal)
    made = [from_geometry([crystal.elements[i] for i in m.atom], m.xyz, crystal.name) for m, _ in molecules]
    keys = [f"{m.formula} {len(m.bonds)}" for m in made]
    by_key = dict(reversed(list(zip(keys, made))))
    return "geometry", [(scrambled(by_key[key], CONFORMERS), n) for key, n in formula_unit(keys, [n for _, n in molecules])]


def calculated(crystal, d_min, noise=0.0):
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
    F = np.abs(structure_factors(crystal, hkl))
    if not noise:
        return Reflections.of_good_data(hkl, F, crystal.cell, crystal.spacegroup)
    noisy = np.abs(F * (1 + noise * np.random.default_rng(len(hkl)).normal(size=len(hkl))))
    return Reflections(hkl, noisy, noise * noisy + 0.01 * F.mean(), crystal.cell, crystal.spacegroup)


def measured_sets(folder):
    """(crystal, Reflections) of the data sets in a folder with SOURCES.csv."""
    for row in pd.read_csv(Path(folder) / "SOURCES.csv").itertuples():
        model = Path(folder) / row.model
        about = model if row.model != row.file else None
        yield replace(read_cif(model), name=str(row.id)), read_measured(Path(folder) / row.file, about).merge()


UNITS = ("C", "CC", "O", "C(=O)N", "NC(=O)", "c1ccc(cc1)", "C(C)", "S", "C(=O)")
NEVER = re.compile("[NOS][NOS]|[NOS]C[NOS]|\\)O|OC\\(=O\\)|C\\(=O\\)C\\(=O\\)|C\\(=O\\)S|SC\\(=O\\)")  # no such bonds


def chain(torsions, rng):
    """A KnownMolecule with so many torsions, drawn unit by unit."""
    turns = Chem.MolFromSmarts("[!D1]-!@[!D1]")
    while True:
        text = "c1ccccc1"
        while (n := len(Chem.MolFromSmiles(text + "c1ccncc1").GetSubstructMatches(turns))) < torsions:
            text += str(rng.choice(UNITS))
        if n == torsions and not NEVER.search(text[8:] + "C"):
            (molecule, _), = read_molecules(text + "c1ccncc1")
            if len(molecule.torsions) == torsions and len(molecule) <= 50:
                return molecule


def packed(molecule, seed):
    """A Crystal of a KnownMolecule in P21/c, packed as recipe *molecules* packs."""
    rng, group = np.random.default_rng(seed), gemmi.SpaceGroup("P 1 21/c 1")
    elements = [*molecule.elements, *["H"] * len(molecule.parents)]
    parents = np.concatenate([np.full(len(molecule), -1), molecule.parents])
    for attempt in count():
        made = with_more_conformers(molecule, 1, seed=int(rng.integers(2**31)))
        made = replace(made, conformers=made.conformers[-1:], hydrogen=made.hydrogen[-1:])
        drawn = scrambled(made, 1, int(rng.integers(2**31)), np.radians(15))
        xyz = np.concatenate([drawn.conformers[0], drawn.hydrogen[0]])
        apart = np.linalg.norm(xyz[:, None] - xyz, axis=-1)
        if (apart[np.triu_indices(len(xyz), 1)] < 0.9).any() or (apart[:len(molecule), :len(molecule)] + 9 * (
                bonded_within(molecule, 3)) < 3.0).any():
            continue  # the chain runs into itself
        volume = 4 * molecule.volume * (1 + 0.01 * (attempt // 10))
        contents = Contents(group, volume, [elements], [xyz + rng.normal(0, 0.03, xyz.shape)], [parents], [None],
                            np.ones(len(xyz)))
        cell, fract = pack(contents, rng)
        if cell:
            return Crystal(f"{len(molecule.torsions)}_{seed}", cell, group, tuple(elements), fract % 1,
                           np.where(np.array(elements) == "H", 0.06, 0.05), np.ones(len(xyz)))


def bonded_within(molecule, most):
    """(n, n) bool, pairs of atoms no more than so many bonds apart, each with itself."""
    n = len(molecule)
    step = np.eye(n, dtype=bool)
    step[molecule.bonds[:, 0], molecule.bonds[:, 1]] = step[molecule.bonds[:, 1], molecule.bonds[:, 0]] = True
    return np.linalg.matrix_power(step.astype(int), most) > 0


def cut(smiles, share):
    """(SMILES of a part, its share of ΣZ²) cut out at one or two bonds outside rings, of the share nearest to that wanted."""
    mol, found = Chem.MolFromSmiles(smiles), []
    total = sum(atom.GetAtomicNum() ** 2 for atom in mol.GetAtoms())
    bonds = [b.GetIdx() for b in mol.GetBonds() if not b.IsInRing() and b.GetBondType() == Chem.BondType.SINGLE]
    for some in [*combinations(bonds, 1), *combinations(bonds, 2)]:
        for part in Chem.GetMolFrags(Chem.FragmentOnBonds(mol, some, addDummies=False), asMols=True, sanitizeFrags=False):
            text = Chem.MolToSmiles(part)
            if part.GetNumAtoms() > 4 and Chem.MolFromSmiles(text):
                mine = sum(atom.GetAtomicNum() ** 2 for atom in part.GetAtoms()) / total
                found.append((abs(mine - share), text, mine))
    return min(found)[1:] if found else None


def fragment_placed(crystal, reflections, minutes, seed, part):
    """The row of one fragment, (SMILES, share)."""
    began = time.perf_counter()
    row = {"crystal": crystal.name, "light": crystal.light, "n_hkl": len(reflections), "fragment": part[0], "share": part[1],
           "atoms": int(crystal.heavy.sum())}
    data = Measured(reflections.hkl, *reflections.intensities(), crystal.cell, crystal.spacegroup, crystal.contents, 0.71073,
                    (Path(crystal.name),), "calculated")
    solution = solve_with_fragment(data, read_molecules(part[0]), minutes, seed).solution
    heavy = np.array(solution.elements) != "H"
    match = match_atoms(solution.fract[heavy], crystal.fract[crystal.heavy], crystal.cell, crystal.spacegroup)
    return row | {"solved": match.n_matched >= 0.8 * match.n_true, "matched": match.n_matched, "true": match.n_true,
                  "r1": solution.r1, "verdict": solution.verdict, "seconds": time.perf_counter() - began}


def placed(crystal, reflections, minutes, seed, measured=False, found=None):
    """A row of the table; found : (KnownMolecule, count) pairs, by default those perceived."""
    began, began_cpu = time.perf_counter(), time.process_time()
    row = {"crystal": crystal.name, "spacegroup": crystal.spacegroup.xhm(), "light": crystal.light, "n_hkl": len(reflections)}
    try:
        kind, found = ("smiles", found) if found else perceive(crystal)
        molecules, counts = zip(*found)
        row |= {"known": kind, "molecules": ".".join(f"{n}*{m.formula}" for m, n in zip(molecules, counts)),
                "atoms": sum(n * len(m) for m, n in zip(molecules, counts)),
                "torsions": max(len(m.torsions) for m in molecules), "seconds_molecules": time.perf_counter() - began}
        solution = place(reflections, molecules, list(counts), minutes=minutes, seed=seed)
    except UserError as error:
        return row | {"solved": False, "seconds": time.perf_counter() - began, "error": str(error)}
    row |= {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
    heavy = np.array(solution.elements) != "H"
    match = match_atoms(solution.fract[heavy], crystal.fract[crystal.heavy], crystal.cell, crystal.spacegroup)
    e = solution.evidence
    if solution.spacegroup.xhm() == crystal.spacegroup.xhm() and not measured:
        row |= beyond(solution, crystal, reflections)
    row |= dict(zip(("turns", "turns_right"), torsions_right(match, np.flatnonzero(heavy), solution, crystal)))
    return row | {"solved": match.n_matched >= 0.8 * match.n_true, "matched": match.n_matched, "true": match.n_true,
                  "rms": match.rms, "r1": e.r1, "r_free": e.r_free, "found": e.found, "tried": e.tried, "next_r1": e.next_r1,
                  "strain": e.strain, "contact": e.contact, "verdict": solution.verdict, "error": ""}


def beyond(solution, crystal, reflections, d_target=0.8):
    """What the atoms say of the amplitudes that were not measured, against those of the published ones (*molecule first*)."""
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_target)
    hkl = hkl[crystal.cell.calculate_d_array(hkl.astype(np.int32)) < reflections.d_min - 1e-6]
    atoms = solution.as_crystal()
    scale = fit_scale(reflections.F, np.abs(structure_factors(atoms, reflections.hkl)))
    true, pred = np.abs(structure_factors(crystal, hkl)), scale * np.abs(structure_factors(atoms, hkl))
    return {"r_ext": r_factor(pred, true), "cc_ext": correlation(pred, true)}


def torsions_right(match, heavy, found, true, within=10):
    """(torsions of the published molecule about bonds outside rings, those of them that the placed one has within so many
    degrees); atoms that are not matched have none right. Molecules that symmetry completes are left out.

    match : AtomMatch of the atoms `heavy` of the Solution `found` and the non-H atoms of the Crystal `true`
    """
    partner = dict(zip(np.flatnonzero(true.heavy)[match.pairs[:, 1]].tolist(), heavy[match.pairs[:, 0]].tolist()))
    where = {}  # atom of `found` -> its place in a molecule in one piece
    for number, molecule in enumerate(whole_molecules(found.fract, found.elements, found.cell, found.spacegroup)):
        if molecule.own.all():
            where |= {int(atom): (number, xyz) for atom, xyz in zip(molecule.atom, molecule.xyz)}
    n = n_right = 0
    for molecule in whole_molecules(true.fract, true.elements, true.cell, true.spacegroup):
        fours = _fours(molecule, true.heavy) if molecule.own.all() else []
        apart = []
        for four in fours:
            mine = [where.get(partner.get(int(molecule.atom[i]), -1)) for i in four]
            if None in mine or len({number for number, _ in mine}) > 1:
                apart.append((999, 999))
                continue
            angle, published = (np.degrees(gemmi.calculate_dihedral(*(gemmi.Position(*x) for x in some)))
                                for some in ([xyz for _, xyz in mine], molecule.xyz[four]))
            # of the image that symmetry or the other hand makes of the molecule every angle has the other sign
            apart.append(tuple(abs((sign * angle - published + 180) % 360 - 180) for sign in (1, -1)))
        n += len(apart)
        n_right += int((np.array(apart).reshape(-1, 2) < within).sum(0).max()) if apart else 0
    return n, n_right


def _fours(molecule, heavy):
    """Rows of four atoms that span the torsions about the bonds of a Molecule that lie in no ring."""
    bonds = nx.Graph([(int(a), int(b)) for a, b in molecule.bonds if heavy[molecule.atom[[a, b]]].all()])
    made = []
    for b, c in nx.bridges(bonds):
        ends = [sorted(set(bonds[x]) - {b, c}) for x in (b, c)]
        if all(ends) and (four := [ends[0][0], b, c, ends[1][0]]) and not any(_straight(*molecule.xyz[[*three]])
                                                                             for three in (four[:3], four[1:])):
            made.append(four)
    return made


def _straight(a, b, c):
    """Whether the angle at b is beyond 165°, as in a nitrile, where a torsion has no meaning."""
    return np.dot(a - b, c - b) < np.cos(np.radians(165)) * np.linalg.norm(a - b) * np.linalg.norm(c - b)


def all_end(crystal):
    """Whether all is molecules: False for a chain, layer or framework, where an atom is bonded to an image in another cell."""
    orth = np.array(crystal.cell.orth.mat.tolist())
    for molecule in whole_molecules(crystal.fract, crystal.elements, crystal.cell, crystal.spacegroup):
        elements = [crystal.elements[i] for i in molecule.atom]
        radius, hydrogen = covalent_radii(elements), np.isin(elements, ["H", "D"])
        longest = np.where(np.outer(hydrogen, hydrogen), 0, radius[:, None] + radius + SLACK)
        step = (molecule.xyz[:, None] - molecule.xyz) @ np.linalg.inv(orth).T
        if any((np.linalg.norm((step + shift) @ orth.T, axis=-1) < longest).any()
               for shift in product((-1, 0, 1), repeat=3) if any(shift)):
            return False
    return True


def kind_of(crystal):
    """"one" for a single molecule in a general position, "several" for everything else."""
    molecules = whole_molecules(crystal.fract, crystal.elements, crystal.cell, crystal.spacegroup)
    return "one" if len(molecules) == 1 and molecules[0].own.all() and (crystal.occ > 0.99).all() else "several"


def jobs(args):
    """(set, part, name, d_min, crystal, function that gives its Reflections) in an order drawn with a fixed seed."""
    if args.crystals:
        part = dict(pd.read_csv(Path(args.crystals) / "SPLIT.csv").values)
        crystals, _ = read_cif_folders([args.crystals])
        crystals = [c for c in crystals if all_end(c) and args.part in ("all", part.get(c.name + ".cif"))
                    and args.set in ("all", kind_of(c))]
        order = np.random.default_rng(0).permutation(len(crystals))[:args.n or None]
        for d_min in args.d:
            for i in order:
                c = crystals[i]
                yield kind_of(c), part[c.name + ".cif"], d_min, c, lambda c=c, d=d_min: calculated(c, d, args.noise)
    if args.measured:
        for crystal, reflections in measured_sets(args.measured):
            for d_min in args.d:
                yield ("measured", "report", d_min, crystal,
                       lambda r=reflections, d=d_min: r.select(r.d >= d))


def made_of_torsions(args, rows):
    """Rows of --torsions, one after the other, beside those that are there already."""
    done = {r["crystal"] for r in rows}
    for torsions in args.torsions:
        for i in range(args.n or 5):
            name = f"{torsions}_{(seed := 1000 * torsions + i)}"
            if name not in done:
                molecule = chain(torsions, np.random.default_rng([args.seed, seed]))
                crystal = packed(molecule, seed)
                for d_min in args.d:
                    yield {"d_min": d_min, **placed(crystal, calculated(crystal, d_min), args.minutes, args.seed,
                                                    found=[(molecule, 1)])}


def made_of_fragments(args, rows):
    done = {(str(r["crystal"]), r["d_min"], r["wanted"]) for r in rows}
    for _, part, d_min, crystal, data in jobs(args):
        drawn = drawn_molecules(crystal) if crystal.heavy.sum() <= args.most_atoms else None
        for wanted in args.fragment if drawn else ():
            if (crystal.name, d_min, wanted) not in done and (fragment := cut(drawn[0][0].name, wanted)):
                yield {"part": part, "d_min": d_min, "wanted": wanted,
                       **fragment_placed(crystal, data(), args.minutes, args.seed, fragment)}


def table(rows):
    """Solved and median seconds by part, set, known, light and d_min."""
    rows = rows.assign(**{name: rows.get(name, pd.Series(np.nan, rows.index)) for name in ("r_ext", "cc_ext")},
                       **{name: rows[name].where(rows.solved) for name in ("turns", "turns_right")})
    groups = rows.groupby(["part", "set", "known", "light", "d_min", "noise"])
    made = groups.agg(crystals=("solved", "size"), solved=("solved", "sum"), seconds=("seconds", "median"),
                      cpu_seconds=("cpu_seconds", "median"), slowest=("seconds", "max"), rms=("rms", "median"),
                      r_ext=("r_ext", "mean"), cc_ext=("cc_ext", "mean"), turns=("turns", "sum"),
                      turns_right=("turns_right", "sum")).reset_index()
    made["turns_right"] /= made.turns
    made["share"] = made.solved / made.crystals
    return made


def extra(args, path, make, keys):
    """Rows of another table as they come, and their numbers by some columns."""
    rows = pd.read_csv(path, dtype={"crystal": str}).to_dict("records") if path.exists() else []
    about = {"seed": args.seed, "minutes": args.minutes, "commit": str(git_state()), "machine": str(machine())}
    for row in () if args.table else tqdm(make(args, list(rows)), mininterval=30):
        rows.append(row | about)
        pd.DataFrame(rows).to_csv(path, index=False)
    table = pd.DataFrame(rows)
    means = {name: (name, how) for name, how in (("atoms", "mean"), ("share", "mean"), ("cpu_seconds", "median"))
             if name in table}
    made = table.groupby(keys).agg(crystals=("solved", "size"), solved=("solved", "sum"), seconds=("seconds", "median"),
                                   claimed=("verdict", lambda v: int((v == "solved").sum())), **means).reset_index()
    print(made.to_string(index=False, float_format=lambda x: f"{x:.3g}"))
    write_json(path.with_suffix(".json"), {
        "rows": made.to_dict("records"), **about,
        "options": {name: value for name, value in vars(args).items() if name not in ("crystals", "measured", "out")}})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crystals", default="")
    parser.add_argument("--measured", default="")
    parser.add_argument("--part", default="tune", choices=["tune", "report", "all"])
    parser.add_argument("--set", default="all", choices=["one", "several", "all"])
    parser.add_argument("--d", type=float, nargs="+", default=[1.5, 2.0, 2.5, 3.0])
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of F, as a share of it")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--n", type=int, default=0, help="crystals at most; 0 for all")
    parser.add_argument("--most-atoms", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--torsions", type=int, nargs="+", default=[])
    parser.add_argument("--fragment", type=float, nargs="+", default=[], help="shares of the scattering")
    args = parser.parse_args()
    out = Path(args.out) if args.out else run_folder("benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    if args.torsions:
        return extra(args, out / "known_molecule_torsions.csv", made_of_torsions, ["d_min", "torsions"])
    if args.fragment:
        args.set = "one"
        return extra(args, out / "known_molecule_fragments.csv", made_of_fragments, ["light", "d_min", "wanted"])
    path = out / "known_molecule.csv"
    rows = pd.read_csv(path, dtype={"crystal": str}) if path.exists() else pd.DataFrame()
    rows = rows.assign(noise=rows.get("noise", pd.Series(0.0, rows.index)).fillna(0.0)).to_dict("records") if len(rows) else []
    done = {(str(r["crystal"]), r["d_min"], r["set"], r["seed"], r.get("noise", 0.0)) for r in rows}
    about = {"seed": args.seed, "minutes": args.minutes, "commit": str(git_state()), "machine": str(machine())}
    todo = [] if args.table else [job for job in jobs(args) if (job[3].name, job[2], job[0], args.seed, args.noise) not in done]
    for kind, part, d_min, crystal, data in tqdm(todo, mininterval=30):
        if crystal.heavy.sum() > args.most_atoms:
            continue
        row = {"set": kind, "part": part, "d_min": d_min, "noise": args.noise,
               **placed(crystal, data(), args.minutes, args.seed, kind == "measured"), **about}
        rows.append(row)
        pd.DataFrame(rows).to_csv(path, index=False)
    made = table(pd.DataFrame(rows))
    print(made.to_string(index=False, float_format=lambda x: f"{x:.3g}"))
    about = {name: sorted({str(row[name]) for row in rows}) for name in about}  # more than one run may have made them
    write_json(out / "known_molecule.json", {"rows": made.to_dict("records"), **about, "data": "shared crystals, SPLIT.csv"})


if __name__ == "__main__":
    main()
