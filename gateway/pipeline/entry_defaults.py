"""The fields that an entry of `model_list` adds to a request: those of the deployment that is asked, and of no other."""

from __future__ import annotations

from dataclasses import replace

from gateway.upstream.port import Deployment
from gateway.upstream.request import OUTPUT_CAPS, request_defaults
from gateway.wire.protocol import Added, Request


def with_defaults_of(deployment: Deployment, request: Request) -> Request:
    """The request as this deployment gets it: what the entry of another one had added is taken out again.

    What the configuration adds may cost more: it is reserved for like the client's own fields.
    """
    before = request.added
    body = request.body
    if before is not None:
        body = {name: value for name, value in body.items() if name not in before.fields}
    fields = request_defaults(deployment, body)
    if before is None:
        if not fields:
            return request
        before = Added({}, request.choices, request.output_tokens_max)
    added = Added(fields, before.choices, before.output_tokens_max)
    cap = _cap(added)
    if request.output_tokens_max != _cap(before):  # a budget has cut it since then
        cap = min(capped for capped in (cap, request.output_tokens_max) if capped is not None)
    number = fields.get("n")
    choices = added.choices * max(1, number) if type(number) is int else added.choices
    return replace(request, body={**fields, **body}, choices=choices, output_tokens_max=cap, added=added)


def _cap(added: Added) -> int | None:
    caps = [added.fields[name] for name in OUTPUT_CAPS if type(added.fields.get(name)) is int]
    return min(caps, default=added.output_tokens_max)
