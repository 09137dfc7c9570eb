#!/usr/bin/env bash
# Study 3: which samples are learned from. Claimed: the best quantile alone collapses to few
# completions; random tokens bring no reward.
source "$(dirname "$0")/study.sh"
variant all K=5 QUANTIZE="--last 2"
best="--last 2 --keep-top 0.2"                # D^5 of five
variant best K=1 QUANTIZE="$best"
variant best_no_token K=1 QUANTIZE="$best" LEARN=--no-reward-token     # expert iteration
variant random_tokens QUANTIZE="--last 2 --random"
finish
