#!/usr/bin/env bash
# Study 7, open question one: must the pool grow? Bounded pools, with equal numbers of samples and
# of updates.
source "$(dirname "$0")/study.sh"
REPORT=pool ITERATIONS=6 STEPS=25 NUM_PROMPTS=200
variant all QUANTIZE=
for n in 1 2 4; do
    variant newest_$n QUANTIZE="--last $n"
done
variant best_half QUANTIZE="--keep-top 0.5"
variant drop_fifth QUANTIZE="--keep-top 0.8" FORGET=1
variant drop_fifth_per_prompt QUANTIZE="--per-prompt --keep-top 0.8" FORGET=1     # as run_all.sh
# One sample a prompt would have nothing to be ranked against in the first round.
variant per_prompt_2 QUANTIZE=--per-prompt NUM_PROMPTS=400 NUM_SAMPLES=2
variant per_prompt_4 QUANTIZE=--per-prompt
variant per_prompt_16 QUANTIZE=--per-prompt NUM_PROMPTS=50 NUM_SAMPLES=16
finish
