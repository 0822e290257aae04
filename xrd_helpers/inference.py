"""Use a trained network: its file of weights, its predictions, and the extension of measured reflections.

A file of weights rebuilds its own model: safetensors, half precision, with the model's name, its choices, how it was
trained and how it scored in the metadata. Nothing is unpickled.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import gemmi
import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from . import locate
from .config import UserError, atomic_path, shown
from .crystals import Crystal
from .gridding import BOXES, AmplitudeBoxes, Sample, absences_and_epsilon, check_fit, to_box_setting
from .metrics import UNKNOWN_R, ShellMean, shells
from .models import MODELS, TITLES
from .phasing.charge_flipping import Solution
from .phasing.extension import TRIALS, phase_first
from .reflection_files import write_mtz
from .reflections import Measured, ReflectionError, Reflections, unique_hkl
from .shelx import shelx_scale, write_shelx_files

WEIGHTS = locate("weights")
PHASING_CC = 0.65    # cc_ext at which phasing starts to work (DESIGN.md, section 8)
LEAST = 30           # reflections measured in the box, below which there is nothing to extend


class WeightsError(UserError):
    """A file of weights that cannot be used, and why."""


def save_model(path, name, model, **made) -> None:
    """Write weights in half precision to a temporary name, then rename; ``made`` says how they were made (JSON values)."""
    tensors = {key: value.detach().cpu().half().contiguous() for key, value in model.state_dict().items()}
    metadata = {"model": name, "config": json.dumps(asdict(model.config)), "made": json.dumps(made)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata))  # save_file would leave it readable by its owner alone


def load_model(path, models=MODELS):
    """The model of a file of weights, ready to predict on the CPU, and the dict that says how it was made.

    ``models`` are those that it may be, {name: class}.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, of another program, or does not fit the model that it names.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there are no weights {path}: train them with the notebook of that model, or correct "
                           "'weights' in config.yaml")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is damaged or no file of weights: {str(error).splitlines()[0]}") from None
    name = metadata.get("model")
    if name not in models:
        raise WeightsError(f"{path} holds weights of {name or 'an unnamed model'}, not of one of {', '.join(models)}")
    try:
        if lacking := {"config", "made"} - metadata.keys():
            raise ValueError(f"its metadata lack {' and '.join(sorted(lacking))}")
        model_class = models[name]
        choices = {key: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
                   for key, value in json.loads(metadata["config"]).items()}
        model = model_class(model_class.Config(**choices))
        shapes, found = ({key: x.shape for key, x in part.items()} for part in (model.state_dict(), tensors))
        if wrong := [key for key in shapes | found if shapes.get(key) != found.get(key)]:
            raise ValueError(f"{len(wrong)} tensors are missing, too many or of another shape, the first {wrong[0]}")
        model.load_state_dict(tensors)
        made = json.loads(metadata["made"])
    except Exception as error:  # a constructor raises anything on choices of a wrong kind
        raise WeightsError(f"{path} does not fit the model {name}: {str(error).splitlines()[0]}") from None
    return model.to(memory_format=torch.channels_last_3d).eval(), made


def find_weights(names, folder=WEIGHTS) -> dict[str, Path]:
    """Files of weights by the names that tables show: ``all`` is every file of the folder, a name one of them.

    Parameters
    ----------
    names : list of str: ``all``, names such as unet (the file unet.safetensors of the folder), or paths of files

    Returns
    -------
    {title: path}, the title as in the literature where the file is named after a model, else the file's name

    Raises
    ------
    WeightsError
        If there is no such file, or two files would have one title.
    """
    folder, paths = Path(folder), []
    # a name that begins with a dot is a file that is being written
    present = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    for name in names:
        if name == "all":
            paths += present
            if not present:
                raise WeightsError(f"{shown(folder)} holds no file of weights (*.safetensors)")
            continue
        path = Path(name) if Path(name).suffix == ".safetensors" else folder / f"{name}.safetensors"
        if not path.is_file():
            stems = ", ".join(path.stem for path in present) or "none"
            raise WeightsError(f"there are no weights {shown(path)}: name one of {shown(folder)} ({stems}) or a file "
                               "that ends in .safetensors")
        paths.append(path)
    found = {}
    for path in dict.fromkeys(paths):
        title = TITLES.get(path.stem, path.stem)
        if title in found:
            raise WeightsError(f"{shown(found[title])} and {shown(path)} would both be called {title}: rename one")
        found[title] = path
    return found


def load_for_box(path, box="monoclinic"):
    """``load_model`` of a model of a box, on the GPU where there is one; WeightsError if it was trained for another box."""
    model, made = load_model(path)
    if (trained := made.get("box", box)) != box:
        raise WeightsError(f"{shown(path)} was trained for the {trained} box, not the {box} one")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), made


def predict(model, boxes: AmplitudeBoxes, batch_size=8) -> np.ndarray:
    """(B, *box.shape) amplitudes extended by a model, on the scale of ``boxes.F``; the model is left in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    parts = []
    with torch.inference_mode():
        for first in range(0, len(boxes), batch_size):
            part = boxes[first:first + batch_size]
            parts.append(model(part.to(device)).float().cpu())
    return torch.cat(parts).double().numpy()


# --- measured reflections ---


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


def measured_box(merged: Reflections, box="monoclinic", d_target=0.8, d_shown=0.0, name="the data", contents=None):
    """Measured amplitudes in the box, as a model sees them.

    `contents` is {symbol: atoms in the asymmetric unit}. Data with d >= d_shown (Å) are measured, systematic absences inside them too, as in training; F is zero elsewhere.

    Returns
    -------
    boxes : AmplitudeBoxes, a batch of one, in the box's setting
    swapped : bool, whether that is another than the setting of the data (see ``box_indices``)

    Raises
    ------
    CrystalError, ReflectionError
        If the reflections to d_target do not fit the box, or fewer than LEAST are measured in it; ``name`` begins it.
    """
    data = Crystal(name, merged.cell, merged.spacegroup, (), np.zeros((0, 3)), np.zeros(0), np.zeros(0))  # no atoms yet
    crystal = to_box_setting(data)
    check_fit(crystal, BOXES[box], d_target)
    box = BOXES[box]
    absent, epsilon = absences_and_epsilon(box.name, crystal.spacegroup.xhm())
    with np.errstate(divide="ignore"):
        d = crystal.cell.calculate_1_d2_array(box.hkl.astype(np.int32)) ** -0.5
    target = (d >= d_target) & np.isfinite(d)
    inside = merged.d >= max(d_shown, d_target)
    voxel = box.index(box_indices(merged.hkl[inside], crystal is not data))
    if (voxel >= 0).sum() < LEAST or not merged.F[inside].max() > 0:
        raise ReflectionError(f"{name}: only {len(voxel)} reflections are measured to {max(d_shown, d_target):g} Å, "
                              f"of {LEAST} at least")
    F, measured = np.zeros(len(d)), np.zeros(len(d), bool)
    F[voxel[voxel >= 0]], measured[voxel[voxel >= 0]] = merged.F[inside][voxel >= 0], True
    same = box.index(box.hkl)  # equivalents that stand in the box twice
    F, measured = F[same], measured[same] | absent & target & (d >= merged.d[inside].min())
    F *= ~absent
    grid, scale = (1, *box.shape), F.max()
    tensors = {name: torch.as_tensor(x.reshape(grid)) for name, x in
               {"measured": measured, "target": target, "absent": absent}.items()}
    numbers = {name: torch.as_tensor(x.reshape(grid), dtype=torch.float32) for name, x in
               {"F": F / scale, "d": d, "epsilon": epsilon}.items()}
    boxes = AmplitudeBoxes(box=box, scale=torch.tensor([scale]), redundant=torch.as_tensor(box.redundant).reshape(box.shape),
                           samples=(Sample(crystal.cell, crystal.spacegroup, contents or {}),), **tensors, **numbers)
    return boxes, crystal is not data


def box_indices(hkl, swapped) -> np.ndarray:
    """Indices (n, 3) in the box's setting from those of the data, or back: a' = c, b' = -b, c' = a undoes itself."""
    return hkl[:, [2, 1, 0]] * [1, -1, 1] if swapped else hkl


def extend(measured: Measured, method, r_ext=UNKNOWN_R, box="monoclinic", d_target=0.8, d_shown=0.0) -> Extended:
    """Predict what was not measured to d_target, holes inside the data too; what was measured stays as it is.

    Parameters
    ----------
    method : function of AmplitudeBoxes that returns (1, *box.shape) scaled amplitudes, as ``partial(predict, model)``
    r_ext : its validation score; the uncertainty of a predicted amplitude is 1.25 r_ext times the mean predicted one of its
        shell of resolution: r_ext ⟨F⟩ is the mean error, and the standard one of normal errors is √(π/2) of that
    d_shown : Å, data beyond it are kept, but not shown to the method

    Raises
    ------
    CrystalError, ReflectionError
        As ``measured_box``, or if all reflections to d_target were measured.
    """
    merged = measured.merge()
    boxes, swapped = measured_box(merged, box, d_target, d_shown, measured.files[0].name, measured.elements)
    hkl, F = boxes.reflections(0, method(boxes)[0])
    asu, ops = gemmi.ReciprocalAsu(merged.spacegroup), merged.spacegroup.operations()
    hkl = np.array([asu.to_asu(h, ops)[0] for h in box_indices(hkl, swapped).tolist()])
    new = _not_in(merged, hkl, d_target)
    return _extended(measured, merged, hkl[new], F[new], r_ext)


def extend_by_structure(measured: Measured, elements=(), d_target=0.8, trials=TRIALS, seed=0):
    """``extend`` without a network and for any space group: by the atoms that charge flipping finds in what was measured.

    Parameters
    ----------
    elements : as for ``charge_flipping.solve``; those of the data by default

    Returns
    -------
    Extended and the Solution that the amplitudes come from, or None and None where no structure was found

    Raises
    ------
    ReflectionError
        As ``extend``, or if fewer than LEAST reflections are measured.
    """
    merged, hkl = _to_predict(measured, d_target)
    found = phase_first(merged, hkl, elements or measured.elements, trials, seed)
    return (_extended(measured, merged, hkl, found.F, found.r_ext), found.solution) if found else (None, None)


def extend_by_mean(measured: Measured, mean: ShellMean, d_target=0.8) -> Extended:
    """``extend`` by the mean amplitude at each resolution, for any space group."""
    merged, hkl = _to_predict(measured, d_target)
    F = mean.at(merged.F, merged.d, merged.cell.calculate_d_array(hkl.astype(np.int32)))
    return _extended(measured, merged, hkl, F, UNKNOWN_R)


def _to_predict(measured, d_target):
    """(merged, hkl (n, 3) to d_target that were not measured)."""
    merged = measured.merge()
    if len(merged) < LEAST:
        raise ReflectionError(f"{measured.files[0]}: only {len(merged)} reflections are measured, of {LEAST} at least")
    hkl = unique_hkl(merged.cell, merged.spacegroup, d_target)
    return merged, hkl[_not_in(merged, hkl, d_target)]


def _not_in(merged, hkl, d_target):
    """(n,) bool, the reflections hkl (n, 3) of the asymmetric unit that were not measured; an error if all were."""
    known = set(map(tuple, merged.hkl.tolist()))
    new = np.array([tuple(h) not in known for h in hkl.tolist()], bool)
    if not new.any():
        raise ReflectionError(f"all {len(hkl)} reflections to {d_target:g} Å are measured: there is nothing to extend")
    return new


def _extended(measured, merged, hkl, F, r_ext) -> Extended:
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
    there, all_there = (np.histogram(d**-3.0, edges)[0] for d in (merged.d, possible))
    low = np.flatnonzero((there < share * all_there) & (np.arange(len(there)) > 0))  # low orders hide behind the beam stop
    return float(edges[low[0]] ** (-1 / 3)) if len(low) else merged.d_min


def write_extended(stem, extended: Extended, elements=(), csv=False, mtz=False) -> list[Path]:
    """Write ``.hkl`` and ``.ins`` for SHELX, on request a table as ``.csv`` and an ``.mtz``; returns their paths.

    The measured reflections come as they were read, not merged, with their uncertainties and batch number 1; predicted ones
    have batch number 2, in the other files ``measured`` 0.

    Raises
    ------
    ReflectionError
        If one of them is a file that was read, or no elements are known.
    """
    stem, measured, predicted = Path(stem), extended.measured, extended.predicted
    suffixes = [".hkl", ".ins", *([".csv"] if csv else []), *([".mtz"] if mtz else [])]
    paths = [stem.with_name(stem.name + suffix) for suffix in suffixes]
    read = {Path(path).resolve() for path in measured.files}
    if clash := [path for path in paths if path.resolve() in read]:
        raise ReflectionError(f"{shown(clash[0])} is a file that was read, and is not overwritten: choose another --out")
    intensity, sigma = (np.concatenate(parts) * extended.scale
                        for parts in zip((measured.intensity, measured.sigma), predicted.intensities()))
    batch = np.repeat([1, 2], [len(measured.hkl), len(predicted)])
    write_shelx_files(stem, np.concatenate([measured.hkl, predicted.hkl]), intensity, sigma, batch, measured.cell,
                      measured.spacegroup, elements or measured.elements, wavelength=measured.wavelength or 0.71073)
    table = extended.table()
    table["measured"] = table["measured"].astype(int)
    if csv:
        with atomic_path(paths[2]) as temporary:
            table.to_csv(temporary, index=False)
    if mtz:
        columns = {"F": ("F", table["F"]), "SIGF": ("Q", table["sigF"]), "MEASURED": ("I", table["measured"])}
        write_mtz(paths[-1], table[["h", "k", "l"]], columns, measured.cell, measured.spacegroup, measured.wavelength, "extended")
    return paths


def describe(extended: Extended, d_target, d_shown=0.0) -> str:
    """What was measured and what was predicted, in words."""
    measured, merged, predicted = extended.measured, extended.merged, extended.predicted
    holes = int((predicted.d >= extended.d_complete).sum())
    beyond = int((merged.d < d_shown).sum())
    text = [f"{measured.files[0]} ({measured.kind}): {len(measured.hkl)} measurements of {len(merged)} reflections in "
            f"{merged.spacegroup.xhm()}, to {merged.d_min:.2f} Å"
            + (f", more than half of them to {extended.d_complete:.2f} Å only." if extended.d_complete > 1.02 * merged.d_min
               else "."),
            f"{len(predicted)} reflections predicted to {d_target:g} Å, {holes} of them in holes inside the measured data."]
    if beyond:
        text.append(f"{beyond} measured beyond {d_shown:g} Å were kept, but not shown to the model, which was "
                    "not trained on such.")
    if merged.d_min > d_shown * 1.02 and d_shown:
        text.append(f"The data end at {merged.d_min:.2f} Å, the model was trained on data to {d_shown:g} Å: expect "
                    "worse than its validation.")
    if extended.scale != 1:
        text.append(f"All intensities in the .hkl file were multiplied by {extended.scale:.4g}, to fit its columns.")
    return "\n".join(text)


def describe_solution(solution: Solution | None) -> str:
    """What phase first found, in words."""
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
