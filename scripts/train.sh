#!/usr/bin/env bash
# Train a network; the options are those of `xpcnn train` (--help lists them).
# The first run makes .venv and installs xpcnn there, with CuPy if --device asks for an NVIDIA GPU.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# Set $extra to the extra that has the CuPy for this driver.
find_cuda_extra() {
  local report pattern='CUDA[A-Za-z ]*Version *: *([0-9]+)'
  report=$(nvidia-smi 2>/dev/null) ||
    fail "--device $device: no NVIDIA driver was found (nvidia-smi is missing or fails);" \
      "--device cpu runs without a GPU."
  [[ $report =~ $pattern ]] ||
    fail "--device $device: nvidia-smi does not say which CUDA version the driver has;" \
      "install CuPy into .venv yourself, or use --device cpu, which runs without a GPU."
  if [ "${BASH_REMATCH[1]}" -ge 13 ]; then
    extra=cuda13
  elif [ "${BASH_REMATCH[1]}" -eq 12 ]; then
    extra=cuda12
  else
    fail "--device $device: the NVIDIA driver has CUDA ${BASH_REMATCH[1]} and CuPy needs 12 or newer;" \
      "update the driver, or use --device cpu, which runs without a GPU."
  fi
}

device='' extra='' previous=''
for argument in "$@"; do
  [ "$previous" != --device ] || device=$argument
  case $argument in --device=*) device=${argument#*=} ;; esac
  previous=$argument
done

make_venv
case $(tr '[:upper:]' '[:lower:]' <<<"$device") in
  cuda | cuda:* | cupy | cupy:*) .venv/bin/python -c 'import cupy' >/dev/null 2>&1 || find_cuda_extra ;;
esac
install "$extra" -e ".${extra:+[$extra]}" || fail "pip could not install xpcnn${extra:+[$extra]}; it says why above."
exec .venv/bin/xpcnn train "$@"
