"""Weights of PyTorch: the same networks compute the same here, from files that safetensors.torch wrote."""

from __future__ import annotations

import numpy as np
import pytest

import xpcnn as xc
from xpcnn import layers as la
from xpcnn import models

torch = pytest.importorskip("torch")
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

torch.set_num_threads(1)


class Block(nn.Module):
    """The basic block, with the names that torchvision gives."""

    def __init__(self, channels, filters, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet18(nn.Module):
    """The 18-layer network for small images."""

    def __init__(self, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for number, filters in enumerate((64, 128, 256, 512), start=1):
            blocks = [Block(channels, filters, min(number, 2)), Block(filters, filters, 1)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
            channels = filters
        self.fc = nn.Linear(512, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def resnet_names(name):
    """Return the path here of an array of that network."""
    if name.startswith("layer"):
        stage, block, inner = name.removeprefix("layer").split(".", 2)
        part = inner.replace("downsample.0", "shortcut.conv1").replace("downsample.1", "shortcut.norm1")
        part = part if part.startswith("shortcut") else f"body.{part.replace('bn', 'norm')}"
        return f"stage{stage}.residual{int(block) + 1}.{part}"
    return name.replace("fc", "affine1") if name.startswith("fc") else f"stem/{name.replace('bn', 'norm')}"


class Various(nn.Module):
    """Convolutions of every kind, with the names that the network here has."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 6, 3, 2, 1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False)
        self.conv3 = nn.Conv2d(12, 8, 1)
        self.norm2 = nn.GroupNorm(4, 8)
        self.up = nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1, groups=2)
        self.norm3 = nn.LayerNorm([6, 8, 10])
        self.affine1 = nn.Linear(480, 7)
        self.norm4 = nn.BatchNorm1d(7)
        self.affine2 = nn.Linear(7, 7, bias=False)

    def forward(self, x):
        x = self.norm2(self.conv3(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return self.affine2(self.norm4(self.affine1(self.norm3(self.up(x)).flatten(1))))


VARIOUS = la.Sequential(
    la.Conv2D(6, 3, 2, 1), la.BatchNorm(), la.ReLU(), la.Conv2D(12, 3, padding=1, groups=6, bias=False),
    la.Conv2D(8, 1), la.GroupNorm(4), ("up", la.ConvTranspose2D(6, 3, 2, 1, output_padding=1, groups=2)),
    la.LayerNorm(), la.Affine(7), la.BatchNorm(), la.Affine(7, bias=False), input_shape=(4, 7, 9),
)  # fmt: skip
CONVNET = models.simple_convnet((1, 12, 11), 5, filters=4, hidden=6)


def convnet():
    return nn.Sequential(
        nn.Conv2d(1, 4, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 4 * 3, 6),
        nn.ReLU(),
        nn.Linear(6, 5),
    )


def deep():
    return nn.Sequential(*(layer for _ in range(6) for layer in (nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2))))


def one():
    return nn.Sequential(nn.Linear(5, 3))


NETWORKS = {  # the module, the network here, the map of names
    "convnet": (convnet, CONVNET, None),
    "various": (Various, VARIOUS, None),
    "resnet18": (lambda: ResNet18(5), models.resnet18((3, 9, 8), 5), resnet_names),
    "deep": (
        deep,
        la.Sequential(
            *(c for _ in range(6) for c in (la.Conv2D(2, 3, padding=1), la.BatchNorm())), input_shape=(2, 5, 4)
        ),
        None,
    ),
    "one": (one, la.Affine(3), None),
}


def drawn(make, seed=5):
    """Return a module in evaluation with arrays that no default hides behind."""
    torch.manual_seed(seed)
    module = make().eval()
    with torch.no_grad():
        for name, array in module.state_dict().items():
            if array.dtype == torch.float32 and array.ndim < 2:
                array.copy_(0.5 + torch.rand_like(array) if "var" in name else 0.3 * torch.randn_like(array) + 0.5)
    return module


def compare(module, model, tolerance=1e-5):
    x = np.random.default_rng(1).standard_normal((3, *model.input_shape)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    before = xc.Model(model.net, "cpu", input_shape=model.input_shape).predict(x)
    assert np.abs(before - expected).max() > 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(model.predict(x), expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_safetensors_file_of_a_state_dict(name, tmp_path):
    make, net, names = NETWORKS[name]
    module = drawn(make)
    save_file(module.state_dict(), tmp_path / "theirs.safetensors")
    model = xc.Model(net, "cpu", input_shape=getattr(net, "input_shape", None) or (5,))
    model.load_parameters(
        str(tmp_path / "theirs.safetensors"), layout="pytorch" if name == "one" else None, names=names
    )
    compare(module, model)


def test_a_state_dict_itself_also_of_parameters_that_are_trained():
    module = drawn(convnet)
    for given in (module.state_dict(), dict(module.named_parameters())):
        model = xc.Model(CONVNET, "cpu")
        model.load_parameters(given, layout="pytorch")
        compare(module, model)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float64, 1e-6)])
def test_other_floats_are_converted(kind, tolerance, tmp_path):
    module = drawn(convnet)
    narrow = {name: array.to(kind) for name, array in module.state_dict().items()}
    save_file(narrow, tmp_path / "m.safetensors")
    for given in (narrow, tmp_path / "m.safetensors"):
        model = xc.Model(CONVNET, "cpu")
        model.load_parameters(given, layout="pytorch")
        compare(module, model, tolerance)
        found = model.backend.to_numpy(model.parameters()["affine2/bias"])
        np.testing.assert_array_equal(found, narrow["6.bias"].float().numpy())


def test_what_a_numberless_order_would_have_to_tell_is_refused(tmp_path):
    save_file(ResNet18(5).state_dict(), tmp_path / "m.safetensors")
    model = xc.Model(models.resnet18((3, 9, 8), 5), "cpu")
    with pytest.raises(xc.XpcnnError, match="say with names= what is what") as caught:
        model.load_parameters(tmp_path / "m.safetensors")
    table = str(caught.value)
    for layer in ("bn1", "layer1.0.bn1", "layer2.0.downsample.1"):
        assert f"\n  {layer}: " in table
    assert "layer1.0.conv1" not in table


def test_integers_are_refused_after_all_else_fits(tmp_path):
    arrays = drawn(convnet).state_dict()
    arrays["6.bias"] = torch.arange(5)
    save_file(arrays, tmp_path / "m.safetensors")
    with pytest.raises(xc.DataError, match=r"must hold floats .*, but 6\.bias is I64"):
        xc.Model(CONVNET, "cpu").load_parameters(tmp_path / "m.safetensors")
    with pytest.raises(xc.XpcnnError, match=r"must be floats, but 6\.bias is int64"):
        xc.Model(CONVNET, "cpu").load_parameters(arrays, layout="pytorch")


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "pkl"])
def test_pickles_are_refused_with_a_sentence_that_works(suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = drawn(convnet)
    torch.save(module.state_dict(), f"theirs.{suffix}")
    model = xc.Model(CONVNET, "cpu")
    with pytest.raises(xc.DataError, match="is a pickle, or named like one") as caught:
        model.load_parameters(f"theirs.{suffix}")
    exec(str(caught.value).partition("comes from: ")[2].removesuffix("."))  # what it says, done
    model.load_parameters("weights.safetensors")
    compare(module, model)


def test_pickles_with_another_name_are_refused_too(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "m.safetensors")  # a zip archive
    torch.save({"a": torch.ones(2)}, tmp_path / "n.weights.h5", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        with pytest.raises(xc.DataError, match="is a pickle"):
            xc.Model(CONVNET, "cpu").load_parameters(path)
