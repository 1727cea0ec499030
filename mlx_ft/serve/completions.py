"""POST /v1/completions: texts that are gone on with, without a chat template."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_ft.engine.request import Piece
from mlx_ft.serve import errors
from mlx_ft.serve.answers import ANSWERS, Asked, Wanted, ask, respond
from mlx_ft.serve.chat import sse
from mlx_ft.serve.current import Target
from mlx_ft.serve.errors import Refused
from mlx_ft.serve.schemas import CompletionRequest
from mlx_ft.serve.server import Here, Server
from mlx_ft.serve.words import Words

PATH = "/v1/completions"
LENGTH = 16  # tokens of an answer, unless told; OpenAI's
MOST = 128  # answers of one request
router = APIRouter(tags=["answers"])


@router.post(PATH, responses=ANSWERS, summary="Go on with a text")
async def complete(request: CompletionRequest, http: Request, here: Here) -> Response:
    """As OpenAI's; `model` is a base model, `base`, or an adapter."""
    asked = await ask(here.state.metrics, PATH, lambda: _wanted(request, here))
    return await respond(request, http, asked, Reply(request, asked))


def _wanted(request: CompletionRequest, here: Server) -> tuple[Target, list[Wanted]]:
    target = here.state.target(request.model)
    found = []
    for prompt in prompts(request.prompt):
        tokens = (
            target.prompts.text(prompt) if isinstance(prompt, str) else target.prompts.known(prompt)
        )
        room = target.context - len(tokens)
        sampling = request.sampling(dict(target.defaults), LENGTH, room)
        found.append(Wanted(tokens, sampling, request.n or 1, continues=True))
    if len(found) * (request.n or 1) > MOST:
        raise Refused(
            f"{len(found)} prompts, {request.n} answers each; expected at most {MOST} together",
            code="invalid_value", param="n",
        )  # fmt: skip
    return target, found


def prompts(
    given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
) -> Sequence[str | Sequence[int]]:
    """Each of them, as text or tokens."""
    if isinstance(given, str):
        return [given]
    tokens = [one for one in given if isinstance(one, int)]
    if tokens:
        return [tokens]
    return [one for one in given if not isinstance(one, int)]


@dataclass
class Choice:
    """One of the answers, as far as it is. at: where the next token begins in it."""

    text: str
    at: int = 0
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    best: list[dict[str, float]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    reason: str | None = None


class Reply:
    """The answers to prompts, at once or event by event."""

    def __init__(self, request: CompletionRequest, asked: Asked) -> None:
        self._request, self._asked, target = request, asked, asked.target
        tokenizer = target.prompts.tokenizer
        self._words = Words(tokenizer) if request.logprobs is not None else None
        self._choices = [
            Choice(tokenizer.decode([*one.prompt]) if request.echo else "")
            for one in asked.requests
        ]
        self._about = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": target.fingerprint,
        }

    async def whole(self) -> dict[str, Any]:
        """All of them."""
        async for at, event in self._asked.pieces():
            choice = self._choices[at]
            if isinstance(event, Piece):
                choice.text += event.text
                self._note(choice, event)
            else:
                choice.reason = event.reason
        choices = [
            {"index": at, "text": choice.text, "logprobs": self._logprobs(choice, 0),
             "finish_reason": choice.reason}
            for at, choice in enumerate(self._choices)
        ]  # fmt: skip
        return {**self._about, "choices": choices, "usage": self._asked.usage()}

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events, with OpenAI's last one."""
        for at, choice in enumerate(self._choices):
            if choice.text:
                yield self._chunk(at, choice.text, None)
        try:
            async for at, event in self._asked.pieces():
                choice = self._choices[at]
                if not isinstance(event, Piece):
                    yield self._chunk(at, "", None, event.reason)
                    continue
                known = len(choice.tokens)
                self._note(choice, event)
                if event.text or self._words is not None:
                    yield self._chunk(at, event.text, self._logprobs(choice, known))
        except Exception as error:
            yield sse(errors.told(error)[1])
        else:
            if self._request.usage_at_end:
                yield self._event({"choices": [], "usage": self._asked.usage()})
        yield "data: [DONE]\n\n"

    def _note(self, choice: Choice, piece: Piece) -> None:
        if self._words is None or piece.token is None or piece.logprob is None:
            return
        choice.tokens.append(self._word(piece.token))
        choice.logprobs.append(max(piece.logprob, -9999.0))
        choice.best.append({self._word(token): max(value, -9999.0)
                            for token, value in piece.alternatives})  # fmt: skip
        choice.offsets.append(choice.at)
        choice.at += len(piece.text)

    def _word(self, token: int) -> str:
        """As OpenAI writes half a character: `bytes:\\xe2`."""
        assert self._words is not None
        text, content = self._words.word(token)
        return (
            "bytes:" + "".join(f"\\x{byte:02x}" for byte in content) if "\ufffd" in text else text
        )

    def _logprobs(self, choice: Choice, since: int) -> dict[str, Any] | None:
        if self._words is None:
            return None
        return {
            "tokens": choice.tokens[since:],
            "token_logprobs": choice.logprobs[since:],
            "top_logprobs": choice.best[since:] if self._request.logprobs else None,
            "text_offset": choice.offsets[since:],
        }

    def _chunk(
        self, at: int, text: str, logprobs: Mapping[str, Any] | None, reason: str | None = None
    ) -> str:
        choice = {"index": at, "text": text, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self._request.usage_at_end else {}
        return self._event({"choices": [choice], **usage})

    def _event(self, content: Mapping[str, Any]) -> str:
        return sse({**self._about, **content})
