"""A network of somebody else's, in ten lines, goes the way of ours: trained, saved, evaluated, compared, used."""

import json
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

from test_cli import MADE_CIF, job, xrd  # noqa: F401  fixtures
from xrd_helpers import models
from xrd_helpers.config import UserError
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.storage import write_crystals
from xrd_helpers.weights import WeightsError, load_model, save_model

MY_NET = '''\
from torch import nn
from xrd_helpers.models import AmplitudeModel, amplitudes

class MyNet(AmplitudeModel):
    def __init__(self, config=None):
        super().__init__(config)
        self.net = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.GELU(), nn.Conv3d(8, 1, 3, padding=1))

    def predict(self, boxes):
        return amplitudes(self.net(boxes.F_in[:, None])[:, 0], boxes)
'''


@pytest.fixture(autouse=True)
def models_as_they_were():
    before = dict(models.MODELS)
    yield
    models.MODELS.clear()
    models.MODELS.update(before)


@pytest.fixture
def my_net(tmp_path):
    path = tmp_path / "my_net.py"
    path.write_text(MY_NET)
    return f"{path}:MyNet"


def forget():
    """As in another process, where nobody has named the network yet."""
    models.MODELS.pop("my_net.py:MyNet")


def test_ten_lines_train_are_saved_evaluated_and_extend(xrd, capsys, tmp_path, my_net, job):  # noqa: F811
    write_crystals(tmp_path / "c.parquet", random_crystals(24, 0))
    out, table, cifs = tmp_path / "my.safetensors", tmp_path / "table.csv", tmp_path / "cifs"
    assert xrd("train", "--model", my_net, "--crystals", str(tmp_path / "c.parquet"), "--n-validation", "2", "--steps", "4",
               "--batch-size", "2", "--device", "cpu", "--out", str(out)) == 0
    assert "8 crystals in " in capsys.readouterr().out
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["model"] == "my_net.py:MyNet", "the class, not where it lies"
        assert set(file.keys()) == {f"net.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}

    forget()
    cifs.mkdir()
    for name, atom in (("a", "O1"), ("b", "N1")):
        (cifs / f"{name}.cif").write_text(MADE_CIF.replace("O1", atom))
    arguments = ["evaluate", str(cifs), "--out", str(table), "--workers", "0", "--curve", "20", "--model", str(out)]
    assert xrd(*arguments) == 2
    assert "Is that your own network? Then name its file, too, as in --network my_net.py:MyNet" in capsys.readouterr().err
    assert xrd(*arguments, "--network", my_net) == 0
    rows = pd.read_csv(table)
    assert list(rows["method"]) == ["my", "shell mean", "shell permuted", "zero fill"] * 2
    assert np.isfinite(rows["cc_ext"]).all() and "models against the shell mean" in capsys.readouterr().out
    assert json.loads(table.with_suffix(".json").read_text())["options"]["models"] == ["my"]

    forget()
    assert xrd("extend", str(job), "--model", str(out), "--network", my_net) == 0
    assert (job.parent / "job_extended.hkl").read_text().count("   2\n") > 400
    assert "my, on crystals of its validation (recipe atoms)" in capsys.readouterr().out


def test_a_file_of_weights_runs_no_code(tmp_path, monkeypatch):
    """Whatever path it names, and though the file lies where it says."""
    monkeypatch.chdir(tmp_path)
    Path("my_net.py").write_text(MY_NET)
    save_model("my.safetensors", "my_net.py:MyNet", models.MODELS[models.find_model("my_net.py:MyNet")]())
    forget()
    Path("my_net.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(WeightsError, match="holds weights of my_net.py:MyNet, not of one of unet, "):
        load_model("my.safetensors")


def test_a_network_of_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "their_package.py").write_text(MY_NET.replace("MyNet", "Theirs"))
    monkeypatch.syspath_prepend(tmp_path)
    offered = EntryPoints([EntryPoint("theirs", "their_package:Theirs", models.GROUP)])
    monkeypatch.setattr(models, "entry_points", lambda **wanted: offered.select(**wanted))
    assert models.find_model("theirs") == "theirs" and models.MODELS["theirs"].title == "Theirs"
    save_model(tmp_path / "a.safetensors", "theirs", models.MODELS["theirs"](), r_ext=0.5)
    del models.MODELS["theirs"]
    model, made = load_model(tmp_path / "a.safetensors")
    assert type(model).__name__ == "Theirs" and made == {"r_ext": 0.5}
    with pytest.raises(UserError, match="the models are unet, .*patterson_net, theirs, or your own, as my_net.py:MyNet"):
        models.find_model("others")
    sys.modules.pop("their_package")


def test_a_file_is_read_again_when_it_is_named_again(my_net, tmp_path):
    name = models.find_model(my_net)
    first = models.MODELS[name]
    (tmp_path / "my_net.py").write_text(MY_NET.replace("(1, 8, 3", "(1, 4, 3").replace("(8, 1, 3", "(4, 1, 3"))
    assert models.find_model(my_net) == name == "my_net.py:MyNet"
    widths = [model().net[0].out_channels for model in (first, models.MODELS[name])]
    assert widths == [8, 4] and models.find_model("unet") == "unet"


@pytest.mark.parametrize("content, name, message", [
    (None, "none.py:MyNet", "there is no file .*none.py, which should hold a network"),
    (MY_NET, "my_net.py:YourNet", "my_net.py:YourNet is no network: it has to be a class derived from .*AmplitudeModel"),
    (MY_NET, "my_net.py:nn", "is no network"), ("import nothing_of_that_name\n", "my_net.py:MyNet",
                                                "my_net.py cannot be run: ModuleNotFoundError: No module named"),
    ("class MyNet:\n    pass\n", "my_net.py:MyNet", "is no network"), ("", "my_net.txt:MyNet", "my_net.txt is no Python file")])
def test_what_is_no_network_is_one_sentence(content, name, message, tmp_path):
    if content is not None:
        (tmp_path / name.split(":")[0]).write_text(content)
    with pytest.raises(UserError, match=message):
        models.find_model(str(tmp_path / name))
