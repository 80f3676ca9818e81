"""The command line: every fault is one sentence on standard error and exit status 2, never a traceback."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

import click

from xpcnn import __version__
from xpcnn.cli import team
from xpcnn.cli.common import fail
from xpcnn.errors import XpcnnError
from xpcnn.kernels import native

INTERRUPTED = 130
NAMES = (
    "train", "evaluate", "predict", "export", "import", "report", "serve", "info", "explain", "features",
    "gradcheck", "verify", "bench",
)  # fmt: skip
MODULES = {"import": "import_"}  # which no module can be named

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda word: word.replace("_", "-"),  # --batch_size and simple_convnet are understood
}


class Commands(click.Group):
    """Subcommands by name, each imported when it is needed: a prediction should not wait for the trainer."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names."""
        return list(NAMES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return the command that a module of the same name defines."""
        if name not in NAMES:
            return None
        team.check(name)
        module = import_module(f"xpcnn.cli.{MODULES.get(name, name)}")
        command: click.Command = getattr(module, f"{name}_command")
        return command


@click.group(cls=Commands, invoke_without_command=True, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="xpcnn")
@click.pass_context
def cli(context: click.Context) -> None:
    """Train and run convolutional networks on NumPy or, with --device cuda, on an NVIDIA GPU."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file may have a name that cannot be printed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numbers that overflow show in the loss
            team.join(sys.argv[1:] if arguments is None else arguments)
            native.chosen()  # raises what is wrong with the environment's word before anything is done
            result = cli.main(args=arguments, prog_name="xpcnn", standalone_mode=False)
            team.leave()
    except click.ClickException as error:
        return fail(error.format_message())
    except XpcnnError as error:
        return fail(str(error))
    except (KeyboardInterrupt, click.Abort):
        return team.speak("xpcnn: interrupted.", INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe went away, which is its right
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  so that closing the real one says nothing more
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}.")
    except MemoryError:
        return fail(
            "there is not enough memory; a smaller --batch-size needs less, and so does training with --max-memory."
        )
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "cupy":
            raise
        return fail(f"CUDA failed: {str(error).strip() or type(error).__name__}")
    return result if isinstance(result, int) else 0
