#!/usr/bin/env bash
# Study 4: exploring, at equal numbers of samples and of updates. Claimed (Algorithm 1): new samples are needed, and those of r_K.
source "$(dirname "$0")/study.sh"
variant every_round QUANTIZE=--per-prompt     # every sample is kept, so that in the end all have learned from as many
variant never QUANTIZE=--per-prompt ITERATIONS=1 STEPS=200 NUM_SAMPLES=16
variant twice_as_often QUANTIZE=--per-prompt ITERATIONS=8 STEPS=25 NUM_SAMPLES=2
variant on_no_token QUANTIZE=--per-prompt EXPLORE="--decode sample --top-p 0.95 --reward-token none"
finish
