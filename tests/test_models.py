"""The networks: parameters against closed forms, forward passes against numpy, and what is known without a network."""

from dataclasses import replace
from math import prod
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from scipy.special import erf
from torch import nn

from test_patterson_net import GROUPS, MEAN, D, boxes_of, crystal, sphere
from xrd_helpers.config import UserError
from xrd_helpers.gridding import BOXES, AmplitudeBoxes, Box
from xrd_helpers.metrics import score
from xrd_helpers.models import MODELS, FFTUNet, UNet, XRDTransformer
from xrd_helpers.models.base import amplitudes, normalized, to_box, to_map
from xrd_helpers.models.fft_unet import ResFBlock
from xrd_helpers.models.unet import DoubleConv
from xrd_helpers.training import Budget, Device, fit, train
from xrd_helpers.weights import WeightsError, load_model, predict, save_model

SHAPE = (9, 6, 8)


class Known(NamedTuple):
    """What models of a box read of AmplitudeBoxes."""

    F_in: torch.Tensor
    measured: torch.Tensor
    target: torch.Tensor
    absent: torch.Tensor

    box = None  # not looked at in the published form


SMALL = {"unet": UNet.Config(widths=(3, 4), bottleneck=5, published=True),
         "fft_unet": FFTUNet.Config(widths=(3, 4), bottleneck=5, published=True),
         "xrd_transformer": XRDTransformer.Config(shape=SHAPE, dim=16, depth=2, n_heads=4, mlp_ratio=2, dropout=0.1,
                                                  published=True)}
each_model = pytest.mark.parametrize("name", SMALL)  # in the published form; PattersonNet has a file of its own


def randomised(model, seed=0):
    """The model with all its parameters drawn anew: heads begin at zero, norms at one, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * max(1, prod(p.shape[1:])) ** -0.5)
        if hasattr(model, "head"):
            model.head.bias.fill_(1)  # most of the output where softplus has a slope
    return model.eval()


def small(name, seed=0):
    return randomised(MODELS[name](SMALL[name]), seed)


def random_inputs(n, shape=SHAPE, seed=0):
    """F_in and three masks, measured inside target, absent anywhere; every crystal has another number of tokens."""
    rng = np.random.default_rng(seed)
    target = torch.as_tensor(rng.random((n, *shape)) < np.linspace(0.4, 0.9, n).reshape(-1, 1, 1, 1))
    measured = target & torch.as_tensor(rng.random((n, *shape)) < 0.4)
    absent = torch.as_tensor(rng.random((n, *shape)) < 0.2)
    F_in = torch.as_tensor(rng.random((n, *shape)), dtype=torch.float32) * measured
    return Known(F_in, measured, target, absent)


def count(model):
    return sum(p.numel() for p in model.parameters())


# ---- the same networks in numpy: x is (channels, H, K, L), p a dict of arrays ----

def arrays(model):
    return {name: p.detach().double().numpy() for name, p in model.state_dict().items()}


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def conv(x, weight, bias):
    return np.stack([sum(correlate(channel, kernel, mode="constant") for channel, kernel in zip(x, kernels)) + b
                     for kernels, b in zip(weight, bias)])


def instance_norm(x):
    return (x - x.mean((1, 2, 3), keepdims=True)) / np.sqrt(x.var((1, 2, 3), keepdims=True) + 1e-5)


def double_conv(x, p, prefix):
    for number in "03":
        x = gelu(instance_norm(conv(x, p[f"{prefix}{number}.weight"], p[f"{prefix}{number}.bias"])))
    return x


def res_f_block(x, p, prefix):
    s = np.abs(np.fft.rfftn(x, axes=(1, 2, 3)))
    for number in "03":
        s = conv(s, p[f"{prefix}spectral.{number}.weight"], p[f"{prefix}spectral.{number}.bias"])
        s = gelu(instance_norm(s))
    return x + double_conv(x, p, f"{prefix}conv.") + np.fft.irfftn(s, s=x.shape[1:], axes=(1, 2, 3))


def linear_matrix(n_from, n_to):
    """(n_to, n_from) linear interpolation between the centres of cells, the end values going on."""
    place = np.clip((np.arange(n_to) + 0.5) * n_from / n_to - 0.5, 0, n_from - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(n_from)))


def upsample(x, shape):
    return np.einsum("ah,bk,cl,xhkl->xabc", *(linear_matrix(n, m) for n, m in zip(x.shape[1:], shape)), x)


def max_pool(x):
    h, k, l = (n // 2 for n in x.shape[1:])
    return x[:, :2 * h, :2 * k, :2 * l].reshape(-1, h, 2, k, 2, l, 2).max((2, 4, 6))


def reference_unet(F_in, p, spectral):
    def level(x, prefix):
        return res_f_block(double_conv(x, p, prefix + "0."), p, prefix + "1.") if spectral else double_conv(x, p, prefix)
    one = level(F_in[None].astype(float), "down.0.")
    two = level(max_pool(one), "down.1.")
    x = double_conv(max_pool(two), p, "bottleneck.")
    x = level(np.concatenate([upsample(x, two.shape[1:]), two]), "up.0.")
    x = level(np.concatenate([upsample(x, one.shape[1:]), one]), "up.1.")
    return np.einsum("c,chkl->hkl", p["head.weight"].ravel(), x) + p["head.bias"]


def layer_norm(x, p, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * p[name + ".weight"] + p[name + ".bias"]


def reference_transformer(seen, looked_at, p, config):
    """Every voxel of the box is a token, of which only some may be looked at: dense, with a mask; seen (n, *shape)."""
    def linear(x, name):
        return x @ p[name + ".weight"].T + p[name + ".bias"]
    grid = np.indices(config.shape).reshape(3, -1)
    one_hot = [np.eye(n)[i] for n, i in zip(config.shape, grid)]
    x = linear(seen.reshape(-1, len(grid[0])).T.astype(float), "value")
    x = x + np.concatenate([linear(one_hot[i], f"index.{i}") for i in range(3)], axis=1)
    width = config.dim // config.n_heads
    for number in range(config.depth):
        b = f"blocks.{number}."
        q, k, v = np.split(linear(layer_norm(x, p, b + "norm1"), b + "qkv"), 3, axis=1)
        heads = []
        for head in range(config.n_heads):
            part = slice(head * width, (head + 1) * width)
            weight = np.exp(q[:, part] @ k[:, part].T / np.sqrt(width)) * looked_at.ravel()
            heads.append(weight / weight.sum(axis=1, keepdims=True) @ v[:, part])
        x = x + linear(np.concatenate(heads, axis=1), b + "project")
        x = x + linear(gelu(linear(layer_norm(x, p, b + "norm2"), b + "mlp.0")), b + "mlp.3")
    return linear(layer_norm(x, p, "norm"), "head")[:, 0].reshape(config.shape)


def reference_amplitudes(raw, F_in, measured, target, absent):
    """Softplus of sharpness 20 where nothing is known."""
    return np.where(measured, F_in, np.logaddexp(0, 20 * raw) / 20) * target * ~absent


@pytest.mark.parametrize("shape", [(8, 6, 10), (9, 7, 11), (13, 9, 11)])
@pytest.mark.parametrize("name", ["unet", "fft_unet"])
def test_unets_equal_the_same_networks_in_numpy(name, shape):
    model, inputs = small(name).double(), random_inputs(2, shape)
    F_out = model(inputs._replace(F_in=inputs.F_in.double())).detach()
    for i in range(2):
        F_in, *masks = (x[i].numpy() for x in inputs)
        expected = reference_amplitudes(reference_unet(F_in, arrays(model), name == "fft_unet"), F_in, *masks)
        np.testing.assert_allclose(F_out[i], expected, atol=1e-6)  # physics returns float32
        assert np.ptp(expected[masks[1] & ~masks[0] & ~masks[2]]) > 0.1, "the prediction is not a constant"


def test_transformer_equals_dense_attention_over_the_whole_box_with_a_mask():
    model, inputs = small("xrd_transformer"), random_inputs(3)
    with torch.no_grad():
        F_out = model(inputs).numpy()
    for i in range(3):
        F_in, *masks = (x[i].numpy() for x in inputs)
        expected = reference_amplitudes(reference_transformer(F_in, masks[1], arrays(model), model.config), F_in, *masks)
        np.testing.assert_allclose(F_out[i], expected, atol=2e-5)
        assert np.ptp(expected[masks[1] & ~masks[0] & ~masks[2]]) > 0.1


def test_transformer_of_normalised_amplitudes_looks_at_measured_reflections_alone():
    model, inputs = randomised(XRDTransformer(replace(SMALL["xrd_transformer"], published=False))), random_inputs(3)
    x = torch.randn((3, model.n_inputs, *SHAPE), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        raw = model.raw(x, inputs).numpy()
    for i in range(3):
        _, measured, target, absent = (part[i].numpy() for part in inputs)
        expected = reference_transformer(x[i].numpy(), measured & ~absent, arrays(model), model.config)
        np.testing.assert_allclose(raw[i], expected * target, atol=2e-5)
        assert np.ptp(expected[target & ~measured]) > 0.1


@pytest.mark.parametrize("shape", [(6, 4, 8), (5, 7, 3), (6, 5, 7), (3, 3, 2)])
def test_res_f_block_equals_its_formula_on_odd_and_even_sizes(shape):
    block = randomised(ResFBlock(2)).double()
    x = np.random.default_rng(1).normal(size=(3, 2, *shape))
    with torch.no_grad():
        got = block(torch.as_tensor(x)).numpy()
    for i in range(3):  # the transform is done in float32
        np.testing.assert_allclose(got[i], res_f_block(x[i], arrays(block), ""), atol=2e-5)


def test_double_conv_is_convolution_norm_gelu_twice():
    layers = [type(layer) for layer in DoubleConv(1, 2, published=True)]
    assert layers == [nn.Conv3d, nn.InstanceNorm3d, nn.GELU] * 2


# ---- parameters, from DESIGN.md, section 6 ----

def n_conv(c_in, c_out, size=3):
    return size ** 3 * c_in * c_out + c_out


def n_double(c_in, c_out):
    return n_conv(c_in, c_out) + n_conv(c_out, c_out)


def n_unet(a, b, c, extra=lambda width: 0):
    """Levels of a and b channels, c below; ``extra`` is what stands beside the DoubleConv of a level."""
    return (n_double(1, a) + n_double(a, b) + n_double(b, c) + n_double(c + b, b) + n_double(b + a, a) + n_conv(a, 1, 1)
            + 2 * (extra(a) + extra(b)))


def n_res_f(c):
    return n_double(c, c) + 2 * n_conv(c, c, 1)


def n_transformer(shape, dim, depth, mlp_ratio):
    widths = (dim // 3, dim // 3, dim - 2 * (dim // 3))
    embedding = sum((n + 1) * width for n, width in zip(shape, widths)) + 2 * dim
    attention = dim * 3 * dim + 3 * dim + dim * dim + dim
    mlp = dim * mlp_ratio * dim + mlp_ratio * dim + mlp_ratio * dim * dim + dim
    return embedding + depth * (2 * 2 * dim + attention + mlp) + 2 * dim + dim + 1


def test_published_sizes_have_the_parameters_of_the_closed_forms():
    with torch.device("meta"):
        counts = {name: count(MODELS[name](MODELS[name].Config(**MODELS[name].PUBLISHED))) for name in SMALL}
    assert counts == {"unet": n_unet(64, 128, 256), "fft_unet": n_unet(64, 128, 256, n_res_f),
                      "xrd_transformer": n_transformer((26, 18, 23), 128, 5, 4)}
    assert counts["xrd_transformer"] == 994_989, "the published transformer prints 994 K"


def test_networks_of_E_have_the_parameters_of_the_closed_forms():
    """Seven inputs for one; a scale and a shift for each channel of each norm; in the branch 8 maps from and to the level's."""
    a, b, c, maps = 16, 32, 64, 8
    norms, more = 2 * 2 * (2 * a + 2 * b + c), 6 * 27 * a
    counts = {name: count(MODELS[name]()) for name in SMALL}
    assert counts["unet"] == n_unet(a, b, c) + norms + more
    perceptron = 2 * (n_conv(maps, 2 * maps, 1) + n_conv(2 * maps, a, 1))
    assert counts["fft_unet"] == counts["unet"] + (7 + b + a) * maps + perceptron
    assert counts["xrd_transformer"] == n_transformer((26, 18, 23), 32, 2, 2) + 6 * 32


@pytest.mark.parametrize("widths", [(4, 8, 16), (5, 3, 7), (2, 2, 2)])
def test_counts_follow_the_widths(widths):
    *levels, bottleneck = widths
    assert count(UNet(UNet.Config(tuple(levels), bottleneck, True))) == n_unet(*widths)
    assert count(FFTUNet(FFTUNet.Config(tuple(levels), bottleneck, True))) == n_unet(*widths, n_res_f)


@pytest.mark.parametrize("shape, dim, depth, mlp_ratio", [((7, 6, 5), 16, 1, 4), ((7, 6, 5), 16, 3, 2), ((4, 9, 2), 20, 2, 1)])
def test_counts_follow_the_depth_and_the_width(shape, dim, depth, mlp_ratio):
    config = XRDTransformer.Config(shape=shape, dim=dim, depth=depth, mlp_ratio=mlp_ratio, published=True)
    assert count(XRDTransformer(config)) == n_transformer(shape, dim, depth, mlp_ratio)


def test_three_levels_work_too():
    F_out = randomised(UNet(UNet.Config(widths=(2, 3, 4), bottleneck=5, published=True)))(random_inputs(1, (17, 18, 23)))
    assert F_out.shape == (1, 17, 18, 23)


def test_names_and_titles_agree():
    """DESIGN.md, section 6."""
    assert {name: model.title for name, model in MODELS.items()} == {
        "unet": "UNet", "fft_unet": "FFT_UNet", "xrd_transformer": "XRD_Transformer", "patterson_net": "PattersonNet"}


# ---- sizes, and where the blocks stand ----

@pytest.mark.parametrize("name", ["unet", "fft_unet"])
def test_levels_of_the_published_box_have_the_sizes_of_the_encoder(name):
    model, sizes = small(name), {}
    for part, modules in (("down", model.down), ("up", model.up), ("bottleneck", [model.bottleneck])):
        for i, module in enumerate(modules):
            module.register_forward_hook(lambda m, args, out, key=(part, i): sizes.update({key: tuple(out.shape[1:])}))
    model(random_inputs(1, (26, 18, 23)))
    assert sizes == {("down", 0): (3, 26, 18, 23), ("down", 1): (4, 13, 9, 11), ("bottleneck", 0): (5, 6, 4, 5),
                     ("up", 0): (4, 13, 9, 11), ("up", 1): (3, 26, 18, 23)}


def test_res_f_blocks_stand_in_encoder_and_decoder_only():
    places = [name for name, module in small("fft_unet").named_modules() if isinstance(module, ResFBlock)]
    assert places == ["down.0.1", "down.1.1", "up.0.1", "up.1.1"]
    assert not any(isinstance(module, ResFBlock) for module in small("unet").modules())


# ---- what holds for all three ----

@each_model
@pytest.mark.parametrize("seed", range(3))
def test_what_is_known_is_kept(name, seed):
    F_in, measured, target, absent = inputs = random_inputs(3, seed=seed)
    with torch.no_grad():
        F_out = small(name, seed)(inputs)
    assert F_out.shape == F_in.shape and F_out.dtype == torch.float32
    known = measured & ~absent
    assert torch.equal(F_out[known], F_in[known]), "measured amplitudes pass through bit by bit"
    assert (F_out[absent | ~target] == 0).all()
    predicted = F_out[target & ~measured & ~absent]
    assert (predicted >= 0).all() and predicted.isfinite().all() and len(predicted.unique()) > len(predicted) / 2


@pytest.mark.parametrize("raw", [-1e30, -3.0, 0.0, 0.06, 5.0, 1e30])
def test_amplitudes_are_softplus_of_the_raw_output(raw):
    one = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    F_out = amplitudes(torch.full((1, 1, 1, 1), raw), Known(torch.zeros(1, 1, 1, 1), ~one, one, ~one))
    np.testing.assert_allclose(F_out.item(), np.logaddexp(0, 20 * np.float64(np.float32(raw))) / 20, rtol=1e-6, atol=1e-25)


@each_model
def test_an_untrained_model_says_one_amplitude_everywhere(name):
    F_in, measured, target, absent = inputs = random_inputs(2)
    predicted = MODELS[name](SMALL[name]).eval()(inputs)[target & ~measured & ~absent]
    assert predicted.unique().numel() == 1 and 0 < predicted[0] < 0.2


def test_a_started_head_still_learns():
    head = UNet().started(nn.Linear(3, 1))
    head(torch.ones(1, 3)).sum().backward()
    assert (head.weight.grad != 0).all() and (head.bias.grad != 0).all()


@each_model
def test_gradient_reaches_every_parameter(name):
    model, inputs = small(name).double().train(), random_inputs(3)
    model(inputs._replace(F_in=inputs.F_in.double())).square().sum().backward()
    largest = {key: float(p.grad.abs().max()) for key, p in model.named_parameters()}
    # the norm after a convolution takes its mean away, and with it the constant: such a bias has no effect at all
    dead = {f"{path}.{number}.bias" for path, module in model.named_modules() if isinstance(module, nn.Sequential)
            for number, (layer, after) in enumerate(zip(module, list(module)[1:]))
            if isinstance(layer, nn.Conv3d) and isinstance(after, nn.InstanceNorm3d)}
    assert {key for key, value in largest.items() if value < 1e-6} == dead


@each_model
def test_evaluation_gives_the_same_twice(name):
    model, inputs = small(name), random_inputs(2)
    with torch.no_grad():
        assert torch.equal(model(inputs), model(inputs))


@each_model
def test_a_crystal_does_not_depend_on_the_others_of_its_batch(name):
    model, inputs = small(name), random_inputs(4)
    others = Known(*(torch.cat([a[:1], b[1:]]) for a, b in zip(inputs, random_inputs(4, seed=9))))
    with torch.no_grad():
        together = model(inputs)
        alone = torch.cat([model(Known(*(x[i:i + 1] for x in inputs))) for i in range(4)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(others)[0], together[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(model(Known(*(x.flip(0) for x in inputs))), together.flip(0), rtol=0, atol=1e-5)


# ---- the transformer's own ----

def test_transformer_looks_inside_target_only():
    model, (F_in, measured, target, absent) = small("xrd_transformer"), random_inputs(2)
    changed = torch.where(target, F_in, torch.full_like(F_in, 7.0))
    assert not torch.equal(changed, F_in)
    with torch.no_grad():
        before = model(Known(F_in, measured, target, absent))
        assert torch.equal(model(Known(changed, measured, target, absent)), before)
        inside = torch.where(target, F_in + 0.3, F_in)
        predicted = target & ~measured & ~absent
        assert not torch.allclose(model(Known(inside, measured, target, absent))[predicted], before[predicted], atol=1e-3)


def test_transformer_knows_indices_only_by_their_embedding():
    """Mirror the box along an axis and the rows of that axis's embedding with it: the same amplitudes, mirrored.

    The tokens come in another order then, so that this also holds their order to be of no consequence.
    """
    model, inputs = small("xrd_transformer"), random_inputs(2)
    with torch.no_grad():
        F_out = model(inputs)
        for axis in range(3):
            flipped = [x.flip(axis + 1) for x in inputs]
            mirrored = small("xrd_transformer")
            assert not torch.allclose(mirrored(Known(*flipped)).flip(axis + 1), F_out, atol=1e-3)
            mirrored.index[axis].weight.copy_(model.index[axis].weight.flip(1))
            torch.testing.assert_close(mirrored(Known(*flipped)).flip(axis + 1), F_out, rtol=0, atol=1e-5)


def test_dropout_acts_in_training_only():
    model, inputs = small("xrd_transformer").train(), random_inputs(2)
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.1] * 4, "in the perceptron, and on both branches, of two blocks"
    with torch.no_grad():
        assert not torch.equal(model(inputs), model(inputs))
        model.eval()
        assert torch.equal(model(inputs), model(inputs))
        quiet = XRDTransformer(XRDTransformer.Config(**{**vars(SMALL["xrd_transformer"]), "dropout": 0.0})).train()
        quiet.load_state_dict(model.state_dict())
        torch.testing.assert_close(quiet(inputs), model(inputs), rtol=0, atol=1e-6)  # training scales nothing else


def test_one_crystal_without_any_token_leaves_the_others_alone():
    F_in, measured, target, absent = random_inputs(2)
    target[0] = False
    with torch.no_grad():
        F_out = small("xrd_transformer")(Known(F_in, measured, target, absent))
        other = small("xrd_transformer")(Known(*(x[1:] for x in (F_in, measured, target, absent))))
    assert (F_out[0] == 0).all()
    torch.testing.assert_close(F_out[1], other[0], rtol=0, atol=1e-5)


# ---- on normalised amplitudes, the default ----

OURS = {"unet": dict(widths=(4, 5), bottleneck=6), "fft_unet": dict(widths=(4, 5), bottleneck=6, maps=3),
        "xrd_transformer": dict(dim=12, depth=1, n_heads=2)}
of_each = pytest.mark.parametrize("name", OURS)


def ours(name, box=BOXES["monoclinic"], trained=True, seed=0):
    """A small network of E that begins at MEAN; `trained`, its head does something."""
    torch.manual_seed(seed)
    model = MODELS[name](replace(MODELS[name].config_for(box, 1.4), **OURS[name]))
    model.start_from(lambda: MEAN)
    if trained:
        nn.init.normal_(model.head.weight, std=1.0)
    return model.eval()


def test_an_untrained_network_scores_as_the_row_that_knows_nothing():
    """In P-1 all reflections are centric and ε is 1: what is expected is the shell mean itself, score by score."""
    triclinic = crystal("P -1")
    box = Box.around(triclinic.cell, triclinic.spacegroup, 1.4)
    boxes = AmplitudeBoxes.from_crystals([triclinic, replace(triclinic, fract=triclinic.fract[::-1] ** 2)], box, **D)
    expected = score(MEAN.predict(boxes), boxes)
    for name in OURS:
        got = score(predict(ours(name, box, trained=False), boxes), boxes)
        np.testing.assert_allclose(got.drop(columns="cc_e"), expected.drop(columns="cc_e"), atol=1e-5)
        assert (expected["cc_ext"] > 0.1).all()


@of_each
def test_an_untrained_network_is_the_shell_mean_times_what_symmetry_does_to_it(name):
    """sqrt(ε) by gemmi; mean |E| of centric and acentric reflections, sqrt(2/π) and sqrt(π)/2 (Wilson, 1949)."""
    boxes = boxes_of(*GROUPS)
    F, mean = predict(ours(name, trained=False), boxes), MEAN.predict(boxes)
    for i, sample in enumerate(boxes.samples):
        ops, where = sample.spacegroup.operations(), boxes.extension[i].numpy()
        hkl = boxes.box.hkl[where.ravel()].astype("i4")
        factor = np.sqrt(ops.epsilon_factor_without_centering_array(hkl)) * np.where(
            ops.centric_flag_array(hkl), np.sqrt(2 / np.pi), np.sqrt(np.pi) / 2)
        np.testing.assert_allclose(F[i][where], mean[i][where] * factor / factor.mean(), rtol=2e-3)
        assert np.ptp(factor) > 0.1 or sample.spacegroup.hm == "P 1 n 1"


@pytest.mark.parametrize("name", GROUPS)
def test_maps_of_a_box_are_those_of_the_whole_sphere(name):
    boxes = boxes_of(name)
    x, _ = normalized(boxes, MEAN)
    rho, n = to_map(x[:, :1], boxes.box)[0, 0].numpy(), boxes.box.sphere[0]
    once = np.where(boxes.redundant.numpy(), np.nan, x[0, 0].numpy()).ravel()
    hkl, values = sphere(boxes, once)
    assert rho.shape == (28, 36, 25) and len(np.unique(hkl, axis=0)) == len(hkl)
    for point in ((0, 0, 0), (3, 2, 5), (11, 30, 7), (20, 1, 24)):
        direct = (values * np.cos(2 * np.pi * hkl @ (np.array(point) / n))).sum() * 5 / np.sqrt(np.prod(n))
        assert rho[point] == pytest.approx(direct, abs=1e-4)
    assert rho[0, 0, 0] == pytest.approx(5 * values.sum() / np.sqrt(np.prod(n)), abs=1e-4)
    equal = x[0, 2].flatten()[boxes.box.representative].view(1, 1, *boxes.box.shape)  # any values, equivalent ones alike
    np.testing.assert_allclose(to_box(to_map(equal, boxes.box), boxes.box) / 5, equal, atol=1e-5)


def test_what_a_network_sees():
    boxes = boxes_of("P 1 21/c 1", "C 1 2/c 1")
    (values, E, squared, measured, absent, wanted, s), base = normalized(boxes, MEAN)[0].unbind(1), normalized(boxes, MEAN)[1]
    for i in range(2):
        known, extension = boxes.known[i], boxes.extension[i]
        F, epsilon = boxes.F[i][known], boxes.epsilon[i][known]
        assert (E[i][known] ** 2).mean() == pytest.approx(1, abs=0.1)
        ratio = E[i][known] * epsilon.sqrt() / F  # falls off with resolution only: of neighbours in d it is the same
        order = boxes.d[i][known].argsort()
        assert (ratio[order][1:] / ratio[order][:-1] - 1).abs().median() < 0.05
        np.testing.assert_allclose(values[i][known], epsilon * E[i][known] ** 2 - 1, atol=1e-5)
        assert (values[i][boxes.measured[i] & boxes.absent[i]] == -1).all() and (values[i][extension] == 0).all()
        assert squared[i][wanted[i] > 0].mean() == pytest.approx(0, abs=1e-5)
        # by numpy: the positive part of the map, squared, carried back
        hkl, once = sphere(boxes, np.where(boxes.redundant.numpy(), np.nan, values[i].numpy()).ravel(), i)
        rho = np.zeros(boxes.box.sphere[0])
        rho[tuple((hkl % rho.shape).T)] = once
        back = np.fft.fftn(np.fft.fftn(rho).real.clip(0) ** 2).real
        back = back[tuple((boxes.box.hkl[extension.numpy().ravel()] % rho.shape).T)]
        assert np.corrcoef(squared[i][extension], back)[0, 1] > 0.9999
        assert (base[i] > 0).equal(wanted[i] > 0) and (wanted[i] > 0)[extension].all() and (absent[i] * measured[i] == 0).all()
        assert float(s[i].max()) == 1 and s[i][boxes.measured[i]].max() < D["d_target"] / D["d_input"] + 0.05


@of_each
def test_networks_of_E_keep_what_is_known_and_look_at_nothing_else(name):
    boxes, model = boxes_of(*GROUPS), ours(name)
    F = predict(model, boxes)
    measured, absent = boxes.measured.numpy(), boxes.absent.numpy()
    np.testing.assert_array_equal(F[measured & ~absent], boxes.F.double().numpy()[measured & ~absent])
    assert (F[absent | ~boxes.target.numpy()] == 0).all() and (F[boxes.extension.numpy()] > 0).all()
    untrained = predict(ours(name, trained=False), boxes)
    assert np.abs(F - untrained)[boxes.extension.numpy()].max() > 0.01
    hidden = replace(boxes, F=torch.where(boxes.measured, boxes.F, torch.rand_like(boxes.F)))
    np.testing.assert_array_equal(predict(model, hidden), F)
    np.testing.assert_allclose(predict(model, replace(boxes, F=7 * boxes.F)), 7 * F, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(predict(model, boxes[[2]])[0], F[2], atol=1e-4)


@of_each
def test_gradient_reaches_every_parameter_of_networks_of_E(name):
    boxes, model = boxes_of("P 1 21/c 1", "C 1 2/c 1"), ours(name).train()
    model(boxes, boxes).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_the_loss_of_E_by_hand():
    boxes, model = boxes_of("P 1 21/c 1", "P 1 21 1"), ours("unet")
    F, base, parts = torch.as_tensor(predict(model, boxes)), predict(ours("unet", trained=False), boxes), []
    for i in range(2):
        where = boxes.extension[i].numpy()
        pred, true, expected = F[i].numpy()[where], boxes.F[i].double().numpy()[where], base[i][where]
        parts.append(np.abs(pred - true) / expected.mean())
    with torch.no_grad():
        assert model(boxes, boxes).item() == pytest.approx(np.concatenate(parts).mean(), rel=1e-3)


@of_each
def test_networks_of_E_learn_and_come_back_from_their_files(name, tmp_path):
    crystals, box = [crystal(group, seed) for group in GROUPS for seed in (1, 2)], Box("s", (-7, 0, 0), (7, 7, 7), "P 1 2/m 1")
    model, boxes = ours(name, box, trained=False), AmplitudeBoxes.from_crystals(crystals, box, **D)
    with torch.no_grad():
        before = float(model(boxes, boxes))
    fit(model, crystals, None, Budget(epochs=12), Device("cpu", precision="32-true"), box=box, lr=1e-2, ema=0, **D)
    with torch.no_grad():
        assert float(model(boxes, boxes)) < 0.97 * before
    save_model(tmp_path / "m.safetensors", name, model, box="monoclinic")
    loaded, _ = load_model(tmp_path / "m.safetensors")
    assert loaded.config == model.config and not loaded.published
    np.testing.assert_allclose(predict(loaded, boxes), predict(model, boxes), atol=5e-3)


def test_the_published_form_is_a_choice_and_no_file_of_one_is_taken_for_the_other(tmp_path):
    save_model(tmp_path / "p.safetensors", "unet", UNet(UNet.Config((3, 4), 5, published=True)))
    loaded, _ = load_model(tmp_path / "p.safetensors")
    assert loaded.published and loaded.n_inputs == 1
    loaded.config = UNet.Config((3, 4), 5)  # as files say that were made before there was a choice
    save_model(tmp_path / "old.safetensors", "unet", loaded)
    with pytest.raises(WeightsError, match="does not fit the model unet: .* tensors are missing, too many or of another shape"):
        load_model(tmp_path / "old.safetensors")
    with pytest.raises(UserError, match="PattersonNet has no published form besides the one here"):
        train("patterson_net", tmp_path / "x.safetensors", Budget(steps=1), published=True)
