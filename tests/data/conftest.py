"""Small real tokenizers, trained here, with the chat templates of the common families."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mlx_ft.data.rows import Conversation, Message, Record

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

MERGING = (
    "{% for m in messages %}"
    "{% if loop.first or m['role'] != messages[loop.index0 - 1]['role'] %}"
    "<|im_start|>{{ m['role'] }}\n{% endif %}{{ m['content'] }}"
    "{% if loop.last or m['role'] != messages[loop.index]['role'] %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As the model's hub page has it: the system text only where the conversation ends in a user turn.
SYSTEM_AT_THE_END = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}"
    "{{- bos_token }}{%- for m in turns %}{%- if m['role'] == 'user' %}"
    "{%- if loop.last and system is defined %}"
    "{{- '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + m['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
)
# Calls and results as Qwen writes them: several results stand in one user turn.
TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\n# Tools\n' }}{%- for tool in tools %}"
    "{{- tool | tojson + '\n' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'tool' %}"
    "{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}"
    "{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}"
    "{%- endif %}{%- else %}{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.content %}{{- m.content }}{%- endif %}"
    "{%- for call in m.tool_calls or [] %}{%- if call.function is defined %}"
    "{%- set call = call.function %}{%- endif %}"
    '{{- \'\n<tool_call>\n{"name": "\' + call.name + \'", "arguments": \' }}'
    "{{- call.arguments | tojson + '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# What else hub templates use: macros, namespaces, loop controls, dates, indented JSON, tests.
MANNERED = (
    "{%- macro head(role) -%}<|im_start|>{{ role | upper }}\n{%- endmacro -%}"
    "{%- set ns = namespace(seen=0, names=[]) -%}{{- strftime_now('%Y') | length ~ '\n' }}"
    "{%- for m in messages -%}{%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}"
    "{%- if ns.seen > 5 -%}{%- break -%}{%- endif -%}{%- set ns.seen = ns.seen + 1 -%}"
    "{{ head(m.role) }}{{ m['content'].split('|')[-1].strip() | replace('a', 'A') }}"
    "{{ loop.length }}{{ loop.last }}{{ (m.items() | list | length) * 2 }}<|im_end|>\n"
    "{%- endfor -%}{{ dict(n=ns.seen) | tojson(indent=2) }}{{ messages[::-1] | map("
    "attribute='role') | join(',') }}{{ tools is none }}{{ documents is defined }}"
    "{{ '%s-%d' % ('x', 3) }}{{ '{:>4}'.format('y') }}{{ missing }}{{ range(3) | list }}"
    "{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}"
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


def turns(conversation: Conversation) -> list[dict[str, Any]]:
    """As transformers takes them."""
    return [{"role": m.role, "content": m.content} for m in conversation.messages]


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


VECTORS = Path(__file__).parents[1] / "peers" / "vectors" / "mistral_v3.json"


def sentencepiece(pieces: list[tuple[int, str, float]], controls: list[str]) -> Any:
    """A SentencePiece byte-pair vocabulary (or a part of it) as a fast tokenizer.

    Merges go by the score of what they make; the vocabulary may have holes.
    """
    scores = {piece: score for _, piece, score in pieces}
    found = [
        (piece[:cut], piece[cut:], score)
        for piece, score in scores.items()
        if piece not in controls
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    found.sort(key=lambda merge: (-merge[2], -len(merge[0])))
    core = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece, _ in pieces},
            merges=[(left, right) for left, right, _ in found],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    core.add_special_tokens([AddedToken(text, normalized=False) for text in controls])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def mistral_v3() -> PreTrainedTokenizerFast:
    """Mistral's v3 tokenizer as far as the texts of the vectors need it; ids are the real ones."""
    pieces = json.loads(VECTORS.read_text())["pieces"]
    return sentencepiece(pieces, [piece for i, piece, _ in pieces if i < 10])
