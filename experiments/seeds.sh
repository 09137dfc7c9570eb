#!/usr/bin/env bash
# The README's results: run_all.sh with seeds 0, 1 and 2, then one table of the three.
#   bash experiments/seeds.sh sentiment
set -euo pipefail
if [[ ${PYTHON:-} == [!/]*/* ]]; then export PYTHON=$PWD/$PYTHON; fi  # before cd
unset CDPATH
cd "$(dirname "$0")/.."
task=${1:?"name a task: repetition, sentiment or toxicity"}
for seed in 0 1 2; do
    SEED=$seed RUN=runs/$task-tiny-seed$seed bash run_all.sh "$task"
done
"${PYTHON:-.venv/bin/python}" experiments/seeds.py runs/"$task"-tiny-seed{0,1,2}
