"""GET /v1/models: what the caller may use, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from gateway.pipeline.call import Principal


def models_body(names: Sequence[str], principal: Principal, created_s: int) -> bytes:
    allowed = [name for name in names if not principal.allowed_models or name in principal.allowed_models]
    data = [{"id": name, "object": "model", "created": created_s, "owned_by": "farebox"} for name in allowed]
    return orjson.dumps({"object": "list", "data": data})
