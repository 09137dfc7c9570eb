#!/usr/bin/env bash
# Study 6: a reward of 0 or 1, so most rewards are equal. Expected: if the older of two equal
# samples gets the better token, as in the authors' code, then r_K marks old samples.
source "$(dirname "$0")/study.sh"
ITERATIONS=8 STEPS=25                         # by age, D^K falls behind with every round
label=(REWARD=experiments/labels.py:TASK)
variant random "${label[@]}" QUANTIZE="--ties random"
variant age "${label[@]}" QUANTIZE="--ties age"
variant random_of_2 "${label[@]}" QUANTIZE="--ties random" K=2
variant together_of_2 "${label[@]}" QUANTIZE="--ties together" K=2     # a larger K: empty parts
finish
