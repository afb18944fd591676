#!/bin/sh
# What `docker build` and `docker run` would do, without Docker: the copies of the Dockerfile's build stage, the
# install script, then command and health check of the final stage, word for word from the Dockerfile.
# As root, the file system is read-only for it but for its volumes, and it has no capabilities, as in compose.yml.
# Left out: apt, users, the CUDA base image, TensorRT.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
daemon=
finish() {
    code=$?
    if [ -n "$daemon" ]; then kill -KILL "$daemon" 2>/dev/null || true; fi
    if [ "$code" -ne 0 ] && [ -f "$scratch/log" ]; then tail -n 40 "$scratch/log" >&2; fi
    rm -rf "$scratch"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

echo "container: copying the build context"
python3 "$root/scripts/dockerfile.py" copy "$root/Dockerfile" build "$scratch"
# The environment that made the project knows which torch suits this machine; an image takes pip's choice.
venv_python=${VENV_PYTHON:-$root/.venv/bin/python}
if [ -x "$venv_python" ]; then
    TORCH=$("$venv_python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))')
    export TORCH
fi
echo "container: install.sh ${TORCH:-}"
sh "$scratch/container/install.sh" "$scratch/venv" "$scratch/src" record

cd "$scratch"
mkdir -p app/policy_records cache tmp
export PATH="$scratch/venv/bin:$PATH" VLAD_CACHE_DIR="$scratch/cache" OPENPI_DATA_HOME="$scratch/openpi_assets"
export TMPDIR="$scratch/tmp" PYTHONDONTWRITEBYTECODE=1
free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port=$(python -c "$free_port")
metrics_port=$(python -c "$free_port")
export SERVER_ARGS="--checkpoint demo --env LIBERO --record --port $port --metrics-port $metrics_port"
command=$(python "$root/scripts/dockerfile.py" words "$root/Dockerfile" CMD "$scratch")
probe=$(python "$root/scripts/dockerfile.py" words "$root/Dockerfile" HEALTHCHECK "$scratch")

echo "container: $command   (SERVER_ARGS=\"$SERVER_ARGS\")"
cd app
read_only="$root/scripts/read_only.sh $scratch/app/policy_records $scratch/cache $scratch/tmp --"
if $read_only true 2>/dev/null; then
    if $read_only touch "$scratch/app/x" 2>/dev/null; then echo "container: /app can be written" >&2; exit 1; fi
    # The embedded policy needs nothing of it; engines, kernels and the checks of others do.
    if ! $read_only touch "$scratch/cache/x"; then echo "container: nothing can be cached" >&2; exit 1; fi
    echo "container: read-only but for its volumes, without capabilities"
    command="$read_only $command"
else
    echo "container: SKIPPED the read-only file system: that needs root"
fi
$command >"$scratch/log" 2>&1 &
daemon=$!
if $probe; then echo "container: healthy before the policy was loaded" >&2; exit 1; fi
began=$(date +%s)
until $probe >"$scratch/probe"; do
    kill -0 "$daemon" 2>/dev/null || { echo "container: the daemon ended" >&2; exit 1; }
    if [ $(($(date +%s) - began)) -gt 180 ]; then echo "container: never healthy" >&2; exit 1; fi
    sleep 0.5
done
echo "container: healthy after $(($(date +%s) - began)) s ($(cat "$scratch/probe"))"
kill -TERM "$daemon"
code=0
wait "$daemon" || code=$?
daemon=
[ "$code" -eq 0 ] || { echo "container: exit code $code after SIGTERM" >&2; exit 1; }
echo "container: stopped with exit code 0"
