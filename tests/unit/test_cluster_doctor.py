"""`hvd-backup doctor`: its probes, how they are asked, and the command."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner
from unit.doctor_facts import MPI, WORKS, rank

from hvd_backup.cli import app
from hvd_backup.cluster import doctor, findings, probe
from hvd_backup.cluster.findings import FAIL, NOTE, OK, TODO, Answer
from hvd_backup.world import launch

# ---- probes, and how they are asked --------------------------------------------------------------


def test_mpi_libraries_are_found_among_mapped_files():
    maps = "\n".join(
        f"7f0-7f1 r-xp 00000000 08:01 42   {file}"
        for file in (
            "/lib/libc.so.6",
            "/a b/libmpi.so.40.40.11",
            "/opt/cray/libmpi_gnu_91.so.12",
            "/usr/lib/libmpich.so.12",
            "/usr/lib/libmpi_cxx.so.40",
            "[heap]",
        )
    )
    assert probe.mapped_mpi(f"{maps}\n7f2-7f3 rw-p 00000000 00:00 0\n") == [
        "/a b/libmpi.so.40.40.11",
        "/opt/cray/libmpi_gnu_91.so.12",
        "/usr/lib/libmpich.so.12",
    ]


def test_the_short_name_of_a_library_is_one_line():
    assert probe.library_name("Open MPI v5.0.11, package: X, ident: 5\0") == "Open MPI v5.0.11"
    assert probe.library_name("MPICH Version:      5.0.2\nMPICH ABI: 1") == "MPICH Version: 5.0.2"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_limit_is_read_from_both_kinds_of_cgroups(tmp_path, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert probe.cpu_quota(tmp_path) == quota


def test_what_was_told_before_a_crash_counts():
    answer = doctor.read_answer([{"version": "1"}], "Fatal: no\n-----\n", -11, 60)
    assert answer == Answer({"version": "1"}, "it ended with signal 11: Fatal: no")


def test_of_several_ranks_the_facts_of_rank_0_and_the_error_of_any_count():
    answers = [{"rank": 1, "size": 3, "error": "rank 1 says no"}, {"rank": 0, "size": 2}]
    answer = doctor.read_answer(answers, "", 1, 60)
    assert answer.facts["size"] == 2
    assert answer.problem == "rank 1 says no"


def test_that_another_rank_is_done_does_not_mean_that_rank_0_is():
    answer = doctor.read_answer([{"rank": 1, "done": True}, {"rank": 0}], "", 1, 60)
    assert answer.problem == "it ended with exit status 1"


def test_what_happens_after_a_probe_is_done_does_not_matter():
    assert doctor.read_answer([{"done": True}], "", None, 60).problem == ""


def test_each_process_answers_in_a_file_of_its_own_and_the_first_error_is_first(tmp_path):
    for number, name in enumerate(("b", "a")):
        lines = [{"process": name, "rank": number}, {"process": name, "error": f"of {name}"}]
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)) + '\n{"cut sho')
        os.utime(tmp_path / name, ns=(number, number))
    assert probe.told(tmp_path) == [{"rank": 0, "error": "of b"}, {"rank": 1, "error": "of a"}]


def test_what_ranks_on_other_hosts_print_is_kept_apart_by_process(tmp_path):
    printed = """noise
{"process": "h-1", "rank": 0}
{"process": "h-2", "rank": 1}
{"process": "h-1", "size": 2}
"""
    assert probe.told(tmp_path, printed) == [{"rank": 0, "size": 2}, {"rank": 1}]


@pytest.mark.parametrize("there", [True, False])
def test_a_probe_writes_to_its_file_or_prints_where_there_is_no_folder(tmp_path, there):
    folder = tmp_path / ("" if there else "on another host")
    run = subprocess.run([*probe.START, "cuda", folder, "9"], capture_output=True, check=True)
    assert (run.stdout == b"") == there
    [facts] = probe.told(tmp_path, run.stdout.decode())
    assert facts["done"] is True
    assert "built" in facts


def test_a_probe_uses_the_package_that_is_installed_not_the_folder_it_is_called_in(
    tmp_path, monkeypatch
):
    (tmp_path / "hvd_backup").mkdir()
    (tmp_path / "hvd_backup" / "__init__.py").write_text("raise ImportError('of the folder')")
    monkeypatch.chdir(tmp_path)
    assert doctor.ask("cuda", 30).problem == ""


def test_sources_that_were_not_built_say_so(tmp_path):
    package = Path(probe.__file__).parents[1]
    (tmp_path / "hvd_backup").mkdir()
    for name in ("__init__.py", "built.py"):
        shutil.copy(package / name, tmp_path / "hvd_backup")
    command = [sys.executable, "-c", "import hvd_backup"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert f"imported from {tmp_path / 'hvd_backup'}, where it is not built for this" in last
    assert last.endswith(f"{sys.executable} -m pip install -e {tmp_path}")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Make a package that only the probes' processes see before the real one."""

    def make(name, text, **submodules):
        for file, content in {"__init__": text, **submodules}.items():
            path = tmp_path / name / f"{file}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    return make


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("raise OSError('libtorch.so: not found')", "OSError: libtorch.so: not found"),
        ("import os; os.abort()", "it ended with signal 6"),
        ("import sys; sys.exit('bye')", "it ended with exit status 1: bye"),
        ("import time; time.sleep(60)", "no answer within 2 s"),
    ],
)
def test_a_framework_that_crashes_or_hangs_is_told_and_survived(module, text, problem):
    module("torch", text)
    began = time.monotonic()
    assert doctor.ask("torch", 2).problem == problem
    assert time.monotonic() - began < 20


def test_an_mpi4py_that_finds_no_mpi_is_told(module):
    module("mpi4py", "raise RuntimeError('cannot load MPI library')")
    answer = doctor.ask("mpi", 30)
    assert findings.library(answer)[0].status == FAIL
    assert "cannot load MPI library" in answer.problem


def test_horovods_build_is_asked_of_the_framework_that_it_was_built_for(module):
    module(
        "horovod",
        "__version__ = '0.28.1'",
        torch="raise ImportError('Extension torch has not been built')",
        tensorflow="mpi_built = lambda: True\ngloo_built = lambda: False\nnccl_built = lambda: 0\n",
    )
    facts = doctor.ask("horovod", 30).facts
    assert facts["version"] == "0.28.1"
    assert facts["framework"] == "tensorflow"
    assert facts["built"] == {"mpi": True, "gloo": False, "nccl": False}


def test_a_launcher_that_cannot_be_started_is_told(tmp_path):
    answer = doctor.ask_ranks(str(tmp_path / "mpirun"), 2, 5)
    assert "cannot start" in answer.problem


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch):
    """Replaces the probes by answers, and the environment by one without a launcher."""
    known = {"mpi": Answer({**WORKS, "ranks": [rank([0])]}), "cuda": Answer({}, "?")}
    monkeypatch.setattr(doctor, "ask", lambda name, *_: known[name])
    monkeypatch.setattr(doctor, "ask_ranks", lambda *_: Answer({**WORKS, "size": 2}))
    monkeypatch.setattr(doctor, "_installed", lambda name: name in known)
    monkeypatch.setattr(launch, "detect", lambda _: launch.Launch(launch.NONE))
    return known


def command():
    result = CliRunner().invoke(app, ("doctor",), env={"NO_COLOR": "1", "COLUMNS": "80"})
    return result.exit_code, [line.split(None, 2) for line in result.stdout.splitlines()]


def test_the_status_is_zero_unless_something_fails(answers):
    code, lines = command()
    assert code == 0
    assert {line[0] for line in lines} <= {OK, NOTE, TODO}
    answers["mpi"] = Answer({**MPI, "ranks": [rank([0])]}, "LaunchError: two libraries")
    code, lines = command()
    assert code == 1
    assert [FAIL, "exchange", "LaunchError: two libraries"] in lines


def test_each_thing_has_one_line_however_long(answers):
    answers["torch"] = Answer({}, "first line\nsecond " + "x" * 300)
    _, lines = command()
    names = [line[1] for line in lines]
    assert len(names) == len(set(names))
    assert {"MPI", "ABI", "launcher", "cores", "/dev/shm", "CUDA", "torch", "horovod"} <= set(names)
    assert ["todo", "torch", "import fails: first line second " + "x" * 300] in lines


def test_other_ranks_say_nothing(answers):
    answers["mpi"] = Answer({**WORKS, "rank": 1, "size": 2})
    assert command() == (0, [])


def test_without_a_world_the_launcher_says_who_speaks(answers, monkeypatch):
    answers["mpi"] = Answer(MPI, "LaunchError: srun started 4 processes")
    for number, lines_expected in ((0, True), (3, False)):
        how = launch.Launch(launch.SRUN, number, 4)
        monkeypatch.setattr(launch, "detect", lambda _, how=how: how)
        code, lines = command()
        assert bool(lines) == lines_expected
        assert code == (1 if lines_expected else 0)


@pytest.mark.parametrize(
    ("srun", "words"), [(None, "install one"), ("/bin/srun", "srun --mpi=pmix")]
)
def test_no_mpirun_is_something_to_do_since_srun_may_be_there(monkeypatch, srun, words):
    monkeypatch.setattr("shutil.which", lambda _: srun)
    line = findings.no_mpirun("install one")
    assert line.status == TODO
    assert words in line.text
