"""``xpcnn train``."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

from xpcnn.backend import resolve_backend
from xpcnn.cli import team
from xpcnn.cli.common import printable
from xpcnn.cli.progress import View, view
from xpcnn.cli.stopping import Request, heeding_signals
from xpcnn.errors import XpcnnError
from xpcnn.kernels import threads
from xpcnn.parallel import Group, check_alike, world
from xpcnn.report import draw_curves
from xpcnn.training import Epoch, History
from xpcnn.training.build import Job, build, facts, read_tables, recipe_tables, recipes, resolved, usual
from xpcnn.training.run import CURVES, METRICS, MODEL, Run, check_board, resumable_settings
from xpcnn.training.settings import OPEN_NAMES, Settings, assignments, duration, from_tables
from xpcnn.training.shared import parts

CHANGEABLE = ("device", "threads", "capture", "time_limit", "checkpoint_every", "data_dir", "dataset")  # on --resume
TERMINATED = 128 + signal.SIGTERM
INTERRUPTED = 128 + signal.SIGINT
MOST_DIGITS = 1e6  # a larger loss is shown by its exponent
SPEECH = 10.0  # seconds that rank 0 has to draw what there is of a run, and to say why it ends


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each setting."""
    kinds = get_type_hints(Settings)
    for one in reversed([one for one in fields(Settings) if one.name != "augment"]):
        command = _option(one, kinds[one.name])(command)
    return command


def _option(one: Field[Any], kind: Any) -> Callable[..., Any]:
    """Return the option of a setting; what is not given is None."""
    name, kinds = f"--{one.name.replace('_', '-')}", get_args(kind) or (kind,)
    text = one.metadata["help"]
    if one.default is not None and not isinstance(one.default, bool):
        text += f"  [default: {one.default}]"
    if bool in kinds:
        return click.option(f"{name}/--no-{name[2:]}", default=None, help=text)
    choices = one.metadata.get("choices")
    if choices and str in kinds:
        return click.option(name, type=click.Choice(choices), help=text)
    if int in kinds:
        most = threads.MOST if one.name == "threads" else None
        return click.option(name, type=click.IntRange(one.metadata.get("least"), most), help=text)
    return click.option(name, type=float if float in kinds else str, help=text)


@click.command("train")
@click.option("--recipe", metavar="NAME", help=f"Begin with a recipe's settings: {', '.join(recipes())}.")
@click.option("--config", type=click.Path(), help="Begin with a file's settings, such as those of a run's config.toml.")
@click.option(
    "--set", "assigned", metavar="KEY=VALUE", multiple=True,
    help="Set anything, also augmentation: --set augment.rotate=10; none takes a setting back.",
)  # fmt: skip
@click.option("--resume", metavar="RUN", type=click.Path(), help="Go on with an interrupted run, to the same result.")
@click.option("--out", type=click.Path(), help="The run's directory.  [default: runs/<time>-<model>-<dataset>]")
@click.option("--quiet", is_flag=True, help="Print the run's directory and nothing else.")
@setting_options
def train_command(
    recipe: str | None,
    config: str | None,
    assigned: tuple[str, ...],
    resume: str | None,
    out: str | None,
    quiet: bool,
    **options: Any,
) -> int:
    """Train a network; without options, the book's experiment on MNIST.

    Options win over --set, that over --config, and that over --recipe. Every run writes all of its settings to
    config.toml.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if resume is not None:
        settings = _resumed(resume, given, {"--recipe": recipe, "--config": config, "--set": assigned, "--out": out})
    else:
        tables = [recipe_tables(recipe)] if recipe else []
        tables += [read_tables(config)] if config else []
        settings = from_tables(*tables, assignments(assigned), {"train": given})
    with nullcontext() if settings.threads is None else threads.limited_to(settings.threads):
        threads.thread_count()  # raises what is wrong with the environment's before anything is done
        group = world()
        return _train(settings, resume, out, quiet, group) if group.rank == 0 else _help(settings, group)


def _resumed(run: str, given: dict[str, Any], others: dict[str, Any]) -> Settings:
    """Return the settings to go on with; only those may change that do not change the result."""
    wrong = [name for name, value in others.items() if value]
    wrong += [f"--{name.replace('_', '-')}" for name in given if name not in CHANGEABLE]
    if wrong:
        allowed = ", ".join(f"--{name.replace('_', '-')}" for name in CHANGEABLE)
        raise XpcnnError(f"a run goes on with its own settings, so --resume takes no {wrong[0]}; it takes {allowed}.")
    group = world()
    saved = resumable_settings(run).tables() if group.rank == 0 else None
    return replace(from_tables(group.first(saved)), **{"time_limit": None} | given)  # whose limit was for that call


def _train(settings: Settings, resume: str | None, out: str | None, quiet: bool, group: Group) -> int:
    """Train from the beginning or from a checkpoint; of several ranks, rank 0 does this and the others help."""
    backend = resolve_backend(group.device(settings.device))
    if settings.tensorboard:
        check_board()
    settings = _with_whole_paths(resolved(settings))
    job = build(settings, backend, None if quiet else _progress_line(settings.dataset), group)
    trainer = job.trainer
    plan = trainer.plan(min(settings.batch_size, len(job.train))) if trainer.max_memory else None
    data = _check_ranks(job, settings)
    run = Run.create(out, settings, trainer, data) if resume is None else Run.resume(resume, settings, trainer, data)
    with closing(run):
        if group.first(run.is_finished):
            return _say_finished(run)
        trainer.follow()
        team.advise(_how_to_resume(run))
        if resume is not None:
            click.echo(_going_on(run), err=quiet)
        show = view(quiet, settings.epochs, len(job.train))
        with heeding_signals(trainer) as request:
            try:
                return group.first(_run(job, run, show, request, _heading(job, backend, plan), quiet))
            except KeyboardInterrupt:  # while something was saved or drawn
                return _say_interrupted(run, request)


def _help(settings: Settings, group: Group) -> int:
    """Compute another rank's part: rank 0 reads and writes the run, and says how it goes."""
    backend = resolve_backend(group.device(settings.device))
    job = build(resolved(settings), backend, group=group)
    _check_ranks(job, resolved(settings))
    if group.first(None):  # the run is finished
        return 0
    job.trainer.follow()
    with heeding_signals(job.trainer) as request:

        def is_over(*_: Any) -> bool:
            return request.signal is not None

        try:
            _fit(job, is_over, is_over)
        except (XpcnnError, KeyboardInterrupt):
            time.sleep(SPEECH)  # for rank 0 to say it, if it is everybody's, which ends this process, too
            raise
        group.gathered(request.signal)
        return int(group.first(None))


def _check_ranks(job: Job, settings: Settings) -> dict[str, str]:
    """Return the fingerprints of the data, after comparing all that must be the same on every rank."""
    data = {"training": job.train.fingerprint(), "test": job.test.fingerprint()}
    if job.trainer.group.size > 1:
        check_alike(job.trainer.group, facts(job, settings, CHANGEABLE) | {"data": str(data)})
    return data


def _fit(job: Job, on_step: Callable[..., bool], on_epoch: Callable[..., bool]) -> History:
    """Train as the settings say."""
    settings = job.settings
    return job.trainer.fit(
        job.train, job.test, epochs=settings.epochs, batch_size=settings.batch_size, augment=settings.augment,
        drop_last=settings.drop_last, evaluate_train=settings.evaluate_train,
        evaluate_every=settings.evaluate_every, on_step=on_step, on_epoch=on_epoch,
    )  # fmt: skip


def _going_on(run: Run) -> str:
    """Say where a run goes on, and what may change its last bits."""
    trainer, here = run.trainer, threads.thread_count()
    begun = trainer.progress.epoch > 0 or trainer.progress.batch > 0
    where = f"after step {trainer.steps}" if begun else "at the beginning, since no step had been made"
    before, size = run.threads_before, trainer.group.size
    note = "" if before in (None, here) else f" (with {here} threads instead of {before}, the last bits may differ)"
    if run.ranks_before not in (None, size):
        normed = trainer.model.state() and not trainer.sync_batchnorm
        more = ", and batch norm sees other parts of a batch" if normed else ""
        ranks = "1 rank" if size == 1 else f"{size} ranks"
        note = f" (with {ranks} instead of {run.ranks_before}, the last bits may differ{more})"
    return f"going on with {run.path} {where}{note}."


def _say_finished(run: Run) -> int:
    """Say that there is nothing to go on with, and return the exit status."""
    settings = run.settings
    all_done = run.trainer.progress.epoch > settings.epochs
    reason = f"all its {settings.epochs} epochs are done" if all_done else "its patience came to an end"
    if not (run.path / CURVES).exists():  # killed at the very end
        _draw(run)
    click.echo(f"{run.path} is finished: {reason}.")
    return 0


class _Course:
    """What is done after each step and epoch of a run, and when it is over."""

    def __init__(self, job: Job, run: Run, show: View, request: Request) -> None:
        limit = job.settings.time_limit
        self._end = None if limit is None else time.monotonic() + duration("time_limit", limit)
        self._job, self._run, self._show, self._request = job, run, show, request
        self._noted = False

    def is_over(self) -> bool:
        """Whether a signal or the time limit ends it."""
        return self._request.signal is not None or (self._end is not None and time.monotonic() >= self._end)

    def on_step(self, epoch: int, images: int) -> bool:
        """Move the bar, and save a checkpoint if it is time for one."""
        self._show.move(epoch, images)
        self._run.step()
        return self.is_over()

    def on_epoch(self, epoch: Epoch, losses: list[float]) -> bool:
        """Record an epoch and print its line."""
        trainer, run = self._job.trainer, self._run
        run.record(replace(epoch, lr=self._job.schedule(trainer.steps - 1) if trainer.steps else None), losses)
        if not self._noted and (trainer.capture_note or trainer.group.note):
            self._noted = True
            if trainer.capture_note:
                self._show.say(f"steps run one by one, not as a recorded graph: {trainer.capture_note}")
            if trainer.group.note:
                self._show.say(trainer.group.note)
        self._show.say(_line(epoch, self._job.settings.epochs))
        if run.is_out_of_patience:
            self._show.say(f"no better for {run.waited} evaluations, so it ends here")
        return run.is_out_of_patience or self.is_over()


def _run(job: Job, run: Run, show: View, request: Request, heading: list[str], quiet: bool) -> int:
    """Fit, and say at the end how it went."""
    trainer, course = job.trainer, _Course(job, run, show, request)
    try:
        with show:
            for text in heading:
                show.say(text)
            history = _fit(job, course.on_step, course.on_epoch)
        told = trainer.group.gathered(request.signal)  # of which some rank may have been sent one
        request.signal = next((number for number in told if number is not None), None)
    except XpcnnError as error:
        _draw(run)
        raise XpcnnError(f"{error} What was recorded until then is in {run.path}.") from None
    except KeyboardInterrupt:
        request.signal = request.signal or signal.SIGINT
        return _interrupted(run, request, can_save=not trainer.is_busy)
    if history.stopped and not run.is_finished:
        if request.signal is not None:
            return _interrupted(run, request, can_save=True)
        run.save()
        run.keep_something()
        _draw(run)
        click.echo(f"the time limit is reached after step {trainer.steps}; {_how_to_resume(run)}.", err=quiet)
        return 0
    run.keep_something()
    _draw(run)
    _conclude(run, quiet)
    return 0


def _interrupted(run: Run, request: Request, can_save: bool) -> int:
    """Save what can be saved, say how to go on, and return the exit status."""
    if can_save:
        run.save()
    run.keep_something()
    _draw(run)
    return _say_interrupted(run, request)


def _say_interrupted(run: Run, request: Request) -> int:
    """Say how to go on, and return the exit status."""
    word = "interrupted" if request.signal == signal.SIGINT else "terminated"
    status = INTERRUPTED if request.signal == signal.SIGINT else TERMINATED
    if run.trainer.group.size > 1:  # which the sentence ends, wherever the others are
        run.close()
    return team.speak(f"xpcnn: {word} after step {run.trainer.steps}; {_how_to_resume(run)}.", status)


def _how_to_resume(run: Run) -> str:
    return f"go on with: {_command()} train --resume {shlex.quote(str(run.path))}"


def _heading(job: Job, backend: Any, plan: Any) -> list[str]:
    """Return what is said before training."""
    settings, model = job.settings, job.trainer.model
    skipped = [printable(f"left out {path}: {reason}") for path, reason in job.train.skipped + job.test.skipped]
    count = model.net.parameter_count(model.input_shape)
    return [
        *skipped,
        *([f"left out, since they cannot be read: {len(skipped)} of the images"] if skipped else []),
        f"{settings.model} on {printable(settings.dataset)}: {len(job.train):,} training and {len(job.test):,} test "
        f"images, {count:,} parameters",
        f"{job.trainer.optimizer.name}, lr {usual(settings)['lr']:g}, "
        f"batch size {settings.batch_size}, seed {settings.seed}, "
        f"{settings.dtype if settings.precision == 'float32' else settings.precision}",
        f"{backend.label}: {backend.reason}",
        *_ranks(job),
        *([str(plan)] if plan else []),
    ]


def _ranks(job: Job) -> list[str]:
    """Say how many processes train together, and what each has of a batch; nothing for one alone."""
    size, count = job.trainer.group.size, threads.thread_count()
    images = parts(min(job.settings.batch_size, len(job.train)), size)
    each = f"{min(images)} to {max(images)}" if min(images) < max(images) else f"{max(images)}"
    text = f"{size} ranks, each with {each} images of a batch and {count} thread{'s' if count > 1 else ''}"
    return [text] if size > 1 else []


def _with_whole_paths(settings: Settings) -> Settings:
    """Return settings whose paths hold from another directory, too."""
    data_dir = settings.data_dir and os.path.abspath(settings.data_dir)
    kind = next((name for name in OPEN_NAMES if settings.dataset.startswith(name)), "")
    path = settings.dataset.removeprefix(kind)
    dataset = kind + os.path.abspath(os.path.expanduser(path)) if kind and path else settings.dataset
    return replace(settings, data_dir=data_dir, dataset=dataset)


def _progress_line(dataset: str) -> Callable[..., None]:
    """Return what shows how much of a file is here, or how many of a folder's pictures have been checked."""
    shown = [0.0]

    def show(done: int, total: int | None, name: str) -> None:
        now = time.monotonic()
        if now - shown[0] >= 0.5 or done == total:
            shown[0] = now
            unit, size, digits = ("", 1, 0) if dataset.startswith("folder:") else (" MB", 1e6, 1)
            part = f" of {total / size:,.{digits}f}" if total else ""
            click.echo(f"\r{name}: {done / size:,.{digits}f}{part}{unit}", err=True, nl=done == total)

    return show


def _line(epoch: Epoch, epochs: int) -> str:
    """Return an epoch's line."""
    parts = (("train", epoch.train_accuracy), ("test", epoch.test_accuracy))
    accuracies = "   ".join(f"{name} {100 * value:6.2f} %" for name, value in parts if value is not None)
    if epoch.loss is None:
        return f"{'before training':<27}{accuracies}   {epoch.seconds:5.1f} s"
    loss = f"{epoch.loss:.5f}" if epoch.loss < MOST_DIGITS else f"{epoch.loss:.3e}"
    start = f"epoch {epoch.epoch:>{len(str(epochs))}}/{epochs}   loss {loss}"
    speed = "" if epoch.images_per_second is None else f"   {epoch.images_per_second:,.0f} images/s"
    return f"{start:<27}{accuracies}   {epoch.seconds:5.1f} s{speed}"


def _draw(run: Run) -> None:
    """Draw the run's curves."""
    settings = run.settings
    title = f"{settings.model} on {printable(settings.dataset)}: {settings.optimizer}, lr {usual(settings)['lr']:g}"
    draw_curves(run.path / CURVES, run.losses, [epoch.as_dict() for epoch in run.epochs], title)


def _conclude(run: Run, quiet: bool) -> None:
    """Say what was reached, where it is and what to do next."""
    if quiet or run.best is None:
        click.echo(run.path)
        return
    best, last = run.best, run.epochs[-1]
    kept = last if run.settings.keep == "last" else best
    click.echo(f"\nBest test accuracy: {100 * (best.test_accuracy or 0):.2f} % after epoch {best.epoch}.")
    if kept is not best and last.test_accuracy is not None:
        click.echo(f"Kept: the last, after epoch {last.epoch}, with {100 * last.test_accuracy:.2f} %.")
    click.echo(f"In {run.path}:")
    click.echo(f"  {MODEL}  the model after epoch {kept.epoch}")
    click.echo(f"  {CURVES}         loss and accuracy, drawn")
    click.echo(f"  {METRICS}      every loss and accuracy; epochs.csv has the epochs, config.toml the settings")
    click.echo("Next:")
    command = _command()
    path = shlex.quote(str(run.path))
    click.echo(f"  {command} evaluate {path}")
    click.echo(f"  {command} predict {path} PICTURE.png")
    click.echo(f"  {command} report {path}")
    click.echo(f"  {command} serve {path}")


def _command() -> str:
    """Return how this xpcnn is called here: by its name if the shell would find it, else by its path."""
    own = Path(sys.executable).with_name("xpcnn")
    found = shutil.which("xpcnn")
    if (found and Path(found) == own) or not own.exists():
        return "xpcnn" if found else f"{shlex.quote(sys.executable)} -m xpcnn"
    return shlex.quote(os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own))
