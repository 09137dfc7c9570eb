# What the studies share. A study is a shell file that sources this one, names its variants and calls `finish`:
#
#   variant NAME SETTING=VALUE ...      settings of run_all.sh; the first variant is the one that the others are compared with
#
# Every variant is a run of run_all.sh for each task and seed, cut down to what fits into the budget. Runs lie in runs/studies/,
# an interrupted study goes on where it stopped, and experiments/study.py turns what they wrote into a table, a verdict, a JSON
# file and a picture.   SEEDS="0" TASKS=sentiment bash experiments/NAME.sh   is the subset for ten minutes.
set -euo pipefail
STUDY=$(basename "$0" .sh)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TASKS=${TASKS:-sentiment toxicity} SEEDS=${SEEDS:-0 1 2}
JOBS=${JOBS:-2}                               # runs at a time, each with one thread
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export ITERATIONS=${ITERATIONS:-5} STEPS=${STEPS:-60} NUM_PROMPTS=${NUM_PROMPTS:-400}
export EVALUATE="--decode sample --top-p 0.9 --num-samples 5" DIAL_SAMPLES=1
runs=runs/studies
lines=()

variant() {
    local task seed
    for task in $TASKS; do for seed in $SEEDS; do lines+=("$task $seed $*"); done; done
}

one() {                                       # one TASK SEED NAME SETTING=VALUE ...
    local task=$1 seed=$2 run=$runs/$STUDY/$1-$3-seed$2 p0=$runs/p0/$1-seed$2
    shift 3
    [ ! -e "$run/report.html" ] || return 0
    mkdir -p "$run/pool" "$run/eval"
    for file in pool/00.jsonl eval/base.json eval/base.jsonl; do     # p0 does not depend on what is studied
        if [ -e "$p0/$file" ] && [ ! -e "$run/$file" ]; then cp "$p0/$file" "$run/$file"; fi
    done
    echo "$run"
    env "$@" SEED="$seed" RUN="$run" bash run_all.sh "$task" > "$run.log" 2>&1 || { echo "$run failed: $run.log" >&2; return 1; }
}

finish() {
    export -f one; export STUDY runs
    for task in $TASKS; do for seed in $SEEDS; do echo "$task $seed"; done; done | xargs -P "$JOBS" -L 1 bash -c '
        p0=$runs/p0/$0-seed$1; [ -e "$p0/report.html" ] || { mkdir -p "$p0"; ITERATIONS=0 SEED=$1 RUN=$p0 bash run_all.sh "$0" > "$p0.log" 2>&1; }'
    printf '%s\n' "${lines[@]}" | xargs -P "$JOBS" -L 1 bash -c 'one "$0" "$@"'
    "${PYTHON:-.venv/bin/python}" experiments/study.py "$STUDY"
}
