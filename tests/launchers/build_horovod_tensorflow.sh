#!/usr/bin/env bash
# Builds Horovod with TensorFlow, as build_horovod.sh does with PyTorch: for the tests of what
# horovod.tensorflow does. Takes 5 minutes and more, once.
#
#     tests/launchers/build_horovod_tensorflow.sh          # make horovod-tensorflow
#     tests/launchers/build_horovod_tensorflow.sh --find   # only prints the folder, fails if none
set -euo pipefail
cd "$(dirname "$0")/../.."

horovod=0.28.1 # the last release
helpers=(psutil==7.2.2 pyyaml==6.0.3 cffi==2.1.1 pycparser==3.12 cloudpickle==3.1.2)

python="$PWD/.venv/bin/python"
export PATH="$PWD/.venv/bin:$PATH" # mpirun, mpicxx, cmake

if [[ ! -x $python ]] || ! tensorflow="$("$python" -c '
import importlib.metadata
found = [d for d in importlib.metadata.distributions() if d.name in ("tensorflow", "tensorflow_cpu")]
print(found[0].name, found[0].version)' 2>/dev/null)"; then
  echo "no .venv with TensorFlow yet: make test-tf makes it" >&2
  exit 1
fi

built_for="horovod $horovod, $tensorflow, $("$python" --version), $(uname -m), \
$(mpirun --version | head -n 1), $(sha256sum <"$0")"
key="$(sha256sum <<<"$built_for" | cut -c 1-12)"
folder="${XDG_CACHE_HOME:-$HOME/.cache}/hvd_backup/horovod-tensorflow-$key"
if [[ -d $folder ]]; then
  echo "$folder"
  exit 0
elif [[ ${1:-} == --find ]]; then
  exit 1
fi

mkdir -p build "${folder%/*}"
log="$PWD/build/horovod-tensorflow.log"
work="$(mktemp -d "$folder.XXXXXX")" # beside the folder, so that mv makes it appear in one piece
trap 'rm -rf "$work"' EXIT
site="$work/site"
pip=("$python" -m pip install --quiet --disable-pip-version-check --target "$site" --no-deps)
"${pip[@]}" "${helpers[@]}"

# Horovod includes headers of XLA that TensorFlow does not ship, and needs nothing of them on a CPU.
for header in tf2xla/{xla_op_kernel,xla_op_registry}.h xla/client/xla_builder.h \
  xla/service/{custom_call_target_registry,hlo.pb}.h xla/{shape,xla_data.pb}.h; do
  mkdir -p "$work/include/tensorflow/compiler/${header%/*}"
  touch "$work/include/tensorflow/compiler/$header"
done
# Its CMake asks for C++14, TensorFlow's headers for C++17.
cat >"$work/c++17" <<WRAPPER
#!/usr/bin/env bash
exec g++ "\${@/-std=*++14/-std=c++17}" -I"$work/include"
WRAPPER
chmod +x "$work/c++17"

echo "== building Horovod $horovod for TensorFlow; the compiler's words go to $log"
export HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1 HOROVOD_WITH_TENSORFLOW=1
export HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
export CMAKE_POLICY_VERSION_MINIMUM=3.5
if ! CXX="$work/c++17" MAKEFLAGS="-j$(nproc)" PYTHONPATH="$site" "${pip[@]}" \
  --upgrade --verbose --no-build-isolation --no-cache-dir --no-binary horovod "horovod==$horovod" \
  >"$log" 2>&1; then
  tail -n 40 "$log" >&2
  exit 1
fi
LD_LIBRARY_PATH="$PWD/.venv/lib" PYTHONPATH="$site" "$python" -c 'import horovod.tensorflow as hvd
assert hvd.mpi_built()'
mv -T "$site" "$folder"
echo "$folder"
