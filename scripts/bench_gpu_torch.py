"""PyTorch's side of `bench_gpu.py`: eager, compiled, compiled with its own graphs, and a whole step as one graph.

The modules are those of `bench_cpu_torch.py`. SGD and AdaGrad are PyTorch's fused ones where it has them for the
device: the fastest that a user can have by one word.
"""

from __future__ import annotations

import bench_cpu_torch
import torch
from bench_gpu_clock import Steps, TorchEvents, Wall, profiled
from torch.nn import functional as F

VERSION = torch.__version__
CHECKED = 3  # updates whose losses are compared
WARM_UP = 3  # before a capture, on a stream beside
COMPILED = {"compile": {}, "reduce-overhead": {"mode": "reduce-overhead"}}


class Training:
    """A PyTorch side, ``mode`` "eager", "compile", "reduce-overhead" or "graph"."""

    note = ""

    def __init__(self, task, data):
        self._task, self._on_gpu = task, task["device"] == "cuda"
        set_precision(task["precision"])
        layout = torch.channels_last if task["channels_last"] else torch.contiguous_format
        threads = {"threads": torch.get_num_threads()}
        self._net = bench_cpu_torch.network(threads, data).train().to(task["device"], memory_format=layout)
        self._optimizer = optimizer(task, self._net)
        self._forward = self._loss
        if task["mode"] in COMPILED:
            self._forward = torch.compile(self._loss, **COMPILED[task["mode"]])
        self._layout = layout
        self._batches = [self._to_device(x, t) for x, t in data["batches"]]
        self._step = self._captured() if task["mode"] == "graph" else self._plain
        self.losses = [float(self._step(number)) for number in range(CHECKED)]
        self._steps = Steps(self._step, TorchEvents() if self._on_gpu else Wall(), task["seconds"])

    def _to_device(self, x, t):
        x = torch.from_numpy(x).to(self._task["device"], memory_format=self._layout)
        return x, torch.from_numpy(t).long().to(self._task["device"])

    def _loss(self, x, t):
        with torch.autocast(self._task["device"], torch.bfloat16, enabled=self._task["precision"] == "bf16"):
            return F.cross_entropy(self._net(bench_cpu_torch.floats(x)), t)

    def _update(self, x, t):
        self._optimizer.zero_grad()
        loss = self._forward(x, t)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def _plain(self, number):
        if self._task["mode"] == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        return self._update(*self._batches[number % len(self._batches)])

    def _captured(self):
        """Return a step that copies a batch to where the graph reads it, and replays the graph."""
        static = [part.clone() for part in self._batches[0]]
        replay, loss = (
            self._graph(static) if self._on_gpu else (lambda: loss.copy_(self._update(*static)), torch.zeros(()))
        )

        def step(number):
            for target, source in zip(static, self._batches[number % len(self._batches)], strict=True):
                target.copy_(source)
            replay()
            return loss

        return step

    def _no_graph(self, static):
        """Return what looks like a graph, where there is no GPU."""
        loss = torch.zeros(())
        return lambda: loss.copy_(self._update(*static)), loss

    def _graph(self, static):
        """Warm up on a stream beside, put everything back as it was, capture; return the replay and the loss."""
        kept = {name: value.clone() for name, value in self._net.state_dict().items()}
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self._update(*static)
        torch.cuda.current_stream().wait_stream(beside)
        with torch.no_grad():
            for name, value in self._net.state_dict().items():
                value.copy_(kept[name])
            for moments in self._optimizer.state.values():
                for moment in moments.values():
                    if torch.is_tensor(moment):
                        moment.zero_()
        self._optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self._update(*static)
        return graph.replay, loss

    def measure(self):
        """Return the milliseconds of a step."""
        return self._steps.measure()

    def kernels(self):
        """Return what a step starts, or nothing where that cannot be seen."""
        try:
            return profiled(lambda: self._step(0)) if self._on_gpu else {}
        except RuntimeError as error:
            return {"unknown": str(error)}


def set_precision(precision):
    """Allow TF32, or do not, and let cuDNN look for the fastest algorithms."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True


def optimizer(task, net):
    """Return the network's optimizer, fused where there is one for the device."""
    options = {"eps": 1e-7} if task["adagrad"] else {"momentum": 0.9}
    rule = torch.optim.Adagrad if task["adagrad"] else torch.optim.SGD
    fused = {"fused": True} if task["device"] == "cuda" and has_fused(rule) else {}
    return rule(net.parameters(), lr=task["lr"], **options, **fused)


def has_fused(rule):
    """Whether a rule can be fused on CUDA in this version of PyTorch."""
    trial = torch.nn.Parameter(torch.zeros(4, device="cuda"))
    trial.grad = torch.zeros_like(trial)
    try:
        rule([trial], lr=0.1, fused=True).step()
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True


def library():
    """Return the versions of what computes."""
    return f"torch {VERSION}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
