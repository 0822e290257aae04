import subprocess
import sys

import pytest

from xrd_helpers import __version__, cli, pipeline
from xrd_helpers.config import UserError


@pytest.fixture
def xrd(monkeypatch):
    """Call the command line with these arguments in this process; `pipeline.run` is `action`. Returns the exit code."""

    def call(*arguments, action=lambda *args, **options: None):
        monkeypatch.setattr(pipeline, "run", action)
        monkeypatch.setattr(sys, "argv", ["xrd", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code

    return call


def raising(error):
    def action(*args, **options):
        raise error

    return action


def test_options_reach_the_pipeline(xrd):
    calls = []
    arguments = "run --profile smoke --only 02,05 --only 06_x --set 02.a=1 --set 05.b=[1,2] --resume".split()
    assert xrd(*arguments, action=lambda *args, **options: calls.append((args, options))) == 0
    options = {"only": ["02", "05", "06_x"], "overrides": ["02.a=1", "05.b=[1,2]"], "resume": True}
    assert calls == [(("smoke",), options)]


def test_nothing_to_run_is_a_mistake(xrd, capsys):
    assert xrd("run", "--only", ",") == 2
    assert capsys.readouterr().err == "xrd: --only names no notebook: write it as in --only 02,05\n"


@pytest.mark.parametrize(
    "error, message",
    [
        (UserError("one sentence"), "xrd: one sentence\n"),
        (ValueError("d_min must be positive"), "xrd: d_min must be positive\n"),
        (FileNotFoundError(2, "No such file or directory", "job.hkl"), "xrd: job.hkl: No such file or directory\n"),
        (FileNotFoundError("no CIF folder mine/"), "xrd: no CIF folder mine/\n"),
    ],
)
def test_a_mistake_of_the_user_is_one_sentence_and_code_2(xrd, capsys, error, message):
    assert xrd("run", action=raising(error)) == 2
    assert capsys.readouterr().err == message


def test_a_failing_notebook_is_code_1_and_an_interrupt_130(xrd, capsys):
    assert xrd("run", action=raising(pipeline.NotebookFailed("02 failed in cell In [3]: ValueError: x"))) == 1
    assert capsys.readouterr().err == (
        "02 failed in cell In [3]: ValueError: x\nOnce that is mended, the same command with --resume goes on from there.\n"
    )
    assert xrd("run", action=raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "Stopped. The same command with --resume goes on from there.\n"


def test_the_installed_command_shows_no_traceback():
    done = subprocess.run([sys.executable, "-m", "xrd_helpers.cli", "run", "--only", ","], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("xrd: ") and done.stderr.count("\n") == 1


def test_version_and_help(xrd, capsys):
    assert xrd("--version") == 0
    assert capsys.readouterr().out == f"xrd {__version__}\n"
    assert xrd("run", "--help") == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--profile", "--only", "--set", "--resume"))


def test_start_up_imports_nothing_slow():
    code = "import sys, xrd_helpers.cli; print([m for m in ('torch', 'numpy', 'papermill', 'nbformat') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
