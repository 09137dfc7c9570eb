# What run_all.sh needs before its loop: the task, the settings, Python, and the run's folder.

# ------------------------------------------------------------------------------------- the task
TASK=${1:-sentiment}
case $TASK in
    repetition | sentiment | toxicity | test) ;;
    *)
        echo "run_all.sh: error: no task is called '$TASK';" \
            "choose sentiment, toxicity, repetition or test" >&2
        exit 2
        ;;
esac
MODEL=${MODEL:-tiny/lm}                       # p0: a GPT-2 folder or hub name
REWARD=${REWARD:-$TASK}                       # or path/to/file.py:function
SEED=${SEED:-0}
LAUNCH=${LAUNCH:-}                            # "torchrun ..." for explore.py and learn.py

# --------------------------------------------------------------------------------- the settings
if [ "$MODEL" = tiny/lm ]; then
    source settings/tiny.sh
else
    source settings/gpt2.sh
fi
if [ "$TASK" = repetition ]; then             # never cut short: an early end would hide a loop
    MIN_TOKENS=${MIN_TOKENS:-$NEW_TOKENS}
    EXPLORE=${EXPLORE:---decode mixed --top-p 0.9}
    EVALUATE=${EVALUATE:---decode greedy --num-samples 1}
    [ "${DIAL_SAMPLES:-}" = 0 ] || DIAL_SAMPLES=1
fi
NEW_TOKENS=${NEW_TOKENS:-20} MIN_TOKENS=${MIN_TOKENS:-3}
EXPLORE=${EXPLORE:---decode sample --top-p 1}
EXPLORE_P0=${EXPLORE_P0:-$EXPLORE}            # for the first pool, which p0 samples
EVALUATE=${EVALUATE:---decode sample --top-p 0.9 --num-samples 25}
KL=${KL:-forward} ENTROPY=${ENTROPY:-0}       # the paper; the authors' code: reverse and 0.06
NUM_PROMPTS=${NUM_PROMPTS:-}                  # explore this many of the prompts (none: all)
REWARD_TOKEN_LR=${REWARD_TOKEN_LR:-1}         # times LR, for the rows of r_1 ... r_K
REWARD_TOKEN_INIT=${REWARD_TOKEN_INIT:-normal}
GRAD_ACCUM=${GRAD_ACCUM:-1}                   # pieces that a batch is cut into, to save memory
BF16=${BF16:-}                                # --bf16: learn and sample in bfloat16
QUANTIZE=${QUANTIZE:-}                        # further options of quantize.py: "--last 3"
FORGET=${FORGET:-}                            # 1: a row that was dropped never returns
LEARN=${LEARN:-}                              # further options of learn.py: "--no-reward-token"
SAMPLE_BATCH=${SAMPLE_BATCH:-128}
DIAL_SAMPLES=${DIAL_SAMPLES:-6}               # completions per prompt and reward token; 0: no dial
PPL_MODEL=${PPL_MODEL:-$MODEL}                # whose perplexity measures fluency
RUN=${RUN:-runs/${REWARD##*[:/]}-$NAME}       # the folder of all that is written

# ------------------------------------------------------------------------------ the environment
if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv/bin/python
    export PATH=$PWD/.venv/bin:$PATH          # for LAUNCH=torchrun
    for file in requirements.txt $([ "$TASK" != test ] || echo tests/requirements.txt); do
        installed=.venv/installed-${file//\//-}
        cmp -s "$file" "$installed" && continue
        echo "installing $file into .venv (once)"
        python3 -m venv .venv
        $PYTHON -m pip install -q --disable-pip-version-check -r "$file"
        cp "$file" "$installed"
    done
fi
# On Linux, glibc returns freed memory and asks for it again, which takes half of a learning step.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=67108864
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
if [ "$TASK" = test ]; then                   # MARK=slow: the slow tests
    exec "$PYTHON" -m pytest -q -m "${MARK-not slow}" tests
fi
"$PYTHON" -c '' 2>/dev/null || {
    echo "run_all.sh: error: PYTHON=$PYTHON does not start; without PYTHON=, .venv is used" >&2
    exit 1
}
trap 'exit 130' INT                           # Ctrl-C ends the run, not only the stage

# -------------------------------------------------------------------------------- the run's folder
mkdir -p "$RUN"
exec 9<"$RUN"                                 # one run per folder: a lock, held until the run ends
"$PYTHON" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null || {
    echo "run_all.sh: error: another run is at work in $RUN; wait for it," \
        "or choose another folder: RUN=runs/another" >&2
    exit 1
}

print_settings() {                            # all that decides what is written
    local name
    for name in TASK MODEL PROMPTS TEST_PROMPTS PPL_MODEL REWARD REWARD_MODEL SEED K BETA KL \
        ENTROPY ITERATIONS STEPS BATCH LR WARMUP CLIP QUANTIZE FORGET LEARN EXPLORE EXPLORE_P0 \
        EVALUATE NUM_PROMPTS NUM_SAMPLES NEW_TOKENS MIN_TOKENS REWARD_TOKEN_INIT REWARD_TOKEN_LR \
        DIAL_SAMPLES; do
        echo "$name=${!name-}"
    done
    for name in explore.py quantize.py learn.py rewards.py; do    # an edit is another setting
        echo "checksum of $name=$(cksum <"$name")"
    done
    case $REWARD in
        *:*) echo "checksum of ${REWARD%:*}=$(cat "${REWARD%:*}" 2>/dev/null | cksum)" ;;
    esac
}
if [ -e "$RUN/settings" ]; then
    changed=$(print_settings | grep -vxF -f "$RUN/settings" | head -n 1) || true
    [ -z "$changed" ] || {
        before=$(grep "^${changed%%=*}=" "$RUN/settings" || echo "no ${changed%%=*}")
        echo "run_all.sh: error: $RUN was made with $before, and now it is $changed;" \
            "choose another folder, RUN=runs/another, or remove this one" >&2
        exit 1
    }
else
    print_settings >"$RUN/settings.tmp" && mv "$RUN/settings.tmp" "$RUN/settings"
fi
