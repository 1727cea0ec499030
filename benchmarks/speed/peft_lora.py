"""LoRA by transformers + PEFT on torch: a plain loop with the end of every step written down.

    PEERS_PYTHON benchmarks/speed/peft_lora.py JOB.json

Rows are padded to the longest of their batch, batches are shuffled in every epoch; torch takes
all cores. Writes the adapter under mlx-lm's names.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]
from peft import LoraConfig, get_peft_model  # type: ignore[import-not-found]
from safetensors.numpy import save_file
from torch.utils.data import DataLoader  # type: ignore[import-not-found]
from transformers import AutoModelForCausalLM, AutoTokenizer

JOB = json.loads(Path(sys.argv[1]).read_text())
IGNORED = -100
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def read_rows(tokenizer: Any) -> list[tuple[list[int], int]]:
    """(tokens, how many of them are prompt) of each row."""
    rows = []
    for line in (Path(JOB["data"]) / "train.jsonl").read_text().splitlines():
        turns = json.loads(line)["messages"]
        whole = tokenizer.apply_chat_template(turns, return_dict=False)
        prompt = tokenizer.apply_chat_template(
            turns[:-1], add_generation_prompt=True, return_dict=False
        )
        rows.append((whole, len(prompt)))
    return rows


def collate(rows: list[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
    width = max(len(tokens) for tokens, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for b, (tokens, prompt) in enumerate(rows):
        ids[b, : len(tokens)] = torch.tensor(tokens)
        mask[b, : len(tokens)] = 1
        labels[b, prompt : len(tokens)] = ids[b, prompt : len(tokens)]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def forever(loader: Any) -> Iterator[dict[str, torch.Tensor]]:
    while True:
        yield from loader


def check(model: Any) -> None:
    """The logits are those of the embedded model."""
    probe = np.load(Path(JOB["model"]) / "probe.npz")
    with torch.no_grad():
        found = model(torch.tensor(probe["tokens"])[None]).logits[0].float().numpy()
    difference = float(np.abs(found - probe["logits"]).max())
    print(json.dumps({"logits_differ": difference}))
    if JOB["dtype"] == "float32" and difference > JOB["tolerance"]:
        sys.exit(f"torch's logits differ by {difference:.1e}")


def adapted(model: Any) -> Any:
    layers = model.config.num_hidden_layers
    return get_peft_model(
        model,
        LoraConfig(
            r=JOB["rank"],
            lora_alpha=JOB["scale"] * JOB["rank"],
            lora_dropout=0.0,
            target_modules=PROJECTIONS,
            layers_to_transform=list(range(layers - JOB["layers"], layers)),
            task_type="CAUSAL_LM",
        ),
    )


def save(model: Any) -> int:
    """Write the adapter as mlx-lm does; the number of its parameters."""
    arrays = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = name.removeprefix("base_model.model.").removesuffix(".default.weight")
            path, _, half = plain.rpartition(".")
            array = parameter.detach().float().numpy().T
            arrays[f"{path}.{half.lower()}"] = np.ascontiguousarray(array)
    folder = Path(JOB["adapter"])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays, folder / "adapters.safetensors")
    return sum(array.size for array in arrays.values())


def main() -> None:
    torch.manual_seed(JOB["seed"])
    tokenizer = AutoTokenizer.from_pretrained(JOB["model"])
    model = AutoModelForCausalLM.from_pretrained(JOB["model"], dtype=getattr(torch, JOB["dtype"]))
    check(model)
    model = adapted(model)
    model.train()
    model.config.use_cache = False
    rule = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), lr=JOB["learning_rate"], weight_decay=0
    )
    loader = DataLoader(
        read_rows(tokenizer),
        batch_size=JOB["batch"],
        shuffle=True,
        drop_last=True,
        collate_fn=collate,
    )
    batches = forever(loader)
    with Path(JOB["steps_file"]).open("a") as file:
        for _ in range(JOB["steps"]):
            batch = next(batches)
            model(**batch).loss.backward()
            rule.step()
            rule.zero_grad()
            tokens = int(batch["attention_mask"].sum())
            file.write(json.dumps({"tokens": tokens, "at": time.perf_counter()}) + "\n")
    print(json.dumps({"trainable": save(model)}))


if __name__ == "__main__":
    main()
