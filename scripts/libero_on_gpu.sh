#!/usr/bin/env bash
# Demonstrations, training and evaluation of the small LIBERO policy on a machine that has only what is brought,
# in calls of a few minutes each. Run in the repository's root:
#
#   scripts/libero_on_gpu.sh generate PER_TASK SECONDS    demonstrations into $DATA, as many as the time allows
#   scripts/libero_on_gpu.sh train SECONDS [ARGS...]      begin training, or look after it, for so long
#   scripts/libero_on_gpu.sh evaluate SECONDS [ARGS...]   daemon and eval_libero on the newest checkpoint
#   scripts/libero_on_gpu.sh table SECONDS [ARGS...]      rows of the table of backends, see libero_table.py
#
# Training goes on in the background when its call ends, so that no call has to be as long as it; the next call
# finds it. Everything goes on where it stopped. What is worth keeping is put into $OUT (default out/libero-gpu).
# $GPUS is how many to train on (all), $CORES how many processes may work beside each other (all).
# Wheels for this machine's Python lie in $WHEELS, packages of Debian for EGL in $DEBS, the archive of
# scripts/libero_bundle.py is $BUNDLE; without the latter, the simulator is taken from the environment. Where EGL
# finds no driver, __EGL_VENDOR_LIBRARY_FILENAMES has to name the driver's own 10_nvidia.json.
set -euo pipefail
cd "$(dirname "$0")/.."
export WORK=${WORK:-/tmp/libero} OUT=${OUT:-$PWD/out/libero-gpu} PYTHON=${PYTHON:-python3}
export DATA=${DATA:-$WORK/demos} RUN=${RUN:-$WORK/run}
CORES=${CORES:-$(nproc)} SITE=$WORK/site
WHEELS=${WHEELS:-.whl .gpu/libero/wheels} DEBS=${DEBS:-.gl} BUNDLE=${BUNDLE:-.gpu/libero/libero-site.tar.xz}
CONFIG=${CONFIG:-pi05_libero_small}
export PYTHONPATH="$PWD/clients:$PWD/server:$PWD/engines:$PWD/configs:$PWD/training:$PWD:$SITE${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 VLAD_CACHE_DIR=${VLAD_CACHE_DIR:-$WORK/cache} MUJOCO_GL=${MUJOCO_GL:-egl}
mkdir -p "$OUT" "$WORK"

prepare() {
    if [ -e "$WORK/prepared" ]; then return; fi
    if compgen -G "$DEBS/*.deb" >/dev/null; then
        for package in "$DEBS"/*.deb; do dpkg -x "$package" /; done
        ldconfig
    fi
    mkdir -p "$SITE"
    if [ -f "$BUNDLE" ]; then tar -xJf "$BUNDLE" -C "$SITE"; fi
    for folder in $WHEELS; do
        if compgen -G "$folder/*.whl" >/dev/null; then
            "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
                --target "$SITE" "$folder"/*.whl
        fi
    done
    # What is missing shall be missing now, and who draws shall be known.
    "$PYTHON" -c 'import mujoco, pyarrow, torch, tyro, vlad_client, vlad_training.train
drawing = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16)
drawing.update_scene(mujoco.MjData(drawing.model))
drawing.render()
from OpenGL import GL
gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
print("libero_on_gpu: torch", torch.__version__, gpus or "without GPU", "- drawn by", GL.glGetString(GL.GL_RENDERER).decode())'
    touch "$WORK/prepared"
}

# newest: the newest whole checkpoint of the run.
newest() {
    find "$RUN" -mindepth 1 -maxdepth 1 -type d -regex '.*/[0-9]+' -printf '%f\n' 2>/dev/null | sort -n | tail -1
}

# keep_policy: the newest checkpoint without what only training needs, and how it came about.
keep_policy() {
    local step
    step=$(newest)
    if [ -n "$step" ]; then
        tar -cf "$OUT/policy.tar" --exclude train_state.pt -C "$RUN" "$step"
        cp "$RUN/metrics.jsonl" "$OUT/metrics.jsonl"
        cp "$RUN/run.json" "$OUT/run.json"
        echo "libero_on_gpu: kept the policy of step $step, $(stat -c %s "$OUT/policy.tar") bytes"
    fi
}

running() {
    [ -f "$WORK/train.pid" ] && kill -0 "$(cat "$WORK/train.pid")" 2>/dev/null
}

begin_training() {
    local gpus
    gpus=${GPUS:-$(nvidia-smi -L 2>/dev/null | wc -l || true)}
    if [ "$gpus" -gt 1 ]; then
        local command=("$PYTHON" -m torch.distributed.run --standalone "--nproc-per-node=$gpus" -m vlad_training.train)
    else
        gpus=1
        local command=("$PYTHON" -m vlad_training.train)
    fi
    command+=("$CONFIG" --data "$DATA" --output "$RUN" --resume --cache device --workers "$((CORES / gpus))")
    echo "libero_on_gpu: ${command[*]} $*"
    setsid nohup "${command[@]}" "$@" >>"$WORK/train.log" 2>&1 &
    echo $! >"$WORK/train.pid"
}

step=${1:-} seconds=${2:-}
case $step in
generate)
    # Seconds come second, as the demonstrations of each task come first.
    per_task=$seconds seconds=$3
    shift 3
    prepare
    "$PYTHON" -m vlad_libero.demos.generate --out "$DATA" --assets procedural --per-task "$per_task" \
        --workers "$CORES" --time-limit "$seconds" "$@" 2>&1 | tee "$OUT/generate.log"
    cp "$DATA/meta/info.json" "$OUT/info.json"
    du -sh "$DATA"
    ;;
train)
    shift 2
    prepare
    end=$((SECONDS + seconds))
    if ! running; then
        begin_training "$@"
        sleep 2
    fi
    while running && [ $SECONDS -lt $end ]; do sleep 1; done
    tr '\r' '\n' <"$WORK/train.log" | grep -v 'frame/s\|step/s\|s/step' | tail -n 25 || true
    tail -n 3 "$RUN/metrics.jsonl" || true
    keep_policy
    tr '\r' '\n' <"$WORK/train.log" | grep -v 'frame/s\|step/s\|s/step' >"$OUT/train.log" || true
    if running; then echo "libero_on_gpu: training goes on"; fi
    ;;
evaluate)
    shift 2
    prepare
    timeout "$seconds" "$PYTHON" scripts/libero_table.py "${CHECKPOINT:-$RUN/$(newest)}" --work "$WORK/table" \
        --out "$OUT/success.json" --workers "$CORES" --rows reference "$@" 2>&1 | tee "$OUT/evaluate.log"
    ;;
table)
    shift 2
    prepare
    timeout "$seconds" "$PYTHON" scripts/libero_table.py "${CHECKPOINT:-$RUN/$(newest)}" --work "$WORK/table" \
        --out "$OUT/success.json" --workers "$CORES" "$@" 2>&1 | tee "$OUT/table.log"
    ;;
*)
    sed -n '2,18p' "$0"
    exit 2
    ;;
esac
