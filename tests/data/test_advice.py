import pytest

from mlx_ft.config.schema import Config
from mlx_ft.data.advice import plan_advice


def advice(rate=2e-4, steps=500, epochs=2.0, padding=0.1, name="adamw", packing="none"):
    config = Config()
    config.data.packing = packing
    config.optimizer.learning_rate = rate
    config.optimizer.name = name
    return plan_advice(config, steps, epochs, padding)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rate": 1e-2}, "is high for LoRA with adamw"),
        ({"rate": 1e-6}, "hardly move the adapter"),
        ({"steps": 12}, "12 steps are few"),
        ({"steps": 1, "rate": 2e-3}, "1 step is few"),
        ({"steps": 40, "rate": 1e-6}, "40 steps with optimizer.learning_rate=1e-06 hardly move "),
        ({"epochs": 25.0}, "shown 25 times"),
        ({"padding": 0.4}, "40% of a batch is padding"),
    ],
)
def test_each_thing_to_say_is_said_alone(changed, words):
    [sentence] = advice(**changed)
    assert words in sentence


@pytest.mark.parametrize(
    "changed", [{}, {"name": "sgd", "rate": 0.1}, {"steps": 130, "rate": 1e-3}]
)
def test_usual_settings_need_no_words(changed):
    assert advice(**changed) == []


def test_without_padding_there_is_none_to_warn_of():
    assert any("padding" in line for line in advice(padding=0.4))
    assert advice(padding=0.4, packing="segments") == advice(padding=0.0)
