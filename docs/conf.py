"""The documentation site, from what is there: README, RESULTS, CONTRIBUTING, notebooks as `xrd run` executed them, docstrings.

Built by `make docs` with the repository as its source folder, so that links between files lead to the same pages here.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import typer
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import xrd_helpers  # noqa: E402
from xrd_helpers.cli import app as command_line  # noqa: E402

GENERATED, EXECUTED = HERE / "generated", xrd_helpers.RUNS / os.environ.get("PROFILE", "quick") / "notebooks"

project, author, version = "XRD Phase", "The XRD Phase developers", xrd_helpers.__version__
release, copyright = version, "CC0 1.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["README.md", "RESULTS.md", "CONTRIBUTING.md", "data/README.md", "weights/README.md", "notebooks/*.ipynb",
                    "docs/generated/*.md"]
html_theme, html_title, html_copy_source, html_show_sourcelink = "furo", "XRD Phase", False, False
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `xrd run --resume` has done it, and kept what has not changed
nb_ipywidgets_js = {}      # no kernel and no network: a widget's picture stands in its place
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
suppress_warnings = ["ref.python"]  # types in docstrings are words, such as Solution, and need not be links
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "member-order": "bysource"}


def write_rooms():
    """A page for each room of the map in xrd_helpers/__init__.py, with the docstrings of all its modules."""
    rooms, text = [], ["# API by room", "", "In the order in which data flow:", ""]
    for line in re.findall(r"^[a-z_]+(?:, [a-z_]+)*  +\S.*\?$", xrd_helpers.__doc__, re.MULTILINE):
        names, question = re.split("  +", line)
        text.append(f"- {', '.join(f'[{room}]({room}.md)' for room in names.split(', '))}: {question}")
        for room in names.split(", "):
            inside = sorted(path.stem for path in (HERE.parent / "xrd_helpers" / room).glob("[a-z]*.py"))
            page = [f"# {room}", "", f"*{question}*", ""]
            for module in (f"xrd_helpers.{room}", *(f"xrd_helpers.{room}.{name}" for name in inside)):
                page += [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}", "```", ""]
            (GENERATED / f"{room}.md").write_text("\n".join(page), encoding="utf-8")
            rooms.append(room)
    text += ["", "```{toctree}", ":hidden:", "", *rooms, "```"]
    (GENERATED / "api.md").write_text("\n".join(text), encoding="utf-8")


def write_commands():
    """What each command says to --help."""
    text = ["# Commands", ""]
    for name, command in typer.main.get_command(command_line).commands.items():
        context = command.context_class(command, info_name=f"xrd {name}", terminal_width=84, max_content_width=84)
        text += [f"## xrd {name}", "", "```text", command.get_help(context), "```", ""]
    (GENERATED / "commands.md").write_text("\n".join(text), encoding="utf-8")


def read(app, docname, source):
    """The executed copy in place of a notebook; the contents of the site at the end of the README."""
    if docname.startswith("notebooks/"):
        executed = EXECUTED / f"{Path(docname).name}.ipynb"
        source[0] = executed.read_text(encoding="utf-8")
        app.env.note_dependency(str(executed))
    elif docname == root_doc:
        source[0] += (HERE / "contents.md").read_text(encoding="utf-8")


def to_rst(app, what, name, obj, options, lines):
    """Docstrings are written to be read as they stand: lines "name : meaning" become a list, \\|F\\| and a_ no markup."""
    text = re.sub(r"(``.*?``|(?<!\w)\*\w[^*]*\w\*(?!\w))|([|*]|(?<=\w)_(?!\w))", lambda found: found[1] or "\\" + found[2],
                  "\n".join(lines))
    plain, sections = re.match(r"(.*?)((?:^\w+\n---.*)?)\Z", text, re.DOTALL | re.MULTILINE).groups()
    blocks = []
    for block in re.split(r"\n\n+", plain):
        if block.startswith(" "):
            block = "::\n\n" + block
        elif not block.startswith("- ") and re.search(r"^[\w, ]+( \(.*\))? : |^\S.*\n +\S", block, re.MULTILINE):
            block = re.sub(r"^(?=\S)", "* ", re.sub(r"^ +", "  ", block, flags=re.MULTILINE), flags=re.MULTILINE)
        blocks.append(block)
    lines[:] = ("\n\n".join(blocks) + sections).split("\n")


def formula(as_block):
    """Formulas as MathML, which browsers draw by themselves."""
    def visit(self, node):
        self.body.append(tex2mathml(node.astext(), as_block=as_block))
        raise nodes.SkipNode
    return visit, None


def lead_in(app, error):
    if not error:
        (Path(app.outdir) / "index.html").write_text('<meta http-equiv="refresh" content="0; url=README.html">')


def setup(app):
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir()
    write_rooms()
    write_commands()
    app.add_config_value("executed", str(EXECUTED), "env")  # another profile: all is read again
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", to_rst, priority=400)  # before napoleon
    app.connect("build-finished", lead_in)
    app.add_html_math_renderer("mathml", formula(False), formula(True))
