"""The command line: every fault is one sentence on standard error and exit status 2, never a traceback."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence

import click

from xpcnn import __version__
from xpcnn.cli.common import fail
from xpcnn.cli.evaluate import evaluate_command
from xpcnn.cli.explain import explain_command
from xpcnn.cli.features import features_command
from xpcnn.cli.gradcheck import gradcheck_command
from xpcnn.cli.info import info_command
from xpcnn.cli.predict import predict_command
from xpcnn.cli.train import train_command
from xpcnn.cli.verify import verify_command
from xpcnn.errors import XpcnnError

INTERRUPTED = 130


SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda word: word.replace("_", "-"),  # --batch_size and simple_convnet are understood
}


@click.group(invoke_without_command=True, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="xpcnn")
@click.pass_context
def cli(context: click.Context) -> None:
    """Train and run convolutional networks on NumPy or, with --device cuda, on an NVIDIA GPU."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    train_command,
    evaluate_command,
    predict_command,
    info_command,
    explain_command,
    features_command,
    gradcheck_command,
    verify_command,
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file may have a name that cannot be printed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numbers that overflow show in the loss
            result = cli.main(args=arguments, prog_name="xpcnn", standalone_mode=False)
    except click.ClickException as error:
        return fail(error.format_message())
    except XpcnnError as error:
        return fail(str(error))
    except (KeyboardInterrupt, click.Abort):
        click.echo("xpcnn: interrupted.", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe went away, which is its right
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  so that closing the real one says nothing more
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}.")
    except MemoryError:
        return fail("there is not enough memory; a smaller --batch-size needs less.")
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "cupy":
            raise
        return fail(f"CUDA failed: {str(error).strip() or type(error).__name__}")
    return result if isinstance(result, int) else 0
