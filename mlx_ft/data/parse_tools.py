"""Tools and their calls, in OpenAI's form: `arguments` as an object, whatever it was before."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from mlx_ft.data.parse_values import blank, kind
from mlx_ft.data.rows import Fault

MAX_DEPTH = 64  # of JSON within a string; a reader of files has seen only the string
Tools = tuple[dict[str, Any], ...]


def read_tools(value: Any, where: str, faults: list[Fault]) -> Tools:
    """Descriptions of tools: a list, or a string that holds it; bare functions are wrapped."""
    if blank(value):
        return ()
    if isinstance(value, str):
        value = _decoded(value, where, faults)
        if value is None:
            return ()
    if not isinstance(value, list):
        faults.append(Fault("tools", f"{where} is not a list of tools but {kind(value)}"))
        return ()
    return tuple(_tool(tool, f"{where}[{i}]", faults) for i, tool in enumerate(value))


def _tool(tool: Any, where: str, faults: list[Fault]) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not _named(function):
        faults.append(Fault("tools", f"{where} is not {{'function': {{'name': ..., ...}}}}"))
        return {}
    if function is tool:
        function = {key: value for key, value in tool.items() if key != "type"}
        return {"type": "function", "function": function}
    return {**tool, "type": "function"}


def read_calls(value: Any, where: str, faults: list[Fault]) -> Tools:
    """The calls of a turn: a list as in OpenAI's `tool_calls`; bare ones are wrapped."""
    if blank(value):
        return ()
    if not isinstance(value, list):
        faults.append(Fault("tools", f"{where} is not a list of calls but {kind(value)}"))
        return ()
    return tuple(_call(call, f"{where}[{i}]", faults) for i, call in enumerate(value))


def written_calls(text: Any, where: str, faults: list[Fault]) -> Tools:
    """The calls that a `function_call` turn writes as JSON: one, or a list."""
    if not isinstance(text, str):
        faults.append(Fault("wrong_type", f"{where} is not a string but {kind(text)}"))
        return ()
    value = _decoded(text, where, faults)
    if value is None:
        return ()
    if value == []:
        faults.append(Fault("tools", f"{where} holds no call"))
    return read_calls(value if isinstance(value, list) else [value], where, faults)


def _call(call: Any, where: str, faults: list[Fault]) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not _named(function):
        expected = "{'function': {'name': ..., 'arguments': ...}}"
        faults.append(Fault("tools", f"{where} is not {expected}"))
        return {}
    arguments = _arguments(function.get("arguments"), f"{where} arguments", faults)
    about = {key: value for key, value in call.items() if key not in BARE and value is not None}
    if function is not call:
        function = {**function, "arguments": arguments}
    else:
        function = {"name": call["name"], "arguments": arguments}
    return {**about, "type": "function", "function": function}


BARE = ("name", "arguments", "type", "function")


def _arguments(value: Any, where: str, faults: list[Fault]) -> dict[str, Any]:
    if isinstance(value, str):
        value = _decoded(value, where, faults)
        if value is None:
            return {}
    if value is None:
        return {}
    if not isinstance(value, dict):
        faults.append(Fault("tools", f"{where}: not an object but {kind(value)}"))
        return {}
    return value


def _named(function: dict[str, Any]) -> bool:
    name = function.get("name")
    return isinstance(name, str) and not blank(name)


def _decoded(text: str, where: str, faults: list[Fault]) -> Any:
    """What a string of JSON holds; else a fault, and None."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        if _deeper(value, MAX_DEPTH):
            raise RecursionError
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        faults.append(Fault("nesting", f"{where}: nested more than {MAX_DEPTH} deep"))
    except UnicodeEncodeError:
        faults.append(Fault("lone_surrogate", f"{where}: holds half of a surrogate pair"))
    except ValueError as error:
        faults.append(Fault("tools", f"{where}: not JSON: {error}"))
    else:
        if value is None:
            faults.append(Fault("tools", f"{where}: holds null"))
        return value
    return None


def _deeper(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and (
        levels == 0 or any(_deeper(item, levels - 1) for item in value)
    )


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")
