"""Every error code that a client can be told."""

from __future__ import annotations

from typing import Final

from gateway.error_guide.guide import Guide
from policies.budgets import Scope


def _of_scopes() -> dict[str, Guide]:
    """Every scope has two codes of its own."""
    found: dict[str, Guide] = {}
    for scope in Scope:
        found[f"{scope}_budget_exceeded"] = Guide(
            f"The {scope}'s budget has less left than this call needs, and nothing that its `on_pressure` allows makes the call "
            "fit. 402: it does not come back; 429: it comes back after `retry-after` seconds.",
            f"Raise the budget of the {scope}, cap the output with `max_tokens`, or send less context. "
            "`metadata` names budget, limit, what is left and what the call needs.",
            "402, 429",
        )
        found[f"{scope}_budget_busy"] = Guide(
            f"The {scope}'s budget would do, but other calls hold what this one needs until they end.",
            "Repeat it after `retry-after` (the SDKs do by themselves), or cap the output of each call: an uncapped call holds its "
            "model's maximum. The rung `wait` in `on_pressure` lets the gateway wait instead.",
            "429",
        )
    return found


CODES: Final[dict[str, Guide]] = _of_scopes() | {
    "budget_exceeded": Guide("A budget refuses the call.", "Read `metadata`: it names the budget.", "402"),
    "request_exceeds_budget": Guide(
        "The call's worst case is above the whole budget, so it would not fit into an empty one either.",
        "Send less context, cap the output with `max_tokens`, allow `clamp` in the budget's `on_pressure`, or raise the budget.",
        "402",
    ),
    "run_paused": Guide("Somebody paused the run.", "Resume it: `farebox runs resume RUN`.", "402; control API 409"),
    "run_cancelled": Guide(
        "Somebody cancelled the run.", "Begin a new run; this one stays cancelled.", "402; control API 409"
    ),
    "run_completed": Guide(
        "The run was completed.", "Begin a new run; this one stays completed.", "402; control API 409"
    ),
    "unpriced_model": Guide(
        "A budget limits money, and nobody knows what this model costs. An unknown price never means free.",
        "Enter `input_cost_per_token` and `output_cost_per_token` under the model's `model_info`. For a model that is not paid by the "
        "token enter its `mode` (such as `rerank`, `image_generation`, `audio_transcription`) beside LiteLLM's field for its price "
        "(`input_cost_per_query`, `output_cost_per_image`, `input_cost_per_second`).",
        "400",
    ),
    "ledger_unavailable": Guide(
        "The ledger is out of reach and the call has a budget that is enforced.",
        "Bring Redis back; calls go on within a second. `on_outage: allow` in a budget lets its calls go on meanwhile.",
        "503",
    ),
    "outbox_full": Guide(
        "The store has been away for so long that no more usage can be kept for it; enforced calls would go unrecorded.",
        "Bring the store back, or raise `storage.outbox_cap`.",
        "503",
    ),
    "store_unavailable": Guide(
        "The control API or an admin page needs the store, which does not answer. Model calls go on, unless the gateway has not reached "
        "the store since its start: no key is known then.",
        "Look at Postgres, or at the disk of the SQLite file.",
        "503",
    ),
    "invalid_api_key": Guide(
        "No key, or one that is unknown, revoked or expired.",
        "Send `Authorization: Bearer fb_…`; `farebox keys list` shows which keys there are.",
        "401",
    ),
    "permission_denied": Guide(
        "The key is valid and may not do this: an admin key calls no models, a key for calls administers nothing, a viewer changes "
        "nothing.",
        "Use a key of the other kind: `farebox keys create`.",
        "403",
    ),
    "model_not_allowed": Guide(
        "The key is limited to other models.", "Ask for one of its models, or make a key with `--model`.", "403"
    ),
    "model_not_found": Guide(
        "`model_list` has no model of this name.",
        "`GET /v1/models` lists the names. They are yours: a provider's name works only if an entry has it as `model_name`.",
        "404",
    ),
    "no_route": Guide(
        "`model: auto` found no model that this call may use.",
        "Name models under `tiers`, and look whether the key's models are among them.",
        "400",
    ),
    "not_found": Guide("There is nothing under this path or name.", "`/api/openapi.json` lists the paths.", "404"),
    "run_not_found": Guide(
        "The project has no run of this id.",
        "`farebox runs list` shows those there are; a run belongs to the project of the key that began it.",
        "404",
    ),
    "run_busy": Guide(
        "The run cannot be reset while calls of it are under way.", "Wait for them, or pause the run first.", "409"
    ),
    "run_nested": Guide(
        "The run shares its budget with runs inside or around it, so it cannot be reset alone.",
        "Raise its budget instead: `farebox runs budget RUN`.",
        "409",
    ),
    "run_of_other_workflow": Guide(
        "A run of this id has begun under another workflow, and a run belongs to one. Calls that name it beside another spend from it.",
        "Announce it under the workflow that the message names, or choose another id.",
        "409",
    ),
    "budget_of_file": Guide(
        "The budget stands in the configuration file, which is its only source.", "Change it there and restart.", "409"
    ),
    "key_revoked": Guide("A revoked key stays revoked.", "Make a new one: `farebox keys create`.", "409"),
    "key_name_taken": Guide(
        "The project has another key of this name, and one of both has a budget of its own, which goes by the name.",
        "`farebox keys rotate` gives that one a new secret, `farebox keys set` other limits; or choose another name.",
        "409",
    ),
    "ambiguous_name": Guide("Several keys have this name.", "Name the key by its id: `farebox keys list`.", "409"),
    "nothing_to_suggest": Guide(
        "No run of the workflow has finished in the last 30 days, so there is nothing to learn a budget from.",
        "Let it run for a while; in `mode: observe` nothing is refused meanwhile.",
        "409",
    ),
    "conflicting_settings": Guide(
        "The value would contradict another setting.", "The message names both; change the other one first.", "400"
    ),
    "invalid_request": Guide("The request is not what the endpoint takes.", "The message says why.", "400"),
    "invalid_json": Guide("The body is not one JSON object.", "Send one, in UTF-8, without NaN.", "400"),
    "invalid_form": Guide("The body is not a form as the endpoint takes it.", "Send `multipart/form-data`.", "400"),
    "invalid_value": Guide(
        "A field has a value that it cannot have.", "`param` names the field, the message its range.", "400"
    ),
    "missing_field": Guide("A field that is needed is missing.", "`param` names it.", "400"),
    "duplicate_key": Guide(
        "A field stands in the body twice. Two readers would see two different calls, and one of them would pay.",
        "Send it once.",
        "400",
    ),
    "forbidden_field": Guide(
        "The field would choose the upstream's host, credential, transport or price, which only the configuration does.",
        "Leave it out, and enter it under `litellm_params` of the model.",
        "400",
    ),
    "field_not_allowed": Guide(
        "A field that LiteLLM would read as a setting of its own, or by which a provider would answer more than is reserved.",
        "Leave it out, use the protocol's own field, or set it in `litellm_params`.",
        "400",
    ),
    "unsupported_endpoint": Guide(
        "The model's provider has nothing like this endpoint: no images, no speech, no rerank. The mock model has texts and"
        " embeddings.",
        "Ask a model of a provider that has it.",
        "400",
    ),
    "unsupported_field": Guide(
        "`previous_response_id`, `conversation` or `prompt` for a model whose provider keeps nothing of earlier calls: the model"
        " would be asked without its history.",
        "Send the earlier items as `input`, or use a model whose provider speaks Responses.",
        "400",
    ),
    "invalid_header": Guide(
        "A header has a value that it cannot have, stands there twice, or would choose where the call goes.",
        "The message names it. Tags match `[A-Za-z0-9._:@/-]{1,128}`, without `.` or `..` alone between slashes.",
        "400",
    ),
    "headers_too_large": Guide(
        "More than 100 headers, or more than 32 KiB of them.", "Send fewer; long context belongs into the body.", "431"
    ),
    "invalid_http": Guide(
        "What arrived is no proper HTTP/1.1 request, or is framed in many times its own size.",
        "Look at the client, or at the proxy between.",
        "400",
    ),
    "invalid_path": Guide(
        "The path is not in its plain form (encoded slashes, dots or double slashes), or a tag in it has characters that none may have.",
        "Send it plainly.",
        "400",
    ),
    "method_not_allowed": Guide("The path does not take this method.", "`allow` names those that it takes.", "405"),
    "request_timeout": Guide(
        "The headers did not arrive within `server.header_seconds`, or the body within 60 s.",
        "Look at the line, or send less.",
        "408",
    ),
    "request_too_large": Guide(
        "The body is larger than `server.body_bytes_max` (32 MiB).", "Send less, or raise the limit.", "413"
    ),
    "unsupported_encoding": Guide("The body is compressed.", "Send it without `content-encoding`.", "415"),
    "unsupported_media_type": Guide("An admin page was sent something else than a form.", "Use the page.", "415"),
    "foreign_form": Guide(
        "A page of another origin tried to send a form to the admin pages.",
        "Open the admin page itself; behind a proxy, let it pass `host` unchanged.",
        "403",
    ),
    "foreign_origin": Guide(
        "A web page of another site calls models here without an API key, as any page in a browser on this machine could.",
        "Give the page's calls a key: `farebox keys create`.",
        "403",
    ),
    "too_many_attempts": Guide(
        "Too many wrong keys from one address, or logins of one name from it (far more before all of an address or a name is stopped).",
        "Wait for `retry-after` seconds.",
        "429",
    ),
    "idempotency_conflict": Guide(
        "The `Idempotency-Key` was used for another request, or its first call is still under way.",
        "Use a new key for a new request; wait for `retry-after` where it is given.",
        "409",
    ),
    "idempotency_unavailable": Guide(
        "The place where answers are kept is out of reach, so it cannot be known whether the call under this `Idempotency-Key` was "
        "made before. Nothing was spent.",
        "Ask again after `retry-after`; see `ledger_out_of_reach`.",
        "503",
    ),
    "too_many_concurrent_requests": Guide(
        "The key has as many calls under way as it may.",
        "Repeat it after `retry-after`, or raise the key's `--concurrency` or `server.key_concurrency_max`.",
        "429",
    ),
    "too_many_new_runs": Guide(
        "The key has begun `server.new_runs_per_minute_max` runs within a minute.",
        "Let the calls of one task share a run, or raise the limit.",
        "429",
    ),
    "gateway_busy": Guide(
        "The process has `server.concurrency_max` calls under way, or holds `server.bodies_bytes_max` bytes of requests.",
        "Add a gateway, or raise the limit.",
        "503",
    ),
    "gateway_stopping": Guide(
        "The gateway was told to stop and has waited for this call for as long as it may.",
        "Repeat it: another gateway takes it. Longer answers need a longer `server.drain_seconds`.",
        "503",
    ),
    "upstream_error": Guide(
        "The provider answered with an error of its own, which stands in the message.",
        "It is the provider's to explain. Its status and `retry-after` are passed on.",
        "502, or the provider's",
    ),
    "upstream_unreachable": Guide(
        "No connection to the provider, after all attempts and fallbacks.",
        "Look at `api_base`, DNS, the proxy; `router_settings` says how often is tried.",
        "502",
    ),
    "upstream_timeout": Guide(
        "The provider did not answer in time, or fell silent in mid-stream.",
        "Raise `router_settings.timeout` or `stream_timeout`, or add a fallback.",
        "504",
    ),
    "upstream_broken": Guide(
        "The provider's answer ended too early or is not proper HTTP.",
        "What was relayed is booked. Repeat the call; if it happens often, look at what stands between.",
        "502",
    ),
    "content_policy_violation": Guide(
        "A mock model was told to answer like this.", "Change its `mock_response`.", "400"
    ),
    "loop_detected": Guide(
        "The run's agent repeats itself, and the run was stopped (`loops.repeats`).",
        "Find out why the agent goes round in circles, then `farebox runs resume`; docs/operations.md says what counts.",
        "402",
    ),
    "gateway_ring": Guide(
        "The call has passed too many gateways: the model's `api_base` leads back to this one.",
        "Correct the `api_base` of the model.",
        "508",
    ),
    "internal_error": Guide(
        "A fault of the gateway. The call's hold was given back or booked as far as it went.",
        "The log has `call_failed` or `control_api_failed` with the same request id; please report it.",
        "500",
    ),
}
