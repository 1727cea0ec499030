"""The story of an export: source -> measured as trained -> written -> read back -> published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from mlx_ft import durable, lora_files
from mlx_ft.data.template import is_jinja
from mlx_ft.errors import ModelError
from mlx_ft.export import folder, peft, place
from mlx_ft.export import fuse as fusing
from mlx_ft.export.card import Card
from mlx_ft.export.checking import FOUR_BITS, Checker
from mlx_ft.export.fuse import Fused
from mlx_ft.export.options import Base, Options, measured, say_found, write_card
from mlx_ft.export.source import Source
from mlx_ft.models.load import Located
from mlx_ft.models.tokenizer import load_tokenizer


def fuse(source: Source, options: Options, quantize: Mapping[str, Any] | None = None) -> None:
    """Base and adapter as one model folder, for mlx-lm and, unless quantized, transformers.

    Raises UserError kinds; nothing is written then.
    """
    _fuse(source, options, quantize, "mlx")


def to_hf(source: Source, options: Options) -> None:
    """The same for transformers alone. Raises ModelError for a family that it names otherwise."""
    model_type = source.locate().config.get("model_type")
    if model_type not in peft.SAME_NAMES:
        raise ModelError(
            f"a {model_type} model cannot be written for transformers, which names its weights "
            f"otherwise; those of {', '.join(sorted(peft.SAME_NAMES))} can. `mlx-ft fuse` writes "
            "it for mlx-lm"
        )
    _fuse(source, options, None, "transformers")


def _fuse(source: Source, options: Options, bits: Mapping[str, Any] | None, kind: str) -> None:
    place.check_free(options.out)
    located = source.locate()
    tokenizer = load_tokenizer(located)
    choice = source.install(tokenizer)
    checker = Checker(source, located) if options.measure else None
    with place.appearing(options.out) as made:
        fused = _fused(source, located, options)
        if bits is not None:
            fused = fusing.pack(fused, bits)
        _say_made(fused, located, options)
        ends = [int(token) for token in tokenizer.eos_token_ids]
        folder.write(made, fused, located.path, choice.text, ends)
        found = []
        if checker is not None:
            name = "fused" if bits is None else f"in {bits['bits']} bits"
            found.append(checker.folder(name, made))
            if bits is None:
                found.append(checker.folder("4 bits would be", made, FOUR_BITS))
            say_found(checker, found, options)
        base = Base.of(located, options.base)
        use = _use_mlx(options) if kind == "mlx" else _use_transformers(options)
        facts = [("precision", _precision(fused)), *measured(checker, found)]
        about = Card(kind, base.name, base.on_hub, fused.adapter, use, facts)
        write_card(made, source, about, options)
    options.say(f"written to {options.out}")


def _fused(source: Source, located: Located, options: Options) -> Fused:
    computed = source.config.memory_profile.compute_dtype
    return fusing.fuse(
        located, source.config.model, source.adapter, dtype=options.dtype, computed=computed
    )


def _say_made(fused: Fused, located: Located, options: Options) -> None:
    adapter = fused.adapter
    options.say(f"base model  {located.name}")
    options.say(f"adapter     rank {adapter.rank} on the last {adapter.num_layers} layers")
    for note in fused.notes:
        options.say(f"            {note}")


def _precision(fused: Fused) -> str:
    packed = fused.config.get("quantization")
    if not packed:
        return fused.dtype
    return f"{packed['bits']} bits in groups of {packed['group_size']}"


def to_peft(source: Source, options: Options) -> None:
    """The adapter alone, for PEFT. Raises AdapterError."""
    place.check_free(options.out)
    located = source.locate()
    base = Base.of(located, options.base)
    files = peft.files(source.adapter, base.name, located.config)
    use = (
        "python",
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base.name}")\n'
        f'model = PeftModel.from_pretrained(base, "{options.out.name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{base.name}")',
    )
    _write_adapter(source, options, located, base, files, ("peft", use))


def to_mlx(source: Source, options: Options) -> None:
    """The adapter alone, for `mlx_lm.generate --adapter-path`. Raises AdapterError.

    For a base that was a GGUF file here and is a repository on the hub there, rows are reordered.
    """
    place.check_free(options.out)
    located = source.locate()
    base = Base.of(located, options.base)
    adapter, _ = lora_files.read_settings(source.adapter)
    arrays = peft.read_arrays(source.adapter / lora_files.WEIGHTS)
    if base.on_hub:
        arrays = peft.for_transformers(arrays, located.config)
    weights = {name: mx.array(array) for name, array in arrays.items()}
    about = {"step": source.about.get("step"), "base_revision": source.revision}
    about = {key: value for key, value in about.items() if value is not None}
    files = lora_files.saved_files(weights, adapter, {"base_name": base.name, **about})
    use = "sh", f'mlx_lm.generate --model {base.name} --adapter-path {options.out.name} --prompt ""'
    _write_adapter(source, options, located, base, files, ("mlx adapter", use))


def _write_adapter(
    source: Source,
    options: Options,
    located: Located,
    base: Base,
    files: Mapping[str, bytes],
    kind: tuple[str, tuple[str, str]],
) -> None:
    """files: by their names. kind: of the card, and how the adapter is used."""
    adapter, _ = lora_files.read_settings(source.adapter)
    template = source.template
    with place.appearing(options.out) as made:
        for name, content in files.items():
            durable.write(made / name, content)
        if template is not None and is_jinja(template):  # else it is one of ours by name
            durable.write(made / folder.TEMPLATE, template.encode())
        facts = [("base as trained on", _trained_on(source, located))]
        about = Card(kind[0], base.name, base.on_hub, adapter, kind[1], facts)
        write_card(made, source, about, options)
    options.say(f"base model  {base.name}")
    if not base.on_hub:
        options.say("            by its name here; --base ORG/NAME says its name on the hub")
    options.say(f"written to {options.out}")


def _trained_on(source: Source, located: Located) -> str:
    packed = located.config.get("quantization") or source.config.model.quantize
    if isinstance(packed, Mapping) and "bits" in packed:
        return f"rounded to {packed['bits']} bits in groups of {packed['group_size']}"
    return str(located.config.get("dtype") or located.config.get("torch_dtype") or "")


def _use_mlx(options: Options) -> tuple[str, str]:
    return "sh", f'mlx_lm.generate --model {options.out.name} --prompt ""'


def _use_transformers(options: Options) -> tuple[str, str]:
    name = options.out.name
    return (
        "python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
    )
