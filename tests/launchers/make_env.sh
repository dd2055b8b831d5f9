#!/usr/bin/env bash
# Makes a Python environment with another MPI than .venv's, for the tests in this folder:
#
#     tests/launchers/make_env.sh mpich            # the PyPI wheel
#     tests/launchers/make_env.sh debian-openmpi   # apt-get install openmpi-bin libopenmpi-dev
#     tests/launchers/make_env.sh debian-mpich     # apt-get install mpich libmpich-dev
#
# It lies in build/mpi/NAME and has its own mpi4py and mpirun; the rest, torch and hvd_backup itself,
# is that of .venv: it runs on any MPI. Takes half a minute (debian-mpich: two, as mpi4py is
# compiled). Needs .venv with the extension; `make other-mpis` calls it for each MPI that is there.
set -euo pipefail
cd "$(dirname "$0")/../.."

name="${1:?which MPI: mpich, debian-openmpi or debian-mpich}"
env="$PWD/build/mpi/$name"
python="$env/bin/python"
pip=("$python" -m pip install --quiet --disable-pip-version-check --no-deps -c requirements/pins.txt)

# The commands of an MPI that Debian installs beside others.
debian() {
  local command
  for command in mpirun mpicc; do
    if [[ ! -x /usr/bin/$command.$1 ]]; then
      echo "no /usr/bin/$command.$1: apt-get install --no-install-recommends $2" >&2
      exit 1
    fi
    # No link: MPICH's mpirun looks for its helpers beside the name it was called by.
    printf '#!/bin/sh\nexec /usr/bin/%s "$@"\n' "$command.$1" >"$env/bin/$command"
    chmod +x "$env/bin/$command"
  done
}

install() {
  case "$name" in
    mpich)
      "${pip[@]}" mpich==5.0.2 mpi4py
      ;;
    debian-openmpi)
      debian openmpi "openmpi-bin libopenmpi-dev"
      "${pip[@]}" mpi4py
      ;;
    debian-mpich)
      debian mpich "mpich libmpich-dev"
      # Its library is called libmpich.so, which mpi4py's wheel does not know.
      MPICC="$env/bin/mpicc" CFLAGS=-O0 "${pip[@]}" --no-cache-dir --no-binary mpi4py mpi4py
      ;;
    *)
      echo "no such MPI: $name" >&2
      exit 2
      ;;
  esac
}

if [[ $env/installed -ot $0 || $env/installed -ot requirements/pins.txt ]]; then
  echo "== making $env"
  rm -rf "$env"
  .venv/bin/python -m venv "$env"
  install
  touch "$env/installed"
fi
rm -f "$env/made"

site="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
# What is not here comes from .venv. addsitedir, so that .venv's own .pth files count as well.
base="$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
echo "import site; site.addsitedir('$base')" >"$site/zz_base.pth"

cd / && "$python" -c 'import hvd_backup as hb; hb.init()
from mpi4py import MPI
print("made:", MPI.Get_library_version().partition("\n")[0], hb.__file__)'
touch "$env/made"
