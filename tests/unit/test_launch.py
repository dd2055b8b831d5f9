"""Launch detection: what each launcher leaves in the environment, and what is refused."""

import pytest

from hvd_backup.errors import LaunchError
from hvd_backup.world.launch import (
    RANK_PROCESS,
    Launch,
    check,
    check_before_init,
    check_is_no_child,
    detect,
    rank_process,
)

# As printed by `env` under each launcher, less what does not matter here.
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "2",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "3", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "3"}
SRUN = {
    "SLURM_PROCID": "9",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
}
GLOO = {
    "HOROVOD_RANK": "1",
    "HOROVOD_SIZE": "2",
    "HOROVOD_LOCAL_RANK": "1",
    "HOROVOD_LOCAL_SIZE": "2",
}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "0",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "4",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (OPEN_MPI, Launch("mpirun (Open MPI)", 2, 4, 0, 2)),
        (HYDRA, Launch("mpirun (MPICH/hydra)", 1, 3, 1, 3)),
        (SRUN, Launch("srun", 9, 11, 1, 3)),
        (OPEN_MPI | {"HOROVOD_CYCLE_TIME": "1"}, Launch("horovodrun --mpi", 2, 4, 0, 2)),
        (GLOO, Launch("horovodrun --gloo", 1, 2, 1, 2)),
        (TORCHRUN, Launch("torchrun", 0, 8, 0, 4)),
        ({"PATH": "/bin"}, Launch("none")),
    ],
    ids=lambda value: value.launcher if isinstance(value, Launch) else "",
)
def test_each_launcher_is_known_by_its_variables(environ, expected):
    assert detect(environ) == expected


@pytest.mark.parametrize(
    "inner", [OPEN_MPI, HYDRA, TORCHRUN], ids=["Open MPI", "hydra", "torchrun"]
)
def test_a_launcher_started_by_srun_is_the_one_that_counts(inner):
    assert detect(SRUN | inner) == detect(inner)


def test_rank_variables_without_torchrun_are_no_launcher():
    assert detect({"RANK": "0", "WORLD_SIZE": "4"}) == Launch("none")


def test_a_batch_script_of_slurm_is_not_a_step_of_srun():
    assert detect({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == Launch("none")


def test_what_a_launcher_says_badly_is_not_promised():
    odd = SRUN | {"SLURM_PROCID": "-1", "SLURM_STEP_TASKS_PER_NODE": "many"}
    assert detect(odd) == Launch("srun", None, 11, 1, None)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (SRUN, "srun --mpi=pmix"),
        (GLOO, "use 'horovodrun --mpi' or 'mpirun -n 2"),
        (TORCHRUN, "torchrun starts no MPI; use 'mpirun -n 8 python"),
        (OPEN_MPI, "belongs to Open MPI, and mpi4py has loaded another MPI"),
        (HYDRA, "belongs to MPICH, Intel MPI or another MPI with hydra"),
        (OPEN_MPI | {"HOROVOD_LOG_LEVEL": "info"}, "mpirun that horovodrun called"),
    ],
    ids=["srun", "gloo", "torchrun", "Open MPI", "hydra", "horovodrun --mpi"],
)
def test_worlds_of_one_are_refused_with_the_way_out(environ, words):
    launch = detect(environ)
    with pytest.raises(LaunchError) as raised:
        check(launch, 0, 1)
    text = str(raised.value)
    assert text.startswith(f"{launch.launcher} started {launch.size} processes")
    assert "rank 0 of an MPI world of 1" in text
    assert words in text


@pytest.mark.parametrize("environ", [OPEN_MPI, HYDRA, SRUN, GLOO, TORCHRUN, {}])
def test_a_world_of_several_ranks_is_believed(environ):
    check(detect(environ), 1, 3)


def test_one_process_may_be_a_world_of_one():
    check(detect({}), 0, 1)
    check(detect(TORCHRUN | {"WORLD_SIZE": "1"}), 0, 1)
    check(detect(OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}), 0, 1)


def inherited(environ, pid=100):
    """The environment of what a rank, which is process `pid`, starts."""
    return {**environ, RANK_PROCESS: rank_process(environ, pid)}


@pytest.mark.parametrize("environ", [OPEN_MPI, HYDRA | {"PMI_RANK": "2"}])
@pytest.mark.parametrize("between", [[], [(101, "sh"), (102, "python3")]])
def test_a_process_that_a_rank_has_started_is_refused(environ, between):
    parents = [*reversed(between), (100, "python3"), (1, "init")]
    with pytest.raises(
        LaunchError, match=r"started by rank 2 \(process 100\).* call init\(\) only"
    ):
        check_is_no_child(inherited(environ), 103, parents)


@pytest.mark.parametrize(
    ("environ", "pid", "parents"),
    [
        (inherited(OPEN_MPI), 100, [(50, "prterun")]),  # init() again, or after exec
        (OPEN_MPI, 103, [(100, "python3"), (50, "prterun")]),  # which did not call init()
        (inherited(OPEN_MPI), 103, [(102, "mpirun"), (100, "python3")]),
        (inherited(HYDRA), 103, [(102, "hydra_pmi_proxy"), (101, "mpiexec.hydra")]),
        (inherited(OPEN_MPI), 103, [(1, "init")]),  # on another host, or left alone
        (
            {**inherited(OPEN_MPI), "PMIX_NAMESPACE": "another job"},
            103,
            [(102, "starter"), (100, "python3")],
        ),
        (inherited({}), 103, [(100, "python3")]),  # nothing to be taken for
    ],
)
def test_other_processes_may_join(environ, pid, parents):
    check_is_no_child(environ, pid, parents)


@pytest.mark.parametrize(
    "version", ["MPICH Version:      5.0.2\nMPICH Release date", "Intel(R) MPI Library 2021.12"]
)
def test_an_mpi_that_would_abort_under_open_mpis_mpirun_is_refused_before(version):
    with pytest.raises(LaunchError) as raised:
        check_before_init(detect(OPEN_MPI), version)
    text = str(raised.value)
    assert text.startswith("mpirun (Open MPI) started 4 processes, but the MPI of this one is ")
    assert version.partition("\n")[0] in text
    assert "start 4 ranks with the mpirun that lies beside mpi4py's library" in text


@pytest.mark.parametrize(
    ("environ", "version"),
    [
        (OPEN_MPI, "Open MPI v5.0.11, package: …"),
        (OPEN_MPI, ""),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, "MPICH Version: 4.0.2"),
        (SRUN, "MPICH Version: 4.0.2"),
        (HYDRA, "MPICH Version: 4.0.2"),
    ],
)
def test_before_mpi_is_initialized_only_what_cannot_work_is_refused(environ, version):
    check_before_init(detect(environ), version)


@pytest.mark.parametrize("environ", [OPEN_MPI, HYDRA, OPEN_MPI | {"HOROVOD_CYCLE_TIME": "1"}])
def test_an_mpirun_of_another_mpi_is_refused_with_the_right_one(environ):
    how = detect(environ)
    with pytest.raises(LaunchError, match=rf"; start with /right/mpirun -n {how.size}$"):
        check(how, 0, 1, lambda size: f"start with /right/mpirun -n {size}")
