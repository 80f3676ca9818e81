"""``xpcnn train``."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import click

from xpcnn import models, optim
from xpcnn.backend import resolve_backend
from xpcnn.cli.common import MODELS, data_dir_option, device_option, precision_option, threads_option
from xpcnn.data import load_dataset
from xpcnn.data.dataset import CLASSES
from xpcnn.errors import XpcnnError
from xpcnn.layers.precision import CONV_ENGINES
from xpcnn.model import DTYPES, Model
from xpcnn.report import draw_curves
from xpcnn.training import Epoch, Trainer
from xpcnn.training.run import CURVES, METRICS, MODEL, Run
from xpcnn.training.trainer import CAPTURE

OPTIMIZERS: dict[str, tuple[Callable[[float], optim.Optimizer], float]] = {  # and each one's usual lr
    "adagrad": (optim.adagrad, 0.06),
    "adam": (optim.adam, 0.001),
    "sgd": (lambda lr: optim.sgd(lr, momentum=0.9), 0.05),
}
EVERY = 10  # updates between two movements of the progress bar


@click.command("train")
@click.option("--model", type=click.Choice(MODELS), default="simple-convnet", show_default=True)
@click.option("--dataset", type=click.Choice(list(CLASSES)), default="mnist", show_default=True)
@data_dir_option
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True, help="Passes over the data.")
@click.option("--batch-size", type=click.IntRange(1), default=100, show_default=True, help="Images per update.")
@click.option(
    "--optimizer", type=click.Choice(list(OPTIMIZERS)), default="adagrad", show_default=True,
    help="sgd has momentum 0.9.",
)  # fmt: skip
@click.option("--lr", type=float, help="Learning rate.  [default: adagrad 0.06, adam 0.001, sgd 0.05]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights and order.")
@device_option
@threads_option
@click.option(
    "--max-memory", metavar="SIZE",
    help="Most memory for a step, such as 300MB or 2GiB, beside program and data: larger batches are computed in "
    "tiles, with the same result.",
)  # fmt: skip
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
@precision_option
@click.option(
    "--conv-engine", type=click.Choice(CONV_ENGINES), default="auto", show_default=True,
    help="What convolves on CUDA; auto takes cuDNN for tf32 and bf16, where it is installed.",
)  # fmt: skip
@click.option(
    "--capture", type=click.Choice(CAPTURE), default="auto", show_default=True,
    help="Whether CUDA records a step as a graph and replays it, with the same result.",
)  # fmt: skip
@click.option("--out", type=click.Path(), help="The run's directory.  [default: runs/<time>-<model>-<dataset>]")
@click.option("--quiet", is_flag=True, help="Print the run's directory and nothing else.")
def train_command(**options: Any) -> int:
    """Train a network; without options, the book's experiment on MNIST."""
    quiet, out = options.pop("quiet"), options.pop("out")
    optimizer, usual_lr = OPTIMIZERS[options["optimizer"]]
    options["lr"] = usual_lr if options["lr"] is None else options["lr"]
    update = optimizer(options["lr"])
    backend = resolve_backend(options["device"])
    train, test = load_dataset(options["dataset"], options["data_dir"])
    if options["data_dir"]:
        options["data_dir"] = os.path.abspath(options["data_dir"])  # for `evaluate` from another directory
    net = getattr(models, options["model"].replace("-", "_"))(train.images.shape[1:], len(train.classes))
    model = Model(
        net, backend, options["seed"], dtype=options["dtype"], classes=train.classes, dataset=options["dataset"],
        precision=options["precision"], conv_engine=options["conv_engine"],
    )  # fmt: skip
    trainer = Trainer(model, update, max_memory=options["max_memory"], capture=options["capture"])
    plan = trainer.plan(min(options["batch_size"], len(train))) if trainer.max_memory else None
    run = Run.create(out, options, model)
    view = (_Silent if quiet else _Bar if sys.stdout and sys.stdout.isatty() else _Lines)(options["epochs"], len(train))
    heading = (
        f"{options['model']} on {options['dataset']}: {len(train):,} training and {len(test):,} test images, "
        f"{net.parameter_count(model.input_shape):,} parameters",
        f"{update.name}, lr {options['lr']:g}, batch size {options['batch_size']}, seed {options['seed']}, "
        f"{options['dtype'] if options['precision'] == 'float32' else options['precision']}",
        f"{backend.label}: {backend.reason}",
        *([str(plan)] if plan else []),
    )

    def on_epoch(epoch: Epoch, losses: list[float]) -> None:
        run.record(epoch, losses)
        if trainer.capture_note and not epoch.epoch:
            view.say(f"steps run one by one, not as a recorded graph: {trainer.capture_note}")
        view.say(_line(epoch, options["epochs"]))

    try:
        with view:
            for text in heading:
                view.say(text)
            trainer.fit(
                train, test, epochs=options["epochs"], batch_size=options["batch_size"],
                on_step=view.move, on_epoch=on_epoch,
            )  # fmt: skip
    except XpcnnError as error:
        _draw(run, options)
        raise XpcnnError(f"{error} What was recorded until then is in {run.path}.") from None
    except KeyboardInterrupt:
        run.keep_something()
        _draw(run, options)
        kept = f"the best model so far (epoch {run.best.epoch})" if run.best else "the model as it was"
        click.echo(f"xpcnn: interrupted; {kept} is in {run.path / MODEL}.", err=True)
        return 130
    _draw(run, options)
    _conclude(run, quiet)
    return 0


class _View(Protocol):
    """How progress is shown."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *error: object) -> None: ...
    def say(self, text: str) -> None: ...
    def move(self, epoch: int, images: int) -> None: ...


class _Lines:
    """Plain lines, for files and pipes."""

    def __init__(self, epochs: int, images: int) -> None:
        pass

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def say(self, text: str) -> None:
        try:
            click.echo(text)  # which flushes
        except BrokenPipeError:  # the reader went away (`| head`), but the training shall go on
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def move(self, epoch: int, images: int) -> None:
        pass


class _Silent(_Lines):
    """Nothing."""

    def say(self, text: str) -> None:
        pass


class _Bar:
    """A live progress bar, for terminals."""

    def __init__(self, epochs: int, images: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, transient=True, refresh_per_second=5)
        self._images, self._epochs, self._count = images, epochs, 0
        self._task = self._progress.add_task("measuring the untrained network", total=epochs * images)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def move(self, epoch: int, images: int) -> None:
        self._count += 1
        if images == self._images or self._count % EVERY == 0:
            text = "measuring accuracy" if images == self._images else f"epoch {epoch}/{self._epochs}"
            self._progress.update(self._task, completed=(epoch - 1) * self._images + images, description=text)


def _line(epoch: Epoch, epochs: int) -> str:
    """Return an epoch's line."""
    accuracies = f"train {100 * epoch.train_accuracy:6.2f} %   test {100 * (epoch.test_accuracy or 0):6.2f} %"
    if epoch.loss is None or epoch.images_per_second is None:
        return f"{'before training':<27}{accuracies}   {epoch.seconds:5.1f} s"
    start = f"epoch {epoch.epoch:>{len(str(epochs))}}/{epochs}   loss {epoch.loss:.5f}"
    return f"{start:<27}{accuracies}   {epoch.seconds:5.1f} s   {epoch.images_per_second:,.0f} images/s"


def _draw(run: Run, options: dict[str, Any]) -> None:
    """Draw the run's curves."""
    title = f"{options['model']} on {options['dataset']}: {options['optimizer']}, lr {options['lr']:g}"
    draw_curves(run.path / CURVES, run.losses, [epoch.as_dict() for epoch in run.epochs], title)


def _conclude(run: Run, quiet: bool) -> None:
    """Say what was reached, where it is and what to do next."""
    if quiet or run.best is None:
        click.echo(run.path)
        return
    best = run.best
    click.echo(f"\nBest test accuracy: {100 * (best.test_accuracy or 0):.2f} % after epoch {best.epoch}.")
    click.echo(f"In {run.path}:")
    click.echo(f"  {MODEL}  the model after epoch {best.epoch}")
    click.echo(f"  {CURVES}         loss and accuracy, drawn")
    click.echo(f"  {METRICS}      every loss and accuracy; config.toml has the settings")
    click.echo("Next:")
    command = _command()
    click.echo(f"  {command} evaluate {shlex.quote(str(run.path))}")
    click.echo(f"  {command} predict {shlex.quote(str(run.path))} PICTURE.png")


def _command() -> str:
    """Return how this xpcnn is called here: by its name if the shell would find it, else by its path."""
    own = Path(sys.executable).with_name("xpcnn")
    found = shutil.which("xpcnn")
    if (found and Path(found) == own) or not own.exists():
        return "xpcnn" if found else f"{shlex.quote(sys.executable)} -m xpcnn"
    return shlex.quote(os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own))
