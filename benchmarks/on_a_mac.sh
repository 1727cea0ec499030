#!/usr/bin/env bash
# Everything that only a Mac can measure, in one command:
#
#   benchmarks/on_a_mac.sh [FOLDER]          about half an hour; FOLDER: default mac-results
#   MODEL=FOLDER benchmarks/on_a_mac.sh      also a 7B model that is on this machine
#
# Writes one folder of text, JSON and small plots, to be sent: the Mac's model, memory and macOS
# version, and what was measured on built-in rows and random models. Your home folder is written
# as ~ in it. A part that fails is noted and the next one runs. Nothing is downloaded; with MODEL
# unset, a Mistral 7B in the hub's cache is taken if there is one.
set -u
cd "$(dirname "$0")/.." || exit 2

python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || { echo "no $python: run 'uv sync', or set PYTHON" >&2; exit 2; }
case ${1-} in -*) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2 ;; esac
out=${1:-mac-results}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
failed=0

part() { # NAME COMMAND...: what it prints goes to NAME.txt
  local name=$1 code
  shift
  echo "== $name: $*" | tee "$out/$name.txt"
  "$@" >>"$out/$name.txt" 2>&1
  code=$?
  [ "$code" -eq 0 ] && return
  failed=$((failed + 1))
  echo "   ended with $code; the end of $name.txt:"
  tail -n 5 "$out/$name.txt"
}

machine() {
  sw_vers 2>/dev/null || uname -srm
  sysctl -n machdep.cpu.brand_string hw.memsize hw.ncpu 2>/dev/null
  system_profiler SPDisplaysDataType 2>/dev/null | grep -E 'Chipset|Total Number of Cores|Metal'
  git rev-parse HEAD 2>/dev/null
  "$python" -c 'import mlx.core as mx, json; print(json.dumps(mx.device_info(), default=str))'
}

hub=${HF_HUB_CACHE:-${HF_HOME:-$HOME/.cache/huggingface}/hub}
model=${MODEL-}
if [ -z "$model" ]; then
  for found in "$hub"/models--mistralai--Mistral-7B-Instruct-v0.3/snapshots/*/; do
    [ -f "$found/config.json" ] && model=${found%/}
  done
fi

part machine machine
part doctor "$python" -m mlx_ft.cli doctor
part quick "$python" train.py experiment=quick tracking=none hydra.run.dir="$out/quick-run"
part startup "$python" benchmarks/startup.py --json "$out/startup.json"
part techniques "$python" benchmarks/techniques.py --json "$out/techniques.json"
part memory "$python" benchmarks/memory.py --json "$out/memory.json"
part serve "$python" benchmarks/serve.py --json "$out/serve.json" --plot "$out/serve.png"

job=(experiment=mistral_7b_m4 eval.before=false eval.every=0)
part estimate "$python" -m mlx_ft.cli estimate "${job[@]}"
if [ -n "$model" ]; then
  HF_HUB_OFFLINE=1
  export HF_HUB_OFFLINE
  job+=("model.path=$model" train.max_steps=20)
  part estimate-7b "$python" -m mlx_ft.cli estimate "${job[@]}" --json
  part train-7b "$python" train.py "${job[@]}" tracking=none hydra.run.dir="$out/7b-run"
  [ -f "$out/7b-run/summary.json" ] && part compare-7b "$python" - "$out" <<'PYTHON'
import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
text = (folder / "estimate-7b.txt").read_text()
found = json.loads(text[text.index("\n{") :])
summary = json.loads((folder / "7b-run/summary.json").read_text())
longest = (found["longest_row"] or found["memory"]["total"]) - found["memory"]["beside"]
print(f"peak of MLX: estimated {longest / 2**30:.2f} GB for the longest row, "
      f"measured {summary['peak_memory_gb']:.2f} GB")
print(f"speed: {summary['tokens_per_second']:.0f} tokens/s")
PYTHON
  rm -rf "$out"/7b-run/checkpoints "$out"/7b-run/adapter
else
  echo "no 7B model is here: set MODEL=FOLDER to measure one" | tee "$out/train-7b.txt"
fi
rm -rf "$out"/quick-run/checkpoints "$out"/quick-run/adapter

"$python" - "$out" <<'PYTHON'
import sys
from pathlib import Path

for file in Path(sys.argv[1]).rglob("*"):
    if file.is_file() and file.suffix in (".txt", ".json", ".jsonl", ".yaml", ".log"):
        file.write_text(file.read_text().replace(str(Path.home()), "~"))
PYTHON

echo
echo "$out: send this folder ($(du -sh "$out" | cut -f1)). Parts that failed: $failed"
[ "$failed" -eq 0 ]
