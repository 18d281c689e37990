#!/bin/sh
# Measure a machine with a GPU: benchmarks/gpu.sh CATALOG.CSV [options of benchmarks/gpu.py]
# First what decides defaults (--compile auto, threads that decode): results/gpu_compiled.json and
# gpu_decode_workers.json; then everything, end to end: results/gpu.json.
# With the python3 that has torch there (or PYTHON=…); the other packages are installed beside the script if missing.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
if ! [ -x "$(dirname "$("$python" -c 'import sys; print(sys.executable)')")/catvec" ]; then
  "$python" -m pip install --quiet --editable '.[parquet]'
fi
"$python" -m benchmarks.compiled --name gpu_compiled
"$python" -m benchmarks.decode_workers "$1" --name gpu_decode_workers
exec "$python" -m benchmarks.gpu "$@"
