#!/usr/bin/env bash
# Is the best learning rate independent of the rank? 24 trials; begun again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
python train.py -m sweep.name=rank_and_rate sweep.seeds=2 \
    lora.rank=4,16,64 optimizer.learning_rate=3e-4,1e-3,3e-3,1e-2 lora.num_layers=8 \
    train.max_steps=40 eval.before=false eval.max_rows=64 data.metric=none "$@"
