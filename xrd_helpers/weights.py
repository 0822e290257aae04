"""Files of weights, and what a trained network predicts.

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
from .gridding import BOXES, AmplitudeBoxes, Box
from .models import MODELS, find_model, is_installed

WEIGHTS = locate("weights")


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

    ``models`` are those that it may be, {name: class}. A network of one's own has to be named first (``models.find_model``):
    no code is run because a file of weights asks for it.

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
    if models is MODELS and name not in models and is_installed(name):
        find_model(name)
    if name not in models:
        hint = ""
        if models is MODELS and ":" in (name or ""):
            hint = f". Is that your own network? Then name its file, too, as in --network {name}"
        raise WeightsError(f"{path} holds weights of {name or 'an unnamed model'}, not of one of {', '.join(models)}{hint}")
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
        title = MODELS[path.stem].title if path.stem in MODELS else path.stem
        if title in found:
            raise WeightsError(f"{shown(found[title])} and {shown(path)} would both be called {title}: rename one")
        found[title] = path
    return found


def load_for_box(path, box: Box = BOXES["monoclinic"]):
    """``load_model`` of a model of a box, on the GPU where there is one; WeightsError if it was trained for another box."""
    model, made = load_model(path)
    if (trained := made.get("box", box.name)) != box.name:
        raise WeightsError(f"{shown(path)} was trained for the {trained} box, not the {box.name} one")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), made


def load_models(names, box: Box = BOXES["monoclinic"], folder=WEIGHTS) -> dict:
    """{title: (model, what its file says)} of files of weights, by ``find_weights`` and ``load_for_box``."""
    return {title: load_for_box(path, box) for title, path in find_weights(names, folder).items()}


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


# --- weights/README.md ---

README_COLUMNS = {"model": "model", "crystals_seen": "crystals seen", "minutes": "minutes", "recipe": "crystals of",
                  "r_ext": "`r_ext`", "cc_ext": "`cc_ext`", "cc_e": "`cc_e`", "shell_mean_r_ext": "shell mean `r_ext`",
                  "shell_mean_cc_ext": "shell mean `cc_ext`", "machine": "machine"}


def weights_readme(folder) -> str:
    """The text of weights/README.md: a table of the files of weights in a folder, from what they say of themselves."""
    paths = sorted(path for path in Path(folder).glob("*.safetensors") if not path.name.startswith("."))  # not half-written
    if not paths:
        raise UserError(f"there are no weights in {shown(folder)}")
    head = ["file", "parameters", *README_COLUMNS.values(), "size"]
    rows, curves = [], []
    for path in paths:
        model, made = load_model(path)
        made = {"model": model.title} | made
        cells = [f"{x:,}" if isinstance(x, int) else str(x) for x in (made.get(key, "") for key in README_COLUMNS)]
        n_parameters = sum(p.numel() for p in model.parameters())
        if points := made.get("curve"):
            curves += [[f"`{path.name}`" if i == 0 else "", f"{n:,}", *map(str, scores)]
                       for i, (n, *scores) in enumerate(points)]
        rows.append([f"`{path.name}`", f"{n_parameters:,}", *cells, f"{path.stat().st_size / 2**20:.1f} MB"])
    head_of_curves = ["file", "crystals seen", "`r_ext`", "`cc_ext`"]
    table, curve = ("\n".join("| " + " | ".join(row) + " |" for row in [names, ["---"] * len(names), *body])
                    for names, body in ((head, rows), (head_of_curves, curves)))
    return f"""# Weights

Written by `python -c "from xrd_helpers.weights import write_weights_readme; write_weights_readme('weights')"` from what
the files say of themselves; change nothing here by hand.

{table}

The scores are means over the crystals that were kept aside for validation; those on real crystals stand in
RESULTS.md. *shell mean* is the row that knows nothing about a crystal but its fall-off, on the same crystals: a model whose
`r_ext` is above it, or whose `cc_ext` is below, has learnt nothing that is of use yet.

What the running mean of the weights scored while it was trained, on the same crystals:

{curve}

Each file is safetensors in half precision. Its metadata hold the model's name and choices, and how it was made and scored:
seed, crystals seen, minutes, learning rate, commit and kind of machine. Nothing in it is unpickled:

```python
from xrd_helpers.weights import load_model
model, made = load_model("weights/unet.safetensors")
```
"""


def write_weights_readme(folder) -> None:
    with atomic_path(Path(folder) / "README.md") as temporary:
        temporary.write_text(weights_readme(folder), encoding="utf-8")
