"""Our Go templates with conversations, and what our own templates render of them, as JSON.

PYTHONPATH=. python tests/peers/go_templates.py | go run tests/peers/go_templates.go
"""

import json
import sys
import tempfile
from pathlib import Path

from mlx_ft import runtime

runtime.prepare()
from mlx_ft.data import template  # noqa: E402
from mlx_ft.data.render import Renderer  # noqa: E402
from mlx_ft.export import ollama  # noqa: E402
from mlx_ft.models.read import read_tokenizer  # noqa: E402
from tests.export import go_template, small  # noqa: E402
from tests.export.test_ollama import TALKS, talk  # noqa: E402


def main() -> None:
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        small.save_tokenizer(Path(folder))
        for name in (*template.NAMED, None):
            tokenizer = read_tokenizer(Path(folder), None)
            if name is None:
                tokenizer.chat_template = None
            stop = template.install(tokenizer, name).stop
            found = ollama.family(tokenizer)
            for roles in TALKS.values():
                text = Renderer(tokenizer).text(talk(roles), prompt=True)
                values = go_template.values(talk(roles))
                cases.append({"template": found.go(stop), "values": values,
                              "expected": text.removeprefix("<s>")})  # fmt: skip
    json.dump(cases, sys.stdout)


if __name__ == "__main__":
    main()
