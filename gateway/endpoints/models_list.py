"""GET /v1/models and /v1/models/{id}: the models that the caller may use, in OpenAI's format, or Anthropic's for its clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from gateway.pipeline.call import Principal
from gateway.pipeline.intake import is_among


class ModelsList:
    """The models as one caller sees them, on a single page: the configuration lists them all."""

    def __init__(self, names: Sequence[str], principal: Principal, headers: Mapping[str, str], created_s: int) -> None:
        self._names = [
            name for name in names if not principal.allowed_models or is_among(name, principal.allowed_models)
        ]
        self._is_anthropic = is_anthropic(headers)
        self._created_s = created_s

    def all(self) -> bytes:
        data = [self._model_object(name) for name in self._names]
        if not self._is_anthropic:
            return orjson.dumps({"object": "list", "data": data})
        first, last = (self._names[0], self._names[-1]) if self._names else (None, None)
        return orjson.dumps({"data": data, "has_more": False, "first_id": first, "last_id": last})

    def one(self, name: str) -> bytes:
        return orjson.dumps(self._model_object(name))

    def _model_object(self, name: str) -> dict[str, Any]:
        if self._is_anthropic:
            created = datetime.fromtimestamp(self._created_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            return {"type": "model", "id": name, "display_name": name, "created_at": created}
        return {"id": name, "object": "model", "created": self._created_s, "owned_by": "farebox"}


def is_anthropic(headers: Mapping[str, str]) -> bool:
    """Whether an Anthropic client asks: its API requires this header, which OpenAI's clients never send."""
    return "anthropic-version" in headers
