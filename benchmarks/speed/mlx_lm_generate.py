"""mlx-lm's own `stream_generate` with the BLAS of mlx-ft: one greedy answer, several times.

    python benchmarks/speed/mlx_lm_generate.py JOB.json

Prints the tokens of each answer, and the seconds from its first token to its last, and of it all.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from mlx_ft import runtime

runtime.prepare()
import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from mlx_lm import load, stream_generate  # noqa: E402

JOB = json.loads(Path(sys.argv[1]).read_text())


def main() -> None:
    model, tokenizer = load(JOB["model"])
    probe = np.load(Path(JOB["model"]) / "probe.npz")
    found = np.array(model(mx.array(probe["tokens"])[None])[0])
    if (difference := float(np.abs(found - probe["logits"]).max())) > JOB["tolerance"]:
        sys.exit(f"mlx-lm's logits differ by {difference:.1e}")
    messages = [{"role": "user", "content": JOB["question"]}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    answers = []
    for _ in range(JOB["repeats"]):
        began, times, text = time.perf_counter(), [], ""
        for piece in stream_generate(model, tokenizer, prompt, max_tokens=JOB["tokens"]):
            times.append(time.perf_counter())
            text += piece.text
        answers.append({
            "tokens": piece.generation_tokens, "text": text,
            "decoding": times[-1] - times[0], "whole": times[-1] - began,
        })  # fmt: skip
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
