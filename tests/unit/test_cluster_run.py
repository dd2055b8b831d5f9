"""`hvd-backup run`, as far as it starts no ranks."""

import shlex
import stat

import pytest
from typer.testing import CliRunner

from hvd_backup.cli import app
from hvd_backup.cluster import run
from hvd_backup.errors import LaunchError
from hvd_backup.world import launch

TRAIN = ("python", "train.py")


def line(kind, environ=None, *, ranks=4, cores=64, root=False, **more):
    job = run.Job(ranks, more.pop("b", 1), TRAIN, **more)
    run.check(job)
    return shlex.join(run.command_line(job, "mpirun", kind, environ or {}, cores=cores, root=root))


def test_open_mpi_gets_variables_by_x():
    assert line(launch.OPEN_MPI) == (
        "mpirun -np 4 --bind-to none -x HVD_BACKUP_WORKERS=1 -x OMP_NUM_THREADS=1 python train.py"
    )


def test_hydra_gets_variables_by_genv():
    assert line(launch.HYDRA) == (
        "mpirun -np 4 -genv HVD_BACKUP_WORKERS 1 -genv OMP_NUM_THREADS 1 python train.py"
    )


@pytest.mark.parametrize(
    ("kind", "option"), [(launch.OPEN_MPI, "-H a:2,b:2"), (launch.HYDRA, "-hosts a:2,b:2")]
)
def test_hosts_are_named_in_each_ones_way(kind, option):
    assert f" {option} " in line(kind, hosts="a,b")


def test_only_open_mpi_must_be_told_that_ranks_share_cores_and_are_root():
    words = line(launch.OPEN_MPI, cores=4, root=True)
    assert "--allow-run-as-root --map-by :OVERSUBSCRIBE" in words
    words = line(launch.HYDRA, cores=4, root=True)
    assert words == line(launch.HYDRA)


@pytest.mark.parametrize("how", [{"hosts": "a:4"}, {"environ": {"SLURM_JOB_ID": "7"}}])
def test_cores_of_this_machine_say_nothing_about_other_hosts(how):
    assert "OVERSUBSCRIBE" not in line(launch.OPEN_MPI, cores=1, **how)


@pytest.mark.parametrize("kind", [launch.OPEN_MPI, launch.HYDRA])
def test_a_number_of_threads_that_was_set_stays(kind):
    assert "OMP_NUM_THREADS=3" in line(kind, {"OMP_NUM_THREADS": "3"}).replace("S 3", "S=3")


def test_our_variables_reach_the_ranks_and_an_argument_beats_the_environment():
    environ = {"HVD_BACKUP_GRACE": "0.1", "HVD_BACKUP_WORKERS": "0", "HOME": "/root"}
    words = line(launch.OPEN_MPI, environ, b=2)
    assert "-x HVD_BACKUP_GRACE=0.1 -x HVD_BACKUP_WORKERS=2 " in words
    assert "HOME" not in words


def test_a_binding_of_ones_own_replaces_ours():
    words = line(launch.OPEN_MPI, options=("--bind-to", "core"))
    assert words.count("bind-to") == 1
    assert "--bind-to core python train.py" in words


@pytest.mark.parametrize(
    ("hosts", "ranks", "expected"),
    [
        ("a", 3, [("a", 3)]),
        ("a,b", 5, [("a", 3), ("b", 2)]),
        ("a,b,c", 2, [("a", 1), ("b", 1)]),
        ("a:4,b:2", 5, [("a", 4), ("b", 2)]),
        ("a:2,b", 3, [("a", 2), ("b", 1)]),
    ],
)
def test_ranks_are_spread_over_the_hosts(hosts, ranks, expected):
    assert run.slots(hosts, ranks) == expected


@pytest.mark.parametrize("hosts", ["a:", "a:x", "a:0", "a,,b", ":3", "a:-1"])
def test_hosts_that_make_no_sense_are_refused_with_the_form(hosts):
    with pytest.raises(ValueError, match="use name:ranks,name:ranks or name,name"):
        run.slots(hosts, 2)


def test_hosts_without_room_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match="room for 3 ranks, not for 4"):
        run.slots("a:2,b:1", 4)


def test_an_mpirun_of_an_unknown_kind_is_refused_with_a_way_out(tmp_path):
    mpirun = tmp_path / "mpirun"
    mpirun.write_text("#!/bin/sh\necho something else\n")
    mpirun.chmod(mpirun.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(LaunchError, match="start the ranks with it directly"):
        run.kind_of(str(mpirun))


def cli(*arguments, **env):
    env = {"HVD_BACKUP_WORKERS": "", "COLUMNS": "120", "NO_COLOR": "1", **env}
    return CliRunner().invoke(app, ("run", *arguments), env=env)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-np", "2", "-b", "2", "--", "true"), "2 backup workers among 2 ranks"),
        (("-np", "2", "-b", "1"), "no command to run"),
        (("-np", "2", "-H", "a:1", "true"), "room for 1 ranks, not for 2"),
        (("-np", "2", "-x", "NO_SUCH_THING", "true"), "NO_SUCH_THING: it is not set"),
        (("-np", "2", "-x", "=3", "true"), "-x =3: use -x NAME or -x NAME=value"),
        (("-np", "2", "-x", "A NAME=3", "true"), "use -x NAME or -x NAME=value"),
        (("-np", "2", "-H", "", "true"), "use name:ranks,name:ranks or name,name"),
        (("-np", "2", "-H", "a b", "true"), "-H a b: use name:ranks,name:ranks or name,name"),
        (("-np", "2", "--mpi-args", "'", "true"), "--mpi-args"),
        (("-np", "0", "true"), "-np"),
        (("true",), "-np"),
    ],
)
def test_wrong_arguments_are_friendly_errors(arguments, words):
    result = cli(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_no_mpirun_is_a_friendly_error(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    result = cli("-np", "2", "true")
    assert result.exit_code == 1
    assert "no mpirun beside" in result.stderr


def test_a_dry_run_prints_a_command_that_a_shell_can_read_and_runs_nothing():
    result = cli("-np", "2", "--dry-run", "sh", "-c", "echo $HOME; exit 3", HVD_BACKUP_WORKERS="1")
    assert result.exit_code == 0
    words = shlex.split(result.stdout)
    assert words[1:3] == ["-np", "2"]
    assert words[-3:] == ["sh", "-c", "echo $HOME; exit 3"]
    assert "HVD_BACKUP_WORKERS=1" in words or "HVD_BACKUP_WORKERS" in words


def test_without_b_the_program_may_choose():
    environ = {"HOME": "/root"}
    assert "HVD_BACKUP_WORKERS" not in run.ranks_environment(run.Job(2, None, ["true"]), environ)
    assert run.ranks_environment(run.Job(2, 0, ["true"]), environ)["HVD_BACKUP_WORKERS"] == "0"
    result = cli("-np", "2", "--dry-run", "true")
    assert result.exit_code == 0
    assert "HVD_BACKUP_WORKERS=0" not in result.stdout


def test_options_after_the_command_are_the_commands():
    result = cli("-np", "2", "--dry-run", "python", "train.py", "-np", "7", "--help")
    assert shlex.split(result.stdout)[-5:] == ["python", "train.py", "-np", "7", "--help"]
