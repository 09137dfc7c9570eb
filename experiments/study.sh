# What the studies share. A study is a shell file that sources this one, names its variants and calls `finish`:
#
#   variant NAME SETTING=VALUE ...      settings of run_all.sh, TASK standing for the task; studies share the runs of equal settings
#
# Every variant is a run of run_all.sh for each task and seed, cut down to what fits into the budget. Runs lie in runs/studies/,
# an interrupted study goes on where it stopped, and experiments/study.py turns what they wrote into a table, a verdict, a JSON
# file and a picture.   SEEDS="0" TASKS=sentiment bash experiments/NAME.sh   is a subset for minutes.
set -euo pipefail
unset MODEL PROMPTS TEST_PROMPTS PPL_MODEL REWARD REWARD_MODEL K BETA KL ENTROPY BATCH LR WARMUP CLIP GRAD_ACCUM BF16 QUANTIZE FORGET LEARN \
    EXPLORE EXPLORE_P0 SAMPLE_BATCH NEW_TOKENS MIN_TOKENS REWARD_TOKEN_INIT REWARD_TOKEN_LR LAUNCH     # a study sets its own
STUDY=$(basename "$0" .sh)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHON=${PYTHON:-.venv/bin/python}
"$PYTHON" -c '' 2>/dev/null || { echo "experiments/$STUDY.sh: error: $PYTHON does not start; make it first: bash run_all.sh test" >&2; exit 1; }
TASKS=${TASKS:-sentiment toxicity} SEEDS=${SEEDS:-0 1 2}
JOBS=${JOBS:-2}                               # runs at a time, each with one thread
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
ITERATIONS=${ITERATIONS:-4} STEPS=${STEPS:-50} NUM_PROMPTS=${NUM_PROMPTS:-320} NUM_SAMPLES=${NUM_SAMPLES:-4}
export DIAL_SAMPLES=0 EXPLORE="--decode sample --top-p 0.95" K=5 BATCH=16 QUANTIZE="--per-prompt --last 2" FORGET=     # run_all.sh's may change
runs=runs/studies
lines=()
REPORT=study

variant() {                                   # one line a run: task, seed, its folder, whether p0's samples are shared, settings
    local name=$1 task seed folder own= setting
    shift
    for setting in "$@"; do case $setting in NUM_*|EXPLORE*|REWARD*) own=own ;; esac; done    # then p0 samples otherwise
    for task in $TASKS; do for seed in $SEEDS; do
        folder=$runs/$task-seed$seed$(printf -- '-%s' "$ITERATIONS" "$STEPS" "$NUM_PROMPTS" "$NUM_SAMPLES" "$@" | tr -c 'A-Za-z0-9.=_-' _)
        lines+=("$(printf '%s\t' "$name" "$task" "$seed" "$folder" "${own:-shared}" "ITERATIONS=$ITERATIONS" \
            "STEPS=$STEPS" "NUM_PROMPTS=$NUM_PROMPTS" "NUM_SAMPLES=$NUM_SAMPLES" "${@//TASK/$task}")")
    done; done
}

one() {                                       # one LINE
    local task seed run own from settings file
    IFS=$'\t' read -r -a settings <<< "$1"
    task=${settings[1]} seed=${settings[2]} run=${settings[3]} own=${settings[4]} from=$p0-$task-seed$seed
    [ ! -e "$run/report.html" ] || return 0
    rm -rf "$run"                             # a run that was cut off begins again, so that its times are those of one run
    mkdir -p "$run/pool" "$run/eval"
    for file in eval/base.json eval/base.jsonl pool/00.jsonl; do     # p0 does not depend on what is studied
        if [ -e "$from/$file" ] && [ "$file $own" != "pool/00.jsonl own" ]; then cp "$from/$file" "$run/$file"; fi
    done
    echo "$run"
    env "${settings[@]:5}" EVALUATE="--decode sample --top-p 0.9 --num-samples 5 --reward $task" SEED="$seed" RUN="$run" \
        bash run_all.sh "$task" > "$run.log" 2>&1 || { echo "$run failed: $run.log" >&2; return 1; }
}

afterwards() { :; }                           # what a study does with the finished runs

finish() {
    export p0=$runs/p0-$NUM_PROMPTS-$NUM_SAMPLES
    mkdir -p "$runs"
    printf '%s\n' "${lines[@]}" > "$runs/$STUDY.tsv"
    export -f one
    for task in $TASKS; do for seed in $SEEDS; do
        printf 'p0\t%s\t%s\t%s\town\tITERATIONS=0\tNUM_PROMPTS=%s\tNUM_SAMPLES=%s\n' "$task" "$seed" "$p0-$task-seed$seed" "$NUM_PROMPTS" "$NUM_SAMPLES"
    done; done > "$runs/$STUDY-p0.tsv"
    xargs -P "$JOBS" -d '\n' -n 1 bash -c 'one "$0"' < "$runs/$STUDY-p0.tsv"
    xargs -P "$JOBS" -d '\n' -n 1 bash -c 'one "$0"' < "$runs/$STUDY.tsv"
    afterwards
    "$PYTHON" "experiments/$REPORT.py" "$runs/$STUDY.tsv"
}
