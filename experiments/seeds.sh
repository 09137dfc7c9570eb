#!/usr/bin/env bash
# The README's results: run_all.sh with seeds 0, 1 and 2, then one table of the three.
#   OMP_NUM_THREADS=1 bash experiments/seeds.sh sentiment
# Each finished run's numbers go to experiments/results/runs/, and a seed whose numbers are there is
# not run again. SEEDS="0" for one of them.
set -euo pipefail
if [[ ${PYTHON:-} == [!/]*/* ]]; then export PYTHON=$PWD/$PYTHON; fi  # before cd
unset CDPATH
cd "$(dirname "$0")/.."
task=${1:?"name a task: repetition, sentiment or toxicity"}
# The default runs: settings of run_all.sh that your shell exports do not count.
unset MODEL PROMPTS TEST_PROMPTS PPL_MODEL REWARD REWARD_MODEL K BETA KL ENTROPY STEPS BATCH LR \
    WARMUP CLIP GRAD_ACCUM ITERATIONS NUM_PROMPTS NUM_SAMPLES QUANTIZE FORGET LEARN EXPLORE \
    EXPLORE_P0 SAMPLE_BATCH NEW_TOKENS MIN_TOKENS REWARD_TOKEN_INIT REWARD_TOKEN_LR EVALUATE \
    DIAL_SAMPLES ADOPT LAUNCH
results=()
for seed in ${SEEDS:-0 1 2}; do
    run=runs/$task-tiny-seed$seed result=experiments/results/runs/$task-seed$seed.json
    if ! [ -e "$result" ]; then
        SEED=$seed RUN=$run bash run_all.sh "$task"
        "${PYTHON:-.venv/bin/python}" experiments/seeds.py --keep "$run" --out "$result"
    fi
    results+=("$result")
done
"${PYTHON:-.venv/bin/python}" experiments/seeds.py "${results[@]}"
