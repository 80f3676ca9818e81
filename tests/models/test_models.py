"""Named architectures: sizes as published, what they take, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import models

CIFAR, PHOTO, DIGIT = (3, 32, 32), (3, 224, 224), (1, 28, 28)


@pytest.mark.parametrize(
    ("net", "shape", "count"),
    [
        (models.vgg11(), PHOTO, 132_863_336),  # torchvision's documentation
        (models.vgg11(batch_norm=True), PHOTO, 132_868_840 - 2752),  # torchvision's, which keeps the 2,752 biases
        (models.resnet18(), PHOTO, 11_689_512),  # torchvision's documentation
        (models.mobilenet_v2(), PHOTO, 3_504_872),  # torchvision's documentation
        (models.resnet18(CIFAR, 10), CIFAR, 11_173_962),
        (models.mobilenet_v2(CIFAR, 10), CIFAR, 2_236_682),
        (models.resnet20(), CIFAR, 269_722),  # the paper's 0.27 M
        (models.resnet20(blocks=5), CIFAR, 464_154),  # 0.46 M
        (models.resnet20(blocks=7), CIFAR, 658_586),  # 0.66 M
        (models.resnet20(blocks=9), CIFAR, 853_018),  # 0.85 M
        (models.resnet20(blocks=18), CIFAR, 1_727_962),  # 1.7 M
        (models.densenet_bc(depth=100, growth=12), CIFAR, 769_162),  # the paper's 0.8 M
        (models.simple_convnet(), DIGIT, 433_890),
        (models.lenet5(), DIGIT, 156 + 2416 + 48_120 + 10_164 + 850),
        (models.pooled_convnet(), DIGIT, (26 + 2) * 16 + (16 * 9 + 3) * 32 + (32 * 9 + 3) * 64 + (64 * 3 * 3 + 1) * 10),
    ],
)  # fmt: skip
def test_parameters_are_as_many_as_published(net, shape, count):
    assert net.parameter_count(shape) == count
    assert net.input_shape == shape


@pytest.mark.parametrize(
    ("net", "count"),
    [  # products of convolutions and affine layers
        (models.vgg11(), 7_609_090_048),  # torchvision: 7.61 G
        (models.resnet18(), 1_814_073_344),  # torchvision: 1.81 G
        (models.mobilenet_v2(), 300_774_272),  # torchvision: 0.3 G; the paper: 300 M
    ],
)
def test_multiply_adds_are_as_many_as_published(net, count):
    assert net.cost(PHOTO).multiply_adds == count


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "mobilenet_v2", "densenet_bc", "resnet20"])
def test_multiply_adds_are_what_pytorch_counts(name):
    """PyTorch's own counter, on tensors without memory, counts two operations per multiply-add."""
    torch = pytest.importorskip("torch")
    mirror = pytest.importorskip("torch_mirror")
    from torch.utils.flop_counter import FlopCounterMode

    net = getattr(models, name)(PHOTO)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        params, state = (
            {path: torch.empty(p.shape) for path, p in described.items()}
            for described in (net.parameters(PHOTO), net.state(PHOTO))
        )
        y = mirror.run(net, params, state, torch.empty((1, *PHOTO)))
    assert tuple(y.shape[1:]) == net.output_shape(PHOTO)
    assert counter.get_total_flops() == 2 * net.cost(PHOTO).multiply_adds


def test_two_conv_net_by_formula():
    c, h, w, (f1, f2), k, hidden, classes = 3, 20, 26, (4, 7), 3, 9, 5
    h1, w1 = (h - k + 1) // 2, (w - k + 1) // 2
    net = models.two_conv_net((c, h, w), classes, filters=(f1, f2), kernel_size=k, hidden=hidden)
    features = f2 * (h1 - k + 1) * (w1 - k + 1)
    count = f1 * (c * k * k + 1) + f2 * (f1 * k * k + 1) + (features + 1) * hidden + (hidden + 1) * classes
    assert net.parameter_count((c, h, w)) == count
    products = f1 * c * k * k * (h - k + 1) * (w - k + 1) + features * f1 * k * k + features * hidden + hidden * classes
    assert net.cost((c, h, w)).multiply_adds == products
    assert models.two_conv_net().parameter_count(DIGIT) == 416 + 12_832 + (32 * 8 * 8 + 1) * 100 + 1010


def test_pooled_convnet_by_formula():
    c, h, w, (f1, f2), (k1, k2), classes = 3, 20, 26, (4, 7), (3, 5), 5
    net = models.pooled_convnet((c, h, w), classes, filters=(f1, f2), kernel_sizes=(k1, k2))
    features = f2 * (h // 4) * (w // 2 // 2)
    count = f1 * (c * k1 * k1 + 3) + f2 * (f1 * k2 * k2 + 3) + (features + 1) * classes  # 3: bias, gamma, beta
    assert net.parameter_count((c, h, w)) == count
    products = f1 * c * k1 * k1 * h * w + f2 * f1 * k2 * k2 * (h // 2) * (w // 2) + features * classes
    assert net.cost((c, h, w)).multiply_adds == products


@pytest.mark.parametrize("sizes", [(3, 4), (3,), (0, 3)], ids=str)
def test_pooled_convnet_refuses_kernels_that_do_not_fit_it(sizes):
    with pytest.raises(xc.XpcnnError, match="kernel_sizes"):
        models.pooled_convnet(filters=(4, 7), kernel_sizes=sizes)


@pytest.mark.parametrize(("width", "blocks"), [(32, 1), (8, 3)])
def test_resnet8_by_formula(width, blocks):
    net = models.resnet8(DIGIT, 7, width=width, blocks=blocks)
    w, sides = width, (14, 7, 4)  # a stride of 2 rounds up
    count = w * (25 + 3)  # 3: bias, gamma, beta
    products = w * 25 * 28 * 28
    for own, before, side in zip((w, 2 * w, 4 * w), (w, w, 2 * w), sides, strict=True):
        shortcut = own * before if own != before else 0
        inner = own * before * 9 + (2 * blocks - 1) * own * own * 9
        count += inner + 2 * blocks * 2 * own + shortcut + (2 * own if shortcut else 0)  # 2: gamma, beta
        products += (inner + shortcut) * side * side
    assert net.parameter_count(DIGIT) == count + (4 * w + 1) * 7
    assert net.cost(DIGIT).multiply_adds == products + 4 * w * 7
    weights = [path for path in net.parameters(DIGIT) if path.endswith("weight") and "shortcut" not in path]
    assert len(weights) == 6 * blocks + 2


@pytest.mark.parametrize("options", [{"width": 0}, {"blocks": 0}], ids=str)
def test_resnet8_refuses_sizes_of_none(options):
    with pytest.raises(xc.XpcnnError, match=next(iter(options))):
        models.resnet8(**options)


@pytest.mark.parametrize("name", models.__all__)
@pytest.mark.parametrize("shape", [DIGIT, CIFAR], ids=str)
def test_every_model_takes_digits_and_small_photos(name, shape):
    net = getattr(models, name)(shape, 10)
    assert net.input_shape == shape
    assert net.output_shape(shape) == (10,)
    assert getattr(models, name)(list(shape), 7) == getattr(models, name)(shape, 7)
    assert getattr(models, name)(shape, 7).output_shape(shape) == (7,)


@pytest.mark.parametrize("name", models.__all__)
def test_every_model_survives_json(name):
    net = getattr(models, name)(CIFAR, 10)
    text = json.dumps(la.to_config(net), allow_nan=False)
    again = la.from_config(json.loads(text))
    assert again == net
    assert again.parameters(CIFAR) == net.parameters(CIFAR)
    assert again.state(CIFAR) == net.state(CIFAR)


SMALL = {
    "simple_convnet": models.simple_convnet(DIGIT, hidden=8),
    "lenet5": models.lenet5(DIGIT),
    "two_conv_net": models.two_conv_net(DIGIT, hidden=8),
    "vgg11": models.vgg11(DIGIT, 10, hidden=16),
    "pooled_convnet": models.pooled_convnet(DIGIT),
    "resnet8": models.resnet8(DIGIT, width=8),
    "resnet20": models.resnet20(DIGIT, 10, blocks=1),
    "resnet18": models.resnet18((1, 8, 8), 10),
    "mobilenet_v2": models.mobilenet_v2((1, 16, 16), 10, width=0.25),
    "densenet_bc": models.densenet_bc(DIGIT, 10, depth=16, growth=4),
}


@pytest.mark.parametrize("name", models.__all__)
def test_every_model_learns_in_float32(name, rng):
    """Three steps of training move every parameter, keep the dtype, and leave numbers."""
    net = SMALL[name]
    model = xc.Model(net, "cpu", seed=2)
    before = model.parameters()
    trainer = xc.Trainer(model, xc.optim.sgd(0.01))
    x, t = rng.integers(0, 256, (8, *net.input_shape)).astype(np.uint8), np.arange(8)
    losses = [float(trainer.step(x, t)) for _ in range(3)]
    assert np.isfinite(losses).all()
    assert {path for path, p in model.parameters().items() if np.array_equal(p, before[path])} == set()
    assert all(p.dtype == np.float32 for p in (model.parameters() | model.state()).values())
    found = model.predict(x)
    assert found.shape == (8, 10)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_resnet20_learns_random_images_by_heart(rng):
    x, t = rng.standard_normal((32, 3, 8, 8)).astype(np.float32), rng.integers(0, 10, 32)
    model = xc.Model(models.resnet20((3, 8, 8), 10, blocks=1), "cpu", seed=0)
    trainer = xc.Trainer(model, xc.optim.sgd(0.1, momentum=0.9))
    losses = [float(trainer.step(x, t)) for _ in range(20)]
    assert losses[0] > 2.0
    assert max(losses[-3:]) < 0.1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: models.simple_convnet((1, 4, 4)), ["layer conv1", "(1, 4, 4)", "(5, 5)"]),
        (lambda: models.simple_convnet((1, 5, 5)), ["layer pool1", "(30, 1, 1)", "(2, 2)"]),
        (lambda: models.two_conv_net((1, 12, 12)), ["layer conv2", "(16, 4, 4)", "(5, 5)"]),
        (lambda: models.lenet5((1, 8, 8)), ["layer conv2", "(6, 4, 4)", "(5, 5)"]),
        (lambda: models.densenet_bc((3, 3, 3), depth=10), ["layer transition2", "layer pool1", "1, 1)", "(2, 2)"]),
        (lambda: models.resnet20((28, 28)), ["layer stem", "layer conv1", "(28, 28)", "(C, H, W)"]),
        (lambda: models.vgg11((28, 28)), ["layer conv1", "(28, 28)", "(C, H, W)"]),
        (lambda: models.mobilenet_v2((3, 32)), ["layer stem", "(3, 32)"]),
        (lambda: models.resnet18((3,)), ["layer stem", "(3,)"]),
        (lambda: models.lenet5((28,)), ["layer conv1", "(28,)"]),
        (lambda: models.resnet18(CIFAR, 0), ["layer affine1", "out", "0"]),
        (lambda: models.simple_convnet(DIGIT, filters=0), ["layer conv1", "filters"]),
    ],
)  # fmt: skip
def test_images_that_do_not_fit_name_the_layer(make, says):
    with pytest.raises(xc.XpcnnError) as caught:
        xc.Model(make(), "cpu")
    for words in says:
        assert words in str(caught.value)


@pytest.mark.parametrize("name", ["vgg11", "resnet20", "resnet18", "mobilenet_v2"])
def test_images_down_to_one_pixel_pass(name):
    assert getattr(models, name)((1, 1, 1), 10).output_shape((1, 1, 1)) == (10,)


def outputs(net, shape):
    return {place.path: place.output_shape for place in la.leaves(net, shape)}


def test_stems_go_by_the_image_unless_they_are_named():
    for make in (models.resnet18, models.mobilenet_v2):
        for size, stem in ((95, "small"), (96, "large"), (32, "small"), (224, "large")):
            assert make((3, size, 300)) == make((3, size, 300), stem=stem)
            assert make((3, 300, size)) == make((3, 300, size), stem=stem)
        assert make(CIFAR, stem="large") != make(CIFAR, stem="small")
        for stem in ("tiny", None, ""):
            with pytest.raises(xc.XpcnnError, match=r"stem.*'auto', 'small' or 'large'"):
                make(CIFAR, stem=stem)


def test_stems_reduce_as_the_papers_tables_say():
    large, small = outputs(models.resnet18(), PHOTO), outputs(models.resnet18(CIFAR), CIFAR)
    assert large["stem/conv1"] == (64, 112, 112)
    assert large["stem/pool1"] == (64, 56, 56)
    ends = [large[f"stage{n}/relu2"] for n in (1, 2, 3, 4)]
    assert ends == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
    assert "stem/pool1" not in small
    ends = [small[f"stage{n}/relu2"] for n in (1, 2, 3, 4)]
    assert ends == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]

    net = models.mobilenet_v2()
    sizes = {place.path: place.output_shape for place in net.children(PHOTO)}
    table = [(32, 112), (16, 112), (24, 56), (32, 28), (64, 14), (96, 14), (160, 7), (320, 7), (1280, 7)]  # table 2
    names = ["stem", *(f"stage{n}" for n in range(1, 8)), "last"]
    assert [sizes[name] for name in names] == [(c, n, n) for c, n in table]
    sizes = {place.path: place.output_shape for place in models.mobilenet_v2(CIFAR).children(CIFAR)}
    assert [sizes[name][1] for name in names] == [32, 32, 32, 16, 8, 8, 4, 4, 4]


def test_other_options_change_what_they_say():
    assert outputs(models.vgg11(), PHOTO)["pool5"] == (512, 7, 7)
    kinds = [type(layer).__name__ for _, layer in models.vgg11(batch_norm=True).layers]
    assert kinds[:4] == ["Conv2D", "BatchNorm", "ReLU", "MaxPool2D"]
    assert kinds.count("BatchNorm") == 8
    assert kinds.count("Dropout") == 2
    for net in (models.vgg11(CIFAR, dropout=0.0), models.mobilenet_v2(CIFAR, dropout=0.0)):
        assert not any(isinstance(place.layer, la.Dropout) for place in la.leaves(net, CIFAR))
    assert [layer.rate for _, layer in models.mobilenet_v2().layers if isinstance(layer, la.Dropout)] == [0.2]
    half = {place.path: place.output_shape for place in models.mobilenet_v2(PHOTO, width=0.5).children(PHOTO)}
    assert [half[name][0] for name in ("stem", "stage1", "stage4", "last")] == [16, 8, 32, 1280]
    third = {place.path: place.output_shape for place in models.mobilenet_v2(PHOTO, width=0.35).children(PHOTO)}
    rounded = [16, 8, 8, 16, 24, 32, 56, 112, 1280]  # 11.2 is rounded up: 8 would be more than a tenth below
    assert [third[name][0] for name in ("stem", *(f"stage{n}" for n in range(1, 8)), "last")] == rounded
    wide = models.mobilenet_v2(PHOTO, width=1.4)
    assert wide.children(PHOTO)[-4].output_shape[0] == 1792
    init = xc.optim.Normal(0.01)
    weights = models.simple_convnet(init=init).parameters(DIGIT)
    assert all(p.initial == init for path, p in weights.items() if path.endswith("weight"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.densenet_bc(depth=41),
        lambda: models.densenet_bc(depth=4),
        lambda: models.densenet_bc(growth=0),
        lambda: models.mobilenet_v2(width=0),
        lambda: models.mobilenet_v2(width=float("nan")),
        lambda: models.resnet20(blocks=0).output_shape(CIFAR),
        lambda: models.resnet20(blocks=1.5).output_shape(CIFAR),
        lambda: models.vgg11(hidden=0).output_shape(CIFAR),
        lambda: models.vgg11(dropout=1.0).output_shape(CIFAR),
        lambda: models.mobilenet_v2(dropout=-1).output_shape(PHOTO),
    ],
)
def test_options_out_of_range_are_refused(make):
    with pytest.raises(xc.XpcnnError):
        make()


@pytest.mark.parametrize(
    ("net", "layers"),
    [(models.resnet20(), 20), (models.resnet20(blocks=5), 32), (models.densenet_bc(depth=40), 40), (models.densenet_bc(), 100), (models.vgg11(), 11), (models.resnet18(), 18)],
)  # fmt: skip
def test_depth_counts_weight_layers(net, layers):
    """Shortcuts' projections are not counted, as in the papers."""
    paths = [path for path in net.parameters(net.input_shape) if path.endswith("weight") and "shortcut" not in path]
    assert len(paths) == layers


def kinds(net, shape, inside=""):
    """Return the classes of the layers under a path, in order."""
    return " ".join(type(p.layer).__name__ for p in la.leaves(net, shape) if p.path.startswith(inside))


def test_blocks_are_the_papers():
    """What no count of parameters shows: activations, poolings and their order."""
    conv, basic = "Conv2D BatchNorm ReLU", "Conv2D BatchNorm ReLU Conv2D BatchNorm"
    net = models.resnet18()
    assert kinds(net, PHOTO, "stem") == f"{conv} MaxPool2D"
    assert dict(net.layers[0][1].layers)["pool1"] == la.MaxPool2D(3, stride=2, padding=1)
    assert kinds(net, PHOTO, "stage1") == f"{basic} Identity ReLU {basic} Identity ReLU"
    assert kinds(net, PHOTO, "stage2") == f"{basic} Conv2D BatchNorm ReLU {basic} Identity ReLU"
    assert kinds(models.resnet20(), CIFAR, "stage2/residual1") == f"{basic} AvgPool2D PadChannels"
    assert kinds(models.resnet20(), CIFAR, "stage2/residual2") == f"{basic} Identity"
    six = "Conv2D BatchNorm ReLU6"
    net = models.mobilenet_v2()
    assert kinds(net, PHOTO, "stage1") == f"{six} Conv2D BatchNorm"
    assert kinds(net, PHOTO, "stage2") == f"{six} {six} Conv2D BatchNorm {six} {six} Conv2D BatchNorm Identity"
    assert kinds(net, PHOTO).split()[-6:] == [*six.split(), "GlobalAvgPool", "Dropout", "Affine"]
    net = models.densenet_bc()
    pre = "BatchNorm ReLU Conv2D"
    assert kinds(net, CIFAR, "dense1/parallel1/") == f"Identity {pre} {pre}"
    assert kinds(net, CIFAR, "transition1") == f"{pre} AvgPool2D"
    assert kinds(net, CIFAR).split()[-4:] == ["BatchNorm", "ReLU", "GlobalAvgPool", "Affine"]
    pooled = "Conv2D ReLU MaxPool2D"
    twice = "Conv2D ReLU Conv2D ReLU MaxPool2D"
    head = "Affine ReLU Dropout Affine ReLU Dropout Affine"
    assert kinds(models.vgg11(), PHOTO) == f"{pooled} {pooled} {twice} {twice} {twice} {head}"
    assert kinds(models.lenet5(), DIGIT) == f"{pooled} {pooled} Affine ReLU Affine ReLU Affine"
