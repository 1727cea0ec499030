#!/usr/bin/env bash
# Where does the adapter belong? Attention, MLP or both; the last half of the layers or all of them.
set -euo pipefail
cd "$(dirname "$0")/../.."
python train.py -m sweep.name=placement sweep.seeds=2 \
    lora=attention,mlp,default lora.num_layers=15,30 optimizer.learning_rate=1e-3 \
    train.max_steps=30 eval.before=false eval.max_rows=64 data.metric=none "$@"
