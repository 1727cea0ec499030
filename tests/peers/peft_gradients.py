"""transformers + PEFT on torch: loss, LoRA gradients and five optimizer steps of a tiny Llama.

Runs in an environment of its own (requirements.txt beside it):
    python tests/peers/peft_gradients.py FOLDER [--check FOLDER_OF_EARLIER_VECTORS]
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tiny_llama as tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

PACKAGES = ("torch", "transformers", "peft", "numpy")
TOLERANCE = 3e-5  # between machines, whose kernels sum in different orders: 1.3e-5 seen


def build(case: tiny.Case) -> torch.nn.Module:
    config = LlamaConfig(
        **tiny.LLAMA,
        tie_word_embeddings=case.tied,
        rope_parameters={"rope_type": "default", "rope_theta": tiny.ROPE_THETA},
        attn_implementation="eager",
        use_cache=False,
    )
    model = LlamaForCausalLM(config).float().eval()
    base = {name: torch.tensor(array) for name, array in tiny.weights(case.tied).items()}
    missing, unexpected = model.load_state_dict(base, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if case.tied else set())
    lora = LoraConfig(
        r=tiny.RANK,
        lora_alpha=tiny.ALPHA,
        lora_dropout=0.0,
        use_rslora=case.rslora,
        target_modules=[module.rsplit(".", 1)[1] for module in case.modules],
        layers_to_transform=list(range(config.num_hidden_layers))[-case.layers :],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, lora)
    start = tiny.adapter(case)
    parameters = trainable(model)
    assert parameters.keys() == start.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.tensor(start[name]))
    return model


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The LoRA parameters by the names of PEFT's files."""
    return {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def batch(rows: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    length = max(len(tokens) for tokens, _ in rows)
    ids = torch.full((len(rows), length), 7)
    labels = torch.full((len(rows), length), -100)
    attention = torch.zeros(len(rows), length, dtype=torch.long)
    for b, (tokens, targets) in enumerate(rows):
        row = torch.tensor(tokens, dtype=torch.long)
        ids[b, : len(row)] = row
        labels[b, : len(row)] = torch.where(torch.tensor(targets), row, -100)
        attention[b, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def gradients(case: tiny.Case) -> dict[str, np.ndarray]:
    """The mean loss as transformers computes it, and its gradients."""
    model = build(case)
    loss = model(**batch(tiny.rows()[:4])).loss
    loss.backward()
    grads = {f"grad/{name}": p.grad.numpy() for name, p in trainable(model).items()}
    return {"loss": loss.detach().numpy(), **grads}


def steps(case: tiny.Case) -> dict[str, np.ndarray]:
    """AdamW with clipping and a cosine schedule; windows are weighted by tokens."""
    model = build(case)
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=tiny.LEARNING_RATE, weight_decay=tiny.WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=tiny.STEPS - 1, eta_min=tiny.LEARNING_RATE * tiny.MIN_LR_RATIO
    )
    rows, size = tiny.rows(), tiny.ROWS_PER_BATCH
    micro_batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    losses, norms, micro_step = [], [], 0
    for _ in range(tiny.STEPS):
        window = [
            batch(micro_batches[(micro_step + i) % len(micro_batches)])
            for i in range(tiny.ACCUMULATION)
        ]
        micro_step += tiny.ACCUMULATION
        count = sum(int((part["labels"][:, 1:] != -100).sum()) for part in window)
        optimizer.zero_grad()
        total = torch.tensor(0.0)
        for part in window:
            logits = model(part["input_ids"], attention_mask=part["attention_mask"]).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1),
                part["labels"][:, 1:].flatten(),
                reduction="sum",
                label_smoothing=tiny.LABEL_SMOOTHING,
            )
            (loss / count).backward()
            total += loss.detach() / count
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), tiny.MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        losses.append(float(total))
        norms.append(float(norm))
    after = {f"after/{name}": p.detach().numpy() for name, p in parameters.items()}
    return {"losses": np.array(losses), "norms": np.array(norms), **after}


def differences(new: dict[str, np.ndarray], old: dict[str, np.ndarray]) -> dict[str, float]:
    assert new.keys() == old.keys()
    return {
        name: float(np.abs(new[name] - old[name]).max() / np.abs(old[name]).max()) for name in new
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", type=Path, help="vectors that must be the same")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for case in tiny.CASES:
        made = {**gradients(case), **steps(case)}
        np.savez(arguments.folder / f"{case.name}.npz", **made)
        print(f"{case.name}: loss {made['loss']:.6f}, gradient norms {made['norms'].round(3)}")
        if arguments.check:
            with np.load(arguments.check / f"{case.name}.npz") as earlier:
                found = differences(made, dict(earlier))
            worst = max(found, key=found.__getitem__)
            print(f"{case.name}: differs from {arguments.check} by {found[worst]:.1e} ({worst})")
            assert found[worst] <= TOLERANCE, worst
    about = {name: version(name).split("+")[0] for name in PACKAGES}
    about["python"] = platform.python_version()
    (arguments.folder / "versions.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
