"""The table of scores: every method on a set of crystals, beside what knows nothing about them, and paired tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import gemmi
import numpy as np
import pandas as pd
from scipy.stats import wilcoxon
from tqdm.auto import tqdm

from .baselines import KNOW_NOTHING, know_nothing
from .config import UserError, atomic_path, write_json
from .gridding import BOXES, OWN, amplitude_boxes, check_resolutions, to_box_setting
from .inference import molecule_first_boxes, phase_first_boxes
from .metrics import SCORES, correlation, r_factor, score
from .models import PattersonNet
from .phasing.job import phase
from .phasing.origin import solved
from .reflections import Reflections
from .simulate import Faults
from .summary import git_state, machine
from .weights import predict
from .wilson import ShellMean, volume_shells

TRUE, NOTHING = "true amplitudes", "nothing added"  # phased beside the methods: what is the most, and the least
MOLECULE_FIRST = "molecule first (molecule known)"  # the others know the formula at most
N_SHELLS = 8


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` returns.

    table : a row a crystal and method, with name, spacegroup (of the file), atoms (non-H, in the asymmetric unit), light
        (bool), method, the SCORES, and solved, claimed (True, False, or None where it was not phased)
    resolution : a row a method and shell of resolution, with d (Å, its middle), r_ext, cc_ext, means over the crystals
    """

    table: pd.DataFrame
    resolution: pd.DataFrame


def methods_of(models, mean: ShellMean, phase_first=True, trials=16, seed=0, molecule_first=False) -> dict:
    """The methods of a table by their names, each a function of AmplitudeBoxes: networks, phase first, what knows nothing.

    Parameters
    ----------
    models : {title: (network, what its file says)}, as ``weights.load_models`` gives them
    mean : what is known of any crystal
    phase_first : whether the row is wanted, each crystal with `trials` starts; PattersonNet, or else the mean, stands in
    molecule_first : the same of that row, for which ``evaluate`` has to be given the molecules
    """
    methods = {title: partial(predict, network) for title, (network, _) in models.items()}
    otherwise = methods.get(PattersonNet.title, mean.predict)
    if phase_first:
        methods["phase first"] = partial(phase_first_boxes, otherwise=otherwise, trials=trials, seed=seed)
    if molecule_first:
        methods[MOLECULE_FIRST] = partial(molecule_first_boxes, otherwise=otherwise, seed=seed)
    return methods | know_nothing(mean, seed)


def evaluate(crystals, methods, box=BOXES["monoclinic"], d_input=1.5, d_target=0.8, *, faults=Faults(), n_solve=0, trials=8,
             seed=0, batch_size=32, progress=False, molecules=None, spreads=None) -> Evaluation:
    """Score methods on crystals that fit the box, some of them to be phased, `batch_size` in memory at a time.

    Parameters
    ----------
    crystals : list of Crystal, in any setting; see ``select_fitting`` for those that fit
    methods : {name: function}, each from AmplitudeBoxes to (B, *box.shape) scaled amplitudes
    n_solve : int
        That many of the crystals, drawn with `seed`, are phased by charge flipping with `trials` starts, from the measured
        amplitudes guided by every method's, from the true ones, and from the measured ones alone. The latter stand for
        ``zero fill`` as well: who adds nothing leaves the reflections out.
    faults : what is hidden from the methods or disturbed
    molecules : (KnownMolecule, count) pairs of each crystal, for MOLECULE_FIRST; none where they are not known
    spreads : {method: Spread} of those whose uncertainties are known: the table then has the columns ``z``, the root mean
        square of error over σ, which is 1 where σ is right, and ``in_sigma``, the share of errors below σ

    Raises
    ------
    UserError
        If there are no crystals, or resolutions or faults make no sense.
    """
    check_resolutions(d_input, d_target)
    faults.check(d_target)
    if not crystals:
        raise UserError("there is no crystal to evaluate")
    to_solve = set(np.random.default_rng(seed).permutation(len(crystals))[:n_solve].tolist())
    edges = np.linspace(d_input**-3, d_target**-3, N_SHELLS + 1)  # of equal volume, as many reflections in each
    rows, by_shell = [], []
    bar = tqdm(total=len(crystals), unit=" crystals", disable=not progress)
    batch_size = 1 if box is OWN else batch_size
    for first in range(0, len(crystals), batch_size):
        part = crystals[first:first + batch_size]
        set_up = [to_box_setting(crystal) for crystal in part]
        boxes, = amplitude_boxes(set_up, box, d_input, d_target)
        if molecules:
            boxes = replace(boxes, samples=tuple(sample._replace(molecules=tuple(known or ())) for sample, known in
                                                 zip(boxes.samples, molecules[first:first + len(part)])))
        seen = boxes
        if faults:
            seen, boxes = faults.apply(boxes, seed, range(first, first + len(part)))
        predictions = {name: np.asarray(method(seen), float) for name, method in methods.items()}
        scores = {name: score(F_pred, boxes) for name, F_pred in predictions.items()}
        for name in spreads or ():
            scores[name][["z", "in_sigma"]] = [_against_sigma(spreads[name], seen, boxes, i, predictions[name][i])
                                               for i in range(len(part))]
        for i, crystal in enumerate(part):
            about = {"name": crystal.name, "spacegroup": crystal.spacegroup.xhm(), "atoms": int(crystal.heavy.sum()),
                     "light": crystal.light}
            phased = {}
            if first + i in to_solve:
                phased = _phase_all(set_up[i], seen, boxes.F[i], i, predictions, trials, seed)
            by_shell += [_by_shell(name, F_pred[i], boxes, i, edges) for name, F_pred in predictions.items()]
            for name in [*methods, *(phased and (TRUE, NOTHING))]:
                scored = scores[name].iloc[i].to_dict() if name in scores else dict.fromkeys(SCORES, np.nan)
                found = phased.get(NOTHING if name == "zero fill" else name, {"solved": None, "claimed": None})
                rows.append({**about, "method": name, **scored, **found})
            bar.update()
    bar.close()
    shells = pd.concat(by_shell).groupby(["method", "shell"], sort=False, as_index=False).mean()
    middle = ((edges[1:] + edges[:-1]) / 2) ** (-1 / 3)
    shells.insert(1, "d", middle[shells.pop("shell")])
    return Evaluation(pd.DataFrame(rows), shells)


def _against_sigma(spread, seen, boxes, i, F_pred):
    """Of one crystal, the root mean square of error over σ, and the share of errors below σ."""
    where = boxes.extension[i].numpy()
    z = (F_pred[where] - boxes.F[i].double().numpy()[where]) / spread.sigma(seen, i, F_pred)[where]
    return float(np.sqrt((z * z).mean())), float((np.abs(z) < 1).mean())


def _by_shell(name, F_pred, boxes, i, edges):
    """r_ext and cc_ext of one crystal in shells of d^-3: a DataFrame; a shell of few reflections is left out."""
    extension = boxes.extension[i].numpy()
    true, pred = boxes.F[i].double().numpy()[extension], F_pred[extension]
    shell = volume_shells(boxes.d[i].double().numpy()[extension], edges)
    inside = [shell == number for number in range(len(edges) - 1)]
    return pd.DataFrame([{"method": name, "shell": number, "r_ext": r_factor(pred[rows], true[rows]),
                          "cc_ext": correlation(pred[rows], true[rows])}
                         for number, rows in enumerate(inside) if rows.sum() > 10 and true[rows].any()])


def _phase_all(crystal, boxes, F_true, i, predictions, trials, seed):
    """{method: {solved, claimed}} of one crystal."""
    amplitudes = {TRUE: F_true, NOTHING: boxes.F_in[i],
                  **{name: F_pred[i] for name, F_pred in predictions.items() if name != "zero fill"}}
    found, inside, beyond = {}, boxes.known, boxes.extension
    for name, F in amplitudes.items():
        def part(which):
            hkl, amplitude = boxes.reflections(i, F, which)  # noqa: B023, called in this round
            return Reflections.of_good_data(hkl, amplitude, crystal.cell, crystal.spacegroup)
        known = part(None if name == TRUE else inside)
        predicted = None if name in (TRUE, NOTHING) else part(beyond)
        solution = phase(known, crystal.contents, trials, seed, predicted=predicted)
        found[name] = {"solved": solved(solution, crystal), "claimed": bool(solution and solution.accepted)}
    return found


# --- the table's means ---


def classes(table):
    """{name: rows (bool)} of the crystals all, light (C, H, N, O, F, B only) and heavier; an empty class is left out."""
    light = table["light"].to_numpy(bool)
    every = {"all": np.ones(len(light), bool), "light": light, "heavier": ~light}
    return {name: rows for name, rows in every.items() if rows.any()}


def summarise(table) -> pd.DataFrame:
    """Mean scores: a row a class of crystals (``classes``) and method.

    Beside the SCORES: ``crystals``; ``solve_rate`` and ``wrong_claims`` over the ``phased`` ones, where there are any.
    A wrong claim is a structure that the engine itself accepts and that is not the true one.
    """
    return pd.concat([_means(table[rows], ["method"]).assign(**{"class": name}).set_index("class").reset_index()
                      for name, rows in classes(table).items()], ignore_index=True)


def by_spacegroup(table) -> pd.DataFrame:
    """Mean scores, a row a space group (settings together, those of most crystals first) and method."""
    short = [gemmi.get_spacegroup_reference_setting(gemmi.SpaceGroup(symbol).number).short_name()
             for symbol in table["spacegroup"]]
    means = _means(table.assign(spacegroup=short), ["spacegroup", "method"])
    return means.sort_values("crystals", ascending=False, kind="stable", ignore_index=True)


def _means(table, keys):
    phased = table["solved"].notna()
    table = table.assign(phased=phased, solve_rate=table["solved"].where(phased).astype(float),
                         wrong_claims=(table["claimed"].eq(True) & ~table["solved"].eq(True)).astype(int))
    columns = {"crystals": ("name", "size"), **{name: (name, "mean") for name in SCORES}}
    if phased.any():
        columns |= {"phased": ("phased", "sum"), "solve_rate": ("solve_rate", "mean"),
                    "wrong_claims": ("wrong_claims", "sum")}
    return table.groupby(keys, sort=False, as_index=False).agg(**columns)


def compare(table, baseline="shell mean") -> pd.DataFrame:
    """Wilcoxon's signed-rank test of every model against the baseline, paired by crystal (Biometrics 1 (1945) 80).

    A row a class of crystals, model and score (r_ext, cc_ext): ``better``, the share of the crystals on which the model
    is better; ``median``, of model minus baseline; ``p``, two-sided: how often chance alone would give such ranks. p is
    nan with fewer than six crystals, where no result could be significant.
    """
    rows, methods = [], [m for m in table["method"].unique() if m not in (*KNOW_NOTHING, TRUE, NOTHING, baseline)]
    for group, members in classes(table).items() if baseline in set(table["method"]) else ():
        part = table[members]
        crystal = part.groupby("method").cumcount()  # two files may have one name
        for name in ("r_ext", "cc_ext"):
            wide = part.assign(crystal=crystal).pivot(index="crystal", columns="method", values=name)
            for method in methods:
                difference = (wide[method] - wide[baseline]).to_numpy()
                enough = np.count_nonzero(difference) >= 6
                rows.append({"class": group, "method": method, "score": name, "crystals": len(difference),
                             "better": float(np.mean(difference < 0 if name == "r_ext" else difference > 0)),
                             "median": float(np.median(difference)),
                             "p": float(wilcoxon(difference).pvalue) if enough else np.nan})
    return pd.DataFrame(rows)


def write_evaluation(path, result: Evaluation, **options) -> None:
    """The table as CSV, and beside it as JSON the options with which, the commit by which, and on what it was made."""
    with atomic_path(path) as temporary:
        result.table.to_csv(temporary, index=False)
    write_json(Path(path).with_suffix(".json"), {"options": options, "commit": git_state(), "machine": machine()})


def report(result: Evaluation) -> str:
    """The tables of an evaluation as text: classes of crystals, space groups, resolution, and the paired tests."""
    table, lines = result.table, []
    means = summarise(table)
    for group, part in means.groupby("class", sort=False):
        what = {"light": " (C, H, N, O, F, B only)", "heavier": " (with any other element)"}.get(group, "")
        part = part.assign(mse_box=1e3 * part["mse_box"]).rename(columns={"mse_box": "mse_box·10³"})
        lines += ["", f"{group}{what}: {part['crystals'].iloc[0]} crystals", _text(part.drop(columns=["class", "crystals"]))]
    groups = by_spacegroup(table)
    groups = groups[~groups["method"].isin((TRUE, NOTHING))]
    for name in ("r_ext", "cc_ext"):
        wide = groups.pivot_table(index=["spacegroup", "crystals"], columns="method", values=name, sort=False)
        lines += ["", f"{name} by space group", _text(wide.reset_index())]
        wide = result.resolution.pivot(index="d", columns="method", values=name).sort_index(ascending=False)
        lines += ["", f"{name} by resolution (d / Å)", _text(wide[groups["method"].unique()].reset_index())]
    tests = compare(table)
    if len(tests):
        lines += ["", "models against the shell mean: Wilcoxon signed-rank test, paired by crystal, two-sided p",
                  _text(tests.assign(p=[f"{p:.1e}" for p in tests["p"]]))]
    if "z" in table:
        z = table.dropna(subset="z").groupby("method", sort=False).agg(
            z=("z", lambda x: (x**2).mean() ** 0.5), lowest=("z", lambda x: x.quantile(0.1)),
            highest=("z", lambda x: x.quantile(0.9)), in_sigma=("in_sigma", "mean"))
        lines += ["", "z: error over its stated σ, root mean square (1 where σ is right), the 10th and 90th crystal of 100; "
                  "share of errors below σ (0.68 of normal ones)", _text(z.reset_index())]
    if table["solved"].notna().any():
        lines += ["", "solved: 80 % of the non-H atoms within 0.5 Å after the best allowed origin and hand. zero fill "
                  "is phased as 'nothing added'."]
    last = "r_ext and cc_ext count predicted reflections only; phasing starts to work at cc_ext 0.65."
    return "\n".join([*lines, "", last])


def _text(table):
    return table.to_string(index=False, float_format=lambda x: f"{x:.3f}", na_rep="-")
