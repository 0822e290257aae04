"""Widgets for a look around. No later cell of a notebook may need one, and each draws its first picture by itself."""

from __future__ import annotations

import base64
import json
from html import escape
from io import BytesIO
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.colors import to_hex

from .bonds import covalent_radii, whole_molecules
from .config import UserError, atomic_path
from .phasing.output import labels
from .plots import ELEMENTS, METAL, plot_extension, plot_resolutions, plot_section
from .reflection_files import READERS


class _Alive(ipywidgets.VBox):
    """Widgets in a column, and what stands there where there is no kernel, as on a page that was saved."""

    still = {}  # {MIME type: content}

    def _repr_mimebundle_(self, **kwargs):
        return super()._repr_mimebundle_(**kwargs) | self.still


def _pictures(draw, **controls):
    """Controls above a picture: draw(**values of the controls) makes a figure, now and at each change.

    The picture is bytes of a widget, not an output of the cell: a notebook that runs without a browser waits for nobody.
    """
    image = ipywidgets.Image(format="png", layout={"max_width": "100%"})

    def refresh(_=None):
        figure, buffer = draw(**{name: control.value for name, control in controls.items()}), BytesIO()
        figure.savefig(buffer, format="png", dpi=144)
        image.layout.width = f"{80 * figure.get_figwidth():.0f}px"
        plt.close(figure)
        image.value = buffer.getvalue()

    for control in controls.values():
        control.observe(refresh, "value")
    refresh()
    widget = _Alive([*controls.values(), image], layout={"align_items": "flex-start"})  # else the picture is blown up
    widget.still = {"image/png": base64.b64encode(image.value).decode()}
    return widget


def choose_files():
    """A button that uploads files: the FileUpload, and what to display, which says so where there is no kernel."""
    picker = ipywidgets.FileUpload(multiple=True, description="choose files")
    shown = _Alive([picker])
    shown.still = {"text/html": "<em>In JupyterLab there is a button here, to choose files with.</em>"}
    return picker, shown


def browse_layers(predictions, boxes, names):
    """Choose model and crystal, and slide over l, as far as the crystal has reflections.

    ``predictions`` is {model: (B, *box.shape) amplitudes}, the first one drawn first; ``names`` the B names of the crystals.
    """
    there = (boxes.target & ~boxes.absent).any(dim=2).any(dim=1).numpy()      # (B, layers)
    ends = [boxes.box.low[2] + np.flatnonzero(layers)[[0, -1]] for layers in there]
    model = ipywidgets.Dropdown(options=list(predictions), description="model")
    crystal = ipywidgets.Dropdown(options=[(name, i) for i, name in enumerate(names)], description="crystal")
    l = ipywidgets.IntSlider(min=int(ends[0][0]), max=int(ends[0][1]), value=1, description="l", continuous_update=False)

    def end_where_data_end(change):
        low, high = map(int, ends[change["new"]])
        l.min, l.max = min(low, l.max), high  # never above the other, in between
        l.min = low

    crystal.observe(end_where_data_end, "value")
    return _pictures(lambda model, crystal, l: plot_extension(predictions[model], boxes, crystal, l,
                                                              f"{names[crystal]}, {model}:"),
                     model=model, crystal=crystal, l=l)


def browse_resolution(crystal, best=0.8, worst=4.0):
    """Slide over d_min (Å): the density of the largest molecule of a crystal, as ``plot_resolutions`` draws it."""
    slider = ipywidgets.FloatSlider(min=best, max=worst, step=0.1, value=1.5, description="d_min / Å", readout_format=".1f",
                                    continuous_update=False)
    return _pictures(lambda d_min: plot_resolutions(crystal, [d_min]), d_min=slider)


def browse_sections(rho, cell):
    """Choose an axis, and slide through the density rho (nx, ny, nz) of a cell along it: ``plot_section``."""
    axis = ipywidgets.Dropdown(options=[("along a", 0), ("along b", 1), ("along c", 2)], value=2, description="section")
    height = ipywidgets.FloatSlider(min=0, max=1, step=0.02, value=0, description="height", continuous_update=False)
    return _pictures(lambda axis, height: plot_section(rho, cell, axis, height), axis=axis, height=height)


def turn_molecules(structure) -> HTML:
    """Ball and stick of whole molecules, as they lie in the crystal, turned with the mouse: a page of its own, which needs
    neither a kernel nor a network, and stays alive in a notebook that was saved as HTML.

    structure : Solution or Crystal, as for ``plot_molecule``
    """
    molecules = whole_molecules(structure.fract, structure.elements, structure.cell, structure.spacegroup)
    xyz = np.concatenate([molecule.xyz for molecule in molecules])
    start = np.cumsum([0, *(len(molecule.xyz) for molecule in molecules)])
    elements = [structure.elements[i] for molecule in molecules for i in molecule.atom]
    names = labels(structure.elements)
    named = [names[i] if own and structure.elements[i] not in ("H", "D") else "" for molecule in molecules
             for i, own in zip(molecule.atom, molecule.own)]
    xyz = xyz - xyz.mean(axis=0)
    axes = np.linalg.svd(xyz)[2]
    axes[2] *= np.linalg.det(axes)  # the hand is kept
    shown = {"xyz": (xyz @ axes.T).round(3).tolist(), "radius": (0.12 + 0.22 * covalent_radii(elements)).round(3).tolist(),
             "colour": [to_hex(ELEMENTS.get(element, METAL)) for element in elements],
             "label": named,
             "bonds": [[int(i + n), int(j + n)] for molecule, n in zip(molecules, start) for i, j in molecule.bonds]}
    page = PAGE.replace("SHOWN", json.dumps(shown).replace("<", "\\u003c"))
    size = 'width="520" height="440" style="border:0"'
    return HTML(f'<div><iframe title="molecule" {size} srcdoc="{escape(page)}"></iframe></div>')


# x to the right, y up, z towards the reader; grey levels of bonds and order of drawing follow z
PAGE = """<!doctype html><meta charset="utf-8"><style>body{margin:0;font:12px sans-serif;color:#555}canvas{cursor:grab}</style>
<canvas width="500" height="400"></canvas><div>drag to turn, wheel to come nearer</div><script>
const shown = SHOWN, canvas = document.querySelector("canvas"), pen = canvas.getContext("2d");
let xyz = shown.xyz, from = null;
let zoom = 180 / (0.8 + Math.max(...xyz.map(p => Math.hypot(...p))));
function turn(x, y) {  // radians about the axes to the right and up
  const [cx, sx, cy, sy] = [Math.cos(x), Math.sin(x), Math.cos(y), Math.sin(y)];
  xyz = xyz.map(([a, b, c]) => [a * cy + c * sy, b, c * cy - a * sy]).map(([a, b, c]) => [a, b * cx - c * sx, b * sx + c * cx]);
}
function draw() {
  pen.clearRect(0, 0, 500, 400);
  const at = xyz.map(([x, y]) => [250 + zoom * x, 200 - zoom * y]), parts = [];
  for (const [i, j] of shown.bonds) parts.push([Math.min(xyz[i][2], xyz[j][2]), () => {
    for (const [width, style] of [[0.2, "#333"], [0.15, "#ddd"]]) {
      pen.beginPath(); pen.moveTo(...at[i]); pen.lineTo(...at[j]);
      pen.lineWidth = width * zoom; pen.strokeStyle = style; pen.stroke();
    }}]);
  xyz.forEach((p, i) => parts.push([p[2] + 0.01, () => {
    pen.beginPath(); pen.arc(...at[i], shown.radius[i] * zoom, 0, 2 * Math.PI);
    pen.fillStyle = shown.colour[i]; pen.fill(); pen.lineWidth = 1; pen.strokeStyle = "#222"; pen.stroke();
    pen.fillStyle = "#000"; pen.fillText(shown.label[i], at[i][0] + shown.radius[i] * zoom, at[i][1] - shown.radius[i] * zoom);
  }]));
  parts.sort((a, b) => a[0] - b[0]).forEach(part => part[1]());
}
canvas.onpointerdown = e => { from = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); };
canvas.onpointerup = () => { from = null; };
canvas.onpointermove = e => {
  if (!from) return;
  turn((e.clientY - from[1]) / 100, (e.clientX - from[0]) / 100);
  from = [e.clientX, e.clientY]; draw();
};
canvas.onwheel = e => { e.preventDefault(); zoom *= Math.exp(-e.deltaY / 800); draw(); };
draw();
</script>"""


def download_link(path) -> HTML:
    """A link that hands over a copy of a file; the copy is inside the page, so it needs no server."""
    path = Path(path)
    content = base64.b64encode(path.read_bytes()).decode()
    name, kind = escape(path.name), "application/octet-stream"
    return HTML(f'<a download="{name}" href="data:{kind};base64,{content}">{name}</a>')


def keep_upload(files, folder) -> Path:
    """Write the files chosen in a FileUpload (its ``value``) into a folder; the path of the one that holds reflections.

    A .cif that was chosen beside another reflection file is taken for what is known of it. UserError unless one file, and one
    only, holds reflections.
    """
    names = [Path(file["name"].replace("\\", "/")).name for file in files]  # no folders: nothing is written elsewhere
    found = [name for name in names if Path(name).suffix.lower() in READERS]
    found = [name for name in found if not name.lower().endswith(".cif")] or found
    if len(found) != 1:
        raise UserError(f"{', '.join(names)}: {'several' if found else 'none'} of these hold reflections: choose one of "
                        f"{', '.join(READERS)}, with its .ins where it needs one")
    for name, file in zip(names, files):
        with atomic_path(Path(folder) / name) as temporary:
            temporary.write_bytes(bytes(file["content"]))
    return Path(folder) / found[0]
