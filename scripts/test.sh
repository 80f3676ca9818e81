#!/usr/bin/env bash
# Run the tests, one process per core; the options are pytest's (-n 0 for one process). With --oracles first, PyTorch and
# (where they install) JAX, Keras and scikit-image, which some tests need, are installed too, and a test that needs
# PyTorch fails without it instead of being skipped.
# The first run makes .venv and installs xpcnn there.
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

make_venv
if [ "${1:-}" = --oracles ]; then
  shift
  set -- --require=torch "$@"
  if ! install "dev oracles" -e '.[dev,oracles]'; then
    say "warning: not everything installed (pip says why above); going on with PyTorch alone" \
      "(to try again, remove .venv/xpcnn-installed)."
    torch=$(grep -o 'torch==[0-9.]*' pyproject.toml)
    install "dev oracles" -e '.[dev]' "$torch" || fail "pip could not install $torch; it says why above."
  fi
else
  install dev -e '.[dev]' || fail "pip could not install xpcnn[dev]; it says why above."
fi
exec .venv/bin/python -m pytest -n auto "$@"
