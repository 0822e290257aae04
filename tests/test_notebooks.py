"""The form of the notebooks, without a kernel; `make test` also executes them."""

import ast
import re
import sys
from importlib.metadata import packages_distributions

import nbformat
import papermill
import pytest
import yaml

from makers import make_notebook
from test_setup import DIRECT, canonical
from xrd_helpers import ROOT
from xrd_helpers.config import CONFIG, list_notebooks, load_config, read_parameters
from xrd_helpers.pipeline import NotebookFailed, execute

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# A notebook is always run by IPython, which comes with jupyterlab.
ALLOWED = {"xrd_helpers", "IPython", *sys.stdlib_module_names}
ALLOWED |= {module for module, names in packages_distributions().items() if DIRECT & set(map(canonical, names))}


def check_form(path):
    """Assert what every notebook of this project has in common."""
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem), "named NN_what_it_does.ipynb"
    opening = nb.cells[0]
    assert opening.cell_type == "markdown" and opening.source.startswith(f"# {path.name[:2]} "), "first cell: '# NN Title'"
    tags = [tag for cell in nb.cells for tag in cell.metadata.get("tags", [])]
    assert tags.count("parameters") == 1 and "parameters" in nb.cells[1].metadata.get("tags", []), "second cell: the parameters"
    assert "injected-parameters" not in tags, "this is the copy that papermill executed"
    assert nb.metadata.kernelspec.name == "python3", "the kernel has to exist on every machine"
    assert "widgets" not in nb.metadata and "papermill" not in nb.metadata, "left by an execution: run nbstripout"
    for cell in nb.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, "left by an execution: run nbstripout"
        assert "papermill" not in cell.metadata, "left by an execution: run nbstripout"
        if cell.cell_type == "code":
            check_imports(cell.source)
    # read by us and by papermill; the latter overlooks annotated names and what follows a '#' in a text
    declared = read_parameters(path)
    assert set(papermill.inspect_notebook(str(path))) == set(declared)
    assert not any(isinstance(value, str) and "#" in value for value in declared.values())


def check_imports(source):
    """Assert that a cell is plain Python, no magic, and imports only the package and what pyproject.toml declares."""
    for node in ast.walk(ast.parse(source)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        for module in modules:
            assert module.split(".")[0] in ALLOWED, f"{module} is not a declared dependency"


MOST_LINES, LONGEST = 20, 110  # of a cell: what fits a screen


def check_size(path):
    """Assert that every cell of code can be read without scrolling."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            assert len(lines) <= MOST_LINES, f"{cell.id} has {len(lines)} lines: split it, or move it into the package"
            assert max(map(len, lines)) <= LONGEST, f"{cell.id} has a line of {max(map(len, lines))} characters"


def test_links_lead_to_notebooks_and_what_is_next_follows():
    for i, path in enumerate(NOTEBOOKS):
        text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
        assert set(re.findall(r"\]\((\d\d_\w+\.ipynb)\)", text)) <= {other.name for other in NOTEBOOKS}
        assert "**Prerequisites**" in text
        if i + 1 < len(NOTEBOOKS):
            after = text.partition("## What's next")[2]
            assert re.search(r"\]\((\d\d_\w+\.ipynb)\)", after)[1] == NOTEBOOKS[i + 1].name, path.name


def test_there_are_notebooks_each_with_a_number_of_its_own():
    assert NOTEBOOKS, "notebooks/ is empty, so nothing was tested"
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers)
    assert [path.stem for path in NOTEBOOKS] == list(list_notebooks())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path):
    check_form(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short(path):
    check_size(path)


# What the trainings differ in: number, name in files, name in the literature.
TRAININGS = [("02", "unet", "UNet"), ("03", "fft_unet", "FFT_UNet"), ("04", "xrd_transformer", "XRD_Transformer"),
             ("05", "patterson_net", "PattersonNet")]


def without_model(number, name, title):
    """The cells of a notebook that trains a model, as (type, source), with nothing left of which model it is."""
    nb = nbformat.read(ROOT / "notebooks" / f"{number}_train_{name}.ipynb", as_version=4)
    opening, description = nb.cells[0], f"The {title} "
    (about,) = [text for text in opening.source.split("\n\n") if text.startswith(description)]
    opening.source = opening.source.replace(about, "(the model in words)")
    parameters = nb.cells[1]
    parameters.source = re.sub(r"^lr = \S+ +#", "lr = (its own) #", parameters.source, flags=re.MULTILINE)
    placed = r"(\*\*Prerequisites\*\*:|## What's next\n\n).*"  # among the other notebooks
    sources = [re.sub(placed, r"\1", cell.source).replace(title, "TITLE").replace(f'"{name}"', '"NAME"') for cell in nb.cells]
    swaps = {f"# {number} ": "# NN ", f"{number}_train_{name}": "NN_train_NAME", f"{number}_": "NN_",
             f"{name}.safetensors": "NAME.safetensors", f"--model {name} ": "--model NAME "}
    for old, new in swaps.items():
        sources = [source.replace(old, new) for source in sources]
    return [(cell.cell_type, source) for cell, source in zip(nb.cells, sources, strict=True)]


@pytest.mark.parametrize("training", TRAININGS[1:], ids=lambda training: training[1])
def test_trainings_differ_only_in_their_model(training):
    pattern, other = without_model(*TRAININGS[0]), without_model(*training)
    assert "NAME" in "".join(source for _, source in pattern), "the names were found"
    assert other == pattern


@pytest.mark.slow
def test_a_warning_from_a_cell_or_from_the_package_ends_a_run(tmp_path, monkeypatch):
    """`make test` starts kernels with tests/startup.py; a warning that a library raises about itself is let through."""
    assert "PYTHONSTARTUP" in re.search(r"^TEST_ENV := (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    monkeypatch.setenv("PYTHONSTARTUP", str(ROOT / "tests" / "startup.py"))
    raised = "import warnings\nwarnings.warn_explicit('careful', UserWarning, 'file.py', 1, module={!r})"
    path = make_notebook(tmp_path, "01_x", raised.format("numpy.core"), raised.format("xrd_helpers.plots"))
    with pytest.raises(NotebookFailed, match=r"01_x failed in cell In \[3\]: UserWarning: careful"):
        execute(path, {}, tmp_path / "runs" / path.name)
    path = make_notebook(tmp_path, "02_x", "import warnings\nwarnings.warn('careful', DeprecationWarning)")
    with pytest.raises(NotebookFailed, match="DeprecationWarning: careful"):
        execute(path, {}, tmp_path / "runs" / path.name)


def test_quick_is_the_defaults_and_no_profile_repeats_them():
    """Run All in JupyterLab and nbval run the defaults: they have to be what `make run` runs."""
    profiles = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    assert {"smoke", "quick", "full"} <= set(load_config()) == set(profiles) and profiles["quick"] == {}
    defaults = {name: read_parameters(path) for name, path in list_notebooks().items()}
    repeated = [f"{profile}.{name}.{key}" for profile, blocks in profiles.items() for name, block in blocks.items()
                for key, value in block.items() if value == defaults[name][key]]  # fmt: skip
    assert not repeated, f"{repeated} equal the defaults of their notebooks"


# --- the checks themselves: each catches what it is there for ---


def test_a_clean_notebook_passes(tmp_path):
    check_form(make_notebook(tmp_path, "01_x", "import torch\nimport yaml\nfrom xrd_helpers import ROOT"))


def title(nb):
    nb.cells[0].source = "# The title"


def stored_output(nb):
    nb.cells[2].outputs = [nbformat.v4.new_output("stream", text="1")]


def execution_count(nb):
    nb.cells[2].execution_count = 1


def kernel_of_one_machine(nb):
    nb.metadata.kernelspec.name = "conda-env-xrd-py"


def widget_state(nb):
    nb.metadata.widgets = {}


def parameters_not_second(nb):
    nb.cells.insert(1, nbformat.v4.new_markdown_cell("text"))


def injected(nb):
    nb.cells.insert(2, nbformat.v4.new_code_cell("", metadata={"tags": ["injected-parameters"]}))


def undeclared_import(nb):
    nb.cells[2].source = "from iotbx import cif"


def relative_import(nb):
    nb.cells[2].source = "from . import helpers"


def installs(nb):
    nb.cells[2].source = "!pip install torch"


def annotation(nb):
    nb.cells[1].source = "seed: int = 0"


def hash_in_text(nb):
    nb.cells[1].source = 'colour = "#ff0000"'


@pytest.mark.parametrize(
    "spoil",
    [title, stored_output, execution_count, kernel_of_one_machine, widget_state, parameters_not_second, injected,
     undeclared_import, relative_import, installs, annotation, hash_in_text],
)  # fmt: skip
def test_a_spoilt_notebook_is_caught(tmp_path, spoil):
    path = make_notebook(tmp_path, "01_x", "1 + 1")
    nb = nbformat.read(path, as_version=4)
    spoil(nb)
    nbformat.write(nb, path)
    with pytest.raises(Exception) as caught:
        check_form(path)
    assert caught.type.__name__ in ("AssertionError", "SyntaxError", "ConfigError")
