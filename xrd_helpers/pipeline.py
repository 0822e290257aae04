"""Run the notebooks in their order, keep what they wrote in one folder, and go on where a run stopped.

``runs/<profile>/`` holds ``notebooks/`` (executed, as .ipynb and .html), ``results/`` (a JSON
file a notebook), ``state.json`` (what is finished) and ``summary.md`` / ``summary.json``.
"""

import hashlib
import json
import os
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from xrd_helpers import RUNS
from xrd_helpers.config import (
    CONFIG,
    NOTEBOOKS,
    atomic_path,
    find_notebook,
    get_profile,
    list_notebooks,
    load_config,
    locked,
    read_cells,
    set_value,
    shown,
    write_json,
)
from xrd_helpers.summary import git_state, write_summary

# What the kernels of the notebooks see beside the user's own environment.
KERNEL_ENVIRONMENT = {
    "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not a "python3" of the user's home
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # figures into the notebook, even if the user set Agg
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no warning about the debugger between the progress lines
    "TQDM_DISABLE": "1",  # a finished progress bar tells a reader nothing
}


class NotebookFailed(Exception):
    """A cell of a notebook raised an error; the message is for the person who typed the command."""


def run(profile, only=None, overrides=(), resume=False, runs=RUNS, config=CONFIG, notebooks=NOTEBOOKS):
    """Execute the notebooks of a profile and summarise their results.

    Parameters
    ----------
    profile : str
        A profile of `config`, for example ``"quick"``.
    only : list of str, optional
        Numbers or names of the notebooks to run; all by default.
    overrides : list of str
        Changes to the profile such as ``"02_train_unet.epochs=3"``.
    resume : bool
        Pass over notebooks that finished with the same code and parameters, up to the first that did not.
    runs, config, notebooks : str or Path
        Where results go, the configuration, the folder of the notebooks.

    Returns
    -------
    summary : Path
        The file summary.md.

    Raises
    ------
    UserError
        If anything that was typed is wrong; then nothing has been touched.
    NotebookFailed
        If a cell fails. What the notebooks before it wrote stays, and `resume` goes on from there.
    """
    paths = list_notebooks(notebooks)
    blocks = get_profile(load_config(config, notebooks), profile, config)
    for assignment in overrides:
        blocks = set_value(blocks, assignment, notebooks)
    selected = [find_notebook(wanted, list(paths), "--only") for wanted in only] if only else list(paths)
    selected = sorted(set(selected))

    folder = Path(runs).absolute() / profile
    with locked(folder), _environment(XRD_RUNS=str(folder.parent), **KERNEL_ENVIRONMENT):
        state = _State(folder / "state.json", list(paths))
        failure = "It was interrupted."
        try:
            _run_selected(selected, paths, blocks, state, resume, folder)
            failure = None
        except NotebookFailed as error:
            failure = str(error)
            raise
        finally:
            summary = write_summary(folder, profile, state.finished, state.run, failure)
    print(f"summary: {shown(summary)}")
    return summary


def _run_selected(selected, paths, blocks, state, resume, folder):
    """Execute the `selected` notebooks, a progress line each."""
    fresh = not resume
    for i, name in enumerate(selected):
        cells = read_cells(paths[name])
        source = hashlib.sha256(json.dumps([cell for cell in cells if cell[0] == "code"]).encode()).hexdigest()
        output = folder / "notebooks" / f"{name}.ipynb"
        print(f"[{i + 1}/{len(selected)}] {name} ... ", end="", flush=True)
        # once one notebook is run again, what follows may depend on what it wrote
        fresh = fresh or not output.exists() or not state.is_finished(name, blocks[name], source)
        if not fresh:
            print("finished before")
            continue
        state.forget(name)
        (folder / "results" / f"{name}.json").unlink(missing_ok=True)  # else old scores could pass for new ones
        start = time.monotonic()
        try:
            execute(paths[name], blocks[name], output)
        except BaseException:
            print("stopped", flush=True)
            raise
        seconds = time.monotonic() - start
        state.remember(name, parameters=blocks[name], source=source, seconds=round(seconds, 1))
        print(duration(seconds), flush=True)


def execute(notebook, parameters, output):
    """Execute one notebook in its own folder into `output`, and write the same as HTML beside it.

    Parameters
    ----------
    notebook, output : Path
        The notebook as it stands, and the executed one.
    parameters : dict
        Values that replace the defaults of its `parameters` cell.
    """
    import papermill  # seconds of import, so only here

    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(notebook), str(output), parameters=parameters, cwd=str(notebook.parent),
            kernel_name="python3", progress_bar=False,
            extra_arguments=["--log-level=CRITICAL"],  # else kernels write their own warnings between our lines
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        what = " ".join(papermill.exceptions.strip_color(f"{error.ename}: {error.evalue}").split()).rstrip(": ")
        raise NotebookFailed(
            f"{notebook.stem} failed in cell In [{error.exec_count}]: {what}\nSee {shown(output.with_suffix('.html'))}"
        ) from error
    except RuntimeError as error:  # nbclient: the kernel died, or did not start
        raise NotebookFailed(
            f"{notebook.stem} stopped: {error} (a kernel dies when the memory is too small)\nSee {shown(output)}"
        ) from error
    finally:
        if output.exists():
            write_page(output)


def write_page(executed):
    """Write the notebook `executed` (Path) as HTML beside it, with pictures in place of widgets; the path of the page."""
    import nbformat
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)
    kinds = ["text/html", "text/markdown", "image/svg+xml", "text/latex", "image/png", "image/jpeg", "text/plain"]
    config = Config(NbConvertBase={"display_data_priority": kinds})
    html, _ = HTMLExporter(config=config).from_notebook_node(notebook, {"metadata": {"name": executed.stem}})
    page = executed.with_suffix(".html")
    with atomic_path(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return page


class _State:
    """What is finished in a run folder: dict of notebook to its parameters, source hash, seconds, time and commit."""

    def __init__(self, path, order):
        self.path, self.order = path, order
        self.run = _now()  # tells this run's notebooks from those of earlier runs
        self.git = git_state()
        self.finished = {}
        if path.exists():
            try:
                read = json.loads(path.read_text(encoding="utf-8"))["finished"]
                self.finished = {name: entry for name, entry in read.items() if {"time", "source"} <= set(entry)}
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                print(f"{shown(path)} is damaged: every notebook counts as not finished", file=sys.stderr)

    def is_finished(self, name, parameters, source):
        """True if `name` ended with these parameters and code, and nothing before it was run since."""
        entry = self.finished.get(name)
        if not entry or (entry.get("parameters"), entry["source"]) != (parameters, source):
            return False
        before = self.order[: self.order.index(name)]
        return all(self.finished[other]["time"] <= entry["time"] for other in before if other in self.finished)

    def forget(self, name):
        self.finished.pop(name, None)
        self._write()

    def remember(self, name, **entry):
        self.finished[name] = entry | {"time": _now(), "run": self.run, "git": self.git}
        self._write()

    def _write(self):
        write_json(self.path, {"finished": self.finished})


@contextmanager
def _environment(**variables):
    """Set environment variables, which the kernels inherit, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _now():
    """The time in UTC as text; texts of two times compare as the times do."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def duration(seconds):
    """A time as a person says it: '58 s', '3 min 20 s', '2 h 5 min'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
