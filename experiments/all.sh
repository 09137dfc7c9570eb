#!/usr/bin/env bash
# All studies, and with them the whole page. Each run that ends says how long is left; what was
# interrupted goes on where it stopped.
set -euo pipefail
if [[ ${PYTHON:-} == [!/]*/* ]]; then export PYTHON=$PWD/$PYTHON; fi        # before cd
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export ALL="beta quantiles learned_from exploration code ties pool hidden"
for study in $ALL; do LIST=1 bash "experiments/$study.sh"; done
for study in $ALL; do bash "experiments/$study.sh"; done
echo "all studies: $((SECONDS / 60)) minutes"
