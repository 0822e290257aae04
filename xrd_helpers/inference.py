"""Amplitudes that were not measured, predicted for measured reflections: by a network, by atoms, or by the mean.

Learning and phasing meet here. A network has to guess amplitudes from amplitudes. But data to 1.5 Å, which direct methods
give up, still hold many a structure for charge flipping with its atoms refined; and atoms give every amplitude at once: phase
first, then extend. Where no structure is found, something else has to stand in: PattersonNet, or the mean amplitude at that
resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np
import pandas as pd

from .baselines import shell_mean
from .config import UserError, atomic_path, shown
from .crystals import CrystalError
from .gridding import BOXES, LEAST, AmplitudeBoxes, Box, box_indices, find_box, measured_box
from .phasing.job import MINUTES_KNOWN, phase
from .phasing.placing import PlacingError, place
from .phasing.solution import Solution
from .reflection_files import write_mtz
from .reflections import Measured, ReflectionError, Reflections, unique_hkl
from .shelx import shelx_scale, write_shelx_files
from .structure_factors import fit_scale, structure_factors
from .weights import WeightsError, find_weights, load_model, predict
from .wilson import UNKNOWN_R, ShellMean, Spread, shells, volume_shells

PHASING_CC = 0.65    # cc_ext at which phasing starts to work (DESIGN.md, section 8)
# r_ext over R1 of 40 real molecules at 1.5 Å, without hydrogen and with it riding on them
R_PER_R1 = 2.2, 3.6
# r_ext over R of reflections left out, of 43 molecules placed in calculated data to 1.5, 2.0 and 2.5 Å: 2.0, 2.6, 2.9
R_PER_R_FREE = 2.5


@dataclass(frozen=True)
class Extended:
    """Measured reflections and predicted ones, on one scale, in the setting of the data.

    measured : as read, not merged
    merged : Reflections, the measured ones
    predicted : Reflections, those to d_target that were not measured, each with an uncertainty (``extend``)
    d_complete : Å, where the completeness of the measured data falls below one half, or their limit
    scale : predicted and measured intensities are multiplied by it when written to SHELX files, 1 unless F8.2 needs it
    """

    measured: Measured
    merged: Reflections
    predicted: Reflections
    d_complete: float
    scale: float

    def table(self) -> pd.DataFrame:
        """Columns h, k, l, d (Å), F, sigF, measured (bool): merged measured reflections, then predicted ones."""
        parts = [pd.DataFrame({**dict(zip("hkl", part.hkl.T)), "d": part.d, "F": part.F, "sigF": part.sigF,
                               "measured": known})
                 for part, known in ((self.merged, True), (self.predicted, False))]
        return pd.concat(parts, ignore_index=True)


def extend(measured: Measured, method, r_ext=UNKNOWN_R, box: Box = BOXES["monoclinic"], d_target=0.8, d_shown=0.0,
           spread: Spread | None = None) -> Extended:
    """Predict what was not measured to d_target, holes inside the data too; what was measured stays as it is.

    Parameters
    ----------
    method : function of AmplitudeBoxes that returns (1, *box.shape) scaled amplitudes, as ``partial(predict, model)``
    r_ext : its validation score; the uncertainty of a predicted amplitude is 1.25 r_ext times the mean predicted one of its
        shell of resolution: r_ext ⟨F⟩ is the mean error, and the standard one of normal errors is √(π/2) of that
    d_shown : Å, data beyond it are kept, but not shown to the method
    spread : where it is known, the uncertainty of each amplitude, instead of r_ext

    Raises
    ------
    CrystalError, ReflectionError
        As ``measured_box``, or if all reflections to d_target were measured.
    """
    merged = measured.merge()
    boxes, swapped = measured_box(merged, box, d_target, d_shown, measured.files[0].name, measured.elements)
    F_out = method(boxes)[0]
    hkl, F = boxes.reflections(0, F_out)
    sigma = spread and boxes.reflections(0, spread.sigma(boxes, 0, F_out))[1]
    asu, ops = gemmi.ReciprocalAsu(merged.spacegroup), merged.spacegroup.operations()
    hkl = np.array([asu.to_asu(h, ops)[0] for h in box_indices(hkl, swapped).tolist()])
    new = _not_in(measured, hkl, d_target)
    return _extended(measured, merged, hkl[new], F[new], r_ext, sigma[new] if spread else None)


def extend_by_structure(measured: Measured, elements=(), d_target=0.8, trials=None, seed=0, molecules=(), watch=None):
    """``extend`` without a network and for any space group: by the atoms that charge flipping finds in what was measured, or by
    known molecules placed in it.

    Parameters
    ----------
    elements : as for ``charge_flipping.solve``; those of the data by default
    molecules, watch : as for ``molecule_first``; none for charge flipping

    Returns
    -------
    Extended and the Solution that the amplitudes come from, or None and None where no structure was found

    Raises
    ------
    ReflectionError
        As ``extend``, or if fewer than LEAST reflections are measured.
    """
    merged, hkl = _to_predict(measured, d_target)
    found = (molecule_first(merged, hkl, molecules, seed=seed, watch=watch) if molecules else
             phase_first(merged, hkl, elements or measured.elements, trials, seed))
    return (_extended(measured, merged, hkl, found.F, found.r_ext), found.solution) if found else (None, None)


def extend_by_mean(measured: Measured, mean: ShellMean, d_target=0.8) -> Extended:
    """``extend`` by the mean amplitude at each resolution, for any space group."""
    merged, hkl = _to_predict(measured, d_target)
    F = mean.at(merged.F, merged.d, merged.cell.calculate_d_array(hkl.astype(np.int32)), measured.elements)
    return _extended(measured, merged, hkl, F, UNKNOWN_R)


def _to_predict(measured, d_target):
    """(merged, hkl (n, 3) to d_target that were not measured)."""
    merged = measured.merge()
    if len(merged) < LEAST:
        raise ReflectionError(f"{measured.files[0]}: only {len(merged)} reflections are measured, of {LEAST} at least")
    try:
        hkl = unique_hkl(merged.cell, merged.spacegroup, d_target)
    except ReflectionError as error:
        raise ReflectionError(f"{measured.files[0]}: {error}") from None
    return merged, hkl[_not_in(measured, hkl, d_target)]


def _not_in(measured, hkl, d_target):
    """(n,) bool, the reflections hkl (n, 3) of the asymmetric unit that were not measured; an error if all were."""
    known = set(map(tuple, measured.merge().hkl.tolist()))
    new = np.array([tuple(h) not in known for h in hkl.tolist()], bool)
    if not new.any():
        raise ReflectionError(f"{measured.files[0]}: all {len(hkl)} reflections to {d_target:g} Å are measured: there is "
                              "nothing to extend")
    return new


def _extended(measured, merged, hkl, F, r_ext, sigma=None) -> Extended:
    if sigma is None:
        d = merged.cell.calculate_d_array(hkl.astype(np.int32))
        shell = shells(d, max(1, min(10, len(d) // 20)))
        sigma = 1.25 * r_ext * (np.bincount(shell, F) / np.bincount(shell))[shell]
    predicted = Reflections(hkl, F, sigma, merged.cell, merged.spacegroup)
    scale = shelx_scale(measured.intensity, np.append(measured.sigma, (F + sigma) ** 2))
    return Extended(measured, merged, predicted, _complete_to(merged), scale)


def _complete_to(merged, share=0.5):
    """d in Å, where fewer than `share` of the reflections of a shell of equal volume are measured; the limit if none is."""
    possible = merged.cell.calculate_d_array(gemmi.make_miller_array(merged.cell, merged.spacegroup, merged.d_min - 1e-6))
    edges = np.linspace(0, merged.d_min**-3 * (1 + 1e-6), max(2, len(possible) // 40))
    there, all_there = (np.bincount(volume_shells(d, edges), minlength=len(edges) - 1) for d in (merged.d, possible))
    low = np.flatnonzero((there < share * all_there) & (np.arange(len(there)) > 0))  # low orders hide behind the beam stop
    return float(edges[low[0]] ** (-1 / 3)) if len(low) else merged.d_min


# --- phase first, molecule first ---


class Extension(NamedTuple):
    """F (n,) on the scale of the data; r_ext to be expected of them; the Solution they come from."""

    F: np.ndarray
    r_ext: float
    solution: Solution


def phase_first(reflections: Reflections, hkl, elements, trials=None, seed=0) -> Extension | None:
    """Amplitudes at hkl (n, 3), none of them measured, of the atoms found; None if the engine accepts none.

    Parameters
    ----------
    reflections : what was measured
    elements : as for ``charge_flipping.solve``; empty where they are not known
    """
    return extend_from(phase(reflections, elements, trials, seed), reflections, hkl)


def molecule_first(reflections: Reflections, hkl, molecules, minutes=MINUTES_KNOWN, seed=0, watch=None) -> Extension | None:
    """``phase_first`` where the molecules are known: (KnownMolecule, count) as ``read_molecules`` gives them.

    minutes, seed, watch : as for ``placing.place``, whose PlacingError says that they cannot fill the cell
    """
    known, counts = zip(*molecules)
    return extend_from(place(reflections, known, list(counts), minutes=minutes, seed=seed, watch=watch), reflections, hkl)


def extend_from(solution: Solution | None, reflections: Reflections, hkl) -> Extension | None:
    """Amplitudes at hkl (n, 3) of the atoms of a solution of these reflections; None if the engine does not accept it."""
    if solution is None or not solution.accepted:
        return None
    atoms = solution.as_crystal()
    known, new = (np.abs(structure_factors(atoms, indices)) for indices in (reflections.hkl, hkl))
    # what distances restrain is not fitted as closely as free atoms are, and R1 of a few dozen reflections tells little
    per_r1 = R_PER_R1["H" in solution.elements]
    r_ext = R_PER_R_FREE * solution.evidence.r_free if solution.engine == "known molecule" else per_r1 * solution.r1
    return Extension(fit_scale(reflections.F, known) * new, min(UNKNOWN_R, r_ext), solution)


def phase_first_boxes(boxes: AmplitudeBoxes, otherwise, trials=None, seed=0, solutions=None) -> np.ndarray:
    """``phase_first`` of each crystal of boxes that say what is known of it -> (B, *box.shape) scaled amplitudes.

    ``otherwise``, a function of the boxes with the same result, stands in for crystals without a structure. ``solutions``
    are those of what was measured, a Solution or None a crystal, where they are known already.
    """
    return _boxes_of(boxes, otherwise, lambda i, known, sample: solutions[i] if solutions is not None else
                     phase(known, sample.contents, trials, seed))


def molecule_first_boxes(boxes: AmplitudeBoxes, otherwise, minutes=0.3, seed=0) -> np.ndarray:
    """``phase_first_boxes`` by known molecules; where they are not known, or do not fill the cell, ``otherwise`` stands in."""
    def find(i, known, sample):
        try:
            return sample.molecules and place(known, *map(list, zip(*sample.molecules)), minutes=minutes, seed=seed)
        except PlacingError:
            return None

    return _boxes_of(boxes, otherwise, find)


def _boxes_of(boxes, otherwise, find):
    """``phase_first_boxes`` by find(row, Reflections, Sample), which gives a Solution, or nothing."""
    F, hkl = np.array(otherwise(boxes), float), boxes.box.hkl.astype(np.int32)
    for i, sample in enumerate(boxes.samples):
        measured, one = boxes.measured[i].numpy().ravel(), boxes.F_in[i].double().numpy().ravel()
        known, wanted = (np.flatnonzero(rows[i].numpy()) for rows in (boxes.known, boxes.extension))
        reflections = Reflections.of_good_data(hkl[known], one[known], sample.cell, sample.spacegroup)
        if found := extend_from(find(i, reflections, sample) or None, reflections, hkl[wanted]):
            one[wanted] = found.F
            F[i] = np.where(measured, one, one[boxes.box.representative]).reshape(boxes.box.shape)
    return F


# --- by name ---


def extend_by(name, measured: Measured, elements=(), d_target=0.8, trials=None, seed=0, molecules=(), watch=None):
    """Extend by a method of that name, or by the next best one where it finds nothing.

    Parameters
    ----------
    name : phase_first or molecule_first (PattersonNet, and then the mean, stand in for them), shell_mean, or a file as for
        ``find_weights``
    elements, trials, seed, molecules, watch : as for ``extend_by_structure``

    Returns
    -------
    Extended, the d_min (best, worst, Å) of the data that the method was trained on, and in words what it is worth; data beyond
    the best were kept from the method, and zeros mean that it was trained on none

    Raises
    ------
    UserError
        As ``extend``, or if there are no such weights, or they were trained for other resolutions.
    """
    if name == "molecule_first" and not molecules:
        raise UserError("molecule_first wants to know the molecule: name it with --molecule")
    if name in ("phase_first", "molecule_first"):
        result, solution = extend_by_structure(measured, elements, d_target, trials, seed, molecules, watch)
        words = describe_solution(solution, name)
        if solution:
            return result, (0.0, 0.0), words
        try:
            result, trained, more = extend_by("patterson_net", measured, d_target=d_target)
        except (WeightsError, CrystalError) as error:
            result, trained, more = extend_by("shell_mean", measured, d_target=d_target)
            words += f" ({error}.)"
        return result, trained, f"{words} Instead: {more}"
    if name == "shell_mean":
        return extend_by_mean(measured, shell_mean(), d_target), (0.0, 0.0), (
            "Shell mean: the fall-off with resolution of random crystals, which knows nothing of this one. Do not expect "
            "these amplitudes to solve a structure.")
    (title, path), = find_weights([name]).items()
    network, made = load_model(path)
    if not made.get("d_target", 0.8) <= d_target < made.get("d_input", 1.5):
        raise UserError(f"--d-target {d_target:g} is not between the {made.get('d_target', 0.8):g} and "
                        f"{made.get('d_input', 1.5):g} Å that {title} was trained for")
    try:
        box = find_box(made.get("box", "monoclinic"))
    except UserError as error:
        raise WeightsError(f"{shown(path)}: {error}") from None
    trained = tuple(made.get("d_min") or [made.get("d_input", 1.5)] * 2)
    result = extend(measured, partial(predict, network), made.get("r_ext") or UNKNOWN_R, box, d_target, trained[0],
                    Spread(made["spread"]) if made.get("spread") else None)
    return result, trained, verdict(title, made)


# --- files and words ---


def extended_files(stem, measured: Measured, csv=False, cif=False, mtz=False) -> dict[str, Path]:
    """The files that ``write_extended`` writes, by what they hold: hkl, ins, csv, cif, mtz; and measured, where the data came
    in no ``.hkl`` of SHELX, which stays as it is. ReflectionError if one of them is a file that was read."""
    stem = Path(stem)
    wanted = {"hkl": True, "ins": True, "csv": csv, "cif": cif, "mtz": mtz}
    files = {name: stem.with_name(f"{stem.name}.{name}") for name in wanted if wanted[name]}
    if not (measured.files[0].suffix.lower() == ".hkl" and measured.kind.startswith("SHELX")):
        files["measured"] = stem.with_name(stem.name.removesuffix("_extended") + "_measured.hkl")
    read = {Path(path).resolve() for path in measured.files}
    if clash := [path for path in files.values() if path.resolve() in read]:
        raise ReflectionError(f"{shown(clash[0])} is a file that was read, and is not overwritten: choose another --out")
    return files


def write_extended(stem, extended: Extended, elements=(), csv=False, mtz=False, cif=False, method="a model") -> list[Path]:
    """Write ``.hkl`` and ``.ins`` for SHELX, on request a table as ``.csv``, a ``.cif`` and an ``.mtz``; returns their paths.

    The measured reflections come as they were read, not merged, with their uncertainties and batch number 1; predicted ones
    have batch number 2, and the .ins says how many there are of each, so that ``read_measured`` takes the measured ones alone.
    The other files are merged: measured amplitudes are F and SIGF, predicted ones FEXT and SIGFEXT in the MTZ file and
    columns of their own in the CIF file; the table has ``measured`` 0 for them. Data that came in another format are written
    as SHELX files without predicted ones, too (``extended_files``).

    Raises
    ------
    ReflectionError
        As ``extended_files``, or if no elements are known.
    """
    measured, predicted = extended.measured, extended.predicted
    files = extended_files(stem, measured, csv, cif, mtz)
    about = dict(cell=measured.cell, spacegroup=measured.spacegroup, elements=elements or measured.elements,
                 wavelength=measured.wavelength or 0.71073, header=measured.header)
    intensity, sigma = (np.concatenate(parts) * extended.scale
                        for parts in zip((measured.intensity, measured.sigma), predicted.intensities()))
    batch = np.repeat([1, 2], [len(measured.hkl), len(predicted)])
    remark = (f"EXTENDED: {len(measured.hkl)} measured reflections (batch number 1), then {len(predicted)} PREDICTED by "
              f"{method} (batch number 2). Those were never measured: use them for maps and phasing, and refine against the "
              "measured ones")
    write_shelx_files(files["hkl"].with_suffix(""), np.concatenate([measured.hkl, predicted.hkl]), intensity, sigma, batch,
                      **about, remarks=[remark])
    if "measured" in files:
        scale = shelx_scale(measured.intensity, measured.sigma)
        write_shelx_files(files["measured"].with_suffix(""), measured.hkl, measured.intensity * scale, measured.sigma * scale,
                          1, **about)
    table = extended.table()
    columns = [table[name].where(table["measured"] == known) for known in (True, False) for name in ("F", "sigF")]
    if csv:
        with atomic_path(files["csv"]) as temporary:
            table.assign(measured=table["measured"].astype(int)).to_csv(temporary, index=False)
    if cif:
        with atomic_path(files["cif"]) as temporary:
            temporary.write_text(_cif(files["cif"].stem, measured, method, table[["h", "k", "l"]], columns), encoding="utf-8")
    if mtz:
        labelled = dict(zip(("F", "SIGF", "FEXT", "SIGFEXT"), zip("FQFQ", columns)))
        write_mtz(files["mtz"], table[["h", "k", "l"]], labelled, measured.cell, measured.spacegroup, measured.wavelength,
                  "extended")
    return list(files.values())


def _cif(name, measured, method, hkl, columns):
    """Text of a CIF file of merged reflections, measured amplitudes and predicted ones in columns of their own."""
    block = gemmi.cif.Document().add_new_block(name.replace(" ", "_") or "extended")
    for item, value in zip(("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"),
                           measured.cell.parameters):
        block.set_pair(f"_cell_{item}", f"{value:.6g}")
    block.set_pair("_space_group_name_H-M_alt", gemmi.cif.quote(measured.spacegroup.xhm()))
    symmetry = block.init_loop("_space_group_symop_", ["operation_xyz"])
    for op in measured.spacegroup.operations():
        symmetry.add_row([gemmi.cif.quote(op.triplet())])
    block.set_pair("_reflns_special_details", gemmi.cif.quote(f"F_predicted was not measured but predicted by {method}"))
    names = ["index_h", "index_k", "index_l", "F_meas", "F_sigma", "xrd_phase_F_predicted", "xrd_phase_F_predicted_su"]
    rows = block.init_loop("_refln_", names)
    for *indices, F, sigma, P, sigma_P in np.column_stack([hkl, *columns]).tolist():
        numbers = ["?" if np.isnan(x) else f"{x:.3f}" for x in (F, sigma, P, sigma_P)]
        rows.add_row([*(str(int(index)) for index in indices), *numbers])
    return block.as_string()


def describe(extended: Extended, d_target, trained=(0.0, 0.0)) -> str:
    """What was measured and what was predicted, in words; trained : as ``extend_by`` returns it."""
    measured, merged, predicted = extended.measured, extended.merged, extended.predicted
    holes = int((predicted.d >= extended.d_complete).sum())
    best, worst = trained
    beyond = int((merged.d < best).sum())
    text = [f"{measured.files[0]} ({measured.kind}): {len(measured.hkl)} measurements of {len(merged)} reflections in "
            f"{merged.spacegroup.xhm()}, to {merged.d_min:.2f} Å"
            + (f", more than half of them to {extended.d_complete:.2f} Å only." if extended.d_complete > 1.02 * merged.d_min
               else "."),
            f"{len(predicted)} reflections predicted to {d_target:g} Å, {holes} of them in holes inside the measured data."]
    if beyond:
        text.append(f"{beyond} measured beyond {best:g} Å were kept, but not shown to the model, which was "
                    "not trained on such.")
    if merged.d_min > worst * 1.02 and worst:
        text.append(f"The data end at {merged.d_min:.2f} Å, the model was trained on data to {worst:g} Å: expect "
                    "worse than its validation.")
    if extended.scale != 1:
        text.append(f"All intensities in the .hkl file were multiplied by {extended.scale:.4g}, to fit its columns.")
    return "\n".join(text)


def describe_solution(solution: Solution | None, name="phase_first") -> str:
    """What phase first or molecule first found, in words."""
    if name == "molecule_first":
        return ("Molecule first: no placement of the molecule explains the measured part well enough to be believed."
                if solution is None else
                f"Molecule first: {solution.evidence.contents}, R1 {solution.r1:.3f}; the predicted amplitudes are calculated "
                "from its atoms, hydrogen included.")
    if solution is None:
        return "Phase first: no structure was found in the measured part, or none that explains it."
    return (f"Phase first: {len(solution.elements)} atoms found in the measured part, R1 {solution.r1:.3f} without "
            "hydrogen; the predicted amplitudes are calculated from them.")


def verdict(title, made) -> str:
    """What the validation of a model says of it, in words, from the metadata of its weights."""
    if made.get("cc_ext") is None or made.get("r_ext") is None:
        return f"{title}: its weights state no validation scores, so nothing is known of how good it is."
    text = [f"{title}, on crystals of its validation (recipe {made.get('recipe', 'unknown')}): r_ext {made['r_ext']:.3f}, "
            f"cc_ext {made['cc_ext']:.3f}."]
    r_mean, cc_mean = made.get("shell_mean_r_ext"), made.get("shell_mean_cc_ext")
    if r_mean is not None and cc_mean is not None:
        text.append(f"The shell mean, which knows nothing of the crystal, has r_ext {r_mean:.3f}, cc_ext {cc_mean:.3f} there"
                    + (": this model tells nothing beyond the fall-off with resolution." if cc_mean >= made["cc_ext"]
                       else "."))
    if made["cc_ext"] < PHASING_CC:
        text.append(f"Phasing starts to work at cc_ext {PHASING_CC}: do not expect these amplitudes to solve a structure.")
    return " ".join(text)
