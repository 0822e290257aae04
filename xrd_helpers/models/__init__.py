"""The networks that extend amplitudes, one a file; ``base.AmplitudeModel`` says how each is called.

A network of somebody else's joins them by its file, as ``my_net.py:MyNet``, or by its name where an installed package has
an entry point of the group GROUP: then it trains, is saved, evaluated and compared like those here (``find_model``).
"""

import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path

from ..config import UserError
from .base import AmplitudeModel, amplitudes, extension_loss
from .fft_unet import FFTUNet
from .patterson_net import PattersonNet
from .unet import UNet
from .xrd_transformer import XRDTransformer

__all__ = ["GROUP", "MODELS", "AmplitudeModel", "FFTUNet", "PattersonNet", "UNet", "XRDTransformer", "amplitudes",
           "extension_loss", "find_model", "is_installed"]

MODELS = {"unet": UNet, "fft_unet": FFTUNet, "xrd_transformer": XRDTransformer, "patterson_net": PattersonNet}
"""Name in files -> class, whose ``title`` is its name in tables. ``find_model`` adds others."""

GROUP = "xrd_phase.models"


def find_model(name) -> str:
    """The name in MODELS of a network that a person has asked for, which is added there if it is not one of ours.

    Parameters
    ----------
    name : one of MODELS; ``path/my_net.py:MyNet``, the class MyNet of that file, which is run, and is called
        ``my_net.py:MyNet`` wherever it lies; or the name of an entry point of GROUP.

    Raises
    ------
    UserError
        If there is no such network, or it is no AmplitudeModel.
    """
    file, colon, class_name = name.rpartition(":")
    if name in MODELS and not colon:  # a file may have been changed since it was run
        return name
    if colon:
        known_as, model_class = f"{Path(file).name}:{class_name}", getattr(_run(Path(file)), class_name, None)
    elif is_installed(name):
        known_as, model_class = name, next(iter(entry_points(group=GROUP, name=name))).load()
    else:
        known = dict.fromkeys([*MODELS, *sorted(entry_points(group=GROUP).names)])
        raise UserError(f"there is no model {name!r}: the models are {', '.join(known)}, or your own, as my_net.py:MyNet")
    if not (isinstance(model_class, type) and issubclass(model_class, AmplitudeModel)):
        raise UserError(f"{name} is no network: it has to be a class derived from xrd_helpers.models.AmplitudeModel")
    MODELS[known_as] = model_class
    return known_as


def is_installed(name) -> bool:
    """Whether an installed package offers a network of this name."""
    return name in entry_points(group=GROUP).names


def _run(path):
    """The module of a file."""
    if not path.is_file():
        raise UserError(f"there is no file {path}, which should hold a network")
    spec = importlib.util.spec_from_file_location(f"own_network_{path.stem}", path)
    if spec is None:
        raise UserError(f"{path} is no Python file: a network of your own is named as in my_net.py:MyNet")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever stands in it
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} cannot be run: {what}") from error
    return module
