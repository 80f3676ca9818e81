"""The parts of `bench_gpu.py`: what each starts, in processes of its own, and what it keeps of what they found."""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from bench_cpu import THREADS
from bench_cpu_tables import difference
from bench_gpu_process import HERE, Worker, WorkError, run
from bench_gpu_tables import side_result, sides_table

PEERS = {"torch": "eager", "compile": "compile", "reduce-overhead": "reduce-overhead", "graph": "graph", "jax": "jit"}
FACTS = ("products", "cudnn", "pool", "training")
BATCHES = {"simple_convnet": 100, "lenet5": 100, "resnet20": 512, "resnet18": 512}
ADAGRAD = ("simple_convnet", "lenet5")  # the others have SGD with momentum
LARGE = ("resnet20", "resnet18")
OF_DATA_SET = {100: 600, 512: 20}  # batches in it
LR = 0.01
GOALS = (  # network, optimizer, learning rate falling to 0, images in a batch, epochs
    ("two_conv_net", "adam", 0.002, 100, 5),
    ("simple_convnet", "sgd", 0.05, 100, 12),
)
TOLERANCE = {"float32": 1e-3, "tf32": 2e-2, "bf16": 1e-1}  # of the first losses
READY, ANSWER, RUN = 240.0, 60.0, 120.0  # seconds that a process may take to warm up, to answer, and in all


@dataclass
class Bench:
    """A run: what was asked for, until when, what has been found."""

    options: argparse.Namespace
    folder: Path
    end: float
    found: dict = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def device(self):
        """Where it runs."""
        return "cpu" if self.options.dry_run else "cuda"

    def environment(self, **more):
        """Return the environment of the processes; in a dry run they share few cores, and take one thread each."""
        threads = dict.fromkeys(THREADS, "1") if self.options.dry_run else {}
        return environment(**threads, **more)

    def left(self, limit):
        """Return how many seconds something may take."""
        return max(0.0, min(limit, self.end - time.monotonic()))

    def fault(self, what, error):
        """Note and say that something failed."""
        self.faults.append(f"{what}: {error}")
        self.found.setdefault("tails", {})[what] = error.tail
        print(f"  FAILED {what}: {error}", flush=True)

    def leave_out(self, what, why="no time is left"):
        """Note and say that something was not measured."""
        self.found.setdefault("left_out", []).append(f"{what}: {why}")
        print(f"  left out: {what}: {why}", flush=True)


def environment(**more):
    """Return the environment of the processes."""
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    chosen = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    chosen.pop("CUPY_TF32", None)
    return chosen | more


def once(bench, what, limit=RUN, **task):
    """Do a task in a process of its own; return what it found, or None and note the fault."""
    if not bench.left(limit):
        return bench.leave_out(what)
    worker = Worker(task | {"device": bench.device}, bench.environment())
    try:
        return worker.answer(bench.left(limit))
    except WorkError as error:
        return bench.fault(what, error)
    finally:
        worker.close()


def facts(bench):
    """Try the facts."""
    found = bench.found["facts"] = {}
    for name in FACTS:
        found[name] = once(bench, f"fact {name}", work="fact", fact=name)
        if found[name]:
            holds = {True: "holds", False: "DOES NOT HOLD", None: "?"}[found[name]["holds"]]
            print(f"  {name:<12}{holds:<15}{found[name]['said']}", flush=True)
            if found[name]["holds"] is False:
                bench.faults.append(f"fact {name} does not hold: {found[name]['said']}")


def gradients(bench):
    """Compare gradients with float64's."""
    found = bench.found["gradients"] = []
    for network, batch in (("simple_convnet", 100), ("resnet20", 64)):
        batch = 4 if bench.options.dry_run else batch
        result = once(bench, f"gradients of {network}", work="gradients", network=network, batch=batch)
        if result:
            found.append({"network": network, "batch": batch} | result)
            largest = ", ".join(f"{name} {error:.1e}" for name, error in result["largest"].items())
            print(f"  {network}, batch {batch}: largest relative error in float32: {largest}", flush=True)


def steps(bench):
    """Time single steps of every network."""
    bench.found["step"] = []
    sides = {"xpcnn": ("xpcnn", "captured", "auto"), "xpcnn eager": ("xpcnn", "eager", "auto")}
    sides |= {
        f"{'jax' if peer == 'jax' else 'torch'} {PEERS[peer]}": ("jax" if peer == "jax" else "torch", PEERS[peer], "")
        for peer in bench.options.peers
    }
    for network in bench.options.networks:
        table(bench, "step", network, "float32", sides, False)


def images(bench):
    """Time the large networks at every precision, by every engine."""
    bench.found["images"] = []
    sides = {"xpcnn": ("xpcnn", "captured", "auto"), "xpcnn im2col": ("xpcnn", "captured", "im2col")}
    if find_spec("cudnn") and not bench.options.dry_run:
        sides["xpcnn cudnn"] = ("xpcnn", "captured", "cudnn")
    else:
        bench.leave_out("xpcnn by cuDNN", "nvidia-cudnn-frontend is not installed, or this is a dry run")
    for peer in ("torch", "compile"):
        if peer in bench.options.peers:
            sides[f"torch {PEERS[peer]}"] = ("torch", PEERS[peer], "")
    for precision in bench.options.precisions:
        own = {side: how for side, how in sides.items() if precision != "float32" or side != "xpcnn cudnn"}  # has none
        if bench.options.dry_run and precision != "float32" and not (precision == "bf16" and find_spec("torch")):
            bench.leave_out(f"images at {precision}", "this CPU has none")
            continue
        for network in LARGE if not bench.options.quick or not bench.options.dry_run else LARGE[:1]:
            table(bench, "images", network, precision, own, True)


def table(bench, part, network, precision, sides, channels_last):
    """Measure all sides of one network at one precision, and print them."""
    what = f"{part} {network} {precision}"
    data = bench.folder / f"{network}.npz"
    if not bench.left(1.0):
        bench.leave_out(what)
        return
    batch, batches = BATCHES[network], OF_DATA_SET[BATCHES[network]]
    if bench.options.dry_run:
        batch, batches = 4, 4
    task = {"network": network, "batch": batch, "precision": precision, "channels_last": channels_last}
    task |= {"data": str(data), "lr": LR, "adagrad": network in ADAGRAD}
    if not data.exists():
        making = {"work": "prepare", "batches": batches, "target": str(data)}
        if once(bench, f"data of {network}", **task | making) is None:
            return
    result = task | {"sides": take_turns(bench, what, task, sides)}
    result["difference"] = compare(bench, what, precision, result["sides"])
    bench.found[part].append(result)
    print("\n".join(sides_table(f"{network}, batch {batch}, {precision}", result)), flush=True)


def take_turns(bench, what, task, sides):
    """Start a process for every side, and let those that get ready measure in turn; return what each found."""
    workers, ready, rounds, kernels = {}, {}, {}, {}
    for side, (library, mode, engine) in sides.items():
        stand_in = bench.options.dry_run and library == "xpcnn" and task["precision"] == "bf16"  # NumPy has no bf16
        own = {"work": "step", "library": library, "mode": mode, "engine": engine}
        own["device"] = "torch" if stand_in else bench.device
        workers[side] = Worker(task | own | {"seconds": bench.options.seconds}, bench.environment())

    def ask(side, word, limit):
        if side not in workers:
            return None
        try:
            if word:
                workers[side].tell(word)
            return workers[side].answer(bench.left(limit))
        except WorkError as error:
            bench.fault(f"{what}, {side}", error)
            workers.pop(side).close()
            return None

    try:
        ready = {side: ask(side, "", READY) for side in sides}
        for _ in range(bench.options.rounds):
            for side in sides:
                if (run := ask(side, "measure", ANSWER)) is not None:
                    rounds.setdefault(side, []).append(run)
        kernels = {side: ask(side, "kernels", ANSWER) or {} for side in list(rounds)}
    finally:
        for worker in workers.values():
            worker.close()
    return {side: side_result(ready[side], found, kernels[side], task["batch"]) for side, found in rounds.items()}


def compare(bench, what, precision, sides):
    """Return the largest relative difference of the sides' first losses to the first side's; note a large one."""
    first = next(iter(sides.values()), None)
    worst = {side: difference(found["losses"], first["losses"]) for side, found in sides.items()}
    for side, apart in worst.items():
        if apart > TOLERANCE[precision]:
            bench.faults.append(f"{what}: {side}'s first losses differ from {next(iter(sides))}'s by {apart:.1e}")
    return max(worst.values(), default=None)


def seed(bench):
    """Run the book's experiment, and a first step, from an empty and from a filled kernel cache."""
    found = bench.found["seed"] = {"start": {}}
    for attempt in ("cold", "warm"):
        begun = cached_start(bench)
        if begun:
            found["start"][attempt] = begun
            print(f"  {attempt} start: " + ", ".join(f"{name} {at} s" for name, at in begun.items() if at), flush=True)
    for attempt in ("cold", "warm"):
        done = trained(bench, attempt)
        if done:
            found[attempt] = done
            said = "wall {wall_s:.2f} s, training and accuracies {training_s:.2f} s, test accuracy {test_accuracy:.4f}"
            print(f"  {attempt} run of {done['epochs']} epochs: {said.format(**done)}", flush=True)


def caches(bench, name):
    """Return an environment whose kernel caches are in a folder of their own, empty at first."""
    folder = bench.folder / name
    return bench.environment(CUPY_CACHE_DIR=str(folder / "cupy"), CUDA_CACHE_PATH=str(folder / "cuda"))


def cached_start(bench):
    """Return when a process that has just been started reached each stage of its first training."""
    if not bench.left(RUN):
        return bench.leave_out("a start")
    task = {"work": "start", "device": bench.device, "data_dir": data_dir(bench), "begun": time.time()}
    worker = Worker(task, caches(bench, "caches-of-start"))
    try:
        return worker.answer(bench.left(RUN))
    except WorkError as error:
        return bench.fault("the first step", error)
    finally:
        worker.close()


def trained(bench, attempt):
    """Return what came of ``xpcnn train``."""
    if not bench.left(RUN):
        return bench.leave_out(f"the {attempt} run")
    out = bench.folder / f"run-{attempt}"
    command = [sys.executable, "-m", "xpcnn", "train", "--device", bench.device, "--quiet", "--out", str(out)]
    if bench.options.dry_run:
        command += ["--epochs", "1", "--data-dir", data_dir(bench)]
    try:
        done = run(command, caches(bench, "caches-of-run"), bench.left(RUN))
    except WorkError as error:
        return bench.fault(f"the {attempt} run", error)
    lines = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    epochs = [record for record in lines if "epoch" in record]
    found = {"wall_s": done["seconds"], "training_s": sum(record["seconds"] for record in epochs)}
    found |= {"steps_s": sum(60000 / record["images_per_second"] for record in epochs[1:]), "epochs": len(epochs) - 1}
    return found | {"test_accuracy": epochs[-1]["test_accuracy"], "records": epochs}


def data_dir(bench):
    """Return nothing, for the MNIST that xpcnn brings along; in a dry run a folder with a few of its images."""
    if not bench.options.dry_run:
        return None
    folder = bench.folder / "tiny"
    if not folder.exists():
        import numpy as np

        folder.mkdir()
        rng = np.random.default_rng(0)
        for part, images in (("train", 200), ("t10k", 50)):
            for name, shape in (("images-idx3", (images, 28, 28)), ("labels-idx1", (images,))):
                head = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
                values = rng.integers(0, 256 if len(shape) == 3 else 10, shape, np.uint8)
                (folder / f"{part}-{name}-ubyte").write_bytes(head + values.tobytes())
    return str(folder)


def goals(bench):
    """Train to 99 % of the test images."""
    found = bench.found["goal"] = []
    for network, optimizer, lr, batch, epochs in GOALS:
        task = {"network": network, "optimizer": optimizer, "lr": lr, "batch": batch, "epochs": epochs}
        task |= {"accuracy": 0.99, "seeds": [0] if bench.options.quick else [0, 1, 2], "data_dir": data_dir(bench)}
        if bench.options.dry_run:
            task |= {"epochs": 1, "seeds": [0]}
        result = once(bench, f"{network} to 99 %", work="goal", **task)
        if result:
            found.append(task | result)
            text = f"  {network}, {optimizer} from {lr:g}, batch {batch}, at most {epochs} epochs: "
            print(text + ", ".join(map(goal_text, result["runs"])), flush=True)


def goal_text(run):
    """Return one run's outcome."""
    reached = f"in {run['epochs']} epochs" if run["reached"] else "NOT REACHED"
    return f"{100 * run['test_accuracy']:.2f} % {reached}, {run['seconds']:.2f} s"


MEASURES = {"facts": facts, "gradients": gradients, "step": steps, "seed": seed, "images": images, "goal": goals}
