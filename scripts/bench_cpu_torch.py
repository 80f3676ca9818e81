"""PyTorch's side of `bench_cpu.py`: a network built from xpcnn's description, eager or compiled.

The modules are those a PyTorch user would write (activations in place, as torchvision has them) and are named as
xpcnn's layers are, so that weights go over path by path. xpcnn is not imported: its memory is not PyTorch's.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

NAMES = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}  # xpcnn's -> PyTorch's
VERSION = torch.__version__


class Affine(nn.Linear):
    """A fully connected layer that flattens its input, as xpcnn's does."""

    def forward(self, x):
        """Multiply a batch."""
        return super().forward(x.flatten(1))


class Residual(nn.Module):
    """The sum of two branches."""

    def __init__(self, body, shortcut):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x):
        """Add the branches up."""
        return self.body(x) + self.shortcut(x)


class Subsample(nn.Module):
    """Every n-th pixel: an average pooling of single pixels."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        """Take the pixels."""
        return x[:, :, :: self.stride, :: self.stride]


class PadChannels(nn.Module):
    """Channels of zeros after those there are."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        """Add the channels."""
        return F.pad(x, (0, 0, 0, 0, 0, self.channels - x.shape[1]))


def build(config, values, path=""):
    """Return the module of a layer's description; widths are read off the weights' shapes."""
    kind = config["type"]
    if kind == "Sequential":
        net = nn.Sequential()
        for name, layer in config["layers"]:
            net.add_module(name, build(layer, values, f"{path}{name}/"))
        return net
    if kind == "Residual":
        return Residual(*(build(config[name], values, f"{path}{name}/") for name in ("body", "shortcut")))
    if kind == "Conv2D":
        filters, channels = values[f"{path}weight"].shape[:2]
        options = {name: config[name] for name in ("stride", "padding", "dilation", "groups", "bias")}
        return nn.Conv2d(channels * config["groups"], filters, config["kernel_size"], **options)
    if kind == "BatchNorm":
        return nn.BatchNorm2d(len(values[f"{path}gamma"]), eps=config["eps"], momentum=config["momentum"])
    if kind == "Affine":
        return Affine(*values[f"{path}weight"].shape, bias=config["bias"])
    return PLAIN[kind](config)


PLAIN = {  # what holds no weights, with the options that the four networks use
    "ReLU": lambda config: nn.ReLU(inplace=True),
    "ReLU6": lambda config: nn.ReLU6(inplace=True),
    "MaxPool2D": lambda config: nn.MaxPool2d(config["kernel_size"], config["stride"]),
    "AvgPool2D": lambda config: Subsample(config["stride"]),
    "PadChannels": lambda config: PadChannels(config["channels"]),
    "GlobalAvgPool": lambda config: nn.AdaptiveAvgPool2d(1),
    "Identity": lambda config: nn.Identity(),
}


def network(task, data):
    """Return the network with its weights."""
    torch.set_num_threads(task["threads"])
    net = build(data["config"], data["values"])
    places = dict(net.named_parameters()) | dict(net.named_buffers())
    used = set()
    with torch.no_grad():
        for path, value in data["values"].items():
            *owner, name = path.split("/")
            place = ".".join((*owner, NAMES.get(name, name)))
            places[place].copy_(torch.from_numpy(value.T if "affine" in path and value.ndim == 2 else value))
            used.add(place)
    if left := [name for name in places if name not in used and not name.endswith("num_batches_tracked")]:
        raise SystemExit(f"no weights for {', '.join(left)}")
    return net


def floats(x):
    """Return images as floats: bytes are scaled to 0..1."""
    return x * (1 / 255) if x.dtype == torch.uint8 else x


def training(task, data):
    """Return a function that makes the update of a given number and returns its loss."""
    net = network(task, data).train()
    if task["adagrad"]:
        optimizer = torch.optim.Adagrad(net.parameters(), lr=task["lr"], eps=1e-7)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=task["lr"], momentum=0.9)
    batches = [(torch.from_numpy(x), torch.from_numpy(t).long()) for x, t in data["batches"]]

    def loss_of(x, t):
        return F.cross_entropy(net(floats(x)), t)

    forward = torch.compile(loss_of) if task["side"] == "compile" else loss_of

    def step(number):
        optimizer.zero_grad()
        loss = forward(*batches[number % len(batches)])
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def prediction(task, data):
    """Return a function from nothing to the logits of the task's images."""
    net = network(task, data).eval()
    x = torch.from_numpy(data["images"])

    def logits(x):
        return net(floats(x))

    forward = torch.compile(logits) if task["side"] == "compile" else logits

    def predict():
        with torch.inference_mode():
            return forward(x)

    return predict


def convolution(task, x, weight, bias, dy, options):
    """Return a function that convolves, and one that returns the gradients of x, weight and bias."""
    torch.set_num_threads(task["threads"])
    inputs = [torch.from_numpy(value) for value in (x, weight, bias)]
    trained = [value.clone().requires_grad_() for value in inputs]
    y, dy = F.conv2d(*trained, **options), torch.from_numpy(dy)

    def forward():
        with torch.inference_mode():
            return F.conv2d(*inputs, **options)

    return forward, lambda: torch.autograd.grad(y, trained, dy, retain_graph=True)


def prepare_start(task, data):
    """Write the state dict that `bench_cpu_predict.py` reads."""
    from bench_cpu_predict import network as minimal

    net = minimal()
    with torch.no_grad():
        for place, value in zip(net.parameters(), data["values"].values(), strict=True):
            place.copy_(torch.from_numpy(value.T if value.ndim == 2 else value))
    torch.save(net.state_dict(), task["target"])
