"""POST /v1/chat/completions."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_ft.engine.request import End, Piece
from mlx_ft.serve import errors
from mlx_ft.serve.answers import ANSWERS, Asked, Wanted, ask, respond
from mlx_ft.serve.current import Target
from mlx_ft.serve.schemas import ChatRequest
from mlx_ft.serve.server import Here, Server
from mlx_ft.serve.tools import Calls
from mlx_ft.serve.words import Words

PATH = "/v1/chat/completions"
router = APIRouter(tags=["answers"])


@router.post(PATH, responses=ANSWERS, summary="Answer a chat")
async def chat(request: ChatRequest, http: Request, here: Here) -> Response:
    """As OpenAI's; `model` is a base model, `base`, or an adapter."""
    asked = await ask(here.state.metrics, PATH, lambda: _wanted(request, here))
    return await respond(request, http, asked, Reply(request, asked))


def _wanted(request: ChatRequest, here: Server) -> tuple[Target, list[Wanted]]:
    target = here.state.target(request.model)
    tokens = target.prompts.chat(request.messages, request.shown_tools)
    room = target.context - len(tokens)
    sampling = request.sampling(dict(target.defaults), here.settings.answer, room)
    return target, [Wanted(tokens, sampling, request.n or 1)]


@dataclass
class Choice:
    """One of the answers, as far as it is."""

    calls: Calls
    text: str = ""
    found: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None

    def take(self, piece: Piece) -> tuple[str, list[dict[str, Any]]]:
        """(text, calls) that are new with it."""
        shown, calls = self.calls.add(piece.text)
        self.text += shown
        self.found += calls
        return shown, calls

    def end(self, end: End) -> tuple[str, list[dict[str, Any]]]:
        """(text, calls) that were held back."""
        shown, calls = self.calls.end()
        self.text += shown
        self.found += calls
        self.reason = "tool_calls" if self.found and end.reason == "stop" else end.reason
        return shown, calls


class Reply:
    """The answers to a chat, at once or event by event."""

    def __init__(self, request: ChatRequest, asked: Asked) -> None:
        self._request, self._asked, target = request, asked, asked.target
        tokenizer = target.prompts.tokenizer
        self._words = Words(tokenizer) if request.logprobs else None
        tools = request.shown_tools
        self._choices = [Choice(Calls(tokenizer, tools)) for _ in asked.requests]
        self._about = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": target.fingerprint,
        }

    async def whole(self) -> dict[str, Any]:
        """All of them."""
        async for at, event in self._asked.pieces():
            choice = self._choices[at]
            if isinstance(event, Piece):
                choice.take(event)
                choice.logprobs += self._logprobs(event)
            else:
                choice.end(event)
        choices = [self._choice(at, choice) for at, choice in enumerate(self._choices)]
        return {**self._about, "choices": choices, "usage": self._asked.usage()}

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events, with OpenAI's last one."""
        for at in range(len(self._choices)):
            yield self._chunk(at, {"role": "assistant", "content": ""})
        try:
            async for at, event in self._asked.pieces():
                choice = self._choices[at]
                if isinstance(event, Piece):
                    shown, calls = choice.take(event)
                    if delta := _delta(shown, calls, self._words is not None):
                        yield self._chunk(at, delta, self._logprobs(event))
                    continue
                if delta := _delta(*choice.end(event)):
                    yield self._chunk(at, delta)
                yield self._chunk(at, {}, reason=choice.reason)
        except Exception as error:
            yield sse(errors.told(error)[1])
        else:
            if self._request.usage_at_end:
                yield self._event({"choices": [], "usage": self._asked.usage()})
        yield "data: [DONE]\n\n"

    def _choice(self, at: int, choice: Choice) -> dict[str, Any]:
        calls = [{k: v for k, v in call.items() if k != "index"} for call in choice.found]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not choice.text.strip() else choice.text,
            "refusal": None,
            **({"tool_calls": calls} if calls else {}),
        }
        logprobs = {"content": choice.logprobs, "refusal": None} if self._words else None
        return {"index": at, "message": message, "logprobs": logprobs,
                "finish_reason": choice.reason}  # fmt: skip

    def _chunk(
        self,
        at: int,
        delta: Mapping[str, Any],
        logprobs: list[dict[str, Any]] | None = None,
        reason: str | None = None,
    ) -> str:
        told = {"content": logprobs, "refusal": None} if logprobs else None
        choice = {"index": at, "delta": delta, "logprobs": told, "finish_reason": reason}
        usage = {"usage": None} if self._request.usage_at_end else {}
        return self._event({"choices": [choice], **usage})

    def _event(self, content: Mapping[str, Any]) -> str:
        return sse({**self._about, "object": "chat.completion.chunk", **content})

    def _logprobs(self, piece: Piece) -> list[dict[str, Any]]:
        if self._words is None or piece.token is None or piece.logprob is None:
            return []
        best = [self._said(token, value) for token, value in piece.alternatives]
        return [{**self._said(piece.token, piece.logprob), "top_logprobs": best}]

    def _said(self, token: int, logprob: float) -> dict[str, Any]:
        assert self._words is not None
        text, content = self._words.word(token)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": content}


def _delta(shown: str, calls: list[dict[str, Any]], always: bool = False) -> dict[str, Any]:
    """What an event adds; `always`: also when there is no new text, for its log probability."""
    delta: dict[str, Any] = {"content": shown} if shown or always else {}
    return {**delta, "tool_calls": calls} if calls else delta


def sse(content: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(content)}\n\n"
