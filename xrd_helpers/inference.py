"""Use a trained network: its file of weights, and its predictions.

A file of weights rebuilds its own model: safetensors, half precision, with the model's name, its choices, how it was
trained and how it scored in the metadata. Nothing is unpickled.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from . import locate
from .config import UserError, atomic_path, shown
from .gridding import AmplitudeBoxes
from .models import MODELS, TITLES

WEIGHTS = locate("weights")


class WeightsError(UserError):
    """A file of weights that cannot be used, and why."""


def save_model(path, name, model, **made) -> None:
    """Write weights in half precision to a temporary name, then rename; ``made`` says how they were made (JSON values)."""
    tensors = {key: value.detach().cpu().half().contiguous() for key, value in model.state_dict().items()}
    metadata = {"model": name, "config": json.dumps(asdict(model.config)), "made": json.dumps(made)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata))  # save_file would leave it readable by its owner alone


def load_model(path):
    """The model of a file of weights, ready to predict on the CPU, and the dict that says how it was made.

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
    if name not in MODELS:
        raise WeightsError(f"{path} holds weights of {name or 'an unnamed model'}, not of one of {', '.join(MODELS)}")
    try:
        if lacking := {"config", "made"} - metadata.keys():
            raise ValueError(f"its metadata lack {' and '.join(sorted(lacking))}")
        model_class = MODELS[name]
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
    for name in names:
        if name == "all":
            paths += sorted(folder.glob("*.safetensors"))
            if not paths:
                raise WeightsError(f"{shown(folder)} holds no file of weights (*.safetensors)")
            continue
        path = Path(name) if Path(name).suffix == ".safetensors" else folder / f"{name}.safetensors"
        if not path.is_file():
            present = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none"
            raise WeightsError(f"there are no weights {shown(path)}: name one of {shown(folder)} ({present}) or a file "
                               "that ends in .safetensors")
        paths.append(path)
    found = {}
    for path in dict.fromkeys(paths):
        title = TITLES.get(path.stem, path.stem)
        if title in found:
            raise WeightsError(f"{shown(found[title])} and {shown(path)} would both be called {title}: rename one")
        found[title] = path
    return found


def best_weights(folder=WEIGHTS) -> Path:
    """The file of weights with the highest stored ``cc_ext`` of its validation; one that states none comes last."""
    return max(find_weights(["all"], folder).values(), key=lambda path: load_model(path)[1].get("cc_ext") or -1)


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
            inputs = [x.to(device) for x in (part.F_in, part.measured, part.target, part.absent)]
            parts.append(model(*inputs).float().cpu())
    return torch.cat(parts).double().numpy()
