#!/usr/bin/env bash
# Builds Horovod with PyTorch for the tests in this folder, against the MPI and the torch of .venv;
# .venv itself stays as it is. Takes 3 to 7 minutes, once: what is built is kept under
# $XDG_CACHE_HOME/hvd_backup for all clones with the same versions.
#
#     tests/launchers/build_horovod.sh          # make horovod
#     tests/launchers/build_horovod.sh --find   # only prints the folder, fails if there is none
#
# Horovod's libraries know the .venv that they were built with. For another one, and always to be
# sure that libmpi is the one that mpi4py loads:
#
#     LD_LIBRARY_PATH=.venv/lib PYTHONPATH=FOLDER .venv/bin/python -c 'import horovod.torch'
set -euo pipefail
cd "$(dirname "$0")/../.."

horovod=0.28.1 # the last release
helpers=(psutil==7.2.2 pyyaml==6.0.3 cffi==2.1.1 pycparser==3.12)

python="$PWD/.venv/bin/python"
export PATH="$PWD/.venv/bin:$PATH" # mpirun, mpicxx, cmake

if [[ ! -x $python ]]; then
  echo "no .venv yet: make horovod makes both" >&2
  exit 1
fi

# What the compiled code depends on.
built_for="horovod $horovod, $("$python" -c '
import importlib.metadata, platform
print("torch", importlib.metadata.version("torch") + ",", "Python", platform.python_version())
print(platform.machine())'), $(mpirun --version | head -n 1), $(sha256sum <"$0")"
key="$(sha256sum <<<"$built_for" | cut -c 1-12)"
folder="${XDG_CACHE_HOME:-$HOME/.cache}/hvd_backup/horovod-$key"
if [[ -d $folder ]]; then
  echo "$folder"
  exit 0
elif [[ ${1:-} == --find ]]; then
  exit 1
fi

mkdir -p build "${folder%/*}"
log="$PWD/build/horovod.log"
work="$(mktemp -d "$folder.XXXXXX")" # beside the folder, so that mv makes it appear in one piece
trap 'rm -rf "$work"' EXIT
site="$work/site"
pip=("$python" -m pip install --quiet --disable-pip-version-check --target "$site" --no-deps)
"${pip[@]}" "${helpers[@]}"

# Horovod's CMake asks for C++14, torch's headers for C++17.
cat >"$work/c++17" <<'WRAPPER'
#!/usr/bin/env bash
exec g++ "${@/-std=*++14/-std=c++17}"
WRAPPER
chmod +x "$work/c++17"

echo "== building Horovod $horovod; the compiler's words go to $log"
export HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITH_PYTORCH=1
export HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
export CMAKE_POLICY_VERSION_MINIMUM=3.5 # its copy of gloo asks for less than CMake 4 knows
# --upgrade: else pip leaves horovodrun out, because there is a bin/ already.
if ! CXX="$work/c++17" MAKEFLAGS="-j$(nproc)" PYTHONPATH="$site" "${pip[@]}" \
  --upgrade --verbose --no-build-isolation --no-cache-dir --no-binary horovod "horovod==$horovod" \
  >"$log" 2>&1; then
  tail -n 40 "$log" >&2
  exit 1
fi
PYTHONPATH="$site" "$python" -c 'import horovod.torch as hvd
assert hvd.mpi_built() and hvd.gloo_built()'
mv -T "$site" "$folder"
echo "$folder"
