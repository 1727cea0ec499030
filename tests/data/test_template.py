"""The renderer against transformers' own; the choice of a template, and what is refused at once."""

import re

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_ft.data.chat import EncodeOptions, encode, encode_rows, generation_prompt
from mlx_ft.data.render import Renderer
from mlx_ft.data.rows import RowError
from mlx_ft.data.template import NAMED, install
from mlx_ft.errors import ConfigError

from .conftest import (
    CHATML,
    GEMMA,
    LLAMA3,
    MANNERED,
    MERGING,
    MISTRAL,
    SYSTEM_AT_THE_END,
    THINKING_MARKED,
    TOOLS,
    TRIMMING,
    build,
    chatml,
    conversation,
    turns,
    unmarked,
)

TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "trimming": TRIMMING,
    "thinking": THINKING_MARKED,
    "merging": MERGING,
    "system at the end": SYSTEM_AT_THE_END,
    "tools": TOOLS,
    "mannered": MANNERED,
    "indented": "{% for m in messages %}\n    {% if m.role == 'user' %}\nU: {{ m.content }}\n"
    "    {% else %}\nA: {{ m.content }}<|im_end|>\n    {% endif %}\n{% endfor %}\n\n",
}
CALL = {"id": "abcdefghi", "type": "function",
        "function": {"name": "clock", "arguments": {"place": "Köln", "n": [1, None]}}}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "clock", "description": "<now> & \"then\" 'é'",
                                         "parameters": {"type": "object"}}}  # fmt: skip
TALKS = {
    "short": [{"role": "user", "content": "Sky?"}],
    "long": turns(conversation("a <b> & 'c'", "|</think>\n d ", "é\n\n", "漢", "x|y", "z")),
    "calls": [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"t": 1}', "name": "clock", "tool_call_id": "abcdefghi"},
        {"role": "tool", "content": "2", "name": "clock", "tool_call_id": "abcdefghj"},
        {"role": "assistant", "content": "Now."},
    ],
}


def named(name):
    tokenizer = chatml(None)
    install(tokenizer, name)
    return tokenizer.chat_template


@pytest.mark.parametrize("name", [*TEMPLATES, *(f"named {name}" for name in NAMED)])
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("tools", [[], [TOOL]], ids=["", "tools"])
def test_text_is_that_of_transformers(name, talk, tools):
    tokenizer = chatml(TEMPLATES.get(name) or named(name.removeprefix("named ")))
    for prompt in (False, True):
        try:
            theirs = tokenizer.apply_chat_template(
                TALKS[talk], tokenize=False, tools=tools or None, add_generation_prompt=prompt
            )
        except Exception as error:
            theirs = error
            with pytest.raises(RowError, match="cannot be used") as ours:
                Renderer(tokenizer).text(TALKS[talk], tools, prompt=prompt)
            assert str(theirs) in ours.value.faults[0]
        else:
            assert Renderer(tokenizer).text(TALKS[talk], tools, prompt=prompt) == theirs


def test_mlx_lms_wrapper_tells_the_template_whether_the_model_thinks():
    template = "{{ enable_thinking is defined }}{{ enable_thinking }}{{ messages[0].content }}"
    plain = build(template, ["<think>", "</think>"], eos="</s>")
    wrapped = TokenizerWrapper(plain)
    for tokenizer in (plain, wrapped):
        theirs = tokenizer.apply_chat_template(TALKS["short"], tokenize=False)
        assert Renderer(tokenizer).text(TALKS["short"]) == theirs
    assert Renderer(wrapped).text(TALKS["short"]) == "TrueTrueSky?"


def test_chats_written_in_python_are_left_to_the_tokenizer():
    wrapped = TokenizerWrapper(
        chatml(),
        chat_template=lambda turns, **_: "".join(t["content"] + "<|im_end|>" for t in turns),
    )
    assert Renderer(wrapped).text(TALKS["long"][:2]) == (
        "a <b> & 'c'<|im_end|>|</think>\n d <|im_end|>"
    )
    assert install(wrapped, None).name == "model"


@pytest.mark.parametrize("wrap", [lambda t: t, TokenizerWrapper], ids=["plain", "mlx-lm"])
@pytest.mark.parametrize("name", NAMED)
def test_a_named_template_is_plain_jinja_that_ends_in_a_token_of_the_tokenizer(name, wrap):
    tokenizer = wrap(build(None, [], bos="<bos>", eos="<eos>", adds_bos=True))
    chosen = install(tokenizer, name)
    assert (chosen.name, chosen.text, chosen.stop) == (name, tokenizer.chat_template, "<eos>")
    row = conversation("Sky?", "Blue.", "Grass?", "Green.")
    text = tokenizer.apply_chat_template(turns(row), tokenize=False)
    assert text.count("<bos>") == 1
    assert text.startswith("<bos>")
    assert text.count("<eos>") == (4 if name in ("chatml", "llama3") else 2)
    example = encode(row, tokenizer, 999)
    assert tokenizer.decode(example.tokens.tolist()) == text
    assert example.endless == 0
    if NAMED[name][0] != "{{ eos_token }}":
        assert f"The tokenizer has no {NAMED[name][0]}" in (chosen.note or "")


def test_the_stop_of_the_family_is_taken_where_the_tokenizer_has_it():
    tokenizer = TokenizerWrapper(build(None, ["<|eot_id|>"], bos="<|begin_of_text|>", eos="<eos>"))
    chosen = install(tokenizer, "llama3")
    assert (chosen.stop, chosen.note) == ("<|eot_id|>", None)
    assert tokenizer.has_chat_template
    assert tokenizer.eos_token_ids == set(tokenizer.convert_tokens_to_ids(["<eos>", "<|eot_id|>"]))
    # BOS is the family's own, so it is written although plain text does not get it.
    assert chosen.text.startswith("{{ bos_token }}")


BY_HAND = {
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\nSky?\n\n### Response:\n Blue.</s>\n\n"
    "### Instruction:\nGrass?\n\n### Response:\n",
    "chatml": "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n Blue.<|im_end|>\n"
    "<|im_start|>user\nGrass?<|im_end|>\n<|im_start|>assistant\n",
    "llama2": "<s>[INST] Sky? [/INST] Blue. </s>[INST] Grass? [/INST]",
    "llama3": "<|start_header_id|>user<|end_header_id|>\n\nSky?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nBlue.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nGrass?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Sky?[/INST]  Blue.</s>[INST] Grass?[/INST]",
}
WITH_SYSTEM = {
    "alpaca": "Short.\n\n### Instruction:\nSky?\n\n### Response:\n",
    "chatml": "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\nSky?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama2": "<s>[INST] <<SYS>>\nShort.\n<</SYS>>\n\nSky? [/INST]",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nShort.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nSky?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Short.\n\nSky?[/INST]",
}


@pytest.mark.parametrize("name", NAMED)
def test_named_templates_as_their_authors_write_them(name):
    own = ["<|im_end|>", "<|eot_id|>"]
    tokenizer = build(None, own, bos="<s>", eos="</s>")
    install(tokenizer, name)
    talk = turns(conversation("Sky?", " Blue.", "Grass?"))
    assert Renderer(tokenizer).text(talk, prompt=True) == BY_HAND[name]
    talk = turns(conversation("Sky?", system="Short."))
    assert Renderer(tokenizer).text(talk, prompt=True) == WITH_SYSTEM[name]


def test_without_a_choice_the_models_own_template_is_used(tokenizers):
    tokenizer = chatml()
    chosen = install(tokenizer, None)
    assert (chosen.name, chosen.text, chosen.note, chosen.stop) == (
        "model", CHATML, None, "<|im_end|>",
    )  # fmt: skip
    several = chatml()
    several.chat_template = {"rag": "x", "default": CHATML}
    chosen = install(several, None)
    assert several.chat_template == chosen.text == CHATML
    assert "(rag, default) 'default' is used" in chosen.note


def test_a_model_without_a_template_gets_the_stated_default():
    row = conversation("Sky?", "Blue.")
    for adds_bos in (False, True):
        tokenizer = build(None, [], bos="<s>", eos="</s>", adds_bos=adds_bos)
        before = encode(row, tokenizer, 99).tokens.tolist()
        chosen = install(tokenizer, None)
        assert (chosen.name, chosen.stop) == ("plain", "</s>")
        assert "has no chat template: each turn is a line, an answer ends in </s>" in chosen.note
        assert encode(row, tokenizer, 99).tokens.tolist() == before
        # Whoever renders and encodes the saved template gets the same tokens.
        assert tokenizer.apply_chat_template(turns(row))["input_ids"] == before


def test_a_template_from_a_file_or_a_string(tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(unmarked(CHATML))
    tokenizer = chatml(None)
    chosen = install(tokenizer, str(file))
    assert (chosen.name, chosen.text, chosen.stop) == (str(file), unmarked(CHATML), "<|im_end|>")
    assert install(tokenizer, unmarked(LLAMA3)).name == "custom"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("chatlm", r"found 'chatlm'; expected one of alpaca, chatml.*did you mean chatml\?"),
        ("nowhere.jinja", r"nowhere.jinja cannot be read: No such file"),
        ("{{ messages }", r"data.template:1: .*; mend the template"),
        ("a\n{{ raise_exception('never') }}", r"data.template:2: never; it has to render a user"),
        ("{{ messages[0].content }}", r"the answer 'Blue 4712.' is not in what it renders"),
        ("{{ 'Sky' }}", r"the question 'Sky 4711\?' is not in what it renders for a question"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A:"
         "{% endif %}", r"does not begin where generation would: .*A:', then"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_used_is_refused_at_once(choice, message):
    tokenizer = chatml()
    with pytest.raises(ConfigError) as error:
        install(tokenizer, choice)
    assert re.search(message, str(error.value)), str(error.value)
    assert tokenizer.chat_template == CHATML


def test_a_file_at_fault_is_named_with_the_line(tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text("\n\n{% if %}")
    with pytest.raises(ConfigError, match=rf"{file}:3: .*mend the template"):
        install(chatml(), str(file))
    file.write_bytes(b"\xff\xfe{{")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        install(chatml(), str(file))


def test_a_named_template_needs_some_end_of_turn():
    with pytest.raises(ConfigError, match=r"neither <\|im_end\|> nor an EOS token"):
        install(build(None, [], bos="<s>"), "chatml")


def test_notes_on_templates_that_work_but_teach_oddly():
    endless = install(chatml(), "{% for m in messages %}{{ m.content }}\n{% endfor %}")
    assert "ends answers with no control token" in endless.note
    assert endless.stop is None
    often = build(None, ["[INST]", "[/INST]"], bos="<s>", eos="</s>")
    note = install(
        often,
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }}"
        "[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}",
    ).note
    assert "writes <s> before every exchange" in note


@pytest.mark.parametrize("name", ["alpaca", "chatml", "llama2", "llama3"])
def test_tool_calls_are_never_dropped_in_silence(name):
    tokenizer = chatml(None)
    install(tokenizer, name)
    with pytest.raises(RowError) as error:
        Renderer(tokenizer).text(TALKS["calls"])
    assert re.search("shows .*no tool calls", error.value.faults[0])


def test_generation_starts_from_the_installed_template():
    tokenizer = chatml()
    install(tokenizer, "alpaca")
    row = conversation("Sky?", "Blue.")
    (kept,) = encode_rows([row], tokenizer, EncodeOptions(999))
    prompt = generation_prompt(row.messages[:1], tokenizer)
    assert tokenizer.decode(prompt).endswith("### Response:\n")
    assert kept.examples[0].tokens[: len(prompt)].tolist() == prompt
