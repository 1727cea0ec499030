"""Mistral-7B-Instruct-v0.3's prompts as mistral-common writes them, and the part of its vocabulary
that they need; run in an environment of its own:

    python tests/peers/mistral_vectors.py tests/peers/vectors/mistral_v3.json [--check | --full]

Needs mistral-common and sentencepiece; the wheel carries the tokenizer. `--check` compares with
the file instead of writing it; `--full` writes the whole vocabulary and 300 random conversations,
for MLX_FT_MISTRAL_VECTORS of tests/data/test_mask_system.py.
"""

import argparse
import copy
import json
import random
import sys
from pathlib import Path

from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place, now.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "enum": ["Köln", "北京"]}},
            "required": ["place"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {}}}


def talk(*said: str, system: str | None = None) -> list[dict]:
    """User and assistant turns in alternation."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def call(name: str, arguments: dict, call_id: str) -> dict:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        ],
    }


CONVERSATIONS = {
    "single": (talk("What is 2+2?", "4"), []),
    "multi": (talk("What is 2+2?", "4", "And 3+3?", "6", "Sure?", "Yes, 6."), []),
    "system": (talk("What is 2+2?", "4", system="Answer with one number."), []),
    "system_multi": (
        talk("What is 2+2?", "4", "And 3+3?", "6", "Sure?", "Yes.", system="Be brief.\nBe kind."),
        [],
    ),
    "white_space": (talk("  two  spaces ", "\n\tcode \n", " ", ".  ", "\n", "end\n"), []),
    "white_space_system": (talk(" a", "b", "c ", " d", system=" \n s "), []),
    "unicode": (talk("Zürich, São Tomé, 北京?", "🙂 don't \u200b1½", "é\u0301", "👩‍🚀"), []),
    "digits_and_code": (talk("def f(x):\n    return x ** 3.14159", "print(f(1_000))"), []),
    "tools": (
        [
            *talk("Weather in Köln?", system="Use tools."),
            call("get_weather", {"place": "Köln", "exact": True}, "abcDEF123"),
            {
                "role": "tool",
                "name": "get_weather",
                "tool_call_id": "abcDEF123",
                "content": '{"degrees": 21.5, "sky": "grau"}',
            },
            {"role": "assistant", "content": "21.5 degrees."},
            {"role": "user", "content": "And the time?"},
            call("clock", {}, "000000001"),
            {
                "role": "tool",
                "name": "clock",
                "tool_call_id": "000000001",
                "content": "a quarter past",
            },
            {"role": "assistant", "content": "Quarter past."},
        ],
        [WEATHER, CLOCK],
    ),
}


def request(turns: list[dict], tools: list[dict]) -> ChatCompletionRequest:
    turns = copy.deepcopy(turns)
    for turn in turns:
        for made in turn.get("tool_calls", ()):
            made["function"]["arguments"] = json.dumps(
                made["function"]["arguments"], ensure_ascii=False
            )
    return ChatCompletionRequest.from_openai(turns, tools=tools or None)


def random_conversations(count: int) -> dict[str, tuple[list[dict], list]]:
    """Conversations out of pieces of the vocabulary, which meet in ways that no person writes."""
    model = MistralTokenizer.v3().instruct_tokenizer.tokenizer._model
    usable = [i for i in range(771, model.get_piece_size())  # after the control symbols
              if not (model.IsControl(i) or model.IsByte(i) or model.IsUnused(i))]  # fmt: skip
    words = random.Random(4711)
    made = {}
    for i in range(count):
        said = [
            "".join(
                model.IdToPiece(words.choice(usable)) for _ in range(words.randint(1, 20))
            ).replace("▁", " ")
            for _ in range(2 * words.randint(1, 3))
        ]
        # mistral-common takes no answer that is nothing but spaces.
        said = [text if text.strip() else text + "x" for text in said]
        system = words.choice([None, "Be brief.", " \n be kind "])
        made[f"random_{i}"] = (talk(*said, system=system), [])
    return made


def vectors(conversations: dict) -> tuple[dict, set[str]]:
    """For each answer: the ids of its prompt and of the conversation up to it; texts encoded."""
    serving = MistralTokenizer.v3()
    path = serving.instruct_tokenizer.tokenizer.file_path
    training = MistralTokenizer.from_file(path, mode=ValidationMode.finetuning)
    seen: set[str] = set()
    for tokenizer in (serving, training):
        model = tokenizer.instruct_tokenizer.tokenizer
        encode = model.encode

        def recorded(text: str, bos: bool, eos: bool, encode=encode) -> list[int]:
            seen.add(text)
            return encode(text, bos, eos)

        model.encode = recorded
    made = {}
    for name, (turns, tools) in conversations.items():
        answers = []
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            prompt = serving.encode_chat_completion(request(turns[:i], tools)).tokens
            whole = training.encode_chat_completion(request(turns[: i + 1], tools)).tokens
            assert whole[: len(prompt)] == prompt, name
            answers.append({"turn": i, "prompt": prompt, "answer": whole[len(prompt) :]})
        made[name] = {"messages": turns, "tools": tools, "answers": answers}
    return made, seen


def pieces(seen: set[str], full: bool) -> list[list]:
    """[id, piece, score] of all pieces that can come up in these texts; full: of all pieces.

    Byte-pair merges only ever make parts of the text, so the rest of the vocabulary does not
    matter.
    """
    model = MistralTokenizer.v3().instruct_tokenizer.tokenizer._model
    text = "\0".join("▁" + said.replace(" ", "▁") for said in seen)
    kept = [
        i
        for i in range(model.get_piece_size())
        if (full and not model.IsUnused(i) and not model.IsControl(i))
        or i < 10
        or model.IsByte(i)
        or (not model.IsControl(i) and model.IdToPiece(i) in text)
    ]
    return [[i, model.IdToPiece(i), model.GetScore(i)] for i in kept]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true")
    choice.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    more = random_conversations(300) if arguments.full else {}
    made, seen = vectors({**CONVERSATIONS, **more})
    content = {"conversations": made, "pieces": pieces(seen, arguments.full)}
    text = "{\n" + ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=True)}"
        for key, value in content.items()
    ) + "\n}\n"  # fmt: skip
    if not arguments.check:
        arguments.file.write_text(text)
    elif arguments.file.read_text() != text:
        sys.exit(f"{arguments.file} is not what mistral-common gives now")
    print(f"{len(made)} conversations, {len(content['pieces'])} pieces")


if __name__ == "__main__":
    main()
