#!/usr/bin/env bash
# MLflow's UI on our runs, a sweep's page and the server's, in headless Chromium.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -x /usr/bin/chromium ]; then
    apt-get update --quiet
    apt-get install --quiet --yes --no-install-recommends chromium
fi
export MLX_FT_SCREENSHOTS="${MLX_FT_SCREENSHOTS:-$(mktemp -d)}"
python3 -m uv run --no-sync --with playwright==1.64.0 python -m pytest -m e2e tests/e2e
