"""Rows as LLaMA-Factory writes them: pairs beside a chat, parts, loss_weight, media."""

import pytest

from mlx_ft.data.formats import FormatOptions, detect, unused_keys
from mlx_ft.data.parse_values import MEDIA
from mlx_ft.data.rows import Fault, Message

from .test_formats import ANSWER, CALL, CALLER, TOLD, TURNS, USER, faults, read

BAD = {"role": "assistant", "content": "Green."}
HUMAN, GPT = {"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}
WORSE = {"from": "gpt", "value": "Green."}
REJECTED = (Message("assistant", "Green."),)


# Preference pairs


@pytest.mark.parametrize(
    "fields",
    [
        {"conversations": [HUMAN], "chosen": GPT, "rejected": WORSE},
        {"conversations": [HUMAN], "chosen": [GPT], "rejected": [WORSE]},
        {"conversations": [HUMAN], "chosen": "Blue.", "rejected": "Green."},
        {"conversations": [USER], "chosen": ANSWER, "rejected": WORSE},
        {"conversation": [HUMAN], "chosen": GPT, "rejected": WORSE},
        {"messages": [USER], "chosen": ANSWER, "rejected": BAD},
        {"messages": [USER], "chosen": [ANSWER], "rejected": [BAD]},
        {"messages": [USER], "chosen": GPT, "rejected": WORSE},
        {"prompt": "Sky?", "chosen": ANSWER, "rejected": WORSE},
        {"chosen": [HUMAN, GPT], "rejected": [HUMAN, WORSE]},
        # The chat repeats the chosen answer, or the whole of it.
        {"messages": [USER, ANSWER], "chosen": ANSWER, "rejected": BAD},
        {"messages": [USER, ANSWER], "chosen": "Blue.", "rejected": "Green."},
        {"messages": [USER, ANSWER], "chosen": [USER, ANSWER], "rejected": [USER, BAD]},
        {"messages": [USER, BAD], "chosen": [USER, ANSWER], "rejected": [USER, BAD]},
        {"messages": [USER], "chosen": [USER, ANSWER], "rejected": [USER, BAD]},
        {"messages": [USER, ANSWER], "chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.",
         "rejected": "\n\nHuman: Sky?\n\nAssistant: Green."},
        {"prompt": "Sky?", "messages": [USER, ANSWER], "chosen": [USER, ANSWER],
         "rejected": [USER, BAD]},
        {"messages": [], "chosen": [USER, ANSWER], "rejected": [USER, BAD]},
    ],
)  # fmt: skip
def test_a_chat_may_be_the_prompt_of_a_pair(fields):
    conversation = read(**fields)
    assert conversation.format == detect(fields) == "preference"
    assert conversation.messages == TURNS
    assert conversation.rejected == REJECTED
    assert [k for k in unused_keys(fields) if k not in ("messages", "conversations")] == []


def test_a_pair_with_all_that_llama_factory_has():
    chat = [HUMAN, GPT, {"from": "human", "value": "And at night?"},
            {"from": "function_call", "value": '{"name": "look", "arguments": {"up": true}}'},
            {"from": "observation", "value": "dark"}]  # fmt: skip
    fields = {"conversations": chat, "chosen": {"from": "gpt", "value": "Black."},
              "rejected": WORSE, "system": "Be brief.", "tools": '[{"name": "look"}]'}  # fmt: skip
    conversation = read(**fields)
    roles = [(message.role, message.weight) for message in conversation.messages]
    assert roles == [("system", 1), ("user", 1), ("assistant", 0), ("user", 1), ("assistant", 0),
                     ("tool", 1), ("assistant", 1)]  # fmt: skip
    assert conversation.messages[-1].content == "Black."
    assert conversation.rejected == REJECTED
    assert conversation.tools[0]["function"]["name"] == "look"
    assert unused_keys(fields) == []


def test_an_answer_may_be_a_call():
    call = {"from": "function_call", "value": '{"name": "look", "arguments": {"up": true}}'}
    messages = read(conversations=[HUMAN], chosen=call, rejected=WORSE).messages
    assert messages[1].tool_calls == ({"type": "function", "function": CALL["function"]},)


def test_a_pair_under_names_of_a_users_own():
    options = FormatOptions("talk", "who", "what", {"Doctor": "assistant", "patient": "user"})
    fields = {"talk": [{"who": "patient", "what": "Sky?"}],
              "chosen": {"who": "Doctor", "what": "Blue."},
              "rejected": {"who": "Doctor", "what": "Green."}}  # fmt: skip
    conversation = read("auto", options, **fields)
    assert (conversation.messages, conversation.rejected) == (TURNS, REJECTED)
    assert unused_keys(fields, "auto", options) == []


def test_data_format_leaves_a_pair_out():
    fields = {"messages": [USER, ANSWER], "chosen": "a", "rejected": "b"}
    [fault] = faults(**fields)
    assert fault == Fault(
        "no_preference",
        "'messages' ends with an assistant turn, which chosen and rejected do not answer; remove "
        "it, or set data.format=messages to leave the two out",
    )
    assert read("messages", **fields).messages == TURNS
    assert unused_keys(fields, "messages") == ["chosen", "rejected"]
    [fault] = faults(conversations=[HUMAN, GPT], chosen=WORSE, rejected={**GPT, "value": "Red."})
    assert "data.format=conversations" in fault.sentence


@pytest.mark.parametrize(
    ("fields", "codes"),
    [
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": GPT}, ["no_preference"]),
        ({"conversations": [HUMAN], "chosen": HUMAN, "rejected": WORSE}, ["no_preference"]),
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": 3}, ["wrong_type"]),
        ({"conversations": [HUMAN], "chosen": {**GPT, "value": ""}, "rejected": {}},
         ["empty_turn", "wrong_type", "wrong_type"]),
        ({"conversations": [{"from": "x", "value": "a"}], "chosen": GPT, "rejected": WORSE},
         ["unknown_role"]),
        ({"conversations": "Sky?", "chosen": GPT, "rejected": WORSE}, ["wrong_type"]),
        ({"messages": [USER], "conversations": [{**HUMAN, "value": "Sea?"}], "chosen": GPT,
          "rejected": WORSE}, ["no_format"]),
    ],
)  # fmt: skip
def test_bad_pairs_beside_a_chat(fields, codes):
    assert [fault.code for fault in faults(**fields)] == codes


def test_where_a_single_answer_is_wrong():
    [fault] = faults(messages=[USER], chosen={**ANSWER, "content": " "}, rejected=BAD)
    assert fault.sentence == "chosen.content is empty"
    fields = {"messages": [USER], "chosen": {**ANSWER, "id": 1}, "rejected": BAD}
    assert unused_keys(fields) == ["chosen.id"]


# Parts and weights


def test_a_part_may_have_its_text_in_value():
    parts = [{"type": "text", "value": "Bl"}, {"type": "text", "text": None, "value": "ue."}]
    assert read(messages=[USER, {"role": "assistant", "content": parts}]).messages == TURNS


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"type": "text"}, "is a text part without text; write it as 'text'"),
        ({"type": "text", "value": 3}, "is a text part whose 'value' is a number; expected a "
         "string"),
        ({"type": "text", "text": "a", "value": "b"}, "has a 'text' and a 'value', and they "
         "differ; keep one"),
        ({"type": "reasoning", "value": "a"}, "is a part of type 'reasoning', which no template "
         "shows; remove it, or write it into the text as the model's template does"),
        ({"type": "tool_call", "value": "{}"}, "is a part of type 'tool_call'; write calls as "
         "'tool_calls' beside the content, and what the tool says as a turn of role 'tool'"),
        ({"type": "image_url"}, "is a part of type 'image_url'; "
         "expected {'type': 'text', 'text': ...}"),
        ("a", "is a string; expected {'type': 'text', 'text': ...}"),
    ],
)  # fmt: skip
def test_other_parts_are_faults_that_say_what_to_do(part, sentence):
    found = faults(messages=[{**USER, "content": [part]}, ANSWER])
    assert found == [Fault("wrong_type", f"messages[0].content[0] {sentence}")]


@pytest.mark.parametrize("given", [0, 0.0, False])
def test_loss_weight_is_weight(given):
    turns = [{**USER, "loss_weight": 0.0}, {**ANSWER, "loss_weight": given}, USER,
             {**ANSWER, "loss_weight": 1.0, "weight": None}]  # fmt: skip
    assert [message.weight for message in read(messages=turns).messages] == [1, 0, 1, 1]
    assert unused_keys({"messages": turns}) == []
    both = {**ANSWER, "weight": given, "loss_weight": given}
    assert read(messages=[USER, both]).messages[1].weight == 0


def test_bad_loss_weights():
    [fault] = faults(messages=[USER, {**ANSWER, "loss_weight": 0.5}])
    assert fault == Fault("weight", "messages[1].loss_weight is 0.5; expected 0 or 1")
    [fault] = faults(messages=[USER, {**ANSWER, "weight": 1, "loss_weight": 0}])
    assert fault == Fault("weight", "messages[1] has weight 1 and loss_weight 0; keep one")
    [fault] = faults(messages=[{**USER, "loss_weight": 2}, ANSWER])
    assert fault.code == "weight"


# Images, videos and sound


@pytest.mark.parametrize("key", MEDIA)
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"prompt": "Sky?", "completion": "Blue."},
        {"text": "The sky is blue."},
        {"conversations": [HUMAN], "chosen": GPT, "rejected": WORSE},
    ],
)
def test_what_a_text_model_does_not_see_is_a_fault(row, key):
    kinds = f"{MEDIA[key]}s"
    for value in (["a.bin"], "a.bin", {"path": "a.bin"}):
        [fault] = faults(**row, **{key: value})
        assert fault == Fault(
            "no_format",
            f"the row has {kinds}, which a text model does not see; "
            f"remove the key {key!r} to train on the text alone",
        )
    for value in (None, [], ""):
        assert read(**row, **{key: value})
        assert unused_keys({**row, key: value}) == []


def test_placeholders_count_beside_the_key():
    turns = [{**USER, "content": "<image>Sky?"}, ANSWER]
    assert read(messages=turns)  # a text on HTML, maybe
    assert read(messages=turns, videos=[])
    [fault] = faults(messages=turns, images=["a.png"])
    assert fault.sentence.endswith(
        "remove the key 'images' and each '<image>' to train on the text alone"
    )
    [fault] = faults(messages=turns, images=[])
    assert fault == Fault(
        "no_format",
        "the row has '<image>' beside an empty 'images': a text model sees no images; "
        "remove the key 'images' and each '<image>' to train on the text alone",
    )
    [fault] = faults(prompt="a", chosen="b", rejected="<audio>", audios=[])
    assert "'<audio>'" in fault.sentence
    assert len(faults(text="a", images=["a"], audio="b")) == 2


def test_media_of_a_turn():
    [fault] = faults(messages=[{**USER, "images": ["a.png"]}, ANSWER])
    assert fault.sentence.startswith("messages[0] has images, which a text model does not see")
    fields = {"messages": [{**USER, "images": []}, CALLER, TOLD, {**ANSWER, "audio": None}]}
    assert read(**fields)
    assert unused_keys(fields) == []


@pytest.mark.parametrize(("tag", "label"), [(True, "desirable"), (False, "undesirable")])
def test_a_kto_tag_is_a_label(tag, label):
    turns = [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}]
    fields = {"conversations": turns, "kto_tag": tag}
    assert read(**fields).label == label
    assert unused_keys(fields) == []
