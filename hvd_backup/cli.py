"""The command `hvd-backup`."""

import os
import shlex
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from hvd_backup.cluster import templates
from hvd_backup.cluster.run import Job
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
        int | None, typer.Option(min=2, help="Updates of the parameters.  [default: 200]")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="First seed of parameters, data order and delays.")
    ] = 0,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Trainings, each with a seed.  [default: 3]")
    ] = None,
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
    """Train amid random stragglers, without and with backup workers, and compare."""
    # Here, not above: matplotlib alone takes half a second, which `--help` need not wait for.
    from hvd_backup.study.demo import make_settings, run_demo

    try:
        settings = make_settings(
            ranks=ranks,
            backup_workers=backup_workers,
            rounds=rounds,
            seed=seed,
            repeats=repeats,
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


STYLES = {"ok": "green", "-": "bright_black", "todo": "yellow", "FAIL": "red"}


@app.command()
def doctor(
    *,
    ranks: Annotated[
        int, typer.Option("-np", min=1, help="Ranks to start, to see what each would see.")
    ] = 2,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for each check.")] = 60,
) -> None:
    """Say what is here and what is in the way; works under mpirun and srun, too.

    Each line begins with ok, - (not there, not needed), todo (it says what) or FAIL. The exit
    status is 1 if there is a FAIL: hvd_backup cannot be used.
    """
    from hvd_backup.cluster.doctor import examine, unusable

    console = Console(highlight=False)
    found = []
    for finding in examine(ranks, timeout):
        found.append(finding)
        line = Text.assemble((f"{finding.status:<5}", STYLES[finding.status]))
        line.append(f"{finding.name:<16} {' '.join(finding.text.split())}")
        console.print(line, soft_wrap=True)  # one line each, however long
    if unusable(found):
        raise typer.Exit(1)


_KILL_AFTER = (
    "With --no-mpi: seconds (5) that the ranks get to end when one has failed, before SIGTERM, and "
    "again before SIGKILL."
)


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    *,
    ranks: Annotated[int, typer.Option("-np", min=1, help="Processes to start, R = N + b.")],
    backup_workers: Annotated[
        int | None,
        typer.Option(
            "--backup-workers",
            "-b",
            min=0,
            help="Ranks that a round does not wait for; if not said, HVD_BACKUP_WORKERS or 0.",
        ),
    ] = None,
    hosts: Annotated[
        str | None, typer.Option("--hosts", "-H", help="name:ranks,name:ranks or name,name")
    ] = None,
    variable: Annotated[
        list[str] | None, typer.Option("-x", help="NAME or NAME=value for the ranks; repeatable.")
    ] = None,
    mpi_args: Annotated[str, typer.Option(help="Further options for mpirun, in one word.")] = "",
    no_mpi: Annotated[
        bool, typer.Option("--no-mpi", help="Start the ranks on this host, without any MPI.")
    ] = False,
    prefix: Annotated[
        bool, typer.Option("--prefix", help="With --no-mpi: [rank] before each line of output.")
    ] = False,
    kill_after: Annotated[float | None, typer.Option(min=0, help=_KILL_AFTER)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command only.")] = False,
    command: Annotated[
        list[str] | None, typer.Argument(help="What to run: python train.py --lr 0.1")
    ] = None,
) -> None:
    """Start a training script on several ranks, with the mpirun that is here.

    Prints mpirun's command line and becomes it: signals and exit status are mpirun's. With --no-mpi
    it starts the ranks itself; the exit status is that of the first rank that fails (128 and the
    signal if it was killed).
    """
    from hvd_backup.cluster import run as runner
    from hvd_backup.config import Config

    try:
        if backup_workers is None:  # a program may choose, if nobody else does
            backup_workers = Config.from_env(os.environ).backup_workers
        job = runner.Job(
            ranks=ranks,
            backup_workers=backup_workers,
            command=command or (),
            hosts=hosts,
            variables=runner.variables(variable or (), os.environ),
            options=runner.words("--mpi-args", mpi_args),
        )
        runner.check(job)
        if no_mpi:
            runner.check_local(job)
    except ValueError as error:
        fail(str(error), code=2)
    if not no_mpi and (prefix or kill_after is not None):
        given = "--prefix" if prefix else "--kill-after"
        fail(f"{given} goes with --no-mpi; use --mpi-args for mpirun's options", code=2)
    if no_mpi:
        _run_local(job, prefix, kill_after, dry_run)
    _become_mpirun(job, dry_run)


def _become_mpirun(job: Job, dry_run: bool) -> None:
    from hvd_backup.cluster import run as runner
    from hvd_backup.world.mpirun import find_mpirun

    root, cores = os.geteuid() == 0, len(os.sched_getaffinity(0))
    try:
        mpirun = find_mpirun()
        kind = runner.kind_of(mpirun)
    except LaunchError as error:
        fail(str(error), code=1)
    line = runner.command_line(job, mpirun, kind, os.environ, cores=cores, root=root)
    typer.echo(shlex.join(line), err=not dry_run)
    if dry_run:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    # Python ignores it, and mpirun would inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execve(mpirun, line, runner.launcher_environment(os.environ, root=root))
    except OSError as error:
        fail(f"cannot run {mpirun}: {error}", code=1)


def _run_local(job: Job, prefix: bool, kill_after: float | None, dry_run: bool) -> NoReturn:
    from hvd_backup.cluster.local_run import KILL_AFTER_S, LocalRun
    from hvd_backup.cluster.run import local_environment

    environ = local_environment(job, os.environ)
    if dry_run:
        more = [f"{k}={v}" for k, v in environ.items() if os.environ.get(k) != v]
        typer.echo(f"{shlex.join([*more, *job.command])}  # {job.ranks} times")
        raise typer.Exit(0)
    after = KILL_AFTER_S if kill_after is None else kill_after
    local = LocalRun(job.command, job.ranks, environ, prefix=prefix, kill_after=after)
    try:
        status = local.run()
    except OSError as error:
        fail(f"cannot run {job.command[0]}: {error}", code=127)
    raise typer.Exit(status)


@app.command()
def template(
    kind: Annotated[templates.Kind, typer.Argument(help="Where the job is to run.")],
) -> None:
    """Print a job file to edit; its comments say what to edit."""
    typer.echo(templates.template(kind), nl=False)


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
