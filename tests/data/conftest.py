"""Small real tokenizers, trained here, with the chat templates of the common families."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mlx_ft.data.formats import Conversation, Message
from mlx_ft.data.load import Record

CORPUS = [
    "What is the capital of France? Paris is the capital of France.",
    "def f(x):\n    return x\n\n\n    if x:\n        return 1\n",
    "assistant\n user\n  system\n\n model \n\n\n hello  world\n \n",
] * 4

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|eot_id|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'assistant' %}"
    "{% generation %} {{ m['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<end_of_turn>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<end_of_turn>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TRIMMING = CHATML.replace("m['content']", "m['content'] | trim")
THINKING_MARKED = CHATML.replace(
    "{% generation %}{{ m['content'] }}",
    "{% generation %}{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}",
)


def unmarked(template: str) -> str:
    return template.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def build(
    template: str | None,
    specials: list[str],
    *,
    bos: str | None = None,
    eos: str | None = None,
    pieces: bool = False,
    adds_bos: bool = False,
) -> PreTrainedTokenizerFast:
    """A tokenizer with real merges: byte-level BPE, or (pieces) SentencePiece-like."""
    specials = list(dict.fromkeys([*specials, *filter(None, (bos, eos))]))
    if pieces:
        core = Tokenizer(models.BPE(unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        core.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
        specials = ["<unk>", *specials]
        alphabet = [chr(i) for i in range(32, 127)] + ["\n"]
    else:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        unk_token="<unk>" if pieces else None,
        chat_template=template,
    )


def chatml(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """As SmolLM2: BOS is <|im_start|>, and plain text gets none."""
    return build(template, [], bos="<|im_start|>", eos="<|im_end|>")


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    header = ["<|start_header_id|>", "<|end_header_id|>"]
    llama = {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>", "adds_bos": True}
    mistral = {"bos": "<s>", "eos": "</s>", "adds_bos": True, "pieces": True}
    turns = ["<start_of_turn>", "<end_of_turn>"]
    return {
        "chatml": chatml(),
        "llama3": build(LLAMA3, header, **llama),
        "mistral": build(MISTRAL, ["[INST]", "[/INST]"], **mistral),
        "gemma": build(GEMMA, turns, bos="<bos>", eos="<eos>", adds_bos=True),
        "trimming": chatml(TRIMMING),
        "plain": build(None, [], eos="</s>"),
    }


def conversation(*said: str, system: str | None = None, text: str | None = None) -> Conversation:
    """User and assistant turns in alternation."""
    roles = itertools.cycle(["user", "assistant"])
    messages = [Message(role, content) for role, content in zip(roles, said, strict=False)]
    if system:
        messages.insert(0, Message("system", system))
    return Conversation(tuple(messages), text, None, Record({}, Path("rows.jsonl"), 1))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (objects) or raw bytes to a file of the test's folder."""

    def write(name: str, *rows: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join(lines) + b"\n" if lines else b"")
        return path

    return write
