#!/bin/bash
# hvd_backup in an Apptainer (Singularity) container.
# Change what is below "edit", then: bash apptainer.sh
set -euo pipefail

# edit: an image with Python, an MPI, mpi4py and hvd_backup, built together
image=train.sif
# edit: R = N + b ranks, b of which a round does not wait for
ranks=5
backup_workers=1
# edit: the script, by its path in the container
train=(python train.py)
# edit: what the container is to see besides the home folder; --nv for NVIDIA's GPUs
options=(--bind "$PWD" --pwd "$PWD")
export OMP_NUM_THREADS=1

# One container with mpirun in it. All ranks of a node must share one container's user namespace:
# a rank in another one may not open the memory that they share.
container=(apptainer exec "${options[@]}" "$image")
launch=("${container[@]}" hvd-backup run -np "$ranks" -b "$backup_workers" --)

# On several nodes, mpirun or srun starts a container per rank, and --sharens (Apptainer 1.3) puts
# those of a node into one namespace. The MPI in the image must fit the one outside. Instead of the
# two lines above:
# export HVD_BACKUP_WORKERS="$backup_workers"
# launch=(srun --mpi=pmix apptainer exec --sharens "${options[@]}" "$image")

# Ends here if something makes hvd_backup unusable.
"${launch[@]}" hvd-backup doctor
"${launch[@]}" "${train[@]}"
