"""Files of weights, and what a trained network predicts.

A file of weights rebuilds its own model: safetensors, half precision, with the model's name, its choices, how it was
trained and how it scored in the metadata. Nothing is unpickled.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from . import locate
from .config import UserError, atomic_path, shown
from .gridding import BOXES, AmplitudeBoxes, Box
from .models import MODELS, find_model, is_installed

WEIGHTS = locate("weights")
LARGEST_FILE = 2**31  # bytes: a thousand million weights


class WeightsError(UserError):
    """A file of weights that cannot be used, and why."""


Share = pydantic.NonNegativeFloat | None
Terms = Annotated[list[float], pydantic.Field(min_length=5, max_length=5)]


class Made(pydantic.BaseModel):
    """What a file of weights says of its making, as far as anything here relies on it; all else may be anything."""

    model_config = pydantic.ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    box: str = "monoclinic"
    d_input: Annotated[float, pydantic.Field(gt=0, lt=100)] = 1.5
    d_target: Annotated[float, pydantic.Field(gt=0, lt=100)] = 0.8
    d_min: Annotated[list[pydantic.PositiveFloat], pydantic.Field(min_length=2, max_length=2)] | None = None
    missing: Share = None
    noise: Share = None
    recipe: str = ""
    crystals_seen: int = 0
    minutes: float = 0
    r_ext: Share = None
    cc_ext: float | None = None
    shell_mean_r_ext: Share = None
    shell_mean_cc_ext: float | None = None
    curve: list[Annotated[list[float | None], pydantic.Field(min_length=3, max_length=3)]] = []
    spread: Annotated[list[Terms], pydantic.Field(min_length=2, max_length=2)] | None = None

    @pydantic.model_validator(mode="after")
    def _something_to_predict(self):
        if self.d_target >= self.d_input:
            raise ValueError(f"d_target is {self.d_target:g} Å and d_input {self.d_input:g} Å")
        return self

    @classmethod
    def read(cls, text) -> dict[str, Any]:
        """Of JSON; ValueError in a few words."""
        try:
            made = json.loads(text)
            cls.model_validate(made)
        except RecursionError:
            raise ValueError("its brackets never end") from None
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "what it says of its making"
            raise ValueError(f"{where}: {first['msg']}, not {str(first['input'])[:40]!r}") from None
        return made


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
    if path.stat().st_size > LARGEST_FILE:
        raise WeightsError(f"{path} holds {path.stat().st_size / 2**30:.1f} GB: no network here is that large")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
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
        made = Made.read(metadata["made"])
        model_class = models[name]
        choices = {key: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
                   for key, value in json.loads(metadata["config"]).items()}
        with _at_most(len(found)):
            try:
                with torch.device("meta"):  # shapes alone: a file must not ask for more memory than its own tensors take
                    shapes = _shapes(model_class(model_class.Config(**choices)))
            except (NotImplementedError, TypeError):
                if model_class.__module__.startswith(f"{__package__}."):
                    raise
                shapes = found  # a network of one's own need not know of shapes without numbers
            if wrong := [key for key in shapes | found if shapes.get(key) != found.get(key)]:
                raise ValueError(f"{len(wrong)} tensors are missing, too many or of another shape, the first {wrong[0]}")
            model = model_class(model_class.Config(**choices))
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key).float() for key in found}
        if not all(torch.isfinite(x).all() for x in tensors.values()):
            raise ValueError("some of its numbers are not finite")
        model.load_state_dict(tensors)
    except Exception as error:  # a constructor raises anything on choices of a wrong kind
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{path} does not fit the model {name}: {why}") from None
    return model.to(memory_format=torch.channels_last_3d).eval(), made


def _shapes(model):
    return {key: tuple(x.shape) for key, x in model.state_dict().items()}


@contextmanager
def _at_most(n):
    """ValueError for a network that makes more than n tensors: one of a thousand million layers would never be finished."""
    made = 0

    def count(module, name, parameter):
        nonlocal made
        made += parameter is not None
        if made > 2 * n + 1000:  # one made to be looked at, one to be used, and some that it throws away
            raise ValueError(f"its choices make more tensors than the {n} of the file")

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


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
    if (trained := made.get("box", box.name)) != box.name and not model.any_box:
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
