"""`hvd-backup template`: job files to edit."""

from __future__ import annotations

from enum import Enum
from importlib import resources


class Kind(str, Enum):
    """Where a job is to run."""

    SLURM = "slurm"
    MPIRUN = "mpirun"
    KUBERNETES = "kubernetes"
    APPTAINER = "apptainer"


FILES = {
    Kind.SLURM: "slurm.sbatch",
    Kind.MPIRUN: "run_hosts.sh",
    Kind.KUBERNETES: "mpijob.yaml",
    Kind.APPTAINER: "apptainer.sh",
}


def template(kind: Kind) -> str:
    """The job file of a kind; its comments say what to edit."""
    folder = resources.files("hvd_backup.cluster") / "templates"
    return (folder / FILES[kind]).read_text(encoding="utf-8")
