#!/usr/bin/env bash
# Study 4: exploring, with equal numbers of samples and of updates. Claimed (Algorithm 1): new
# samples are needed, and they should be sampled under r_K.
source "$(dirname "$0")/study.sh"
all="QUANTIZE=--per-prompt"                   # keep every sample, so that all learn from as many
variant every_round "$all"
variant never "$all" ITERATIONS=1 STEPS=200 NUM_SAMPLES=16
variant twice_as_often "$all" ITERATIONS=8 STEPS=25 NUM_SAMPLES=2
variant on_no_token "$all" EXPLORE="--decode sample --top-p 0.95 --reward-token none"
finish
