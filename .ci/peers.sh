#!/usr/bin/env bash
# Our numbers against those of other libraries, computed now: transformers + PEFT on torch in an
# environment of its own (kept in MLX_FT_PEERS_ENV), and mlx-lm.
set -euo pipefail
cd "$(dirname "$0")/.."
environment="${MLX_FT_PEERS_ENV:-$HOME/.cache/mlx-ft-peers}/peft"
vectors=$(mktemp -d)
full=$(mktemp -d)
trap 'rm -rf "$vectors" "$full"' EXIT

if ! cmp --quiet tests/peers/requirements.txt "$environment/requirements.txt"; then
    python3 -m venv --clear "$environment"
    "$environment/bin/pip" install --quiet -r tests/peers/requirements.txt
    cp tests/peers/requirements.txt "$environment/"
fi

echo "torch computes the vectors again; the committed ones must be the same"
"$environment/bin/python" -W ignore tests/peers/peft_gradients.py "$vectors" \
    --check tests/peers/vectors

mistral="${MLX_FT_PEERS_ENV:-$HOME/.cache/mlx-ft-peers}/mistral"
if ! cmp --quiet tests/peers/requirements-mistral.txt "$mistral/requirements-mistral.txt"; then
    python3 -m venv --clear "$mistral"
    "$mistral/bin/pip" install --quiet -r tests/peers/requirements-mistral.txt
    cp tests/peers/requirements-mistral.txt "$mistral/"
fi
echo "mistral-common tokenizes again: the committed ids, and its whole vocabulary"
"$mistral/bin/python" tests/peers/mistral_vectors.py tests/peers/vectors/mistral_v3.json --check
"$mistral/bin/python" tests/peers/mistral_vectors.py "$full/mistral.json" --full
MLX_FT_MISTRAL_VECTORS="$full/mistral.json" python3 -m uv run pytest tests/data/test_mask_system.py

echo "exports, read by PEFT on torch and by llama.cpp"
llama="${MLX_FT_PEERS_ENV:-$HOME/.cache/mlx-ft-peers}/llama"
if ! cmp --quiet tests/peers/llama_cpp/package.json "$llama/installed.json"; then
    rm -rf "$llama"
    mkdir -p "$llama"
    cp tests/peers/llama_cpp/package.json "$llama/"
    if (cd "$llama" && npm install --omit=optional --ignore-scripts --no-audit --no-fund --silent); then
        cp tests/peers/llama_cpp/package.json "$llama/installed.json"
    fi
fi
exports=$(mktemp -d)
trap 'rm -rf "$vectors" "$full" "$exports"' EXIT
PYTHONPATH=. python3 -m uv run python tests/peers/make_exports.py "$exports"
"$environment/bin/python" -W ignore tests/peers/check_peft_export.py "$exports"
if [ -f "$llama/installed.json" ]; then
    cp tests/peers/llama_cpp/run.js "$llama/"
    node "$llama/run.js" "$exports"
    python3 -m uv run python tests/peers/check_llama_cpp.py "$exports"
else
    echo "NOT CHECKED by llama.cpp: npm, which brings it, is not here or did not work"
fi

echo "ours against them"
MLX_FT_PEER_VECTORS="$vectors" python3 -m uv run pytest -s tests/peers

echo "the embedded model with an adapter of ours, loaded by mlx-lm"
python3 -m uv run python tests/peers/embedded_logits.py

echo "speed of float32 products"
python3 -m uv run python benchmarks/blas.py
