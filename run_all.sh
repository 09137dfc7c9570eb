#!/usr/bin/env bash
# The whole method, Algorithm 1 of the paper, for one task:   bash run_all.sh [sentiment|toxicity|repetition]
# The tests:                                                  bash run_all.sh test
#
# Every setting below is a shell variable with a default; set it in front of the command:
#   K=3 BETA=0.2 RUN=runs/try bash run_all.sh sentiment
#   MODEL=gpt2 PROMPTS=train.jsonl TEST_PROMPTS=test.jsonl bash run_all.sh toxicity       # the paper's setting
# A stage whose output exists is skipped: stop it whenever you like and start it again. Other settings want another RUN.
set -euo pipefail
cd "$(dirname "$0")"

{   # bash reads a block whole before it runs it: you may edit this file while a run goes on
TASK=${1:-sentiment}
case $TASK in repetition|sentiment|toxicity|test) ;; *)
    echo "run_all.sh: error: no task is called '$TASK'; choose sentiment, toxicity, repetition or test" >&2; exit 2 ;;
esac
MODEL=${MODEL:-tiny/lm}                       # p0: a GPT-2 folder or hub name
REWARD=${REWARD:-$TASK}                       # or path/to/file.py:function
SEED=${SEED:-0}
LAUNCH=${LAUNCH:-}                            # in place of python for explore.py and learn.py: "torchrun --nproc_per_node 8"

if [ "$MODEL" = tiny/lm ]; then               # minutes on a laptop: the small model of this project
    NAME=tiny
    PROMPTS=${PROMPTS:-tiny/prompts/train.jsonl}             # X
    TEST_PROMPTS=${TEST_PROMPTS:-tiny/prompts/test.jsonl}
    if [ "$TASK" = repetition ]; then         # longer completions, so fewer of them
        K=${K:-2} ITERATIONS=${ITERATIONS:-4} STEPS=${STEPS:-150} BATCH=${BATCH:-20} LR=${LR:-3e-3}
        QUANTIZE=${QUANTIZE---last 1 --keep-p0} FORGET=${FORGET-}
        NUM_PROMPTS=${NUM_PROMPTS:-192} NUM_SAMPLES=${NUM_SAMPLES:-5}
        EXPLORE_P0=${EXPLORE_P0:---decode sample --top-p 0.6} EXPLORE=${EXPLORE:---decode sample --top-p 1}
    fi
    case $TASK in                             # a small model's rare tokens are noise: without them it learns in fewer updates
        sentiment) EXPLORE=${EXPLORE:---decode sample --top-p 0.95} ;;
        toxicity)  EXPLORE=${EXPLORE:---decode sample --top-p 0.97} QUANTIZE=${QUANTIZE---per-prompt --keep-top 0.9} ;;
    esac
    K=${K:-5}                                 # quantiles
    BETA=${BETA:-0.05}                        # weight of the KL term
    ITERATIONS=${ITERATIONS:-6}               # rounds of explore, quantize, learn
    STEPS=${STEPS:-60}                        # updates a round
    BATCH=${BATCH:-16}                        # examples an update
    LR=${LR:-5e-4}                            # peak learning rate of Adam
    WARMUP=${WARMUP:-30}                      # updates
    CLIP=${CLIP:-1}                           # largest gradient norm
    NUM_PROMPTS=${NUM_PROMPTS:-384}           # of the 851, drawn by the seed
    NUM_SAMPLES=${NUM_SAMPLES:-4}             # completions a prompt and round
    # not in the paper (README): quantiles within each prompt, and the pool's worst fifth or tenth dropped for good; QUANTIZE= FORGET= for neither
    QUANTIZE=${QUANTIZE---per-prompt --keep-top 0.8} FORGET=${FORGET-1}
    SAMPLE_BATCH=${SAMPLE_BATCH:-256}
    REWARD_TOKEN_INIT=${REWARD_TOKEN_INIT:-ordered} REWARD_TOKEN_LR=${REWARD_TOKEN_LR:-10}    # heeded sooner (README)
    if [ -z "${BF16+set}" ] && grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then BF16=--bf16; fi
    export HF_HUB_OFFLINE=${HF_HUB_OFFLINE-1} # everything is in the folder: nothing is asked of the network, unless it is set to 0
else                                          # the paper's setting (README, "GPT-2")
    NAME=$(basename "$MODEL")
    [ -n "${PROMPTS:-}" ] && [ -n "${TEST_PROMPTS:-}" ] || {
        echo "run_all.sh: error: MODEL=$MODEL needs PROMPTS=train.jsonl and TEST_PROMPTS=test.jsonl (README, GPT-2)" >&2; exit 2; }
    if [ "$TASK" = repetition ]; then K=${K:-8}; else K=${K:-5}; fi
    BETA=${BETA:-0.05} ITERATIONS=${ITERATIONS:-47} STEPS=${STEPS:-500} BATCH=${BATCH:-128} LR=${LR:-1e-5}
    WARMUP=${WARMUP:-500} CLIP=${CLIP:-0} NUM_SAMPLES=${NUM_SAMPLES:-1}
    case $TASK in
        sentiment) REWARD_MODEL=${REWARD_MODEL:-distilbert/distilbert-base-uncased-finetuned-sst-2-english} ;;
        toxicity)  REWARD_MODEL=${REWARD_MODEL:-unitary/toxic-bert} ;;
    esac
fi
if [ "$TASK" = repetition ]; then             # long completions, never cut short: an early end would hide a loop
    if [ "$NAME" = tiny ]; then NEW_TOKENS=${NEW_TOKENS:-64}; else NEW_TOKENS=${NEW_TOKENS:-128}; fi
    MIN_TOKENS=${MIN_TOKENS:-$NEW_TOKENS}
    EXPLORE=${EXPLORE:---decode mixed --top-p 0.9}      # half greedy, half nucleus
    EVALUATE=${EVALUATE:---decode greedy --num-samples 1}
else
    NEW_TOKENS=${NEW_TOKENS:-20} MIN_TOKENS=${MIN_TOKENS:-3}
    EXPLORE=${EXPLORE:---decode sample --top-p 1}
    EVALUATE=${EVALUATE:---decode sample --top-p 0.9 --num-samples 25}
fi
KL=${KL:-forward} ENTROPY=${ENTROPY:-0}       # forward and 0: the paper; reverse and 0.06: the authors' code
EXPLORE_P0=${EXPLORE_P0:-$EXPLORE}            # the same for the first pool, which p0 writes
NUM_PROMPTS=${NUM_PROMPTS:-}                  # explore this many of the prompts (none: all)
REWARD_TOKEN_LR=${REWARD_TOKEN_LR:-1}         # times LR, for the rows of r_1 ... r_K
REWARD_TOKEN_INIT=${REWARD_TOKEN_INIT:-normal}
GRAD_ACCUM=${GRAD_ACCUM:-1}                   # pieces a batch is cut into, if memory is short
BF16=${BF16:-}                                # --bf16: learn and sample in bfloat16 (on by itself where the processor multiplies it natively)
QUANTIZE=${QUANTIZE:-}                        # further options of quantize.py, e.g. "--per-prompt" or "--last 3"
FORGET=${FORGET:-}                            # 1: what a round's quantize.py leaves out is left out of all later rounds
LEARN=${LEARN:-}                              # further options of learn.py, e.g. "--no-reward-token"
SAMPLE_BATCH=${SAMPLE_BATCH:-128}             # rows sampled together
if [ "$TASK" = repetition ] && [ "${DIAL_SAMPLES:-}" != 0 ]; then DIAL_SAMPLES=1; fi
DIAL_SAMPLES=${DIAL_SAMPLES:-6}               # completions a prompt for each point of the dial; 0: no dial
PPL_MODEL=${PPL_MODEL:-$MODEL}                # whose perplexity measures fluency
RUN=${RUN:-runs/${REWARD##*[:/]}-$NAME}       # everything that is written; a reward of your own gets a folder of its own

# ------------------------------------------------------------------------------------------------------ the environment
if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv/bin/python
    export PATH=$PWD/.venv/bin:$PATH          # for LAUNCH=torchrun
    if ! cmp -s requirements.txt .venv/installed.txt; then
        echo "installing the requirements into .venv (once)"
        python3 -m venv .venv
        $PYTHON -m pip install -q --disable-pip-version-check -r requirements.txt
        cp requirements.txt .venv/installed.txt
    fi
fi
# On Linux half of a learning step is the kernel zeroing pages that glibc gave back and asks for again: let it keep them.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=67108864
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
if [ "$TASK" = test ]; then exec "$PYTHON" -m pytest -q -m "${MARK-not slow}" tests; fi    # MARK=slow: crashes and many processes

"$PYTHON" -c '' 2>/dev/null || { echo "run_all.sh: error: PYTHON=$PYTHON does not start; leave it out, and .venv is made" >&2; exit 1; }
trap 'exit 130' INT                           # Ctrl-C ends the run even where a library swallowed it inside a stage
mkdir -p "$RUN"
exec 9<"$RUN"                                 # a lock on the folder, held as long as this run or a stage of it lives
"$PYTHON" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null || {
    echo "run_all.sh: error: another run is at work in $RUN; wait for it, or choose another folder: RUN=runs/another" >&2; exit 1; }

settings() {                                  # all that what is written depends on; a piece's or a batch's size and bfloat16 only round
    local name
    for name in TASK MODEL PROMPTS TEST_PROMPTS PPL_MODEL REWARD REWARD_MODEL SEED K BETA KL ENTROPY ITERATIONS STEPS BATCH LR WARMUP CLIP QUANTIZE \
        FORGET LEARN EXPLORE EXPLORE_P0 EVALUATE NUM_PROMPTS NUM_SAMPLES NEW_TOKENS MIN_TOKENS REWARD_TOKEN_INIT REWARD_TOKEN_LR DIAL_SAMPLES; do
        echo "$name=${!name-}"
    done
    case $REWARD in *:*) echo "checksum of ${REWARD%:*}=$(cat "${REWARD%:*}" 2>/dev/null | cksum)" ;; esac
}
if [ -e "$RUN/settings" ]; then
    changed=$(settings | grep -vxF -f "$RUN/settings" | head -n 1) || true
    [ -z "$changed" ] || {
        echo "run_all.sh: error: $RUN was made with $(grep "^${changed%%=*}=" "$RUN/settings"), and now it is $changed;" \
            "choose another folder, RUN=runs/another, or remove this one" >&2; exit 1; }
else
    settings > "$RUN/settings.tmp" && mv "$RUN/settings.tmp" "$RUN/settings"
fi

stage() {                                     # stage OUTPUT COMMAND...: runs the command unless its output exists
    local output=$1; shift
    if [ -e "$output" ]; then echo "have $output"; rm -rf "$output".*.part* "$output.replaced"; return; fi    # killed before it tidied up
    echo; echo "+ $*"
    case $1 in
        explore.py|learn.py) ${LAUNCH:-"$PYTHON"} "$@" ;;
        *) "$PYTHON" "$@" ;;
    esac
}
length="--max-new-tokens $NEW_TOKENS --min-new-tokens $MIN_TOKENS --batch-size $SAMPLE_BATCH $BF16"
judge=${REWARD_MODEL:+--reward-model $REWARD_MODEL}

explore() {                                   # explore ROUND MODEL OPTIONS...
    local round=$1 model=$2; shift 2
    stage "$RUN/pool/$round.jsonl" explore.py --model "$model" --prompts "$PROMPTS" --reward "$REWARD" $judge \
        --iteration $((10#$round)) ${NUM_PROMPTS:+--num-prompts $NUM_PROMPTS} --num-samples "$NUM_SAMPLES" $length "$@" \
        --seed "$SEED" --out "$RUN/pool/$round.jsonl"
}
evaluate() {                                  # evaluate NAME MODEL OPTIONS...
    local name=$1 model=$2; shift 2
    stage "$RUN/eval/$name.json" evaluate.py --model "$model" --reference "$MODEL" --ppl-model "$PPL_MODEL" \
        --prompts "$TEST_PROMPTS" --reward "$REWARD" $judge $length --seed "$SEED" "$@" --out "$RUN/eval/$name"
}

# ------------------------------------------------------------------------------------------------------------ the loop
start=$SECONDS
explore 00 "$MODEL" $EXPLORE_P0                                        # initialise: D from p0, no reward token
previous=$MODEL pool=()
for ((i = 1; i <= ITERATIONS; i++)); do
    last=$(printf %02d $((i - 1))) round=$(printf %02d "$i")
    if [ -n "$FORGET" ] && ((i > 1)); then pool=("$RUN/quantized/$(printf %02d $((i - 2))).jsonl"); fi
    pool+=("$RUN/pool/$last.jsonl")
    stage "$RUN/quantized/$last.jsonl" quantize.py "${pool[@]}" \
        --quantiles "$K" --seed "$SEED" $QUANTIZE --out "$RUN/quantized/$last.jsonl"
    stage "$RUN/model/$round" learn.py --pool "$RUN/quantized/$last.jsonl" --model "$previous" --reference "$MODEL" \
        --beta "$BETA" --kl "$KL" --entropy-coef "$ENTROPY" --steps "$STEPS" --total-steps $((STEPS * ITERATIONS)) \
        --batch-size "$BATCH" --grad-accum "$GRAD_ACCUM" --lr "$LR" --warmup "$WARMUP" --clip "$CLIP" \
        --reward-token-lr "$REWARD_TOKEN_LR" --reward-token-init "$REWARD_TOKEN_INIT" $BF16 $LEARN --seed "$SEED" --out "$RUN/model/$round"
    previous=$RUN/model/$round
    if ((i < ITERATIONS)); then explore "$round" "$previous" $EXPLORE; fi  # new samples, conditioned on r_K
done

# --------------------------------------------------------------------------------------------------- what came of it
evaluate base "$MODEL" $EVALUATE
evaluate quark "$previous" $EVALUATE
if [ "$TASK" = repetition ]; then                                      # fluency is measured on samples, not on greedy text
    evaluate base-nucleus "$MODEL" --decode sample --top-p 0.9 --num-samples 2
    evaluate quark-nucleus "$previous" --decode sample --top-p 0.9 --num-samples 2
    nucleus="$RUN/eval/base-nucleus.json $RUN/eval/quark-nucleus.json"
fi
if ((DIAL_SAMPLES > 0)); then                                          # the dial: r_1 ... r_K, and no token
    stage "$RUN/eval/dial-none.json" evaluate.py --model "$previous" --reference "$MODEL" --ppl-model none \
        --prompts "$TEST_PROMPTS" --reward "$REWARD" $judge $length --seed "$SEED" $EVALUATE --num-samples "$DIAL_SAMPLES" \
        --reward-token all --out "$RUN/eval/dial"
fi
"$PYTHON" evaluate.py --compare "$RUN/eval/base.json" "$RUN/eval/quark.json" ${nucleus:-} --report "$RUN"
echo; echo "$(basename "$RUN") done in $((SECONDS - start)) s. Every stage's files are in $RUN; open $RUN/report.html in a browser."
exit
}
