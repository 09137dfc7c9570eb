#!/usr/bin/env bash
# Study 1: the weight of the KL term. Claimed: a larger beta stays closer to p0 and keeps more of the fault.
source "$(dirname "$0")/study.sh"
for beta in 0.05 0 0.02 0.1 0.3 1; do variant "$beta" BETA=$beta; done
finish
