#!/usr/bin/env bash
# Check xpcnn on this machine's NVIDIA GPU: every op against its definition, the whole test suite on CuPy,
# a training run, measurements (bench_gpu.py); one JSON report, which is written after each part.
#
#   ./scripts/gpu_check.sh [REPORT.json] [--parts verify,tests,train,bench] [--quick] [--budget SECONDS] [--dry-run]
#
# With --quick everything takes less than 9 minutes; in full, up to half an hour, or part by part. A part for which
# the budget leaves no time is left out, which is no success. --dry-run does a little of everything on the CPU.
# The report goes to $XPCNN_REPORT_DIR (or here) under a name with the time, unless it is named.
# It uses a Python that has CuPy: $PYTHON, or .venv's, or python3. Nothing is downloaded. Packages that this Python
# lacks are taken from wheels/ if that folder is there; `./scripts/gpu_check.sh --bundle` fills it, where there is a
# network, for the Python version named in $BUNDLE_PYTHON (3.12 by default).
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = "--bundle" ]; then
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "${BUNDLE_PYTHON:-3.12}" \
        --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d wheels \
        array-api-compat array-api-extra array-api-strict threadpoolctl safetensors click rich markdown-it-py mdurl \
        pygments pillow hypothesis sortedcontainers pytest pluggy iniconfig packaging \
        pytest-xdist execnet ml_dtypes nvidia-cudnn-frontend==1.24.0 \
        matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil
    echo "wheels/ is ready; take it along with the repository."
    exit 0
fi

wanted="import cupy"
case " $* " in *" --dry-run "*) wanted="import numpy" ;; esac
for python in "${PYTHON:-}" .venv/bin/python python3; do
    if [ -n "$python" ] && command -v "$python" >/dev/null && "$python" -c "$wanted" 2>/dev/null; then
        exec "$python" scripts/gpu_check.py "$@"
    fi
done
echo "gpu_check: error: no Python with CuPy was found (\$PYTHON, .venv/bin/python, python3); ./scripts/train.sh --device cuda sets one up." >&2
exit 2
