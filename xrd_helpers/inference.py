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

from .config import UserError, atomic_path
from .gridding import AmplitudeBoxes
from .models import MODELS


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
