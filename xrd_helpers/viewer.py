"""Widgets for a look around. No later cell of a notebook may need one, and each draws its first picture by itself."""

from __future__ import annotations

import ipywidgets
import matplotlib.pyplot as plt

from .plots import plot_extension


def browse_layers(predictions, boxes, names):
    """Choose model and crystal, and slide over l.

    ``predictions`` is {model: (B, *box.shape) amplitudes}, ``names`` the B names of the crystals.
    """
    def draw(model, crystal, l):
        plot_extension(predictions[model], boxes, crystal, l, f"{names[crystal]}, {model}:")
        plt.show()

    return ipywidgets.interactive(
        draw, model=list(predictions), crystal=[(name, i) for i, name in enumerate(names)],
        l=ipywidgets.IntSlider(min=boxes.box.low[2], max=boxes.box.high[2], value=1, continuous_update=False))
