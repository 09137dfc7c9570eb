#!/usr/bin/env bash
# The whole method, Algorithm 1 of the paper:   bash run_all.sh [sentiment|toxicity|repetition]
# The tests; only the packages, in .venv:       bash run_all.sh test; bash run_all.sh install
#
# Every setting is a shell variable, explained in settings/tiny.sh. Set it in front of the command:
#   K=3 BETA=0.2 RUN=runs/k3 bash run_all.sh sentiment
#   MODEL=gpt2 PROMPTS=train.jsonl TEST_PROMPTS=test.jsonl bash run_all.sh toxicity
# A stage whose output exists is skipped, so a run that was stopped goes on where it stopped.
set -euf -o pipefail                                     # -f: a * in a setting is no file pattern
unset CDPATH
started_in=$PWD
cd "$(dirname "$0")"

main() {
    explore 00 "$MODEL" $EXPLORE_P0                      # initialise: D from p0, no reward token
    model=$MODEL pool=()
    for ((i = 1; i <= ITERATIONS; i++)); do
        newest=$(printf %02d $((i - 1))) round=$(printf %02d "$i")
        if [ -n "$FORGET" ] && ((i > 1)); then           # rows that were dropped never come back
            pool=("$RUN/quantized/$(printf %02d $((i - 2))).jsonl")
        fi
        pool+=("$RUN/pool/$newest.jsonl")
        quantize "$newest" "${pool[@]}"                  # D -> D^1 ... D^K
        learn "$round" "$model" "$newest"                # Eq. 2, from the model of the last round
        model=$RUN/model/$round
        if ((i < ITERATIONS)); then
            explore "$round" "$model" $EXPLORE           # new samples, conditioned on r_K
        fi
    done

    evaluate base "$MODEL" $EVALUATE
    evaluate quark "$model" $EVALUATE
    results=("$RUN/eval/base.json" "$RUN/eval/quark.json")
    if [ "$TASK" = repetition ]; then                    # fluency is measured on samples
        evaluate base-nucleus "$MODEL" --decode sample --top-p 0.9 --num-samples 2
        evaluate quark-nucleus "$model" --decode sample --top-p 0.9 --num-samples 2
        results+=("$RUN/eval/base-nucleus.json" "$RUN/eval/quark-nucleus.json")
    fi
    if ((DIAL_SAMPLES > 0)); then                        # the dial: r_1 ... r_K, then no token
        dial "$model"
    fi
    summary "${results[@]}"
}

# ------------------------------------------------------------------------------------- the stages

explore() {                                              # explore ROUND MODEL OPTIONS...
    local round=$1 model=$2 out=$RUN/pool/$1.jsonl
    shift 2
    stage "$out" explore.py --model "$model" --prompts "$PROMPTS" "${sampling[@]}" \
        --iteration $((10#$round)) ${NUM_PROMPTS:+--num-prompts "$NUM_PROMPTS"} \
        --num-samples "$NUM_SAMPLES" "$@" --seed "$SEED" --out "$out"
}

quantize() {                                             # quantize ROUND POOL...
    local out=$RUN/quantized/$1.jsonl
    shift
    stage "$out" quantize.py "$@" --quantiles "$K" --seed "$SEED" $QUANTIZE --out "$out"
}

learn() {                                                # learn ROUND MODEL NEWEST_POOL
    local out=$RUN/model/$1 model=$2 pool=$RUN/quantized/$3.jsonl
    stage "$out" learn.py --pool "$pool" --model "$model" --reference "$MODEL" \
        --beta "$BETA" --kl "$KL" --entropy-coef "$ENTROPY" \
        --steps "$STEPS" --total-steps $((STEPS * ITERATIONS)) --batch-size "$BATCH" \
        --grad-accum "$GRAD_ACCUM" --lr "$LR" --warmup "$WARMUP" --clip "$CLIP" \
        --reward-token-lr "$REWARD_TOKEN_LR" --reward-token-init "$REWARD_TOKEN_INIT" \
        $BF16 $LEARN --seed "$SEED" --out "$out"
}

evaluate() {                                             # evaluate NAME MODEL OPTIONS...
    local name=$1 model=$2
    shift 2
    stage "$RUN/eval/$name.json" evaluate.py --model "$model" --reference "$MODEL" \
        --ppl-model "$PPL_MODEL" --prompts "$TEST_PROMPTS" "${sampling[@]}" \
        --seed "$SEED" "$@" --short --out "$RUN/eval/$name"
}

dial() {                                                 # dial MODEL; it writes dial-none.json last
    stage "$RUN/eval/dial-none.json" evaluate.py --model "$1" --reference "$MODEL" \
        --ppl-model none --prompts "$TEST_PROMPTS" "${sampling[@]}" \
        --seed "$SEED" $EVALUATE --num-samples "$DIAL_SAMPLES" --reward-token all \
        --out "$RUN/eval/dial"
}

summary() {                                              # summary RESULT...
    set -- "$PYTHON" evaluate.py --report "$RUN" --compare "$@" --short
    print_stage "the report" "$@"
    "$@"
}

stage() {                                                # stage OUTPUT SCRIPT OPTIONS...
    local output=$1 began=$SECONDS command
    shift
    describe "$output" "$@"                              # title, kind, amount
    if [ -e "$output" ]; then
        echo "have $output"
        remove_leftovers "$output"                       # of a run killed right after it
        count_stage
        return
    fi
    case $1 in
        explore.py | learn.py) command=(${LAUNCH:-"$PYTHON"} "$@") ;;   # LAUNCH: torchrun ...
        *) command=("$PYTHON" "$@") ;;
    esac
    print_stage "$title$(time_left)" "${command[@]}"
    "${command[@]}"
    count_stage $((SECONDS - began))
}

{   # bash reads this block whole before it runs it, so the file may be edited during a run
    source plumbing/setup.sh
    source plumbing/screen.sh
    sampling=(--reward "$REWARD" ${REWARD_MODEL:+--reward-model "$REWARD_MODEL"}
        --max-new-tokens "$NEW_TOKENS" --min-new-tokens "$MIN_TOKENS"
        --batch-size "$SAMPLE_BATCH" $BF16)
    start=$SECONDS
    main
    echo "done in $((SECONDS - start)) s; open $RUN/report.html in a browser"
    exit
}
