"""Each rank has settings of its own: own_settings.py FOLDER RANK=NAME=VALUE…"""

import os

from facts import ARGUMENTS, tell

import hvd_backup as hb

for argument in ARGUMENTS:
    rank, name, value = argument.split("=")
    if rank == os.environ["OMPI_COMM_WORLD_RANK"]:
        os.environ[name] = value
try:
    hb.init()
except (hb.Error, ValueError) as error:
    tell(error=type(error).__name__, text=str(error))
    raise
