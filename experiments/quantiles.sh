#!/usr/bin/env bash
# Study 2: K, the number of quantiles, over all prompts as in the paper. Claimed: a larger K brings
# more reward and moves further from p0.
source "$(dirname "$0")/study.sh"
for K in 2 3 5 8 16; do
    variant $K K=$K QUANTIZE="--last 2"
done
finish
