"""Tiny notebooks for the tests of what reads and runs notebooks."""

import nbformat

PARAMETERS = """seed = 0            # draws follow from it
d_input = 1.5       # Å
n_grid = [8, 8, 8]  # voxels
device = "cpu"
cif_dirs = []
shuffle = True"""


def make_notebook(folder, name, *cells, parameters=PARAMETERS):
    """Write a clean notebook `folder`/`name`.ipynb: title, parameters cell, then `cells` of code."""
    v4 = nbformat.v4
    nb = v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    nb.cells = [v4.new_markdown_cell(f"# {name[:2]} A title"), v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    nb.cells += [v4.new_code_cell(source) for source in cells]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"
