"""Widgets for a look around. No later cell of a notebook may need one, and each draws its first picture by itself."""

from __future__ import annotations

import ipywidgets
import matplotlib.pyplot as plt

from .plots import plot_extension, plot_resolutions


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


def browse_resolution(crystal, best=0.8, worst=4.0):
    """Slide over d_min (Å): the density of the largest molecule of a crystal, as ``plot_resolutions`` draws it."""
    def draw(d_min):
        plot_resolutions(crystal, [d_min])
        plt.show()

    slider = ipywidgets.FloatSlider(min=best, max=worst, step=0.1, value=1.5, description="d_min / Å", readout_format=".1f",
                                    continuous_update=False)
    return ipywidgets.interactive(draw, d_min=slider)
