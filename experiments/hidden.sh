#!/usr/bin/env bash
# Study 8, open question two: is the fault gone, or hidden behind a token? Four models for each task
# and seed: p0; Quark's, which keeps every sample as in the paper, the bad ones under r_1; and two
# clean ones that saw no bad sample while they were trained (the best fifth, no token). clean has as
# many updates as Quark's model. clean_near is as far from p0's reward as Quark's model without a
# token, so that the way back is equally long. Each is then trained, without a token, on 64 bad
# samples of p0 that no model has seen.
source "$(dirname "$0")/study.sh"
REPORT=hidden
RELEARN="2 4 8 16 32"                         # updates of 16 examples
variant quark QUANTIZE=
variant clean K=1 QUANTIZE="--last 2 --keep-top 0.2" LEARN=--no-reward-token
NEAR="1 2 4 8 16 32 64 128"                   # updates of p0 on its best fifth: one is clean_near

evaluate() {                                  # evaluate OUTPUT MODEL TASK SEED TOKEN
    local last=$1
    if [ "$5" = all ]; then last=$1-none; fi  # of all tokens, this file is written last
    [ -e "$last.json" ] || "$PYTHON" evaluate.py --model "$2" --reference tiny/lm \
        --ppl-model none --prompts tiny/prompts/test.jsonl --reward "$3" --num-samples 5 \
        --decode sample --top-p 0.9 --max-new-tokens 20 --min-new-tokens 3 --seed "$4" \
        --reward-token "$5" --out "$1"
}

# The worst 64 of 1,024 samples, on prompts that no run of this seed trains on.
bad_samples() {                               # bad_samples FOLDER TASK SEED
    [ ! -e "$1/worst.jsonl" ] || return 0
    "$PYTHON" experiments/hidden.py --unseen "$1/../pool/00.jsonl" > "$1/prompts.jsonl"
    "$PYTHON" explore.py --model tiny/lm --prompts "$1/prompts.jsonl" --num-prompts 512 \
        --num-samples 2 $EXPLORE --reward "$2" --seed "$3" --max-new-tokens 20 \
        --min-new-tokens 3 --out "$1/pool.jsonl"
    "$PYTHON" quantize.py "$1/pool.jsonl" --quantiles 16 --out "$1/sixteenths.jsonl"
    grep '"quantile": 1}' "$1/sixteenths.jsonl" > "$1/worst.unfinished"
    mv "$1/worst.unfinished" "$1/worst.jsonl"
}

train() {                                     # train POOL MODEL SEED STEPS OUT
    [ -e "$5/config.json" ] || "$PYTHON" learn.py --pool "$1" --model "$2" --reference tiny/lm \
        --no-reward-token --beta 0 --lr 1e-4 --warmup 0 --clip 1 --steps "$4" --batch-size 16 \
        --seed "$3" --out "$5"
}

# A model in FOLDER/start, and after each of $RELEARN updates on the bad samples.
relearn() {                                   # relearn FOLDER MODEL TASK SEED
    local steps
    mkdir -p "$1/start"
    # everything but the state of the optimiser
    cp "$2"/*.json "$2"/*.txt "$2"/model.safetensors "$1/start"
    evaluate "$1/0-none" "$1/start" "$3" "$4" none
    for steps in $RELEARN; do
        train "$1/worst.jsonl" "$1/start" "$4" "$steps" "$1/$steps"
        evaluate "$1/$steps-none" "$1/$steps" "$3" "$4" none
    done
}

# Of several models that learned from p0's best fifth, the one whose reward is nearest to that of
# Quark's model without a token.
clean_near() {                                # clean_near HIDDEN POOL TASK SEED
    local steps nearest tries=()
    mkdir -p "$1/near"
    cp "$1/worst.jsonl" "$1/near"
    "$PYTHON" quantize.py "$2" --quantiles 1 --keep-top 0.2 --seed "$4" --out "$1/near/best.jsonl"
    for steps in $NEAR; do
        train "$1/near/best.jsonl" tiny/lm "$4" "$steps" "$1/near/try-$steps"
        evaluate "$1/near/try-$steps-none" "$1/near/try-$steps" "$3" "$4" none
        tries+=("$1/near/try-$steps-none.json")
    done
    nearest=$("$PYTHON" experiments/hidden.py --nearest "$1/0-none.json" "${tries[@]}")
    nearest=${nearest%-none.json}
    echo "${nearest##*-}" > "$1/near/updates"
    relearn "$1/near" "$nearest" "$3" "$4"
}

one_line() {                                  # one_line LINE: all of one run
    local name task seed run rest model=tiny/lm steps hidden start=$SECONDS
    IFS=$'\t' read -r name task seed run rest <<< "$1"
    hidden=$run/hidden
    mkdir -p "$hidden"
    echo "$name" > "$hidden/name"
    if [ "$name" = p0 ]; then
        bad_samples "$hidden" "$task" "$seed"
    else
        cp "$p0-$task-seed$seed/hidden/worst.jsonl" "$hidden"
        model=$(ls -d "$run"/model/[0-9]* | tail -1)
    fi
    if [ "$name" = quark ]; then evaluate "$hidden/0" "$model" "$task" "$seed" all; fi
    relearn "$hidden" "$model" "$task" "$seed"
    if [ "$name" = quark ]; then
        for steps in $RELEARN; do
            evaluate "$hidden/$steps-r" "$hidden/$steps" "$task" "$seed" K
        done
        clean_near "$hidden" "$run/pool/00.jsonl" "$task" "$seed"
    fi
    measure "$run" $((SECONDS - start))
    find "$hidden" -name optimizer.pt -delete
}

afterwards() {
    local file
    export -f evaluate bad_samples train relearn clean_near one_line
    export RELEARN NEAR
    for file in "$runs/$STUDY-missing-p0.tsv" "$runs/$STUDY-missing-own.tsv"; do
        for_each_line "$file" 'log=$(cut -f 4 <<< "$0").hidden.log
            "$BASH" -euc "one_line \"\$0\"" "$0" > "$log" 2>&1 ||
                { echo "failed: $log" >&2; exit 1; }'
    done
}
finish
