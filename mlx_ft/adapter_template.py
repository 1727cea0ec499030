"""The chat template that lies in an adapter's folder."""

from __future__ import annotations

from pathlib import Path

from mlx_ft.data.template import is_jinja
from mlx_ft.errors import AdapterError

TEMPLATE = "chat_template.jinja"


def read_template(adapter: Path) -> str | None:
    """Its text; None where there is no file, "" where the tokenizer writes its chats in Python.

    Raises AdapterError for a file that cannot be read or holds no template.
    """
    path = adapter / TEMPLATE
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise AdapterError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    # `data.template` takes names and paths too, which no adapter may choose.
    if text and not is_jinja(text):
        raise AdapterError(
            f"{path} is no Jinja and holds no chat template: expected {{{{ or {{%. Bring back the "
            "file that the training wrote, or delete it: the model's own template is used then"
        )
    return text
