#!/usr/bin/env bash
# Where does the adapter belong? Attention, MLP or both; the last half of the layers or all of them.
set -euo pipefail
cd "$(dirname "$0")/../.."
python train.py -m sweep.name=placement sweep.seeds=3 \
    lora=attention,mlp,default lora.num_layers=15,30 \
    train.max_steps=60 eval.before=false eval.task_rows=50 "$@"
