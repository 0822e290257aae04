"""Files of weights: what is written is what is read, nothing is unpickled, and what cannot be read is said in a sentence."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from xrd_helpers import ROOT, weights
from xrd_helpers.config import UserError
from xrd_helpers.gridding import BOXES, AmplitudeBoxes, Box
from xrd_helpers.models import MODELS, FFTUNet, UNet, XRDTransformer
from xrd_helpers.weights import WeightsError, load_model, predict, save_model

SHAPE = (9, 6, 8)
SMALL = {"unet": UNet.Config((3, 4), 5, True), "fft_unet": FFTUNet.Config((3, 4), 5, True),
         "xrd_transformer": XRDTransformer.Config(shape=SHAPE, dim=16, depth=2, n_heads=2, mlp_ratio=3, published=True)}
MADE = {"commit": "abc", "n_crystals": 3, "r_ext": 0.5, "seeds": [1, 2], "note": "α 1.5 Å"}
each_model = pytest.mark.parametrize("name", SMALL)  # PattersonNet has a file of its own


def small(name, seed=0):
    torch.manual_seed(seed)
    model = MODELS[name](SMALL[name]).eval()
    torch.nn.init.normal_(model.head.weight)  # it begins at zero, which would hide the rest of the network
    return model


def random_boxes(n, seed=0):
    rng = np.random.default_rng(seed)
    target, measured, absent, redundant = (torch.as_tensor(rng.random((n, *SHAPE)) < p) for p in (0.6, 0.4, 0.2, 0.1))
    F = torch.as_tensor(rng.random((n, *SHAPE)), dtype=torch.float32) * target
    return AmplitudeBoxes(box=Box("small", (-4, 0, 0), (4, 5, 7), "P 1 2/m 1"), F=F, scale=torch.ones(n),
                          measured=measured & target, target=target, absent=absent, redundant=redundant[0],
                          d=torch.ones_like(F), epsilon=torch.ones_like(F))


def read_safetensors(path):
    """(metadata, {name: array}) by the format's description: length of the header, header in JSON, the numbers."""
    content = Path(path).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8:8 + length]), content[8 + length:]
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        assert entry["dtype"] == "F16", f"{name} is not in half precision"
        arrays[name] = np.frombuffer(data[first:last], "<f2").reshape(entry["shape"])
    assert sum(a.nbytes for a in arrays.values()) == len(data), "there is nothing else in the file"
    return metadata, arrays


def write_safetensors(path, metadata, arrays):
    header, data = {"__metadata__": metadata}, b""
    for name, array in arrays.items():
        header[name] = {"dtype": "F16", "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "unet.safetensors"
    save_model(path, "unet", small("unet"), **MADE)
    return path


def refused(path):
    """The message of a file that cannot be used: one sentence that names the file."""
    with pytest.raises(WeightsError) as caught:
        load_model(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < len(str(path)) + 200
    assert not message.endswith(":")
    return message


@each_model
def test_file_is_safetensors_in_half_precision_with_all_that_rebuilds_the_model(name, tmp_path):
    model, path = small(name), tmp_path / "new" / "folder" / f"{name}.safetensors"
    save_model(path, name, model, **MADE)
    metadata, arrays = read_safetensors(path)
    expected = {key: value.numpy().astype(np.float16) for key, value in model.state_dict().items()}
    assert arrays.keys() == expected.keys()
    assert all(np.array_equal(arrays[key], expected[key]) for key in expected)
    assert metadata["model"] == name and json.loads(metadata["made"]) == MADE
    assert json.loads(metadata["config"]) == json.loads(json.dumps(vars(SMALL[name])))
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file stays"


@each_model
def test_a_model_comes_back_with_its_half_precision_weights(name, tmp_path):
    model, path, boxes = small(name), tmp_path / "a.safetensors", random_boxes(2)
    save_model(path, name, model.train(), **MADE)
    loaded, made = load_model(path)
    assert type(loaded) is MODELS[name] and loaded.config == SMALL[name] and made == MADE and not loaded.training
    for key, value in loaded.state_dict().items():
        half = model.state_dict()[key].numpy().astype(np.float16).astype(np.float32)
        assert value.dtype == torch.float32 and np.array_equal(value.numpy(), half)
    for p in model.parameters():
        p.data = torch.as_tensor(p.detach().numpy().astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(predict(loaded, boxes), predict(model, boxes), atol=1e-5)
    again = tmp_path / "b.safetensors"
    save_model(again, name, loaded, **made)
    assert read_safetensors(again)[0] == read_safetensors(path)[0]


@each_model
def test_a_file_written_by_hand_is_read(name, tmp_path):
    arrays = {key: value.numpy().astype(np.float16) for key, value in small(name).state_dict().items()}
    write_safetensors(tmp_path / "a.safetensors", arrays=arrays, metadata={
        "model": name, "config": json.dumps(vars(SMALL[name])), "made": "{}"})
    loaded, made = load_model(tmp_path / "a.safetensors")
    assert made == {} and np.array_equal(loaded.head.weight.detach().numpy(), arrays["head.weight"])


@each_model
def test_files_of_the_published_sizes_are_small(name):
    with torch.device("meta"):
        shapes = [p.shape for p in MODELS[name]().state_dict().values()]
    assert 2 * sum(shape.numel() for shape in shapes) + 200 * len(shapes) < 25e6  # bytes of the numbers and of the header


# ---- files that cannot be used ----

def test_missing_file(tmp_path):
    assert "there are no weights" in refused(tmp_path / "unet.safetensors")
    assert "there are no weights" in refused(tmp_path), "a folder is no file"
    assert issubclass(WeightsError, UserError), "the command line shows these without a traceback"


@pytest.mark.parametrize("share", [0, 1e-9, 0.001, 0.02, 0.5, 0.999])
def test_truncated_file(share, saved):
    content = saved.read_bytes()
    saved.write_bytes(content[:int(np.ceil(share * len(content)))])
    assert "damaged or no file of weights" in refused(saved)


@pytest.mark.parametrize("content", [b"\0" * 100, b"\xff" * 100, b"PK\x03\x04 a zip file", pickle.dumps({"a": print}),
                                     struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 4) + b"{\xff\xfe}"])
def test_files_of_other_programs(content, tmp_path):
    path = tmp_path / "unet.safetensors"
    path.write_bytes(content)
    assert "damaged or no file of weights" in refused(path)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()
    path = tmp_path / "unet.safetensors"
    torch.save({"model": Trap()}, path)
    refused(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_no_change_of_a_byte_of_the_header_gets_past(saved):
    """Each is refused in a sentence, or gives a model: never another exception."""
    content, rng, n_refused = saved.read_bytes(), np.random.default_rng(0), 0
    end = 8 + struct.unpack("<Q", content[:8])[0]
    metadata = content.index(b"__metadata__")
    for place in [*range(8), *range(metadata, metadata + 250), *rng.integers(8, end, 150)]:
        changed = bytearray(content)
        changed[place] = rng.choice([c for c in b'0129"{}[],:a \x00\xc3' if c != content[place]])
        saved.write_bytes(changed)
        try:
            load_model(saved)
        except WeightsError as error:
            n_refused += 1
            assert str(saved) in str(error) and "\n" not in str(error)
    assert n_refused > 200


def test_weights_of_another_program(tmp_path):
    path = tmp_path / "unet.safetensors"
    safetensors.torch.save_file({"a": torch.ones(3)}, path)
    message = refused(path)
    assert "unnamed model" in message and all(name in message for name in MODELS)
    safetensors.torch.save_file({"a": torch.ones(3)}, path, metadata={"model": "gpt"})
    assert "weights of gpt" in refused(path)


CONFIG = json.dumps({"widths": [3, 4], "bottleneck": 5})


@pytest.mark.parametrize("metadata", [
    {}, {"config": CONFIG}, {"made": "{}"}, {"config": CONFIG, "made": "{"}, {"config": "[1]", "made": "{}"},
    {"config": "3", "made": "{}"}, {"config": '{"width": 3}', "made": "{}"}, {"config": '{"widths": []}', "made": "{}"},
    {"config": '{"widths": "ab"}', "made": "{}"}, {"config": '{"widths": null}', "made": "{}"},
    {"config": '{"widths": [0, 0]}', "made": "{}"}, {"config": '{"widths": [-3, 4]}', "made": "{}"},
    {"config": '{"widths": [3.5, 4]}', "made": "{}"}])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_metadata_that_do_not_make_a_model(metadata, saved):
    write_safetensors(saved, {"model": "unet", **metadata}, read_safetensors(saved)[1])
    assert "does not fit the model unet" in refused(saved)


@pytest.mark.parametrize("change, blamed", [
    (lambda a: a.pop("down.0.0.bias"), "down.0.0.bias"),
    (lambda a: a.update(extra=a["head.bias"]), "extra"),
    (lambda a: a.update({"head.weight": a["head.weight"][:, :2]}), "head.weight"),
    (lambda a: a.clear(), "down.0.0.weight")])
def test_tensors_that_are_not_those_of_the_model(change, blamed, saved):
    metadata, arrays = read_safetensors(saved)
    change(arrays)
    write_safetensors(saved, metadata, arrays)
    message = refused(saved)
    assert "does not fit the model unet" in message and blamed in message


def test_weights_of_one_model_do_not_pass_for_another(saved):
    metadata, arrays = read_safetensors(saved)
    write_safetensors(saved, {**metadata, "model": "fft_unet"}, arrays)
    assert "does not fit the model fft_unet" in refused(saved)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_save_leaves_the_old_file(error, saved, monkeypatch):
    old = saved.read_bytes()

    write_bytes = Path.write_bytes

    def half(path, content):
        write_bytes(path, content[:len(content) // 2])
        raise error("stopped")
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(error):
        save_model(saved, "unet", small("unet", seed=1))
    assert saved.read_bytes() == old and [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_what_json_does_not_hold_is_refused_before_anything_is_written(saved):
    old = saved.read_bytes()
    with pytest.raises(TypeError):
        save_model(saved, "unet", small("unet"), cell=object())
    assert saved.read_bytes() == old and [p.name for p in saved.parent.iterdir()] == [saved.name]


# ---- predictions ----

@each_model
def test_predictions_do_not_depend_on_the_size_of_the_batch(name):
    model, boxes = small(name).train(), random_boxes(5)
    results = [predict(model, boxes, batch_size=n) for n in (1, 2, 3, 5, 8)]
    assert results[0].shape == (5, *SHAPE) and results[0].dtype == np.float64 and not model.training
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-5)
    for i in range(5):
        np.testing.assert_allclose(predict(model, boxes[[i]])[0], results[0][i], atol=1e-5)
    shuffled = predict(model, boxes[[3, 0, 4, 1, 2]], batch_size=2)
    np.testing.assert_allclose(shuffled, results[0][[3, 0, 4, 1, 2]], atol=1e-5)
    assert len({r.tobytes() for r in results[0].round(3)}) == 5, "every crystal has its own"


@each_model
def test_predictions_are_the_models_and_know_what_was_measured(name):
    model, boxes = small(name), random_boxes(2)
    F_pred = predict(model, boxes)
    with torch.no_grad():
        expected = model(boxes).numpy()
    np.testing.assert_allclose(F_pred, expected, atol=1e-6)
    known = (boxes.measured & ~boxes.absent).numpy()
    assert np.array_equal(F_pred[known], boxes.F.numpy()[known].astype(float))
    hidden = AmplitudeBoxes(**{**vars(boxes), "F": boxes.F * boxes.measured + 0.5 * ~boxes.measured})
    np.testing.assert_array_equal(predict(model, hidden), F_pred)  # what is to be predicted is not looked at


# ---- which weights ----

def test_weights_by_name(tmp_path):
    for name, made in {"unet": dict(cc_ext=0.4), "fft_unet": dict(cc_ext=0.6), "mine": {}}.items():
        save_model(tmp_path / f"{name}.safetensors", "unet", small("unet"), **made)
    (tmp_path / ".unet.0123.safetensors").write_bytes(b"half a file, that is being written")
    assert weights.find_weights(["all"], tmp_path) == {
        title: tmp_path / f"{name}.safetensors" for title, name in
        [("FFT_UNet", "fft_unet"), ("UNet", "unet"), ("mine", "mine")]}
    assert list(weights.find_weights(["mine", str(tmp_path / "unet.safetensors")], tmp_path)) == ["mine", "UNet"]
    with pytest.raises(WeightsError, match=r"no weights .*unit.safetensors: name one of .*\(fft_unet, mine, unet\)"):
        weights.find_weights(["unit"], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="holds no file of weights"):
        weights.find_weights(["all"], tmp_path / "empty")
    save_model(tmp_path / "empty" / "unet.safetensors", "unet", small("unet"))
    with pytest.raises(WeightsError, match="would both be called UNet"):
        weights.find_weights(["unet", str(tmp_path / "empty" / "unet.safetensors")], tmp_path)


def test_weights_of_another_box(tmp_path):
    save_model(tmp_path / "a.safetensors", "unet", small("unet"), box="triclinic")
    assert weights.load_for_box(tmp_path / "a.safetensors", BOXES["triclinic"])[1]["box"] == "triclinic"
    with pytest.raises(WeightsError, match="was trained for the triclinic box, not the monoclinic one"):
        weights.load_for_box(tmp_path / "a.safetensors")


# ---- what a folder of them says ----


def test_the_readme_of_the_weights_is_what_the_files_say(tmp_path):
    save_model(tmp_path / "b.safetensors", "xrd_transformer", MODELS["xrd_transformer"](),
               crystals_seen=12345, minutes=1.5, recipe="atoms", r_ext=0.25, shell_mean_r_ext=0.75, machine="a kind",
               curve=[[4, 0.9, 0.1], [12345, 0.25, 0.3]])
    (tmp_path / ".b.0123abcd.safetensors").write_bytes(b"half of")  # being written
    weights.write_weights_readme(tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    row = dict(zip(table[0], table[2]))
    assert row["file"] == "`b.safetensors`" and row["model"] == "XRD_Transformer" and row["parameters"] == "18,189"
    assert row["crystals seen"] == "12,345" and row["`r_ext`"] == "0.25" and row["shell mean `r_ext`"] == "0.75"
    assert row["machine"] == "a kind" and row["`cc_ext`"] == "" and row["size"] == "0.0 MB"
    assert table[-2:] == [["`b.safetensors`", "4", "0.9", "0.1"], ["", "12,345", "0.25", "0.3"]]
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match="there are no weights in"):
        weights.weights_readme(tmp_path)


def test_the_shipped_weights_have_their_readme_and_are_small():
    assert (ROOT / "weights" / "README.md").read_text() == weights.weights_readme(ROOT / "weights")
    assert all(path.stat().st_size < 25e6 for path in (ROOT / "weights").glob("*.safetensors"))
