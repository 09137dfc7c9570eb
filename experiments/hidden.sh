#!/usr/bin/env bash
# Study 8, open question two: is the fault gone, or hidden behind a token? Three models per task and seed: p0, Quark's, and one that
# saw no bad sample while it was tuned (the best fifth, no token). Each is then tuned on p0's 64 worst samples, without a token.
source "$(dirname "$0")/study.sh"
REPORT=hidden
RELEARN="2 8 32"                              # updates of 16 examples
variant quark
variant clean K=1 QUANTIZE="--last 2 --keep-top 0.2" LEARN=--no-reward-token

evaluated() {                                 # evaluated OUTPUT MODEL TASK SEED OPTIONS...
    local out=$1 model=$2 task=$3 seed=$4
    shift 4
    [ -e "$out" ] || "$PYTHON" evaluate.py --model "$model" --reference tiny/lm --ppl-model none --prompts tiny/prompts/test.jsonl \
        --reward "$task" --num-samples 5 --seed "$seed" "$@"
}

relearn() {                                   # relearn LINE: what becomes of a run's model, in its folder hidden/
    local name task seed run rest model steps start
    IFS=$'\t' read -r name task seed run rest <<< "$1"
    mkdir -p "$run/hidden"
    if [ "$name" = p0 ]; then
        model=tiny/lm
        "$PYTHON" quantize.py "$run/pool/00.jsonl" --quantiles 20 --out "$run/hidden/twentieths.jsonl" > /dev/null   # of 1,280
    else
        model=$(ls -d "$run"/model/[0-9]* | tail -1)
    fi
    grep -h '"quantile": 1}' "$p0-$task-seed$seed/hidden/twentieths.jsonl" > "$run/hidden/worst.jsonl"
    if [ "$name" = quark ]; then
        evaluated "$run/hidden/dial-none.json" "$model" "$task" "$seed" --reward-token all --out "$run/hidden/dial"
    else
        evaluated "$run/hidden/dial-none.json" "$model" "$task" "$seed" --reward-token none --out "$run/hidden/dial-none"
    fi
    start=$run/hidden/start
    mkdir -p "$start" && cp "$model"/*.json "$model"/*.txt "$model"/model.safetensors "$start"      # all but the optimiser's state
    for steps in $RELEARN; do
        [ -e "$run/hidden/$steps/config.json" ] || "$PYTHON" learn.py --pool "$run/hidden/worst.jsonl" --model "$start" --reference tiny/lm \
            --no-reward-token --beta 0 --lr 3e-4 --warmup 0 --clip 1 --steps "$steps" --batch-size 16 --seed "$seed" --out "$run/hidden/$steps"
        evaluated "$run/hidden/after-$steps.json" "$run/hidden/$steps" "$task" "$seed" --reward-token none --out "$run/hidden/after-$steps"
    done
}

afterwards() {
    export -f evaluated relearn; export RELEARN
    xargs -P "$JOBS" -d '\n' -n 1 bash -c 'relearn "$0" > "$(cut -f 4 <<< "$0").hidden.log" 2>&1' < "$runs/$STUDY-p0.tsv"
    xargs -P "$JOBS" -d '\n' -n 1 bash -c 'relearn "$0" > "$(cut -f 4 <<< "$0").hidden.log" 2>&1' < "$runs/$STUDY.tsv"
}
finish
