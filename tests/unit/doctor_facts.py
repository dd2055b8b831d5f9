"""What the doctor's probes may tell, for its tests."""

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
WORKS = {**MPI, "works": True, "remote_reads": True}


def rank(cores, *, node=0, machine=None, threads="1", quota=None, shm=8 << 30, **settings):
    machine = node if machine is None else machine
    place = {"host": f"n{machine}", "cores": list(cores), "quota": quota, "threads": threads}
    place |= {"settings": {f"HVD_BACKUP_{name}": text for name, text in settings.items()}}
    return {**place, "node": node, "machine": machine, "shm": shm, "shm_free": shm}
