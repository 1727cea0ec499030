"""A model's tokenizer without its weights: what it takes to look at data."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ft.config.schema import ModelConfig
from mlx_ft.deferred import Deferred
from mlx_ft.errors import ModelError
from mlx_ft.models import gguf, hub, read
from mlx_ft.models.folder import PICKLED, TOKENIZERS, read_config
from mlx_ft.models.load import Located, locate
from mlx_ft.models.read import read_tokenizer

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

# Everything that a repository has beside its weights and that is no code.
SMALL_FILES = [pattern for pattern in hub.PATTERNS if not pattern.endswith(".safetensors")]
READERS = ("transformers", "tokenizers", "mlx-lm")
MORE_TEMPLATES = "additional_chat_templates"
LARGE = 1 << 26  # bytes: no tokenizer's file is


def load_tokenizer(located: Located) -> TokenizerWrapper:
    """The tokenizer of a model that is here. Raises ModelError."""
    return read_tokenizer(located.path, located.config.get("eos_token_id"))


def deferred_tokenizer(located: Located) -> Deferred[TokenizerWrapper]:
    """The same, read when it is first asked for: transformers takes a second to import.

    Its key is made of all files beside the weights and of the versions of what reads them.
    """
    digest = hashlib.sha256(repr([(name, metadata.version(name)) for name in READERS]).encode())
    for source in (read.__file__, __file__):
        digest.update(Path(source).read_bytes())
    places = (located.path, located.path / MORE_TEMPLATES)
    files = [file for place in places if place.is_dir() for file in place.iterdir()]
    for file in sorted(file for file in files if file.is_file() and not _is_weights(file)):
        stat = file.stat()
        digest.update(f"{file.relative_to(located.path)}\0{stat.st_size}\0".encode())
        small = stat.st_size <= LARGE
        try:
            digest.update(file.read_bytes() if small else str(stat.st_mtime_ns).encode())
        except OSError as error:  # whoever needs it will say so
            digest.update(repr(error).encode())
    return Deferred(digest.hexdigest(), lambda: load_tokenizer(located))


def _is_weights(file: Path) -> bool:
    return file.suffix in (".safetensors", ".gguf", *PICKLED)


def fetch_tokenizer(config: ModelConfig, cache_dir: Path) -> TokenizerWrapper:
    """The tokenizer of any model; of one on the hub without downloading its weights.

    Raises ModelError as `locate` does.
    """
    if not needs_download(config):
        return load_tokenizer(locate(config, cache_dir))
    from huggingface_hub import snapshot_download

    name, revision = config.path, config.revision
    found = hub.asking(
        name,
        revision,
        lambda: snapshot_download(
            name,
            revision=revision,
            allow_patterns=SMALL_FILES,
            etag_timeout=hub.TIMEOUT_SECONDS,
        ),
    )
    folder = Path(found)
    content, faults = read_config(folder)
    if not any((folder / file).is_file() for file in TOKENIZERS):
        faults.append(f"no tokenizer: none of {', '.join(TOKENIZERS)} is there")
    if content is None or faults:
        raise ModelError(f"{name} cannot be used as a model:", faults)
    return read_tokenizer(folder, content.get("eos_token_id"))


def is_here(config: ModelConfig, cache_dir: Path) -> bool:
    """Whether the model can be read as it is: nothing is to be downloaded or converted."""
    if config.path == "embedded":
        file = gguf.find_embedded()
    else:
        kind, path = hub.classify(config.path)
        if kind != "gguf":
            return not needs_download(config)
        file = path if path.is_file() else None
    return file is not None and gguf.folder_for(file, cache_dir).is_dir()


def needs_download(config: ModelConfig) -> bool:
    """Whether the model is on the hub and not yet here."""
    if config.path == "embedded" or hub.classify(config.path)[0] != "hub":
        return False
    return hub.cached(config.path, config.revision) is None
