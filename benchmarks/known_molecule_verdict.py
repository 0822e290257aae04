"""What the verdict on placed molecules is worth: right molecules beside wrong ones, searched in the same way.

For each crystal of one molecule in a general position: the molecule itself, a constitutional isomer (a substituent moved, or
two elements exchanged), a homologue (one carbon more or less), the other diastereomer, a molecule of another crystal with
about as many atoms, the right molecule in a wrong cell (axes off by 4-8 %) or in another space group of as many operators, and
the right molecule with amplitudes exchanged among reflections of about one resolution. Right is what has 80 % of the true
atoms within 0.5 Å of its own, whatever it is called: isomers and homologues mostly take the place of the true molecule, and
their R1 alone, at 2-3 Å, does not tell them from it. How many of them are claimed because they are placed right is counted
apart.

A row is written as soon as it is there, and none is done twice. With --fit the logistic function of ``placing.features`` is
fitted to the rows of the part tune, held out by crystal to see what it is worth, and written to
xrd_helpers/phasing/placing.json. How many are claimed by the function that is there, and how many of these wrongly, is counted
for the part that was searched.

With --pairs it is asked which of two molecules it is: the right one beside an isomer, one with two near atoms exchanged (the
hardest), a homologue and the other diastereomer, in amplitudes with errors too. The probability that the one with the lower R1
is right is a logistic function of ln of the ratio of R1 alone, without a constant, fitted to the pairs and written to the same
file (``placing.preferences``).

Usage: python benchmarks/known_molecule_verdict.py --crystals FOLDER [--part tune] [--n 40] [--d 2.0 2.5 3.0] [--minutes 0.1]
       [--pairs --noise 0 0.1] [--out FOLDER] [--fit]
"""

import argparse
import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import gemmi
import numpy as np
import pandas as pd
from rdkit import Chem
from rdkit.Chem import EnumerateStereoisomers
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from tqdm import tqdm

from known_molecule import all_end, calculated, kind_of
from xrd_helpers.cif_folders import read_cif_folders
from xrd_helpers.config import UserError, run_folder, write_json
from xrd_helpers.known_molecule import drawn_molecules, read_molecules
from xrd_helpers.phasing import placing, verdict
from xrd_helpers.phasing.origin import match_atoms
from xrd_helpers.phasing.placing import Arrangement, Part, place
from xrd_helpers.summary import git_state, machine

KINDS = ("right", "isomer", "homologue", "diastereomer", "other", "cell", "group", "random")


def valid(mol):
    try:
        Chem.SanitizeMol(mol)
        return Chem.MolToSmiles(mol)
    except (ValueError, RuntimeError):
        return None


def isomer(smiles, rng):
    """A substituent moved to another atom with hydrogen, or two neighbours of different elements exchanged."""
    mol = Chem.MolFromSmiles(smiles)
    for _ in range(60):
        made = Chem.RWMol(mol)
        if rng.random() < 0.6:
            ends = [b for b in made.GetBonds() if b.GetBondType() == Chem.BondType.SINGLE and not b.IsInRing()
                    and 1 in (b.GetBeginAtom().GetDegree(), b.GetEndAtom().GetDegree())]
            if not ends:
                continue
            bond = ends[rng.integers(len(ends))]
            a, b = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            leaf, stem = (a, b) if made.GetAtomWithIdx(a).GetDegree() == 1 else (b, a)
            to = [x.GetIdx() for x in made.GetAtoms()
                  if x.GetSymbol() == "C" and x.GetTotalNumHs() and x.GetIdx() not in (a, b)]
            if not to or made.GetAtomWithIdx(stem).GetSymbol() != "C":
                continue
            made.RemoveBond(leaf, stem)
            made.AddBond(leaf, int(rng.choice(to)), Chem.BondType.SINGLE)
        else:
            i, j = rng.choice(made.GetNumAtoms(), 2, replace=False).tolist()
            if made.GetAtomWithIdx(i).GetAtomicNum() == made.GetAtomWithIdx(j).GetAtomicNum():
                continue
            made = exchanged(mol, i, j)
            if made and made != Chem.MolToSmiles(mol):
                return made
            continue
        found = valid(made)
        if found and found != Chem.MolToSmiles(mol) and "." not in found:
            return found
    return None


def neighbour(smiles, rng):
    """Two atoms of different elements, bonded or with one atom between them, exchanged."""
    mol = Chem.MolFromSmiles(smiles)
    apart = Chem.GetDistanceMatrix(mol)
    pairs = [(i, j) for i, j in zip(*np.nonzero(np.triu((apart > 0) & (apart <= 2))))
             if mol.GetAtomWithIdx(int(i)).GetAtomicNum() != mol.GetAtomWithIdx(int(j)).GetAtomicNum()]
    for i, j in rng.permutation(pairs).tolist() if pairs else ():
        made = exchanged(mol, i, j)
        if made and made != Chem.MolToSmiles(mol):
            return made
    return None


def exchanged(mol, i, j):
    """The SMILES with the elements of two atoms exchanged; None if that is no molecule."""
    made = Chem.RWMol(mol)
    x, y = made.GetAtomWithIdx(i), made.GetAtomWithIdx(j)
    if x.GetFormalCharge() or y.GetFormalCharge():
        return None
    number = x.GetAtomicNum()
    x.SetAtomicNum(y.GetAtomicNum())
    y.SetAtomicNum(number)
    for atom in (x, y):
        atom.SetNoImplicit(False)
        atom.SetNumExplicitHs(0)
    found = valid(made)
    return found if found and "." not in found else None


def homologue(smiles, rng):
    mol = Chem.MolFromSmiles(smiles)
    for _ in range(30):
        made = Chem.RWMol(mol)
        if rng.random() < 0.5:
            to = [x.GetIdx() for x in made.GetAtoms() if x.GetSymbol() == "C" and x.GetTotalNumHs()]
            if to:
                made.AddBond(int(rng.choice(to)), made.AddAtom(Chem.Atom(6)), Chem.BondType.SINGLE)
        else:
            ends = [x.GetIdx() for x in made.GetAtoms() if x.GetSymbol() == "C" and x.GetDegree() == 1]
            if ends:
                made.RemoveAtom(int(rng.choice(ends)))
        found = valid(made)
        if found and found != Chem.MolToSmiles(mol) and "." not in found:
            return found
    return None


def diastereomer(smiles, rng):
    mol = Chem.MolFromSmiles(smiles)
    mirror = smiles.replace("@@", "%").replace("@", "@@").replace("%", "@")
    same = {Chem.MolToSmiles(mol), Chem.CanonSmiles(mirror)}
    for atom in mol.GetAtoms():
        atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    options = EnumerateStereoisomers.StereoEnumerationOptions(maxIsomers=16)
    found = {Chem.MolToSmiles(x) for x in EnumerateStereoisomers.EnumerateStereoisomers(mol, options)} - same
    return str(rng.choice(sorted(found))) if found else None


def cases(crystal, smiles, others, d_min, rng):
    """(kind, SMILES, Reflections)"""
    data = calculated(crystal, d_min)
    yield "right", smiles, data
    for kind, make in (("isomer", isomer), ("homologue", homologue), ("diastereomer", diastereomer)):
        if made := make(smiles, rng):
            yield kind, made, data
    n = Chem.MolFromSmiles(smiles).GetNumAtoms()
    near = [s for s in others if abs(Chem.MolFromSmiles(s).GetNumAtoms() - n) <= 1 and s != smiles]
    if near:
        yield "other", str(rng.choice(near)), data
    group = crystal.spacegroup
    factor = 1 + rng.choice([-1, 1], 3) * rng.uniform(0.04, 0.08, 3)
    a, b, c, *angles = crystal.cell.parameters
    if group.crystal_system_str() in ("triclinic", "monoclinic", "orthorhombic"):
        yield "cell", smiles, replace(data, cell=gemmi.UnitCell(a * factor[0], b * factor[1], c * factor[2], *angles))
    wrong = [g for g in gemmi.spacegroup_table() if g.is_reference_setting() and g.point_group_hm() == group.point_group_hm()
             and g.centring_type() == group.centring_type() and g.number != group.number]
    if wrong:
        yield "group", smiles, replace(data, spacegroup=wrong[rng.integers(len(wrong))])
    order = np.argsort(data.d)
    for first in range(0, len(order), 20):
        rows = order[first:first + 20]
        order[first:first + 20] = rng.permutation(rows)
    swapped = data.F.copy()
    swapped[np.argsort(data.d)] = data.F[order]
    yield "random", smiles, replace(data, F=swapped)


def pairs(crystal, smiles, d_min, noise, rng):
    """(kind, SMILES, Reflections) of molecules that may take each other's place."""
    data = calculated(crystal, d_min, noise)
    yield "right", smiles, data
    for kind, make in (("isomer", isomer), ("neighbour", neighbour), ("homologue", homologue), ("diastereomer", diastereomer)):
        if made := make(smiles, rng):
            yield kind, made, data


def fit_pairs(rows, about):
    """Fit P(the right one has the lower R1) = 1 / (1 + exp(-w ln(R1 wrong / R1 right))), and add it to placing.json."""
    keys = ["crystal", "d_min", "noise"]
    right = rows.loc[(rows.kind == "right") & rows.right, [*keys, "r1"]]
    wrong = rows[rows.kind != "right"].merge(right, on=keys, suffixes=("", "_right"))
    gap, group = np.log(wrong.r1 / wrong.r1_right).to_numpy(), wrong.crystal.to_numpy()

    def weight(gap):  # antisymmetric: each pair stands there both ways
        both, truth = np.concatenate([gap, -gap])[:, None], np.repeat([1, 0], len(gap))
        return float(LogisticRegression(C=30, fit_intercept=False).fit(both, truth).coef_[0, 0])

    p = np.empty(len(gap))
    for inside, outside in GroupKFold(min(10, len(set(group)))).split(gap, groups=group):
        p[outside] = 1 / (1 + np.exp(-weight(gap[inside]) * gap[outside]))
    named = np.maximum(p, 1 - p) >= placing.TOLD_APART
    made = {"weight": weight(gap), "limit": 1 / (len(gap) + 2), "held_out": {
        "pairs": len(gap), "crystals": len(set(group)), "lower_r1_is_right": int((gap > 0).sum()), "named": int(named.sum()),
        "wrongly": int((named & (p < 0.5)).sum()),
        "by_kind": {kind: {"n": int(of.sum()), "named": int((of & named).sum()), "wrongly": int((of & named & (p < 0.5)).sum())}
                    for kind in sorted(set(wrong.kind)) for of in [(wrong.kind == kind).to_numpy()]},
        "by_d_min_and_noise": {f"{d:g} Å, {e:g}": f"{int(named[of].sum())} of {int(of.sum())} named"
                               for d, e in sorted(set(zip(wrong.d_min, wrong.noise)))
                               for of in [((wrong.d_min == d) & (wrong.noise == e)).to_numpy()]}}, **about}
    stored = json.loads(placing.FILE.read_text(encoding="utf-8"))
    write_json(placing.FILE, stored | {"pairs": made})
    print(made)


def held_out(features, right, groups):
    """Probability of each row from a fit without the rows of its crystal."""
    p = np.empty(len(right))
    for inside, outside in GroupKFold(min(10, len(set(groups)))).split(features, right, groups):
        p[outside] = LogisticRegression(C=30).fit(features[inside], right[inside]).predict_proba(features[outside])[:, 1]
    return p


def fit(rows, about):
    rows = rows[np.isfinite(rows.r_free)]
    found = [placing.features(placing.Evidence(r.r1, r.r_free, r.found, r.tried, r.next_r1, r.strain, r.contact, ""))
             for r in rows.itertuples()]
    features, right = pd.DataFrame(found), (rows.matched >= 0.8).to_numpy(bool)
    low, high = features.quantile(0.005), features.quantile(0.995)
    clipped = features.clip(low, high, axis=1).to_numpy()
    p = held_out(clipped, right, rows.crystal.to_numpy())
    model = LogisticRegression(C=30).fit(clipped, right)
    limit = 1 / (len(rows) + 2)
    doubtful = (rows.next_r1 < placing.DOUBT * rows.r1) | (rows.contact < placing.CERTAIN_CONTACT)
    claimed = (np.clip(p, limit, 1 - limit) >= verdict.calibration()["thresholds"]["solved"]) & ~doubtful.to_numpy()
    made = {"intercept": float(model.intercept_[0]), "limit": limit,
            "features": [{"name": name, "weight": float(w), "low": float(low[name]), "high": float(high[name])}
                         for name, w in zip(features, model.coef_[0])],
            "held_out": {"cases": len(rows), "crystals": int(rows.crystal.nunique()), "right": int(right.sum()),
                         "claimed": int(claimed.sum()), "wrongly": int((claimed & ~right).sum()),
                         "by_kind": {kind: {"n": int(of.sum()), "placed_right": int((of & right).sum()),
                                            "claimed": int((of & claimed).sum()), "wrongly": int((of & claimed & ~right).sum())}
                                     for kind in KINDS for of in [(rows.kind == kind).to_numpy()]},
                         "right_claimed_by_d_min": {str(d): f"{(claimed & own).sum()} of {own.sum()}"
                                                    for d in sorted(set(rows.d_min)) for own in
                                                    [right & ((rows.kind == "right") & (rows.d_min == d)).to_numpy()]}},
            **about}
    stored = json.loads(placing.FILE.read_text(encoding="utf-8")) if placing.FILE.exists() else {}
    write_json(placing.FILE, made | {name: stored[name] for name in ("pairs",) if name in stored})
    print(made)


def claims(rows):
    """Searches, those that came right, claims and wrong claims by d_min and kind, the probability as it is now."""
    p = [placing.probability(placing.Evidence(r.r1, r.r_free, r.found, r.tried, r.next_r1, r.strain, r.contact, ""))
         for r in rows.itertuples()]
    claimed = np.array(p) >= verdict.calibration()["thresholds"]["solved"]
    right = rows.matched >= 0.8
    rows = rows.assign(placed_right=right, claimed=claimed, wrongly=claimed & ~right)
    sums = {name: (name, "sum") for name in ("placed_right", "claimed", "wrongly")}
    return pd.concat([rows.groupby(["d_min", "kind"]).agg(n=("matched", "size"), **sums).reset_index(),
                      rows.groupby("d_min").agg(n=("matched", "size"), **sums).reset_index().assign(kind="all")])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crystals", default="")
    parser.add_argument("--part", default="tune", choices=["tune", "report"])
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--d", type=float, nargs="+", default=[2.0, 2.5, 3.0])
    parser.add_argument("--minutes", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--pairs", action="store_true", help="which of two molecules it is")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.1], help="with --pairs: of F, as a share of it")
    args = parser.parse_args()
    out = Path(args.out) if args.out else run_folder("benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"known_molecule_{'pairs' if args.pairs else 'verdict'}.csv"
    rows = pd.read_csv(path) if path.exists() else pd.DataFrame()
    rows = rows.assign(noise=rows.get("noise", pd.Series(0.0, rows.index)).fillna(0.0),
                       part=rows.get("part", pd.Series("tune", rows.index)).fillna("tune")).to_dict("records")
    if args.crystals:
        done = {(str(r["crystal"]), r["d_min"], r.get("noise", 0.0), r["kind"]) for r in rows}
        part = dict(pd.read_csv(Path(args.crystals) / "SPLIT.csv").values)
        crystals, _ = read_cif_folders([args.crystals])
        crystals = [c for c in crystals if part[c.name + ".cif"] == args.part and kind_of(c) == "one" and all_end(c)]
        smiles = {c.name: found[0][0].name for c in crystals if (found := drawn_molecules(c))}
        crystals = [c for c in crystals if c.name in smiles and c.heavy.sum() <= 30]
        order = np.random.default_rng(args.seed).permutation(len(crystals))[:args.n]
        for i, d_min, noise in tqdm(list(product(order, args.d, args.noise if args.pairs else [0.0])), mininterval=30):
            rng = np.random.default_rng([args.seed, int(i), int(10 * d_min)])
            c = crystals[i]
            some = (pairs(c, smiles[c.name], d_min, noise, rng) if args.pairs else
                    cases(c, smiles[c.name], list(smiles.values()), d_min, rng))
            for kind, text, data in some:
                if (c.name, d_min, noise, kind) in done:
                    continue
                began = time.perf_counter()
                try:
                    (molecule, _), = read_molecules(text)
                    volume = data.cell.volume / len(data.spacegroup.operations()) / len(molecule)
                    s = place(data, [molecule], minutes=args.minutes, seed=args.seed,
                              chosen=Arrangement((Part(0, 1),), 1, volume))
                except UserError:
                    continue
                heavy = np.array(s.elements) != "H"
                match = match_atoms(s.fract[heavy], c.fract[c.heavy], c.cell, c.spacegroup)
                e = s.evidence
                rows.append({"crystal": c.name, "part": args.part, "d_min": d_min, "noise": noise, "kind": kind, "smiles": text,
                             "n_hkl": len(data), "centric": c.spacegroup.is_centrosymmetric(),
                             "atoms": len(molecule), "torsions": len(molecule.torsions),
                             "matched": match.n_matched / match.n_true,
                             "right": kind == "right" and match.n_matched >= 0.8 * match.n_true, "r1": e.r1, "r_free": e.r_free,
                             "found": e.found, "tried": e.tried, "next_r1": e.next_r1, "strain": e.strain, "contact": e.contact,
                             "probability": e.probability, "seconds": time.perf_counter() - began})
                pd.DataFrame(rows).to_csv(path, index=False)
    table = pd.DataFrame(rows)
    if args.fit:
        about = {"data": f"{args.part} of the shared crystals, one molecule, at most 30 non-H atoms", "seed": args.seed,
                 "commit": git_state(), "machine": machine()}
        (fit_pairs if args.pairs else fit)(table[table.part == "tune"], about)
    if not args.pairs:
        table = table[table.part == args.part]
        made = claims(table)
        print(made.to_string(index=False))
        write_json(out / "known_molecule_verdict.json", {
            "rows": made.to_dict("records"), "part": args.part, "seed": args.seed, "minutes": args.minutes,
            "commit": str(git_state()), "machine": str(machine())})
    print(table.groupby(["d_min", "kind"])[["right", "matched", "r1", "r_free", "next_r1", "strain", "seconds"]]
          .agg(["median"]).to_string(float_format=lambda x: f"{x:.3f}"))


if __name__ == "__main__":
    main()
