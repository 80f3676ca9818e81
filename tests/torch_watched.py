"""What PyTorch's autograd gives at every layer of a mirrored network: outputs, and the gradients that reach them."""

from __future__ import annotations

import numpy as np
import torch
import torch_mirror

from xpcnn.layers.base import leaves


def watch(monkeypatch, net, shape, params, state, x, dy, *, train=False):
    """Return (outputs, gradients, dx) as float64 host arrays, the first two by path; ``dy`` is of y or made from it."""
    seen = []
    plain = torch_mirror.run

    def run(layer, params, state, x, *, train=False):
        y = plain(layer, params, state, x, train=train)
        if not any(hasattr(layer, held) for held in ("named_branches", "layers", "nodes")):
            y = y.clone()  # what passes its input on has a gradient of its own, too
            seen.append(y)
        return y

    start = torch.tensor(np.asarray(x, dtype=np.float64), requires_grad=True)
    own = {path: torch.tensor(np.asarray(value, dtype=np.float64)) for path, value in params.items()}
    kept = {path: torch.tensor(np.asarray(value, dtype=np.float64)) for path, value in state.items()}
    with monkeypatch.context() as patch:
        patch.setattr(torch_mirror, "run", run)
        y = run(net, own, kept, start, train=train)
    upstream = torch.tensor(np.asarray(dy(y.detach().numpy()) if callable(dy) else dy, dtype=np.float64))
    dx, *gradients = (g.numpy() for g in torch.autograd.grad(y, [start, *seen], upstream))
    paths = [placed.path for placed in leaves(net, shape)]
    outputs = dict(zip(paths, (tensor.detach().numpy() for tensor in seen), strict=True))
    return outputs, dict(zip(paths, gradients, strict=True)), dx
