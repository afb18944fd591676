#!/bin/sh
# Installs the daemon into a virtual environment of its own: install.sh VENV SOURCE [EXTRAS]
# The Dockerfile runs this; so does scripts/container_steps.sh, where there is no Docker.
#   TORCH         requirement of torch; pip's choice where not given
#   TORCH_INDEX   package index that has the torch of this machine, where PyPI's does not run on it
#   VENV_OPTIONS  for `python3 -m venv`
set -eu
venv=$1
source=$2
extras=${3:-}
torch=${TORCH:-}
# shellcheck disable=SC2086  # several options are several words
python3 -m venv ${VENV_OPTIONS:-} "$venv"
install() {
    "$venv/bin/pip" install --no-cache-dir --disable-pip-version-check --quiet "$@"
}
if [ -n "${TORCH_INDEX:-}" ]; then
    # First and exactly: PyPI's torch has a higher number, and would be taken for better.
    install --index-url "$TORCH_INDEX" torch triton
    torch=$("$venv/bin/python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))')
fi
install ${torch:+"$torch"} "$source${extras:+[$extras]}"
"$venv/bin/serve_policy" --help >/dev/null
