#!/usr/bin/env bash
# The paper's comparison in miniature: every comparator's row beside p0 and Quark.
#   bash baselines/table.sh sentiment|toxicity|repetition
#   METHODS="dexperts rloo qrpo" SEEDS=0 bash baselines/table.sh sentiment       # a part of it
# Finished tries and rows are in baselines/results/ and are not made again; AGAIN=1 makes the rows
# anew, in runs/baselines/again/. JOBS=2 rows at a time, each with one thread.
set -euo pipefail
if [[ ${PYTHON:-} == [!/]*/* ]]; then PYTHON=$PWD/$PYTHON; fi  # before cd
unset CDPATH
cd "$(dirname "$0")/.."
task=${1:?"name a task: sentiment, toxicity or repetition"}
if [ -z "${PYTHON:-}" ]; then
    bash run_all.sh install                                    # .venv, unless it is there
fi
export PYTHON=${PYTHON:-.venv/bin/python}
if ! "$PYTHON" -c 'import vaderSentiment, profanity_check' 2>/dev/null; then
    "$PYTHON" -m pip install -q --disable-pip-version-check -r baselines/requirements.txt
fi
exec "$PYTHON" baselines/table.py "$task" --jobs "${JOBS:-2}" --seeds ${SEEDS:-0 1 2} \
    ${METHODS:+--methods $METHODS} ${AGAIN:+--again}
