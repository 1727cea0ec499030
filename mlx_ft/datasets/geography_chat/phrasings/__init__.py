"""How people ask: for every kind, phrasings for training, validation and test.

`QUESTIONS` begin a conversation or stand alone; `FOLLOW_UPS` come after an answer about the same
country, which they call "it" or "that country". No phrasing is in two splits. The slots stand for
names; a country brings its own article ("the Netherlands").
"""

from mlx_ft.datasets.geography_chat.phrasings import facts, pairs, places

Phrasings = dict[str, dict[str, tuple[str, ...]]]

QUESTIONS: Phrasings = {**places.QUESTIONS, **facts.QUESTIONS, **pairs.QUESTIONS}
FOLLOW_UPS: Phrasings = {**places.FOLLOW_UPS, **facts.FOLLOW_UPS, **pairs.FOLLOW_UPS}
SWITCHES = pairs.SWITCHES
OPENERS = pairs.OPENERS
