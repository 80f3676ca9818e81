"""``xpcnn serve``."""

from __future__ import annotations

from pathlib import Path

import click

from xpcnn.cli.common import device_option, open_for_use, threads_option


@click.command("serve")
@click.argument("run", type=click.Path())
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 chooses a free one.")
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
@device_option
@threads_option
def serve_command(run: str, host: str, port: int, show: bool, device: str) -> int:
    """Serve a page on this machine to look at RUN (a run's directory or a model file) with.

    Draw a digit or drop a picture, and see the probabilities, what speaks for a class and the feature maps change. Only
    this machine reaches the page unless another --host is given. Ctrl-C ends it.
    """
    from xpcnn.serve import Looking, PageServer

    model, _ = open_for_use(run, device)
    with PageServer(Looking(model, Path(run).resolve().name), host, port) as server:
        if server.open_to_others:
            click.echo(
                "xpcnn: warning: whoever reaches this machine over the network can use this page; it has no password.",
                err=True,
            )
        click.echo(f"look at {server.url} (Ctrl-C ends it)")
        if show:
            click.launch(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("\nended.", err=True)
    return 0
