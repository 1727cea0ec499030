"""Rotary embeddings of a config.json that transformers 5 wrote, in the words that mlx-lm reads.

It keeps theta and scaling in `rope_parameters` alone. Most of mlx-lm's architectures read
`rope_theta` and `rope_scaling`, and would compute with their own defaults without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlx_ft.models import known

KEY, THETA, SCALING, PART = "rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor"


def settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what its `rope_parameters` say under the names that its model reads."""
    found = dict(config)
    for name, part in _unread(config):
        given = part[KEY]
        if _by_layer(given):
            continue
        own = dict(part)
        for key in (THETA, PART):
            if key in given and own.get(key) is None:
                own[key] = given[key]
        kind = given.get("rope_type") or given.get("type") or "default"
        if kind != "default" and own.get(SCALING) is None:
            rest = {key: value for key, value in given.items() if key not in (THETA, PART)}
            own[SCALING] = {**rest, "type": kind}  # both names of the kind are in use
        found = own if name is None else {**found, name: own}
    return found


def faults(config: Mapping[str, Any]) -> list[str]:
    """What a config's `rope_parameters` say that its model would not compute."""
    return [
        f"config.json: {KEY} are told by kinds of layers ({', '.join(map(str, part[KEY]))}), which "
        f"mlx-lm's {part.get('model_type')} does not read: it would compute with other ones. Use "
        "the model as transformers 4 wrote it, or a conversion for MLX"
        for _, part in _unread(config)
        if _by_layer(part[KEY])
    ]


def _unread(config: Mapping[str, Any]) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    """(key, config) of the model, and of the text model in it, that say what it does not read."""
    for name, part in ((None, config), ("text_config", config.get("text_config"))):
        if not (isinstance(part, Mapping) and isinstance(part.get(KEY), Mapping)):
            continue
        # A text model may have no file of its own name.
        text = known.source(part.get("model_type")) or known.source(config.get("model_type"))
        if text is not None and KEY not in text:
            yield name, part


def _by_layer(given: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in given.values())
