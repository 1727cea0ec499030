"""Exports that llama.cpp runs: a GGUF file, and with a Modelfile beside it for Ollama."""

from __future__ import annotations

import shutil
from typing import Any

from mlx_ft import durable
from mlx_ft.data.render import Renderer
from mlx_ft.data.template import TemplateChoice
from mlx_ft.errors import ConfigError
from mlx_ft.export import fuse as fusing
from mlx_ft.export import gguf_file, gguf_vocabulary, ollama, place
from mlx_ft.export.card import Card
from mlx_ft.export.checking import Checker
from mlx_ft.export.options import Base, Options, measured, say_found, write_card
from mlx_ft.export.source import Source
from mlx_ft.models.load import Located
from mlx_ft.models.tokenizer import load_tokenizer

MODELFILE = "Modelfile"
SCRATCH = ".read"  # where the file is converted to be read back


def to_gguf(source: Source, options: Options) -> None:
    """Base and adapter as a GGUF file: OUT itself if it ends in .gguf, else in a folder, with a
    model card. Raises UserError kinds.
    """
    _write(source, options, None)


def to_ollama(source: Source, options: Options) -> None:
    """A folder with the GGUF file and the Modelfile for it. Raises UserError kinds."""
    place.check_free(options.out)
    tokenizer = load_tokenizer(source.locate())
    choice = source.install(tokenizer)
    found = ollama.family(tokenizer)
    if found is None or choice.stop is None:
        raise ConfigError(
            "the chat template of this adapter has no counterpart in Go here; "
            f"{', '.join(ollama.GO)} have one, where a control token ends an answer. Export to "
            "gguf: that file has the template as it is, and llama.cpp renders it"
        )
    system = source.system_prompt or found.system
    text = ollama.modelfile(f"{options.title}.gguf", found, choice.stop, system)
    options.say(f"template    {found.name}, ended by {choice.stop}")
    _write(source, options, text)


def _write(source: Source, options: Options, modelfile: str | None) -> None:
    """modelfile: its text; None: none is wanted."""
    alone = options.out.suffix == ".gguf" and modelfile is None
    place.check_free(options.out, file=alone)
    gguf_file.package()
    located = source.locate()
    tokenizer = load_tokenizer(located)
    words = _words(located, tokenizer, source.install(tokenizer))
    file, kind = f"{options.title}.gguf", options.dtype or "float16"
    computed = source.config.memory_profile.compute_dtype
    fused = fusing.fuse(
        located, source.config.model, source.adapter, dtype="float32", computed=computed
    )
    gguf_file.check(fused)
    checker = Checker(source, located) if options.measure else None
    with place.appearing(options.out, file=alone) as made:
        options.say(f"base model  {located.name}")
        options.say(f"GGUF        {kind}, {fused.adapter.rank} ranks fused into it")
        gguf_file.write(made / file, fused, kind, options.title, words)
        found = []
        if checker is not None:
            found.append(checker.gguf(kind, made / file, made / SCRATCH, located))
            shutil.rmtree(made / SCRATCH)
            say_found(checker, found, options)
        if not alone:
            base = Base.of(located, options.base)
            facts = [("precision", kind), *measured(checker, found)]
            use = _use(options, file, modelfile)
            about = Card("gguf", base.name, base.on_hub, fused.adapter, use, facts)
            write_card(made, source, about, options)
        if modelfile is not None:
            durable.write(made / MODELFILE, modelfile.encode())
    options.say(f"written to {options.out}")


def _words(located: Located, tokenizer: Any, choice: TemplateChoice) -> gguf_file.Words:
    rows = int(located.config["vocab_size"])
    vocabulary = gguf_vocabulary.read(located.path, rows)
    given = {name: getattr(tokenizer, f"{name}_token_id", None) for name in gguf_file.IDS}
    ids = {name: int(token) for name, token in given.items() if token is not None}
    if choice.stop is not None:
        stop = vocabulary["tokens"].index(choice.stop)
        if stop != ids.get("eos"):
            ids["eot"] = stop
    return gguf_file.Words(vocabulary, ids, _adds_bos(tokenizer), choice.text)


def _adds_bos(tokenizer: Any) -> bool:
    """Whether a conversation begins with BOS, by the tokenizer or by the chat template."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    if tokenizer.encode("", add_special_tokens=True)[:1] == [bos]:
        return True
    text, roles = tokenizer.bos_token, ("user", "assistant", "user")
    shown = Renderer(tokenizer).text([{"role": role, "content": "Sky"} for role in roles])
    return bool(shown.startswith(text) and shown.count(text) == 1)  # else it opens every turn


def _use(options: Options, file: str, modelfile: str | None) -> tuple[str, str]:
    if modelfile is None:
        return "sh", f"llama-cli -m {file}"
    name = options.title
    return "sh", f"ollama create {name} -f {MODELFILE}\nollama run {name}"
