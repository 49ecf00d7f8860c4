#!/bin/sh
# Prints the indices of this machine's GPUs for a Spark worker, in the JSON format that Spark expects.
set -eu
indices=$(nvidia-smi --query-gpu=index --format=csv,noheader | sed 's/.*/"&"/' | paste -sd, -)
printf '{"name": "gpu", "addresses": [%s]}\n' "$indices"
