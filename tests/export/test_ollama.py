"""Go templates render what ours do; which of ours a tokenizer's template is."""

import pytest

from mlx_ft.data import template
from mlx_ft.data.render import Renderer
from mlx_ft.errors import ConfigError
from mlx_ft.export import ollama
from mlx_ft.models.read import read_tokenizer
from tests.export import go_template, small

TALKS = {
    "one": ["user"],
    "several": ["user", "assistant", "user"],
    "system": ["system", "user"],
    "system and several": ["system", "user", "assistant", "user", "assistant", "user"],
}


def talk(roles):
    return [{"role": role, "content": f"{role} says {i}\nand more"} for i, role in enumerate(roles)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    small.save_tokenizer(folder)
    return folder


@pytest.fixture
def tokenizer(folder):
    return read_tokenizer(folder, None)


@pytest.mark.parametrize("roles", TALKS.values(), ids=TALKS)
@pytest.mark.parametrize("name", [*template.NAMED, None], ids=[*template.NAMED, "plain"])
def test_go_renders_what_jinja_does(tokenizer, name, roles):
    """BOS aside, which llama.cpp adds."""
    if name is None:
        tokenizer.chat_template = None
    chosen = template.install(tokenizer, name)
    found = ollama.family(tokenizer)
    assert found == ollama.Family(name or "plain", None)
    expected = Renderer(tokenizer).text(talk(roles), prompt=True).removeprefix("<s>")
    assert go_template.render(found.go(chosen.stop), talk(roles)) == expected


def test_a_template_that_renders_the_same_is_known_however_it_is_written(tokenizer):
    template.install(tokenizer, small.CHATML)
    assert ollama.family(tokenizer) == ollama.Family("chatml", None)


def test_the_system_text_that_a_template_adds_is_found(tokenizer):
    own = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
    template.install(tokenizer, own + small.CHATML)
    assert ollama.family(tokenizer) == ollama.Family("chatml", "Help.")


@pytest.mark.parametrize(
    "text",
    [
        small.CHATML.replace("<|im_end|>\n", "<|im_end|>\n\n"),
        small.CHATML + "{% if messages | length == 3 %}!{% endif %}",
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}"
        + small.CHATML,
    ],
    ids=["other text", "other later turns", "other system"],
)
def test_any_other_template_is_unknown(tokenizer, text):
    template.install(tokenizer, text)
    assert ollama.family(tokenizer) is None


def test_a_template_that_refuses_system_turns_is_not_chatml(tokenizer):
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
        + small.CHATML
    )
    template.install(tokenizer, refusing)
    # Training puts the system text into the first user turn, which ChatML does not.
    assert ollama.family(tokenizer) is None


def test_the_modelfile():
    found = ollama.Family("plain", None)
    text = ollama.modelfile("m.gguf", found, "</s>", 'Say "hi".\nBe kind.')
    assert text.splitlines()[0] == "FROM ./m.gguf"
    assert f'TEMPLATE """{found.go("</s>")}"""' in text
    assert 'SYSTEM """Say "hi".\nBe kind."""' in text
    assert text.endswith('PARAMETER stop "</s>"\n')
    assert "SYSTEM" not in ollama.modelfile("m.gguf", found, "</s>", None)


def test_text_that_a_modelfile_cannot_hold_is_refused():
    with pytest.raises(ConfigError, match="three quotation marks"):
        ollama.modelfile("m.gguf", ollama.Family("plain", None), "</s>", 'a """ b')
