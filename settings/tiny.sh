# Settings of the small runs: tiny/lm on a laptop, in minutes. docs/small-runs.md gives the reasons.
# ${X:-default} and ${X-default} keep what you set in front of the command; the second one keeps an
# empty X as well.
NAME=tiny                                                  # of the run's folder

# What differs by task. LR is the peak learning rate of Adam.
case $TASK in
    sentiment)
        LR=${LR:-2e-4}
        ;;
    toxicity)
        QUANTIZE=${QUANTIZE---per-prompt --keep-top 0.9} LR=${LR:-3e-4}
        ;;
    repetition)                                            # longer completions, so fewer of them
        NEW_TOKENS=${NEW_TOKENS:-64}
        NUM_PROMPTS=${NUM_PROMPTS:-192} NUM_SAMPLES=${NUM_SAMPLES:-5}
        EXPLORE_P0=${EXPLORE_P0:---decode sample --top-p 0.6}
        EXPLORE=${EXPLORE:---decode sample --top-p 0.97}
        K=${K:-2} QUANTIZE=${QUANTIZE---per-prompt --last 1 --keep-p0 --keep-top 0.75}
        FORGET=${FORGET-} BETA=${BETA:-0.2}
        ITERATIONS=${ITERATIONS:-4} STEPS=${STEPS:-150} BATCH=${BATCH:-20} LR=${LR:-2e-3}
        ;;
esac

# What is explored
PROMPTS=${PROMPTS:-tiny/prompts/train.jsonl}               # X
TEST_PROMPTS=${TEST_PROMPTS:-tiny/prompts/test.jsonl}
SAMPLE_BATCH=${SAMPLE_BATCH:-256}                          # completions sampled together
EXPLORE=${EXPLORE:---decode sample --top-p 0.98}           # a small model's rarest tokens are noise
NUM_PROMPTS=${NUM_PROMPTS:-384}                            # of the 851, drawn by SEED, once
NUM_SAMPLES=${NUM_SAMPLES:-4}                              # completions per prompt and round

# What is learned from. Not in the paper: quantiles within each prompt, and a pool that is cut back.
K=${K:-5}                                                  # quantiles
QUANTIZE=${QUANTIZE---per-prompt --keep-top 0.8}           # further options of quantize.py
FORGET=${FORGET-1}                                         # 1: a row that was dropped never returns

# How it is learned
BETA=${BETA:-0.05}                                         # weight of the KL term
ITERATIONS=${ITERATIONS:-6}                                # rounds of explore, quantize, learn
STEPS=${STEPS:-60}                                         # updates per round
BATCH=${BATCH:-16}                                         # examples per update
WARMUP=${WARMUP:-30}                                       # updates
CLIP=${CLIP:-1}                                            # largest gradient norm
# With these two, the model reacts to the reward tokens after fewer updates.
REWARD_TOKEN_INIT=${REWARD_TOKEN_INIT:-ordered}
REWARD_TOKEN_LR=${REWARD_TOKEN_LR:-10}                     # times LR, for the rows of r_1 ... r_K
if [ -z "${BF16+set}" ] && grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then
    BF16=--bf16                                            # where the CPU has it
fi

export HF_HUB_OFFLINE=${HF_HUB_OFFLINE-1}                  # offline; 0: models of the hub work
