#!/usr/bin/env bash
# Run the tests, one process per core; the options are pytest's (-n 0 for one process). With --oracles first, PyTorch and
# (where they install) JAX, Keras, scikit-image and the published networks of rapidocr-onnxruntime, which some tests
# need, are installed too, and a test that needs PyTorch fails without it instead of being skipped.
# The first run makes .venv and installs xpcnn there.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

make_venv
if [ "${1:-}" = --oracles ]; then
  shift
  set -- --require=torch "$@"
  networks=rapidocr-onnxruntime==1.4.4 # of which only the files are wanted, not what it depends on
  if ! install "dev oracles" -e '.[dev,oracles]'; then
    say "warning: not everything installed (pip says why above); going on with PyTorch alone" \
      "(to try again, remove .venv/xpcnn-installed)."
    torch=$(grep -o 'torch==[0-9.]*' pyproject.toml)
    install "dev oracles" -e '.[dev]' "$torch" || fail "pip could not install $torch; it says why above."
  fi
else
  install dev -e '.[dev]' || fail "pip could not install xpcnn[dev]; it says why above."
fi
if [ -n "${networks:-}" ] && ! .venv/bin/python -m pip show --quiet "${networks%%=*}" 2>/dev/null; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$networks" ||
    say "warning: $networks is not installed (pip says why above), so its networks are not tested."
fi
exec .venv/bin/python -m pytest -n auto "$@"
