# shellcheck shell=bash
# Sourced by train.sh and test.sh: goes to the repository's root, makes .venv and installs xpcnn there.
# Once that is done it takes well under a second and no network. Works with bash 3.2, which macOS has.

caller=$PWD
unset CDPATH PYTHONHOME PYTHONPATH PIP_PREFIX PIP_TARGET # they would take cd, Python or pip elsewhere
export PIP_USER=0
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
trap 'exit 130' INT # pip answers Ctrl-C with an ordinary exit, after which bash would go on

say() {
  echo "xpcnn: $*" >&2
}

fail() {
  say "error: $*"
  exit 2
}

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

can_make_venv() {
  "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

which_python() {
  "$1" -c 'import os, sys; print(sys.version_info[:3], os.path.realpath(sys.base_prefix))'
}

# Set $python to $PYTHON or, without it, to the newest Python on the PATH that can make a virtual environment.
find_python() {
  python=
  if [ -n "${PYTHON:-}" ]; then
    case $PYTHON in
      /*) python=$PYTHON ;;
      */*) python=$caller/$PYTHON ;;
      *) python=$PYTHON ;;
    esac
    is_new_enough "$python" ||
      fail "PYTHON is $PYTHON, but Python 3.11 or newer is needed and that is" \
        "$("$python" -c 'import sys; print(sys.version.split()[0])' 2>/dev/null || echo 'nothing that runs')."
  else
    local candidate
    for candidate in python3.14 python3.13 python3.12 python3.11 python3 python; do
      is_new_enough "$candidate" || continue # not there, or a version manager's empty promise
      python=${python:-$candidate}
      if can_make_venv "$candidate"; then
        python=$candidate
        break
      fi
    done
    [ -n "$python" ] || fail "Python 3.11 or newer is needed and none was found; install one or set PYTHON to its path."
  fi
}

venv_works() {
  .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11) or sys.prefix == sys.base_prefix)' \
    >/dev/null 2>&1
}

# Make .venv unless there is one that works and, if PYTHON is set, was made by that Python.
make_venv() {
  if [ -n "${PYTHON:-}" ]; then
    find_python
    if venv_works && [ "$(which_python .venv/bin/python)" = "$(which_python "$python")" ]; then
      return
    fi
  elif venv_works; then
    return
  else
    find_python
  fi
  can_make_venv "$python" ||
    fail "$python cannot make a virtual environment because it has no ensurepip; on Debian or Ubuntu," \
      "'apt install $("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')-venv' adds it."
  if [ -e .venv ] || [ -L .venv ]; then
    say "making .venv anew, since it does not run or is another Python's."
    rm -rf .venv
  fi
  local output
  trap 'rm -rf .venv' EXIT
  output=$("$python" -m venv .venv 2>&1) || fail "$python could not make .venv: $output"
  trap - EXIT
}

# install NAMES PIP-ARGUMENTS...: run pip unless it has done so for these names (extras, parted by spaces) and this
# pyproject.toml. The stamps are put away while pip works, so that an interrupted pip leaves none behind.
install() {
  local names="base $1" name key stamps=.venv/xpcnn-installed done=yes
  key="$(cksum <pyproject.toml) $PWD" # the path, because an editable install names it
  [ -x .venv/bin/xpcnn ] || done=no
  for name in $names; do
    [ "$(cat "$stamps/$name" 2>/dev/null)" = "$key" ] || done=no
  done
  [ "$done" = no ] || return 0
  say "installing xpcnn${1:+[${1// /,}]} into .venv; the first time this takes a minute or more ..."
  shift
  rm -rf "$stamps.aside"
  [ ! -d "$stamps" ] || mv "$stamps" "$stamps.aside"
  mkdir -p "$stamps.aside"
  if .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; then
    for name in $names; do
      echo "$key" >"$stamps.aside/$name"
    done
    mv "$stamps.aside" "$stamps"
  else
    mv "$stamps.aside" "$stamps" # pip has undone what it began
    return 1
  fi
}
