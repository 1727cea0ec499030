"""What requests for answers may hold: OpenAI's fields, and two more that servers commonly have."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mlx_ft.engine.request import Sampling
from mlx_ft.serve.errors import Refused

LONGEST_NAME = 200
Text = Annotated[str, Field(max_length=1 << 24)]
Name = Annotated[str, Field(max_length=LONGEST_NAME)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]


class Closed(BaseModel):
    """A request that says nothing but what is known here."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class StreamOptions(Closed):
    """include_usage: a last event with the number of tokens."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Drawing(Closed):
    """How words are drawn, in both kinds of requests."""

    model: Name
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 20, description="0: all words. Not OpenAI's.")
    min_p: float | None = Field(None, ge=0, le=1, description="Not OpenAI's.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    max_tokens: int | None = Field(None, ge=1, le=1 << 24)
    n: int | None = Field(None, ge=1, le=128)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Nothing here hangs on these.
    user: Text | None = None
    # Accepted only where they say what is done anyway.
    logit_bias: dict[str, float] | None = None

    def sampling(self, defaults: dict[str, Any], length: int, room: int) -> Sampling:
        """How the engine is to draw. defaults: of the adapter; length: of an answer, unless told;
        room: tokens that the model's context has left, which is all that is not asked for by name.

        Raises Refused.
        """
        self._check()
        asked = {
            "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k,
            "min_p": self.min_p, "presence": self.presence_penalty,
            "frequency": self.frequency_penalty, "max_tokens": self.longest,
        }  # fmt: skip
        given = {key: value for key, value in asked.items() if value is not None}
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        usual = {"max_tokens": length, **defaults}
        usual["max_tokens"] = max(1, min(usual["max_tokens"], room))
        values = {**usual, **given}
        seed = None if self.seed is None else self.seed % 2**64
        return Sampling(**values, seed=seed, stop=tuple(stop), alternatives=self.alternatives)

    @property
    def longest(self) -> int | None:
        """Tokens of an answer at most, if the request says so."""
        return self.max_tokens

    @property
    @abstractmethod
    def alternatives(self) -> int | None:
        """As `Sampling` has it."""

    @property
    def usage_at_end(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def ignored(self) -> list[str]:
        """Fields that were given and have no effect."""
        return [name for name in IGNORED if getattr(self, name, None) is not None]

    def _check(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise _refused("stream_options", "is only allowed when 'stream' is enabled")
        if self.logit_bias:
            raise _refused("logit_bias", "is not supported here; leave it out")


class Format(Closed):
    """Only plain text."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class ChatRequest(Drawing):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(
        min_length=1, max_length=10_000, examples=[[{"role": "user", "content": "Hello"}]]
    )
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 24)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_retention: Text | None = None
    reasoning_effort: Text | None = None
    safety_identifier: Text | None = None
    service_tier: Text | None = None
    store: bool | None = None
    verbosity: Text | None = None
    audio: dict[str, Any] | None = None
    function_call: Any = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None
    prediction: dict[str, Any] | None = None
    response_format: Format | None = None
    web_search_options: dict[str, Any] | None = None

    @property
    def longest(self) -> int | None:
        """The newer name counts where both are given."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """None without log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def shown_tools(self) -> list[dict[str, Any]]:
        """Those that the model is to be told of."""
        return [] if self.tool_choice == "none" else self.tools or []

    def _check(self) -> None:
        super()._check()
        if self.top_logprobs and not self.logprobs:
            raise _refused("top_logprobs", "is only allowed when 'logprobs' is true")
        if self.tool_choice not in (None, "none", "auto"):
            raise _refused("tool_choice", "can only be 'none' or 'auto' here")
        if self.tool_choice == "auto" and not self.tools:
            raise _refused("tool_choice", "is only allowed when 'tools' are given")
        if self.response_format is not None and self.response_format.type != "text":
            raise _refused("response_format", "can only be of type 'text' here")
        if self.modalities not in (None, ["text"]):
            raise _refused("modalities", "can only be ['text'] here")
        for name in ("audio", "function_call", "functions", "prediction", "web_search_options"):
            if getattr(self, name) is not None:
                raise _refused(name, "is not supported here; leave it out")


class CompletionRequest(Drawing):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=128)]
        | Annotated[list[Token], Field(min_length=1, max_length=1 << 20)]
        | Annotated[list[list[Token]], Field(min_length=1, max_length=128)]
    )
    best_of: int | None = Field(None, ge=1, le=128)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    suffix: Text | None = None

    @property
    def alternatives(self) -> int | None:
        """None without log probabilities."""
        return self.logprobs

    def _check(self) -> None:
        super()._check()
        if self.best_of not in (None, self.n or 1):
            raise _refused("best_of", "can only be the same as 'n' here")
        if self.suffix:
            raise _refused("suffix", "is not supported here; leave it out")
        if self.echo and self.logprobs is not None:
            raise _refused("echo", "cannot be had together with 'logprobs' here")


IGNORED = (
    "user", "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
    "reasoning_effort", "safety_identifier", "service_tier", "store", "verbosity",
)  # fmt: skip


def _refused(name: str, what: str) -> Refused:
    return Refused(f"{name} {what}", param=name, code="unsupported_parameter")
