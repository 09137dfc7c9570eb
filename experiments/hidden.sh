#!/usr/bin/env bash
# Study 8, open question two: is the fault gone, or hidden behind a token? Three models for each
# task and seed: p0; Quark's; and a clean one that saw no bad sample while it was trained (the best
# fifth, no token). Each is then trained, without a token, on 64 bad samples of p0 that no model has
# seen.
source "$(dirname "$0")/study.sh"
REPORT=hidden
RELEARN="2 4 8 16 32"                         # updates of 16 examples
variant quark
variant clean K=1 QUANTIZE="--last 2 --keep-top 0.2" LEARN=--no-reward-token

evaluate() {                                  # evaluate OUTPUT MODEL TASK SEED TOKEN
    local last=$1
    if [ "$5" = all ]; then last=$1-none; fi  # of all tokens, this file is written last
    [ -e "$last.json" ] || "$PYTHON" evaluate.py --model "$2" --reference tiny/lm \
        --ppl-model none --prompts tiny/prompts/test.jsonl --reward "$3" --num-samples 5 \
        --seed "$4" --reward-token "$5" --out "$1"
}

# The worst 64 of 1,024 samples, on prompts that no run of this seed trains on.
bad_samples() {                               # bad_samples FOLDER TASK SEED
    [ ! -e "$1/worst.jsonl" ] || return 0
    "$PYTHON" experiments/hidden.py --unseen "$1/../pool/00.jsonl" > "$1/prompts.jsonl"
    "$PYTHON" explore.py --model tiny/lm --prompts "$1/prompts.jsonl" --num-prompts 512 \
        --num-samples 2 $EXPLORE --reward "$2" --seed "$3" --max-new-tokens 20 \
        --min-new-tokens 3 --out "$1/pool.jsonl"
    "$PYTHON" quantize.py "$1/pool.jsonl" --quantiles 16 --out "$1/sixteenths.jsonl"
    grep '"quantile": 1}' "$1/sixteenths.jsonl" > "$1/worst.jsonl"
}

# Trains a run's model on the bad samples, and evaluates it, in the run's folder hidden/.
relearn() {                                   # relearn LINE
    local name task seed run rest model steps hidden start=$SECONDS
    IFS=$'\t' read -r name task seed run rest <<< "$1"
    hidden=$run/hidden
    mkdir -p "$hidden/start"
    if [ "$name" = p0 ]; then
        bad_samples "$hidden" "$task" "$seed"
        model=tiny/lm
    else
        cp "$p0-$task-seed$seed/hidden/worst.jsonl" "$hidden"
        model=$(ls -d "$run"/model/[0-9]* | tail -1)
    fi
    # everything but the state of the optimiser
    cp "$model"/*.json "$model"/*.txt "$model"/model.safetensors "$hidden/start"
    if [ "$name" = quark ]; then evaluate "$hidden/0" "$model" "$task" "$seed" all; fi
    evaluate "$hidden/0-none" "$model" "$task" "$seed" none
    for steps in $RELEARN; do
        [ -e "$hidden/$steps/config.json" ] || "$PYTHON" learn.py --pool "$hidden/worst.jsonl" \
            --model "$hidden/start" --reference tiny/lm --no-reward-token --beta 0 --lr 3e-4 \
            --warmup 0 --clip 1 --steps "$steps" --batch-size 16 --seed "$seed" \
            --out "$hidden/$steps"
        evaluate "$hidden/$steps-none" "$hidden/$steps" "$task" "$seed" none
        if [ "$name" = quark ]; then
            evaluate "$hidden/$steps-r" "$hidden/$steps" "$task" "$seed" K
        fi
    done
    measure "$run" $((SECONDS - start))
}

afterwards() {
    local file
    export -f evaluate bad_samples relearn
    export RELEARN
    for file in "$runs/$STUDY-missing-p0.tsv" "$runs/$STUDY-missing-own.tsv"; do
        for_each_line "$file" 'log=$(cut -f 4 <<< "$0").hidden.log
            "$BASH" -euc "relearn \"\$0\"" "$0" > "$log" 2>&1 ||
                { echo "failed: $log" >&2; exit 1; }'
    done
}
finish
