#!/bin/sh
# Tells a Spark worker the indices of this machine's GPUs, in the JSON that Spark expects.
set -eu
indices=$(nvidia-smi --query-gpu=index --format=csv,noheader | sed 's/.*/"&"/' | paste -sd, -)
printf '{"name": "gpu", "addresses": [%s]}\n' "$indices"
