# What the studies share. A study is a shell file that sources this one, names its variants and
# calls `finish`:
#
#   variant NAME SETTING=VALUE ...   settings of run_all.sh, in which TASK stands for the task
#
# Every variant is a run of run_all.sh for each task and seed, short enough for the budget. The runs
# are in runs/studies/, and studies share those of equal settings. The numbers of a finished run go
# at once to experiments/results/studies.jsonl, from where an interrupted study goes on, with or
# without runs/. At the end, experiments/study.py (or $REPORT.py) makes a table, a verdict, a JSON
# file and a picture.
#
#   SEEDS="0" TASKS=sentiment bash experiments/NAME.sh        # a part of a study, in minutes
set -euo pipefail
if [[ ${PYTHON:-} == [!/]*/* ]]; then PYTHON=$PWD/$PYTHON; fi        # before cd
unset CDPATH
# A study sets these itself.
unset MODEL PROMPTS TEST_PROMPTS PPL_MODEL REWARD REWARD_MODEL K BETA KL ENTROPY BATCH LR WARMUP \
    CLIP GRAD_ACCUM BF16 QUANTIZE FORGET LEARN EXPLORE EXPLORE_P0 SAMPLE_BATCH NEW_TOKENS \
    MIN_TOKENS REWARD_TOKEN_INIT REWARD_TOKEN_LR LAUNCH
STUDY=$(basename "$0" .sh)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHON=${PYTHON:-.venv/bin/python}
"$PYTHON" -c '' 2>/dev/null || {
    echo "experiments/$STUDY.sh: error: $PYTHON does not start;" \
        "make it first: bash run_all.sh test" >&2
    exit 1
}
TASKS=${TASKS:-sentiment toxicity} SEEDS=${SEEDS:-0 1 2 3 4}
if (($(wc -w <<< "$SEEDS") > 10)); then       # study.py has Student's t for these
    echo "experiments/$STUDY.sh: error: SEEDS=$SEEDS: at most ten seeds" >&2
    exit 1
fi
JOBS=${JOBS:-2}                               # runs at a time, each with one thread
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Settings of run_all.sh, fixed here because its own may change.
ITERATIONS=4 STEPS=50 NUM_PROMPTS=320 NUM_SAMPLES=4
export DIAL_SAMPLES=0 EXPLORE="--decode sample --top-p 0.95" K=5 BATCH=16 LR=5e-4
export QUANTIZE="--per-prompt --last 2" FORGET=
runs=runs/studies
lines=()
REPORT=study

# Adds a line for each run: variant, task, seed, folder, whether it may copy p0's samples ("shared")
# or must sample itself ("own"), and its settings.
variant() {                                   # variant NAME SETTING=VALUE ...
    local name=$1 task seed folder samples=shared setting
    shift
    for setting in "$@"; do
        case $setting in
            NUM_* | EXPLORE* | REWARD*) samples=own ;;        # p0 samples differently
        esac
    done
    for task in $TASKS; do
        for seed in $SEEDS; do
            folder=$(printf -- '-%s' "$ITERATIONS" "$STEPS" "$NUM_PROMPTS" "$NUM_SAMPLES" "$@" |
                tr -c 'A-Za-z0-9.=_-' _)
            lines+=("$(printf '%s\t' "$name" "$task" "$seed" "$runs/$task-seed$seed$folder" \
                "$samples" "ITERATIONS=$ITERATIONS" "STEPS=$STEPS" "NUM_PROMPTS=$NUM_PROMPTS" \
                "NUM_SAMPLES=$NUM_SAMPLES" ${1+"${@//TASK/$task}"})")
        done
    done
}

run_line() {                                  # run_line LINE
    local task seed run samples p0_run settings file start=$SECONDS
    IFS=$'\t' read -r -a settings <<< "$1"
    task=${settings[1]} seed=${settings[2]} run=${settings[3]} samples=${settings[4]}
    p0_run=$p0-$task-seed$seed
    if [ -e "$run/report.html" ] && [ "$(cat "$run.code")" = "$CODE" ]; then    # of another study
        keep "$run" 0
        return
    fi
    rm -rf "$run"                             # begin again: a run's times must be those of one run
    mkdir -p "$run/pool" "$run/eval"
    echo "$CODE" > "$run.code"                # a run of other code is none of today's
    for file in eval/base.json eval/base.jsonl pool/00.jsonl; do     # the same in every variant
        if [ -e "$p0_run/$file" ] && [ "$file $samples" != "pool/00.jsonl own" ]; then
            cp "$p0_run/$file" "$run/$file"
        fi
    done
    env "${settings[@]:5}" SEED="$seed" RUN="$run" ADOPT=1 \
        EVALUATE="--decode sample --top-p 0.9 --num-samples 5 --reward $task" \
        bash run_all.sh "$task" > "$run.log" 2>&1 || {
        echo "$run failed: $run.log" >&2
        return 1
    }
    keep "$run" $((SECONDS - start)) && tidy "$run"
}

# What is measured is the last model; the other checkpoints of all studies would take 190 GB.
tidy() {                                      # tidy RUN
    local last
    [ -d "$1/model" ] || return 0             # p0's
    last=$(find "$1/model" -name model.safetensors | sort | tail -1)
    find "$1/model" -name optimizer.pt -delete
    find "$1/model" -name model.safetensors ! -path "$last" -delete
}

# Measures a finished run, and says how long the studies in $ALL will still take. p0's runs are only
# what the others stand on.
keep() {                                      # keep RUN SECONDS
    [[ $1 == "$p0"-* ]] || [ $REPORT = hidden ] || measure "$@"
}

measure() {                                   # measure RUN SECONDS
    "$PYTHON" "experiments/$REPORT.py" "$runs/$STUDY.tsv" --keep "$1" --seconds "$2" \
        --all ${ALL:-$STUDY} --jobs "$JOBS"
}

# Runs COMMAND for each line of FILE, $JOBS at a time; COMMAND reads the line as $0. The functions
# come from this shell, so it is the same bash: macOS has an old one, and often a new one beside it.
for_each_line() {                             # for_each_line FILE COMMAND
    [ -s "$1" ] || return 0
    tr '\n' '\0' < "$1" | xargs -0 -n 1 -P "$JOBS" "$BASH" -c "$2"
}

afterwards() { :; }                           # a study may do more with the finished runs

finish() {
    local task seed missing=$runs/$STUDY-missing
    export REPORT STUDY JOBS runs p0=$runs/p0-$NUM_PROMPTS-$NUM_SAMPLES CODE
    CODE=$(PYTHONPATH=experiments "$PYTHON" -c 'import kept; print(kept.code())')
    export -f run_line keep tidy measure
    mkdir -p "$runs"
    printf '%s\n' "${lines[@]}" > "$runs/$STUDY.tsv"
    for task in $TASKS; do
        for seed in $SEEDS; do
            printf 'p0\t%s\t%s\t%s\town\tITERATIONS=0\tNUM_PROMPTS=%s\tNUM_SAMPLES=%s\n' \
                "$task" "$seed" "$p0-$task-seed$seed" "$NUM_PROMPTS" "$NUM_SAMPLES"
        done
    done > "$runs/$STUDY-p0.tsv"
    if [ -n "${LIST:-}" ]; then return; fi    # all.sh: first all lists, to say how long is left
    "$PYTHON" "experiments/$REPORT.py" "$runs/$STUDY.tsv" --missing > "$missing.tsv"
    awk -F '\t' '$1 == "p0"' "$missing.tsv" > "$missing-p0.tsv"
    awk -F '\t' '$1 != "p0"' "$missing.tsv" > "$missing-own.tsv"
    for_each_line "$missing-p0.tsv" 'run_line "$0"'
    for_each_line "$missing-own.tsv" 'run_line "$0"'
    afterwards
    "$PYTHON" "experiments/$REPORT.py" "$runs/$STUDY.tsv"
}
