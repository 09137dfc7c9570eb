#!/usr/bin/env bash
# Study 1: the weight of the KL term. Claimed: a larger beta stays closer to p0 and keeps more of
# the fault.
source "$(dirname "$0")/study.sh"
variant 0 BETA=0
variant 0.02 BETA=0.02
variant 0.05
for beta in 0.1 0.3 1; do
    variant $beta BETA=$beta
done
finish
