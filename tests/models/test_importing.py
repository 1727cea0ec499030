"""mlx-lm's models come without the rest of it, which comes when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODELS = """
import sys
from mlx_ft.models.importing import import_mlx_lm, import_models
import_models()
from mlx_lm.models.llama import Model
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.utils import dequantize_model, load_model
assert "transformers" not in sys.modules and "httpx" not in sys.modules
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", MODELS + code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "from mlx_lm import batch_generate, load, stream_generate",
        "import mlx_lm; mlx_lm.generate; mlx_lm.load; mlx_lm.__version__",
        "import mlx_lm; assert mlx_lm.tuner.train and mlx_lm.tuner.linear_to_lora_layers",
        "import_mlx_lm(); from mlx_lm.tuner.utils import linear_to_lora_layers",
    ],
)
@pytest.mark.slow
def test_all_of_mlx_lm_is_there_when_asked_for(code: str) -> None:
    run(f"{code}\nassert 'transformers' in sys.modules")


def test_an_opened_package_is_as_any_other() -> None:
    said = run(
        "import mlx_lm, types, huggingface_hub\n"
        "from mlx_lm import load\n"
        "print(type(mlx_lm) is types.ModuleType, mlx_lm.load is load is mlx_lm.utils.load)\n"
        "from mlx_lm import utils\n"
        "real = huggingface_hub.snapshot_download\n"
        "print(real.__module__, utils.snapshot_download is not real)\n"
        "huggingface_hub.snapshot_download = lambda name: f'asked for {name}'\n"
        "print(utils.snapshot_download('x'))\n"
    )
    lines = said.splitlines()
    assert lines[0] == "True True"
    assert lines[1] == "huggingface_hub._snapshot_download True"
    assert lines[2] == "asked for x"


def test_a_name_that_is_not_there_is_an_import_error() -> None:
    run(
        "import mlx_lm\n"
        "assert not hasattr(mlx_lm, '__wrapped__') and 'transformers' not in sys.modules\n"
        "try:\n    from mlx_lm import nothing\nexcept ImportError: print('none')\n"
        "assert not hasattr(mlx_lm, 'nothing')"
    )


def test_another_version_of_mlx_lm_is_imported_plainly() -> None:
    run(
        "for name in [n for n in sys.modules if n.partition('.')[0] == 'mlx_lm']:\n"
        "    del sys.modules[name]\n"
        "from mlx_ft.models import importing\n"
        "def broken(): raise ImportError('made of other parts')\n"
        "importing._place_packages = broken\n"
        "import_models()\n"
        "assert 'transformers' in sys.modules\n"
        "from mlx_lm import load"
    )
