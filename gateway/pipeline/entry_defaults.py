"""The fields that a `model_list` entry adds to a request: only those of the deployment that is called."""

from __future__ import annotations

from dataclasses import replace

from gateway.upstream.port import Deployment
from gateway.upstream.request import OUTPUT_CAPS, request_defaults
from gateway.wire.protocol import AddedFields, Request


def with_defaults_of(deployment: Deployment, request: Request) -> Request:
    """The request as this deployment gets it, without the fields that another deployment's entry had added.

    Fields from the configuration may raise the cost, so they count for the reservation like the client's own.
    """
    previous = request.added
    body = request.body
    if previous is not None:
        body = {name: value for name, value in body.items() if name not in previous.fields}
    fields = request_defaults(deployment, body)
    if previous is None:
        if not fields:
            return request
        previous = AddedFields({}, request.choices, request.output_tokens_max)
    added = AddedFields(fields, previous.choices, previous.output_tokens_max)
    cap = _cap(added)
    if request.output_tokens_max != _cap(previous):  # a budget has lowered it since
        cap = min(limit for limit in (cap, request.output_tokens_max) if limit is not None)
    default_choices = fields.get("n")
    choices = added.choices * max(1, default_choices) if type(default_choices) is int else added.choices
    return replace(request, body={**fields, **body}, choices=choices, output_tokens_max=cap, added=added)


def _cap(added: AddedFields) -> int | None:
    caps = [added.fields[name] for name in OUTPUT_CAPS if type(added.fields.get(name)) is int]
    return min(caps, default=added.output_tokens_max)
