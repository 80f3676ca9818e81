"""The least that classifies a picture with PyTorch, for `bench_cpu.py` to time: give it STATE and IMAGE."""

import sys

import numpy as np
import torch
from PIL import Image
from torch import nn


def network():
    """Return xpcnn's simple_convnet as PyTorch modules."""
    features = nn.Conv2d(1, 30, 5), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(4320, 100), nn.ReLU(), nn.Linear(100, 10))


def main(state, image):
    """Print the class of a picture."""
    net = network()
    net.load_state_dict(torch.load(state, weights_only=True))
    net.eval()
    pixels = np.asarray(Image.open(image).convert("L"))
    with torch.inference_mode():
        print(int(net(torch.tensor(pixels)[None, None] * (1 / 255)).argmax()))


if __name__ == "__main__":
    main(*sys.argv[1:])
