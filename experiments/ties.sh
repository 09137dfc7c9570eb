#!/usr/bin/env bash
# Study 6: a reward of 0 or 1. Whose token do equal rewards get? Expected: by age, as the authors' sort does, the old samples hold r_K.
source "$(dirname "$0")/study.sh"
label=(REWARD=experiments/labels.py:TASK)
variant random "${label[@]}" QUANTIZE="--ties random"
variant age "${label[@]}" QUANTIZE="--ties age"
variant random_of_2 "${label[@]}" QUANTIZE="--ties random" K=2
variant together_of_2 "${label[@]}" QUANTIZE="--ties together" K=2    # with K > 2 parts would be empty
finish
