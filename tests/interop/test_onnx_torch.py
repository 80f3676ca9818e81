"""A network as PyTorch exports it: with shapes computed, normalisations taken apart, activations written out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import xpcnn as xc

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from torch import nn  # noqa: E402


class ChannelNorm(nn.Module):
    """ConvNeXt's layer normalisation of images' channels."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Excitation(nn.Module):
    """MobileNetV3's."""

    def __init__(self, channels):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        gate = nn.functional.relu(self.reduce(nn.functional.adaptive_avg_pool2d(x, 1)))
        return x * nn.functional.hardsigmoid(self.expand(gate))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        norm = nn.BatchNorm2d(8)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        conv = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.stem = nn.Sequential(conv, norm, nn.Hardswish(), nn.MaxPool2d(2, ceil_mode=True))
        self.excite, self.norm, self.group = Excitation(8), ChannelNorm(8), nn.GroupNorm(2, 8)
        self.instance, self.pool, self.larger = (
            nn.InstanceNorm2d(8, affine=True),
            nn.AvgPool2d(2),
            nn.Upsample(scale_factor=2),
        )
        self.spread = nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1, groups=2)
        self.head, self.drop = nn.Linear(16, 10), nn.Dropout()

    def forward(self, x):
        x = self.stem(x)
        x = self.norm(self.excite(x) + x)
        x = nn.functional.gelu(x) * 0.5 + nn.functional.gelu(x, approximate="tanh")
        x = nn.functional.silu(self.instance(self.group(x)))
        y = self.larger(self.pool(x))
        x = torch.cat([nn.functional.elu(y), nn.functional.leaky_relu(self.spread(self.pool(x)), 0.2)], dim=1)
        x = nn.functional.relu6(nn.functional.softplus(x))
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        return nn.functional.log_softmax(self.head(self.drop(x)), dim=1)


@pytest.mark.parametrize("version", [17, 20])
def test_what_pytorch_exports_computes_what_pytorch_does(version, tmp_path):
    torch.manual_seed(3)
    net, x = Network().eval(), torch.randn(3, 3, 32, 32)
    options = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}, "opset_version": version, "dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, about newer ways to export
        torch.onnx.export(net, (x,), str(tmp_path / "m.onnx"), **options)
    model = xc.Model.from_onnx(tmp_path / "m.onnx", "cpu")
    expected = net(x).detach().numpy()
    np.testing.assert_allclose(model.predict(x.numpy()), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    layers = {name: type(layer).__name__ for name, layer, _ in model.net.nodes}
    assert layers["stem.stem.2.HardSwish"] == "HardSwish"
    assert layers["norm.norm.LayerNormalization"] == "LayerNorm"
    assert list(layers.values()).count("GELU") == 2
    assert layers["head.Gemm"] == "Affine"
