#!/bin/sh
# Installs the daemon into a virtual environment of its own: install.sh VENV SOURCE [EXTRAS]
# The Dockerfile runs this; so does scripts/container_steps.sh, where there is no Docker.
set -eu
venv=$1
source=$2
extras=${3:-}
python3 -m venv "$venv"
"$venv/bin/pip" install --no-cache-dir --disable-pip-version-check --quiet ${TORCH:+"$TORCH"} "$source${extras:+[$extras]}"
"$venv/bin/serve_policy" --help >/dev/null
