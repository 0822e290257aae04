import json
import os
import re

import pytest

from makers import make_notebook
from xrd_helpers import config, pipeline, summary
from xrd_helpers.config import ConfigError, UserError, locked

# The results of 01 hold every kind of value that the summary shows.
FIRST = """from xrd_helpers.config import run_folder, write_result
(run_folder(profile) / "one line.png").write_bytes(b"")
write_result(profile, "01_first", r_ext=0.123456, unet={"cc": float("nan")}, seed=seed,
             table=[{"model": "a|b", "R": 0.5}], figures=[run_folder(profile) / "one line.png"])"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Three notebooks, of which the second can be told to fail, and a config.yaml, in the working directory."""
    notebooks = tmp_path / "notebooks"
    make_notebook(notebooks, "01_first", FIRST, parameters='profile = "quick"\nseed = 0')
    failing = 'if fail:\n    raise ValueError("\\x1b[31mtoo\\x1b[0m\\nlarge")'
    make_notebook(notebooks, "02_second", failing, parameters="fail = False")
    make_notebook(notebooks, "03_third", parameters="epochs = 1")
    (tmp_path / "config.yaml").write_text(
        "smoke:\n  01_first: {seed: 7}\n  02_second: {fail: true}\n  03_third: {epochs: 2}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def executed(project, monkeypatch):
    """Notebooks that were executed, each by a stand-in that takes no time; "02_second" fails while it is told to."""
    names = []

    def execute(notebook, parameters, output):
        names.append(notebook.stem)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("{}")
        if parameters.get("fail"):
            raise pipeline.NotebookFailed("02_second failed")

    monkeypatch.setattr(pipeline, "execute", execute)
    return names


def run(**options):
    return pipeline.run("smoke", runs="out", config="config.yaml", notebooks="notebooks", **options)


@pytest.mark.slow
def test_a_failing_cell_stops_the_run_and_resume_goes_on(project, capfd):
    with pytest.raises(pipeline.NotebookFailed) as caught:
        run()
    page = os.path.join("out", "smoke", "notebooks", "02_second.html")
    assert str(caught.value) == f"02_second failed in cell In [3]: ValueError: too large\nSee {page}"
    assert "ValueError" in (project / page).read_text()
    output = capfd.readouterr()
    assert re.fullmatch(r"\[1/3\] 01_first ... \d+ s\n\[2/3\] 02_second ... stopped\n", output.out)
    assert "ValueError" not in output.err  # it stands on the page (a kernel may complain of a busy port here)
    page = (project / "out/smoke/summary.md").read_text()
    assert "**The run stopped early.** 02_second failed in cell In [3]: ValueError: too large" in page

    summary_path = run(resume=True, overrides=["02_second.fail=false"])
    output = capfd.readouterr().out
    assert re.match(r"\[1/3\] 01_first ... finished before\n\[2/3\] 02_second ... \d+ s\n\[3/3\] 03_third ... \d+ s\n", output)
    found = json.loads((project / "out/smoke/summary.json").read_text())
    assert found["profile"] == "smoke" and found["failure"] is None
    first, second = found["notebooks"]["01_first"], found["notebooks"]["02_second"]
    assert first["results"]["r_ext"] == 0.123456 and first["results"]["unet"]["cc"] is None
    assert first["results"]["seed"] == first["parameters"]["seed"] == 7  # the kernel got the profile's value
    assert first["earlier_run"] and not second["earlier_run"] and second["results"] == {}
    page = summary_path.read_text()
    for line in ["| r_ext | 0.1235 |", "| unet.cc |  |", "| a\\|b | 0.5 |", "![one line](one%20line.png)",
                 "Parameters: `profile = 'smoke'`, `seed = 7`"]:  # fmt: skip
        assert line in page
    assert re.search(r"\| \[01_first\]\(notebooks/01_first.html\) \| [\d.]+ \| 7 \| earlier run of 20", page)


def test_resume_runs_what_changed_and_what_follows_it(project, executed):
    done = {"overrides": ["02.fail=false"]}
    run(**done)
    run(**done, resume=True)
    assert executed == ["01_first", "02_second", "03_third"], "the second run had nothing to do"
    executed.clear()
    run(**done)
    assert executed == ["01_first", "02_second", "03_third"], "without resume everything is run"

    executed.clear()
    make_notebook(project / "notebooks", "02_second", "print('changed')", parameters="fail = False")
    run(**done, resume=True)
    assert executed == ["02_second", "03_third"]

    executed.clear()
    run(**done, only=["2"])
    run(**done, resume=True)
    assert executed == ["02_second", "03_third"], "03 was older than what it reads"

    executed.clear()
    run(overrides=["02.fail=false", "03.epochs=5"], resume=True, only=["03_third", "01"])
    assert executed == ["03_third"]


def test_a_notebook_that_failed_is_not_finished_any_more(project, executed):
    run(overrides=["02.fail=false"])
    (project / "out/smoke/results").mkdir()
    (project / "out/smoke/results/02_second.json").write_text("{}")
    with pytest.raises(pipeline.NotebookFailed):
        run()
    assert set(json.loads((project / "out/smoke/state.json").read_text())["finished"]) == {"01_first", "03_third"}
    assert not (project / "out/smoke/results/02_second.json").exists()


@pytest.mark.parametrize("content", ['{"finished": {"01_fi', "[]", '{"finished": {"01_first": 3}}', "\udcff"])
def test_a_damaged_state_means_nothing_is_finished(project, executed, content, capsys):
    run(only=["01"])
    (project / "out/smoke/state.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    run(only=["01"], resume=True)
    assert executed == ["01_first", "01_first"]
    assert "state.json is damaged: every notebook counts as not finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ({"only": ["first"]}, "--only: there is no notebook 'first'; did you mean '01_first'?"),
        ({"only": ["09"]}, "--only: there is no notebook '09'; the notebooks are 01_first, 02_second, 03_third"),
        ({"overrides": ["03.epoch=3"]}, "--set: 03_third has no parameter 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_a_mistake_is_found_before_anything_is_touched(project, executed, options, message):
    with pytest.raises(ConfigError) as caught:
        run(**options)
    assert str(caught.value) == message
    assert executed == [] and not (project / "out").exists()


def test_mistakes_in_the_profile_and_the_file(project, executed):
    with pytest.raises(ConfigError, match="config.yaml has no profile 'smok'; did you mean 'smoke'"):
        pipeline.run("smok", runs="out", config="config.yaml", notebooks="notebooks")
    with pytest.raises(ConfigError, match="none.yaml cannot be read"):
        pipeline.run("smoke", runs="out", config="none.yaml", notebooks="notebooks")
    assert not (project / "out").exists()


@pytest.mark.skipif(config.fcntl is None, reason="this system has no file locks")
def test_two_runs_of_one_profile_exclude_each_other(project, executed):
    folder = project / "out" / "smoke"
    with locked(folder), pytest.raises(UserError, match="another process writes out/smoke now"):
        run()
    (project / "out" / ".smoke.lock").touch()  # left behind as by a run that was killed
    run(only=["01"])
    assert executed == ["01_first"] and not (project / "out" / ".smoke.lock").exists()


def test_kernels_see_the_run_folder_and_the_environment_is_restored(project, monkeypatch):
    seen = {}
    monkeypatch.setattr(pipeline, "execute", lambda *_: seen.update(os.environ))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.delenv("XRD_RUNS", raising=False)
    run(only=["01"])
    assert seen["XRD_RUNS"] == str(project / "out") and seen["MPLBACKEND"].endswith("inline")
    assert "XRD_RUNS" not in os.environ and os.environ["MPLBACKEND"] == "Agg"


def test_durations_read_like_speech():
    assert [pipeline.duration(s) for s in (0.4, 59.6, 200, 7501)] == ["0 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]


def test_the_summary_says_what_it_does_not_know(tmp_path):
    assert summary.git_state(tmp_path) == "unknown"
    assert set(summary.machine()) == {"processor", "cores", "memory", "gpu", "system", "python", "torch"}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "01_x.json").write_text("{")
    page = summary.write_summary(tmp_path, "quick", {"01_x": {"time": "2026-01-01T00:00:00+00:00"}}, "now").read_text()
    assert "01_x.json is not JSON" in page and "earlier run of 2026-01-01 00:00 UTC" in page
    assert "No notebook is finished." in summary.write_summary(tmp_path, "quick", {}, "now").read_text()
