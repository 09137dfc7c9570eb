# Settings of every other MODEL: the paper's. docs/running.md says what they need.
NAME=$(basename "$MODEL")
if [ -z "${PROMPTS:-}" ] || [ -z "${TEST_PROMPTS:-}" ]; then
    echo "run_all.sh: error: MODEL=$MODEL needs PROMPTS=train.jsonl and TEST_PROMPTS=test.jsonl" \
        "(docs/running.md)" >&2
    exit 2
fi
if [ "$TASK" = repetition ]; then
    K=${K:-8} NEW_TOKENS=${NEW_TOKENS:-128}
fi
K=${K:-5}
BETA=${BETA:-0.05}
ITERATIONS=${ITERATIONS:-47}
STEPS=${STEPS:-500}
BATCH=${BATCH:-128}
LR=${LR:-1e-5}
WARMUP=${WARMUP:-500}
CLIP=${CLIP:-0}                                            # no clipping
NUM_SAMPLES=${NUM_SAMPLES:-1}
LEARN=${LEARN---closed-form}                               # 50,257 tokens: less memory, less time
case $REWARD in
    sentiment*) default_judge=distilbert/distilbert-base-uncased-finetuned-sst-2-english ;;
    toxicity) default_judge=unitary/toxic-bert ;;
    *) default_judge= ;;
esac
REWARD_MODEL=${REWARD_MODEL:-$default_judge}
