#!/usr/bin/env bash
# Study 3: what is learned from. Claimed: the best quantile alone collapses to few completions; random tokens bring no reward.
source "$(dirname "$0")/study.sh"
variant all K=5 QUANTIZE="--last 2"
variant best K=1 QUANTIZE="--last 2 --keep-top 0.2"                    # D^5 of five, and its token
variant best_no_token K=1 QUANTIZE="--last 2 --keep-top 0.2" LEARN=--no-reward-token        # expert iteration
variant random_tokens QUANTIZE="--last 2 --random"
finish
