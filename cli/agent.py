"""`casemate agent`: the guest agent as a simulator, for trying apps without a confidential VM."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--simulate", is_flag=True, help="Use a simulated TEE; its quotes prove nothing.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="Folder of its files and sockets."
)
@click.option(
    "--http",
    metavar="ADDR",
    help="Also serve the public HTTP interface, for example 127.0.0.1:8090.",
)
@click.option(
    "--docker-host",
    envvar="DOCKER_HOST",
    default="unix:///var/run/docker.sock",
    show_default=True,
    help="Socket of the container engine.",
)
def agent(simulate: bool, folder: Path | None, http: str | None, docker_host: str) -> None:
    """Runs the guest agent outside of a guest.

    DIR keeps the app's keys and identity; remove it to start as a new VM.
    """
    from core.errors import CasemateError

    if not simulate:
        raise click.UsageError("outside of a guest the agent only runs with --simulate")
    if folder is None:
        raise click.UsageError("--dir is needed: the folder of the agent's files and sockets")
    from guest import simulator

    try:
        with simulator.prepared(folder, http, docker_host) as ready:
            for bind in ready.binds:
                click.echo(
                    f"listening on {bind if ':' in bind and '/' in bind else f'http://{bind}'}"
                )
            ready.run()
    except (CasemateError, OSError) as error:
        raise click.ClickException(str(error)) from None
