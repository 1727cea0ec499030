"""Rows per second from a file to tokens and masks: ours, mlx-lm's loader, TRL's preparation.

    python benchmarks/data.py [--rows 200000] [--peer-rows 20000] [--trl PYTHON]

Ours reads, checks, encodes, masks every turn, finds near-duplicates and leaks, and writes a cache;
mlx-lm's (with mask_prompt, which masks all but the last turn) and TRL's (assistant_only_loss) read,
encode and mask. Each runs in a process of its own with the tokenizer of the embedded model. TRL
needs an environment of its own: python3 -m venv X; X/bin/pip install torch==2.13.0 "trl<2".
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PREPARE = """
import json, resource, sys, time
from pathlib import Path
from mlx_ft import runtime
runtime.prepare()
from mlx_ft.config.schema import ModelConfig
from mlx_ft.models.tokenizer import fetch_tokenizer
tokenizer = fetch_tokenizer(ModelConfig(), runtime.default_cache_dir())
folder = Path(sys.argv[1])
def report(rows, start, before):
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "rows": rows, "growth_mb": growth}))
def now():
    return time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""
OURS = (
    PREPARE
    + """
from mlx_ft.config.schema import DataConfig
from mlx_ft.data.prepare import prepare
start, before = now()
config = DataConfig(path=str(folder / "train.jsonl"))
data = prepare(config, tokenizer, 2048, 0, Path(sys.argv[2]))
report(data.report["rows"]["rows"], start, before)
"""
)
MLX_LM = (
    PREPARE
    + """
import types
from mlx_lm.tuner.datasets import CacheDataset, load_local_dataset
start, before = now()
config = types.SimpleNamespace(mask_prompt=True, chat_feature="messages")
train, _, _ = load_local_dataset(folder, tokenizer, config)
cached = CacheDataset(train)
for i in range(len(cached)):
    cached[i]
report(len(cached), start, before)
"""
)
TRL = """
import json, resource, sys, time
from datasets import load_dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
folder, tokenizer_folder, scratch = sys.argv[1:4]
tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
tokenizer.chat_template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>"
    "{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}")
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1,
    intermediate_size=8, num_attention_heads=1, num_key_value_heads=1))
start = time.perf_counter()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = load_dataset("json", data_files=folder + "/train.jsonl", split="train", cache_dir=scratch)
trainer = SFTTrainer(model, SFTConfig(scratch, assistant_only_loss=True, max_length=2048,
    dataset_num_proc=2, report_to=[], use_cpu=True), train_dataset=rows, processing_class=tokenizer)
growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps({"seconds": time.perf_counter() - start, "rows": len(trainer.train_dataset),
    "growth_mb": growth}))
"""


def make(folder: Path, rows: int) -> int:
    """Write `train.jsonl` (chats of two or four turns) and a `valid.jsonl` of one; the bytes."""
    rng = random.Random(0)
    root = Path(__file__).parent.parent
    text = " ".join(path.read_text() for path in sorted(root.glob("docs/*.md")))
    words = sorted(set(re.findall(r"\b[a-z]{2,12}\b", text)))
    path = folder / "train.jsonl"
    with path.open("w") as file:
        for _ in range(rows):
            messages = []
            for _ in range(rng.choice((1, 1, 2))):
                for role, count in (
                    ("user", rng.randint(8, 25)),
                    ("assistant", rng.randint(10, 45)),
                ):
                    text = " ".join(rng.choices(words, k=count)).capitalize() + "."
                    messages.append({"role": role, "content": text})
            file.write(json.dumps({"messages": messages}) + "\n")
    (folder / "valid.jsonl").write_text(path.open().readline())
    return path.stat().st_size


def run(python: str, code: str, *arguments: str) -> dict[str, float]:
    """What a process prints as its last line."""
    result = subprocess.run([python, "-W", "ignore", "-c", code, *arguments], capture_output=True,
                            text=True)  # fmt: skip
    if result.returncode:
        sys.exit(result.stderr[-2000:])
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--peer-rows", type=int, default=20_000)
    parser.add_argument("--trl", metavar="PYTHON", help="of an environment with trl")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        full, part = Path(scratch, "full"), Path(scratch, "part")
        full.mkdir()
        part.mkdir()
        size = make(full, arguments.rows)
        make(part, arguments.peer_rows)
        print(f"{arguments.rows:,} rows, {size / 1e6:.0f} MB; peers: {arguments.peer_rows:,} rows")
        cache = str(Path(scratch, "cache"))
        results = {
            "ours": run(sys.executable, OURS, str(full), cache),
            "ours, from the cache": run(sys.executable, OURS, str(full), cache),
            "ours, the peers' rows": run(sys.executable, OURS, str(part), cache),
            "mlx-lm": run(sys.executable, MLX_LM, str(part)),
        }
        if arguments.trl:
            from mlx_ft import runtime
            from mlx_ft.config.schema import ModelConfig
            from mlx_ft.models.load import locate

            folder = str(locate(ModelConfig(), runtime.default_cache_dir()).path)
            results["TRL"] = run(arguments.trl, TRL, str(part), folder, str(Path(scratch, "trl")))
    mine = results["ours, the peers' rows"]
    print(f"{'':<24}{'seconds':>9}{'rows/s':>9}{'MB more':>9}{'ours is':>9}")
    for name, found in results.items():
        speed = found["rows"] / found["seconds"]
        ratio = (
            f"{mine['rows'] / mine['seconds'] / speed:.1f}x" if name in ("mlx-lm", "TRL") else ""
        )
        print(
            f"{name:<24}{found['seconds']:>9.1f}{speed:>9,.0f}{found['growth_mb']:>9.0f}{ratio:>9}"
        )


if __name__ == "__main__":
    main()
