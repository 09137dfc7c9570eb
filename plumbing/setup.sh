# What run_all.sh needs before its loop: the task, the settings, Python, and the run's folder.

fail() {                                      # fail SENTENCE...
    echo "run_all.sh: error: $*" >&2
    exit 1
}

# ------------------------------------------------------------------------------------- the task
TASK=${1:-sentiment}
case $TASK in
    repetition | sentiment | toxicity | test | install) ;;
    *)
        echo "run_all.sh: error: no task is called '$TASK';" \
            "choose sentiment, toxicity, repetition, test or install" >&2
        exit 2
        ;;
esac
# What you name is relative to where you stand. A model that is not there is a name: of the hub, or
# of a folder in this one, such as tiny/lm.
if ! [ "$started_in" -ef . ]; then
    for name in PROMPTS TEST_PROMPTS RUN PYTHON REWARD MODEL PPL_MODEL REWARD_MODEL; do
        value=${!name-}
        case $value in
            '' | /* | [A-Za-z]:[/\\]*) continue ;;                # not set, or absolute
        esac
        case $name=$value in
            PROMPTS=* | TEST_PROMPTS=* | RUN=* | PYTHON=*/* | REWARD=*:*) ;;
            *MODEL=*) [ -e "$started_in/$value" ] || continue ;;
            *) continue ;;                                        # PYTHON=python3
        esac
        printf -v "$name" %s "$started_in/$value"
    done
fi
MODEL=${MODEL:-tiny/lm}                       # p0: a folder or hub name
REWARD=${REWARD:-$TASK}                       # or path/to/file.py:function
SEED=${SEED:-0}
LAUNCH=${LAUNCH:-}                            # "torchrun ..." for explore.py and learn.py

# --------------------------------------------------------------------------------- the settings
if [ "$MODEL" -ef tiny/lm ]; then             # however its path was written
    MODEL=tiny/lm
    source settings/tiny.sh
else
    source settings/gpt2.sh
fi
if [ "$TASK" = repetition ]; then             # never cut short: an early end would hide a loop
    MIN_TOKENS=${MIN_TOKENS:-$NEW_TOKENS}
    EXPLORE=${EXPLORE:---decode mixed --top-p 0.9}
    EVALUATE=${EVALUATE:---decode greedy --num-samples 1}
    DIAL_SAMPLES=${DIAL_SAMPLES:-1}           # greedy: all would be the same
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
REWARD_MODEL=${REWARD_MODEL:-}                # the judge (none: the reward's own, in tiny/)
PPL_MODEL=${PPL_MODEL:-$MODEL}                # whose perplexity measures fluency
RUN=${RUN:-runs/${REWARD##*[:/]}-$NAME}       # the folder of all that is written

for name in SEED K ITERATIONS STEPS BATCH GRAD_ACCUM WARMUP NUM_SAMPLES NEW_TOKENS MIN_TOKENS \
    SAMPLE_BATCH DIAL_SAMPLES ${NUM_PROMPTS:+NUM_PROMPTS}; do      # empty: all prompts
    case ${!name} in
        '' | *[!0-9]*) fail "$name=${!name} is not a whole number" ;;
    esac
done
own_reward=
case $REWARD in
    *:*) own_reward=${REWARD%:*} ;;
esac
for named in "PROMPTS=$PROMPTS" "TEST_PROMPTS=$TEST_PROMPTS" "REWARD=${own_reward:-rewards.py}"; do
    [ -f "${named#*=}" ] || fail "$named: there is no such file; correct the path"
done

# ------------------------------------------------------------------------------ the environment
is_new() {                                    # is_new PYTHON [MODULE]: 3.11 or later, with MODULE
    "$1" -c "import sys, ${2:-sys}; sys.exit(sys.version_info < (3, 11))" 2>/dev/null
}

make_venv() {
    local python
    for python in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if is_new "$python" ensurepip; then
            echo "making .venv with $("$python" -V)"
            "$python" -m venv --clear .venv
            return
        fi
    done
    fail "Python 3.11 or later is needed, and none was found that can make .venv; install one" \
        "(on Debian and Ubuntu: python3 and python3-venv)"
}

needed=(requirements.txt)
[ "$TASK" != test ] || needed+=(tests/requirements.txt)
if [ -n "${PYTHON:-}" ]; then
    "$PYTHON" -c '' 2>/dev/null ||
        fail "PYTHON=$PYTHON does not start; without PYTHON=, .venv is used"
    is_new "$PYTHON" ||
        fail "PYTHON=$PYTHON is $("$PYTHON" -V 2>&1), and Python 3.11 or later is needed;" \
            "without PYTHON=, .venv is used"
    check='from plumbing.check_python import check; check()'
    "$PYTHON" -c "$check" "$PYTHON" "${needed[@]}" || exit 1
else
    folder=.venv/bin
    [ "${OS:-}" != Windows_NT ] || folder=.venv/Scripts
    PYTHON=$folder/python
    is_new "$PYTHON" || make_venv             # there is none, it is too old, or its base is gone
    export PATH=$PWD/$folder:$PATH            # for LAUNCH=torchrun
    for file in "${needed[@]}"; do
        installed=.venv/installed-${file//\//-}
        cmp -s "$file" "$installed" && continue
        echo "installing $file into .venv (once)"
        is_new "$PYTHON" pip || "$PYTHON" -m ensurepip
        "$PYTHON" -m pip install -q --disable-pip-version-check -r "$file"
        cp "$file" "$installed"
    done
fi
# On Linux, glibc returns freed memory and asks for it again, which takes half of a learning step.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=67108864
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
[ "$TASK" != install ] || exit 0               # only .venv was asked for
if [ "$TASK" = test ]; then                   # MARK=slow: the slow tests, one after the other
    [ -n "${MARK:-}" ] || exec "$PYTHON" -m pytest -q -n auto --maxprocesses 4 -m "not slow" tests
    exec "$PYTHON" -m pytest -q -m "$MARK" tests
fi
trap 'exit 130' INT                           # Ctrl-C ends the run, not only the stage

# -------------------------------------------------------------------------------- the run's folder
if [ -e "$RUN/settings" ]; then
    for name in TASK MODEL PROMPTS ITERATIONS; do
        grep -q "^$name=" "$RUN/settings" 2>/dev/null ||
            fail "$RUN holds something else: its settings are not those of a run;" \
                "choose another RUN"
    done
fi
mkdir -p -- "$RUN" || fail "RUN=$RUN cannot be made; choose another folder"
exec 9<"$RUN"                                 # one run per folder: a lock, held until the run ends
"$PYTHON" -c '
try:
    import fcntl
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    raise SystemExit(1)
except (ImportError, OSError):                # Windows and some network drives have no such lock
    pass' || fail "another run is at work in $RUN; wait for it, or choose another folder:" \
    "RUN=runs/another"

print_settings() {                            # all that decides the results
    local name last= judge=$REWARD_MODEL
    for name in TASK MODEL PROMPTS TEST_PROMPTS PPL_MODEL REWARD REWARD_MODEL SEED K BETA KL \
        ENTROPY ITERATIONS STEPS BATCH LR WARMUP CLIP QUANTIZE FORGET LEARN EXPLORE EXPLORE_P0 \
        EVALUATE NUM_PROMPTS NUM_SAMPLES NEW_TOKENS MIN_TOKENS REWARD_TOKEN_INIT REWARD_TOKEN_LR \
        DIAL_SAMPLES; do
        echo "$name=${!name-}"
    done
    case $judge$REWARD in
        sentiment | sentiment_label) judge=tiny/sentiment ;;
        toxicity) judge=tiny/toxicity ;;
    esac
    for name in explore.py quantize.py learn.py rewards.py "$own_reward" "$PROMPTS" \
        "$TEST_PROMPTS" "$judge" "$MODEL" "$PPL_MODEL"; do        # an edit is another setting
        [ ! -e "$name" ] || [ "$name" = "$last" ] || echo "checksum of $name=$(checksum "$name")"
        last=$name                            # PPL_MODEL is MODEL unless you set it
    done
}

checksum() (                                  # checksum FILE_OR_MODEL_FOLDER: of its content
    [ -d "$1" ] || exec cksum <"$1"
    set +f
    cd "$1"
    { cksum config.json *.safetensors tokenizer*.json special_tokens_map.json added_tokens.json \
        vocab.* merges.txt 2>/dev/null || true; } | cksum
)

# The log of a killed explore.py does not count: its name holds a checksum of its settings.
anything_made() {
    [ -n "$(cd "$RUN" && find -L pool quantized model eval -name '.?*' -prune -o -type f \
        ! -name '*.part[0-9]*' ! -name 'remote.cache[0-9]*' -print 2>/dev/null)" ]
}

refuse_other_settings() {
    local recorded line name said
    recorded=$'\n'$(cat "$RUN/settings")$'\n'
    while IFS= read -r line; do
        case $recorded in
            *$'\n'"$line"$'\n'*) continue ;;
        esac
        name=${line%%=*}
        said=$(grep "^$name=" "$RUN/settings" || echo "no $name")
        said="$RUN was made with $said, and now it is $line"
        name=${line#checksum of } name=${name%=*}
        case $recorded in
            *$'\n'"checksum of $name="*) said="$name has changed since $RUN was made" ;;
        esac
        fail "$said; choose another folder, RUN=runs/another, or remove this one"
    done < <(print_settings)
}

if anything_made && [ -e "$RUN/settings" ]; then
    refuse_other_settings
elif anything_made && [ "${ADOPT:-}" != 1 ]; then
    fail "$RUN holds files that run_all.sh did not make; choose another folder," \
        "RUN=runs/another, or take them over with ADOPT=1"
else
    unfinished=$(mktemp "$RUN/.settings.XXXXXX")
    print_settings >"$unfinished"
    mv -f "$unfinished" "$RUN/settings"
fi

remove_leftovers() (                          # remove_leftovers OUTPUT, which is finished
    set +f
    hex=[0-9a-f] folder=$(dirname "$1") name=$(basename "$1")
    rm -f "$1".$hex$hex$hex$hex$hex$hex$hex$hex.part[0-9]*     # the rows that are in it now
    rm -rf "$folder/.$name.replaced"                           # the folder that it replaced
)
