"""Files of weights: what is written is what is read, nothing is unpickled, and what cannot be read is said in a sentence."""

import json
import os
import pickle
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path

import gemmi
import numpy as np
import pytest
import safetensors.torch
import torch

from xrd_helpers import ROOT, inference
from xrd_helpers.config import UserError
from xrd_helpers.crystals import Crystal
from xrd_helpers.gridding import BOXES, AmplitudeBoxes, Box, to_box_setting
from xrd_helpers.inference import WeightsError, load_model, predict, save_model
from xrd_helpers.models import MODELS, FFTUNet, UNet, XRDTransformer
from xrd_helpers.reflection_files import read_measured
from xrd_helpers.reflections import Measured

SHAPE = (9, 6, 8)
SMALL = {"unet": UNet.Config((3, 4), 5), "fft_unet": FFTUNet.Config((3, 4), 5),
         "xrd_transformer": XRDTransformer.Config(shape=SHAPE, dim=16, depth=2, n_heads=2, mlp_ratio=3)}
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
    assert inference.find_weights(["all"], tmp_path) == {
        title: tmp_path / f"{name}.safetensors" for title, name in
        [("FFT_UNet", "fft_unet"), ("UNet", "unet"), ("mine", "mine")]}
    assert list(inference.find_weights(["mine", str(tmp_path / "unet.safetensors")], tmp_path)) == ["mine", "UNet"]
    with pytest.raises(WeightsError, match=r"no weights .*unit.safetensors: name one of .*\(fft_unet, mine, unet\)"):
        inference.find_weights(["unit"], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="holds no file of weights"):
        inference.find_weights(["all"], tmp_path / "empty")
    save_model(tmp_path / "empty" / "unet.safetensors", "unet", small("unet"))
    with pytest.raises(WeightsError, match="would both be called UNet"):
        inference.find_weights(["unet", str(tmp_path / "empty" / "unet.safetensors")], tmp_path)


def test_weights_of_another_box(tmp_path):
    save_model(tmp_path / "a.safetensors", "unet", small("unet"), box="triclinic")
    assert inference.load_for_box(tmp_path / "a.safetensors", "triclinic")[1]["box"] == "triclinic"
    with pytest.raises(WeightsError, match="was trained for the triclinic box, not the monoclinic one"):
        inference.load_for_box(tmp_path / "a.safetensors")


def test_the_verdict_says_when_a_model_knows_nothing():
    scores = dict(r_ext=0.6, cc_ext=0.5, shell_mean_r_ext=0.55, shell_mean_cc_ext=0.51, recipe="atoms")
    bad = inference.verdict("UNet", scores)
    assert "r_ext 0.600, cc_ext 0.500" in bad and "nothing beyond the fall-off" in bad and "do not expect" in bad
    good = inference.verdict("UNet", scores | dict(cc_ext=0.7))
    assert "nothing beyond" not in good and "do not expect" not in good and "r_ext 0.550, cc_ext 0.510" in good
    assert "nothing is known" in inference.verdict("UNet", {})


# ---- extension of measured reflections ----

REAL = Path(os.environ.get("XRD_REAL_DATA", ROOT / "../shared/data")) / "measured"
SETTINGS = {"P 1 21/c 1": (7.3, 9.1, 8.4, 90, 111, 90), "P 1 21/n 1": (9.4, 6.1, 7.3, 90, 99, 90),
            "P 1 21/a 1": (9.4, 6.1, 7.3, 90, 99, 90), "I 1 2/a 1": (11.3, 5.1, 9.4, 90, 97, 90),
            "A 1 2/n 1": (11.3, 5.1, 9.4, 90, 97, 90), "C 1 2 1": (12.1, 6.3, 7.2, 90, 108, 90),
            "P 1 21 1": (9.1, 7.3, 6.2, 90, 103, 90),
            "P -1": (6.1, 8.3, 9.7, 81, 95, 104), "P 1": (6.1, 5.3, 7.7, 81, 95, 104)}


def made_data(group, d_min=1.5, seed=0):
    """(Crystal, {hkl: |F|} to 0.9 Å by gemmi's direct summation, Measured to d_min)."""
    rng = np.random.default_rng(seed)
    cell, spacegroup = gemmi.UnitCell(*SETTINGS[group]), gemmi.SpaceGroup(group)
    crystal = Crystal("made", cell, spacegroup, ("C", "N", "O", "S"), rng.random((4, 3)), np.full(4, 0.03), np.ones(4))
    small_structure = crystal.small_structure()
    calculator = gemmi.StructureFactorCalculatorX(small_structure.cell)  # with the images that symmetry makes
    hkl = gemmi.make_miller_array(cell, spacegroup, 0.9)
    F = np.array([abs(calculator.calculate_sf_from_small_structure(small_structure, h)) for h in hkl.tolist()])
    inside = cell.calculate_d_array(hkl) >= d_min
    measured = Measured(hkl[inside].astype(np.int64), F[inside] ** 2, 0.02 * F[inside] ** 2 + 0.01, cell, spacegroup,
                        crystal.contents, 0.71073, (Path("made.hkl"),), "made")
    return crystal, dict(zip(map(tuple, hkl.tolist()), F)), measured


def all_knowing(crystal, box):
    """A method that knows the crystal, in the setting of the box."""
    def method(boxes):
        truth = AmplitudeBoxes.from_crystals([to_box_setting(crystal)], BOXES[box], 1.5, 0.9, dtype=torch.float64)
        return (truth.F * truth.scale / boxes.scale).numpy()
    return method


@pytest.mark.parametrize("group", SETTINGS)
def test_predictions_come_back_in_the_setting_of_the_data(group):
    box = "triclinic" if group in ("P 1", "P -1") else "monoclinic"
    crystal, truth, measured = made_data(group)
    extended = inference.extend(measured, all_knowing(crystal, box), 0.5, box, 0.9, 1.5)
    found = {tuple(h): F for h, F in zip(extended.predicted.hkl.tolist(), extended.predicted.F)}
    missing = truth.keys() - set(map(tuple, measured.hkl.tolist()))
    assert found.keys() == missing and len(missing) > 100
    largest = max(truth.values())
    assert np.array([found[h] for h in missing]) == pytest.approx(np.array([truth[h] for h in missing]), abs=2e-3 * largest)
    assert extended.predicted.spacegroup.xhm() == group and extended.measured is measured


def test_what_a_model_is_shown():
    """Amplitudes over the largest one, equivalents twice in the box, absences inside the data measured and zero."""
    crystal, truth, measured = made_data("P 1 21/c 1")
    boxes, swapped = inference.measured_box(measured.merge(), "monoclinic", 0.9)
    expected = AmplitudeBoxes.from_crystals([crystal], d_input=1.5, d_target=0.9)
    assert not swapped
    for name in ("measured", "target", "absent", "redundant"):
        assert torch.equal(getattr(boxes, name), getattr(expected, name)), name
    np.testing.assert_allclose(boxes.F_in, expected.F_in, atol=2e-3)
    np.testing.assert_allclose(boxes.epsilon, expected.epsilon)
    inside = boxes.target[0]
    np.testing.assert_allclose(boxes.d[0][inside], expected.d[0][inside], rtol=1e-5)


def test_holes_are_filled_and_data_beyond_are_kept():
    crystal, truth, measured = made_data("P 1 21/n 1", d_min=1.2)
    holes = [tuple(h) for h in measured.hkl[::7].tolist()]
    kept = np.array([tuple(h) not in holes for h in measured.hkl.tolist()])
    measured = replace(measured, hkl=measured.hkl[kept], intensity=measured.intensity[kept], sigma=measured.sigma[kept])
    shown = []

    def method(boxes):
        shown.append(boxes)
        return all_knowing(crystal, "monoclinic")(boxes)

    extended = inference.extend(measured, method, 0.5, "monoclinic", 0.9, d_shown=1.5)
    found = {tuple(h): F for h, F in zip(extended.predicted.hkl.tolist(), extended.predicted.F)}
    assert set(holes) <= found.keys() and not found.keys() & set(map(tuple, measured.hkl.tolist()))
    assert all(found[h] == pytest.approx(truth[h], abs=1) for h in holes)
    seen = shown[0].measured & ~shown[0].absent
    assert shown[0].d[seen].min() >= 1.5 > 1.3 > extended.merged.d_min, "no more than the model was trained on"
    inference.extend(measured, method, 0.5, "monoclinic", 0.9, d_shown=1.0)
    assert shown[1].d[shown[1].measured & ~shown[1].absent].min() < 1.25


def test_the_uncertainty_is_that_of_the_validation():
    _, _, measured = made_data("P 1 21/n 1")
    predicted = inference.extend(measured, lambda boxes: np.ones(boxes.F.shape), 0.4, "monoclinic", 0.9).predicted
    # constant amplitudes F: the mean error is 0.4 F, that of a normal distribution with σ is σ (2/π)^½
    np.testing.assert_allclose(predicted.sigF * (2 / np.pi) ** 0.5, 0.4 * predicted.F, rtol=0.003)


def test_the_resolution_that_is_found_in_the_data():
    _, _, measured = made_data("P 1 21/c 1", d_min=0.95)
    d = measured.cell.calculate_d_array(measured.hkl.astype(np.int32))
    kept = (d > 1.2) | (np.arange(len(d)) % 5 == 0)  # whole to 1.2 Å, a fifth from there to 0.95 Å
    measured = replace(measured, hkl=measured.hkl[kept], intensity=measured.intensity[kept], sigma=measured.sigma[kept])
    extended = inference.extend(measured, lambda boxes: np.full(boxes.F.shape, 0.1), 0.5, "monoclinic", 0.9)
    assert extended.d_complete == pytest.approx(1.2, abs=0.04) and extended.merged.d_min == pytest.approx(0.95, abs=0.01)
    text = inference.describe(extended, 0.9)
    assert f"to {extended.merged.d_min:.2f} Å, more than half of them to {extended.d_complete:.2f} Å only" in text
    _, _, whole = made_data("P 1 21/c 1", d_min=1.1)
    extended = inference.extend(whole, lambda boxes: np.full(boxes.F.shape, 0.1), 0.5, "monoclinic", 0.9)
    assert extended.d_complete == extended.merged.d_min
    assert ", 0 of them in holes" in inference.describe(extended, 0.9)
    assert "kept, but not shown to the model" in inference.describe(extended, 0.9, 1.5)
    assert "expect worse" in inference.describe(extended, 0.9, 1.0)
    assert "expect worse" not in inference.describe(extended, 0.9, 1.5)


@pytest.mark.parametrize("group, cell, d_target, message", [
    ("P -1", (6, 7, 8, 81, 95, 104), 0.8, "space group P -1 is not of the monoclinic box"),
    ("P 1 1 21/b", (6, 7, 8, 90, 90, 104), 0.8, "unique axis b"),
    ("P 1 21/c 1", (7, 15.5, 9, 90, 99, 90), 0.8, r"k from 18 to 19, the box holds 0..17: b is too long"),
    ("P 1 21/c 1", (3.1, 3.2, 3.3, 90, 99, 90), 0.8, "reflections are measured to")])
def test_data_that_do_not_fit_the_box(group, cell, d_target, message):
    cell, spacegroup = gemmi.UnitCell(*cell), gemmi.SpaceGroup(group)
    hkl = gemmi.make_miller_array(cell, spacegroup, 1.5).astype(np.int64)
    data = Measured(hkl, np.ones(len(hkl)), np.ones(len(hkl)), cell, spacegroup, (), 0, (Path("a.hkl"),), "made")
    with pytest.raises(UserError, match=message) as caught:
        inference.extend(data, lambda boxes: boxes.F.numpy(), d_target=d_target)
    assert str(caught.value).startswith("a.hkl: ")


def test_complete_data_need_no_extension():
    _, _, measured = made_data("P 1 21/c 1", d_min=0.9)
    with pytest.raises(UserError, match="are measured: there is nothing to extend"):
        inference.extend(measured, lambda boxes: boxes.F.numpy(), d_target=0.9)


def test_written_files(tmp_path):
    _, truth, measured = made_data("P 1 21/a 1")
    measured = replace(measured, files=(tmp_path / "a.hkl",),  # unmerged, and one below zero
                       hkl=np.concatenate([measured.hkl[:1] * [-1, 1, -1], measured.hkl]),
                       intensity=np.concatenate([[-0.37], measured.intensity]),
                       sigma=np.concatenate([[1.25], measured.sigma]))
    extended = inference.extend(measured, lambda boxes: np.full(boxes.F.shape, 0.1), 0.5, "monoclinic", 0.9)
    paths = inference.write_extended(tmp_path / "out" / "b", extended, csv=True, mtz=True)
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    assert [path.name for path in paths] == ["b.hkl", "b.ins", "b.csv", "b.mtz"]
    lines = paths[0].read_text().splitlines()
    n, m = len(measured.hkl), len(extended.predicted)
    assert len(lines) == n + m + 1 and lines[-1].split() == ["0", "0", "0", "0.00", "0.00", "0"]
    assert {line[28:32] for line in lines[:n]} == {"   1"} and {line[28:32] for line in lines[n:-1]} == {"   2"}
    assert lines[0][12:28] == "   -0.37    1.25"
    for line, h, I, s in zip(lines, measured.hkl.tolist(), measured.intensity, measured.sigma):
        assert [int(line[i:i + 4]) for i in (0, 4, 8)] == h and float(line[12:20]) == pytest.approx(I, abs=0.0051)
        assert float(line[20:28]) == pytest.approx(s, abs=0.0051)
    level = 0.1 * max(F for h, F in truth.items() if h in set(map(tuple, measured.hkl.tolist())))
    sigma = 1.25 * 0.5 * level
    assert float(lines[n][12:20]) == pytest.approx(level**2, rel=0.01)
    assert float(lines[n][20:28]) == pytest.approx((level + sigma) ** 2 - level**2, rel=0.01)
    again = read_measured(paths[1])
    assert again.spacegroup.xhm() == "P 1 21/a 1" and len(again.merge()) == len(extended.merged) + m
    table = np.genfromtxt(paths[2], delimiter=",", names=True)
    assert table["measured"].sum() == len(extended.merged) and len(table) == len(extended.merged) + m
    mtz = gemmi.read_mtz_file(str(paths[3]))
    assert mtz.spacegroup.xhm() == "P 1 21/a 1" and mtz.nreflections == len(table)
    np.testing.assert_allclose(mtz.column_with_label("F").array, table["F"], rtol=1e-5)
    for stem in (tmp_path / "a", tmp_path / "out" / ".." / "a"):
        with pytest.raises(UserError, match="a.hkl is a file that was read, and is not overwritten"):
            inference.write_extended(stem, extended)
    assert not (tmp_path / "a.ins").exists()


def test_intensities_that_shelx_has_no_room_for_are_scaled(tmp_path):
    _, _, measured = made_data("P 1 21/c 1")
    for factor in (1e6, 1e-6):
        scaled = replace(measured, intensity=measured.intensity * factor, sigma=measured.sigma * factor)
        extended = inference.extend(scaled, lambda boxes: np.full(boxes.F.shape, 0.1), 0.5, "monoclinic", 0.9)
        inference.write_extended(tmp_path / "b", extended)
        back = read_measured(tmp_path / "b.hkl")
        n = len(measured.hkl)
        assert max(back.intensity.max(), back.sigma.max()) == pytest.approx(9999, abs=1)
        ratio = back.intensity[:n] / back.intensity[:n].max() - measured.intensity / measured.intensity.max()
        assert np.abs(ratio).max() < 1e-5
        assert "All intensities in the .hkl file were multiplied by" in inference.describe(extended, 0.9)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no measured reflections in {REAL}")
def test_the_shipped_patterson_net_knows_more_than_the_fall_off_on_measured_data(shell_mean):
    network, _ = load_model(ROOT / "weights" / "patterson_net.safetensors")
    gains = []
    for name in ("2012000.hkl", "2016452.hkl", "2021921.cif", "2200000.hkl", "2241551.cif", "4035731.cif"):
        model = REAL / name.replace(".hkl", "_model.cif")
        whole = read_measured(REAL / name, model if model.is_file() and name.endswith(".hkl") else None)
        d = whole.cell.calculate_d_array(whole.hkl.astype(np.int32))
        cut = replace(whole, hkl=whole.hkl[d >= 1.5], intensity=whole.intensity[d >= 1.5], sigma=whole.sigma[d >= 1.5])
        merged = whole.merge()
        truth = {tuple(h): F for h, F, d in zip(merged.hkl.tolist(), merged.F, merged.d) if 0.8 <= d < 1.5}
        found = []
        for method in (partial(predict, network), shell_mean.predict):
            predicted = inference.extend(cut, method).predicted
            F = dict(zip(map(tuple, predicted.hkl.tolist()), predicted.F))
            found.append(np.corrcoef([F[h] for h in truth], list(truth.values()))[0, 1])
        gains.append(found[0] - found[1])
    assert min(gains) > 0.05 and np.mean(gains) > 0.15, gains


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no measured reflections in {REAL}")
@pytest.mark.parametrize("name", ["2012000.hkl", "2016452.hkl", "2021921.cif", "2200000.hkl", "2241551.cif", "4035731.cif"])
def test_measured_data_cut_at_1_5_angstrom_are_extended_to_those_that_were_measured(name, shell_mean):
    whole = read_measured(REAL / name)
    d = whole.cell.calculate_d_array(whole.hkl.astype(np.int32))
    cut = replace(whole, hkl=whole.hkl[d >= 1.5], intensity=whole.intensity[d >= 1.5], sigma=whole.sigma[d >= 1.5])
    predicted = inference.extend(cut, shell_mean.predict).predicted
    truth = {tuple(h): F for h, F, d in zip(*(lambda m: (m.hkl.tolist(), m.F, m.d))(whole.merge())) if 0.8 <= d < 1.5}
    place = {tuple(h): i for i, h in enumerate(predicted.hkl.tolist())}
    assert truth.keys() <= place.keys(), "whatever was measured beyond 1.5 Å has a prediction, in its own indices"
    rows = np.array([place[h] for h in truth])
    F, P, sigma = np.array(list(truth.values())), predicted.F[rows], predicted.sigF[rows]
    # a mean amplitude, without any knowledge of the crystal: R of 0.41 (acentric) to 0.59 (centric, Wilson statistics) and
    # what the fall-off is wrong by; an uncertainty covers two thirds of the errors
    assert 0.4 < np.abs(F - P).sum() / F.sum() < 0.72 and 0.2 < np.corrcoef(F, P)[0, 1] < 0.65
    assert 0.6 < (np.abs(F - P) < sigma).mean() < 0.85


@pytest.fixture(scope="module")
def shell_mean():
    from xrd_helpers.evaluation import shell_mean
    return shell_mean(60)
