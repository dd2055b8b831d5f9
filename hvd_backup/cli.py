"""The command `hvd-backup`."""

import signal
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from hvd_backup.errors import LaunchError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Data-parallel training with backup workers.",
)


@app.command()
def demo(
    *,
    ranks: Annotated[int, typer.Option(min=2, help="Processes to train with.")] = 5,
    backup_workers: Annotated[
        int, typer.Option("--backup-workers", "-b", min=1, help="Backup workers in the second run.")
    ] = 1,
    rounds: Annotated[
        int | None, typer.Option(min=2, help="Updates of the parameters.  [default: 800]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the data order and the delays.")] = 0,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with CIFAR-10 binaries or MNIST idx files.  [default: digits]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("build/demo"),
    target: Annotated[
        float | None, typer.Option(min=0, max=1, help="Test accuracy to time.  [default: by data]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A short run, to try it out.")] = False,
) -> None:
    """Train twice amid random stragglers, without and with backup workers, and compare."""
    # Here, not above: matplotlib alone takes half a second, which `--help` need not wait for.
    from hvd_backup.study.demo import make_settings, run_demo

    try:
        settings = make_settings(
            ranks=ranks,
            backup_workers=backup_workers,
            rounds=rounds,
            seed=seed,
            data=data,
            target=target,
            quick=quick,
        )
    except ValueError as error:
        fail(str(error), code=2)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the ranks end with us
    try:
        summary = run_demo(settings, out, Console())
    except (LaunchError, OSError) as error:
        fail(str(error), code=1)
    if not summary["replicas_identical"]:
        fail("the replicas differ between ranks: this is a bug, please report it", code=1)


@app.command()
def version() -> None:
    """Print the versions of hvd_backup and of what it runs on."""
    for name in ("hvd_backup", "torch", "mpi4py", "numpy"):
        typer.echo(f"{name} {installed_version(name)}")


def installed_version(name: str) -> str:
    """The version of a distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def fail(message: str, code: int) -> NoReturn:
    """Print an error and exit."""
    typer.secho(f"Error: {message}", err=True, fg=typer.colors.RED)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
