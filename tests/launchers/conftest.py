"""What the launchers' tests need, or a skip that says what is missing and how to get it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from launchers import slurm
from launching import ROOT

from hvd_backup.study.mpirun import AS_ROOT, OVERSUBSCRIBE
from hvd_backup.world.mpirun import find_mpirun

pytest.register_assert_rewrite("launchers.told")

HERE = Path(__file__).parent
LIMIT_S = 120
HOW = {
    "mpich": "make other-mpis",
    "debian-mpich": "apt-get install mpich libmpich-dev, then make other-mpis",
    "debian-openmpi": "apt-get install openmpi-bin libopenmpi-dev, then make other-mpis",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="session", autouse=True)
def _settings_of_open_mpi():
    """For every mpirun, in batch jobs too: more ranks than cores, and its files where we clean."""
    settings = {**OVERSUBSCRIBE, **(AS_ROOT if os.geteuid() == 0 else {})}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory("-hvd-mpi") as folder:
        for name in (
            "PRTE_MCA_prte_tmpdir_base",
            "OMPI_MCA_orte_tmpdir_base",
            # Else in /dev/shm, where ranks that are killed or abort leave it.
            "OMPI_MCA_btl_sm_backing_directory",
            "OMPI_MCA_btl_vader_backing_directory",
        ):
            settings[name] = folder
        for name, value in settings.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def cluster():
    """A Slurm with two nodes, n0 and n1, for all tests."""
    if reason := slurm.missing():
        pytest.skip(reason)
    # Not in pytest's folder: the paths of sockets must be short, and others must reach them.
    with tempfile.TemporaryDirectory(prefix="hvd-slurm-") as folder:
        with slurm.Cluster(Path(folder)) as running:
            yield running
        assert running.survivors() == []


@pytest.fixture(scope="session")
def pmix_cluster(cluster, open_mpi):
    """The same, where `srun --mpi=pmix` works."""
    if reason := slurm.missing_pmix():
        pytest.skip(reason)
    return cluster


@pytest.fixture(scope="session")
def open_mpi():
    """The mpirun of this environment, if it is Open MPI's."""
    mpirun = find_mpirun()
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False)
    if "Open MPI" not in version.stdout:
        pytest.skip(f"{mpirun} is not Open MPI's: make distclean, and make without that on PATH")
    return mpirun


@pytest.fixture(scope="session")
def horovod(open_mpi):
    """What must be in the environment for `import horovod`."""
    find = subprocess.run(
        [HERE / "build_horovod.sh", "--find"], capture_output=True, text=True, check=False
    )
    if find.returncode:
        pytest.skip("Horovod is not built for these versions yet: make horovod (5 minutes)")
    return {
        "PYTHONPATH": find.stdout.strip(),
        "PATH": os.pathsep.join([str(Path(open_mpi).parent), os.environ["PATH"]]),
        # It may have been built beside another .venv.
        "LD_LIBRARY_PATH": str(Path(sys.prefix) / "lib"),
    }


@pytest.fixture(scope="session")
def horovod_tensorflow(open_mpi):
    """The same, for `import horovod.tensorflow`."""
    find = subprocess.run(
        [HERE / "build_horovod_tensorflow.sh", "--find"],
        capture_output=True,
        text=True,
        check=False,
    )
    if find.returncode:
        how = find.stderr.strip() or "make horovod-tensorflow (5 minutes)"
        pytest.skip(f"Horovod is not built for this TensorFlow yet: {how}")
    return {
        "PYTHONPATH": find.stdout.strip(),
        "PATH": os.pathsep.join([str(Path(open_mpi).parent), os.environ["PATH"]]),
        "LD_LIBRARY_PATH": str(Path(sys.prefix) / "lib"),
    }


@pytest.fixture(scope="session")
def other_mpi():
    """The bin folder, with python and mpirun, of an environment of make_env.sh, by its name."""

    def commands(name):
        folder = ROOT / "build" / "mpi" / name / "bin"
        # Debian's MPI may have been removed since.
        system = Path("/usr/bin") / f"mpirun.{name.removeprefix('debian-')}"
        there = name == "mpich" or system.exists()
        if not (there and (folder.parent / "made").exists()):
            pytest.skip(f"no build/mpi/{name}: {HOW[name]}")
        return folder

    return commands
