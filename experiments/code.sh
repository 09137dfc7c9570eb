#!/usr/bin/env bash
# Study 5: the three places where the authors' code differs from the paper. Expected: KL(p || p0)
# and top-50 sampling pull towards what p0 finds likely (lower perplexity), the entropy bonus away
# from it.
source "$(dirname "$0")/study.sh"
paper=(EXPLORE="--decode sample --top-p 1")
variant paper "${paper[@]}"
variant entropy "${paper[@]}" ENTROPY=0.06
variant reverse "${paper[@]}" KL=reverse
variant reverse_entropy "${paper[@]}" KL=reverse ENTROPY=0.06
variant top_50 EXPLORE="--decode sample --top-k 50"
variant authors EXPLORE="--decode sample --top-k 50" KL=reverse ENTROPY=0.06
finish
