"""Every error code that a client can receive."""

from __future__ import annotations

from typing import Final

from gateway.error_guide.guide import Guide
from policies.budgets import Scope


def _scope_codes() -> dict[str, Guide]:
    """Every scope has two codes of its own."""
    codes: dict[str, Guide] = {}
    for scope in Scope:
        codes[f"{scope}_budget_exceeded"] = Guide(
            f"The {scope}'s budget has less left than this call needs, and nothing that its `on_pressure` allows makes the call "
            "fit. 402: the budget does not renew; 429: it renews after `retry-after` seconds.",
            f"Raise the budget of the {scope}, cap the output with `max_tokens`, or send less context. "
            "`metadata` names the budget, its limit, what is left and what the call needs.",
            "402, 429",
        )
        codes[f"{scope}_budget_busy"] = Guide(
            f"The {scope}'s budget is large enough, but calls in flight hold what this one needs.",
            "Retry after `retry-after` (the SDKs do so by themselves), or cap the output of each call: an uncapped call holds its "
            "model's maximum. With the rung `wait` in `on_pressure`, the gateway waits instead.",
            "429",
        )
    return codes


CODES: Final[dict[str, Guide]] = _scope_codes() | {
    "budget_exceeded": Guide("A budget refuses the call.", "Read `metadata`: it names the budget.", "402"),
    "request_exceeds_budget": Guide(
        "The call's worst case exceeds the whole budget, so it would not fit even if nothing had been spent.",
        "Send less context, cap the output with `max_tokens`, allow `clamp` in the budget's `on_pressure`, or raise the budget.",
        "402",
    ),
    "run_paused": Guide("Somebody paused the run.", "Resume it: `farebox runs resume RUN`.", "402; control API 409"),
    "run_cancelled": Guide(
        "Somebody cancelled the run.", "Start a new run; this one stays cancelled.", "402; control API 409"
    ),
    "run_completed": Guide(
        "The run was completed.", "Start a new run; this one stays completed.", "402; control API 409"
    ),
    "unpriced_model": Guide(
        "A budget limits money, and the price of this model is unknown. An unknown price never means free.",
        "Enter `input_cost_per_token` and `output_cost_per_token` under the model's `model_info`. For a model that is not billed by "
        "tokens, enter its `mode` (such as `rerank`, `image_generation`, `audio_transcription`) and LiteLLM's field for its price "
        "(`input_cost_per_query`, `output_cost_per_image`, `input_cost_per_second`).",
        "400",
    ),
    "ledger_unavailable": Guide(
        "The ledger is unreachable, and the call has an enforced budget.",
        "Bring Redis back, or the disk or file of the embedded ledger (`/readyz?verbose` gives the reason); calls are admitted again "
        "within a second. With `on_outage: allow`, a budget's calls go on while Redis is away.",
        "503",
    ),
    "outbox_full": Guide(
        "The store has been unreachable for so long that no more usage can be kept for it; enforced calls would go unrecorded.",
        "Bring the store back, or raise `storage.outbox_cap`.",
        "503",
    ),
    "store_unavailable": Guide(
        "The control API or an admin page needs the store, which does not answer. Model calls go on, unless the gateway has not reached "
        "the store since it started, because then it knows no API keys.",
        "Check Postgres, or the disk of the SQLite file.",
        "503",
    ),
    "invalid_api_key": Guide(
        "No key, or one that is unknown, revoked or expired.",
        "Send `Authorization: Bearer fb_…`; `farebox keys list` lists the keys.",
        "401",
    ),
    "permission_denied": Guide(
        "The key is valid, but may not do this: an admin key cannot call models, a key for calls cannot administer, and a viewer cannot "
        "change anything.",
        "Use a key with another role: `farebox keys create`.",
        "403",
    ),
    "model_not_allowed": Guide(
        "The key is limited to other models.", "Use one of its models, or create a key with `--model`.", "403"
    ),
    "model_not_found": Guide(
        "`model_list` has no model of this name.",
        "`GET /v1/models` lists the names. You choose them: a provider's name works only if an entry has it as `model_name`.",
        "404",
    ),
    "no_route": Guide(
        "`model: auto` found no model that this call may use.",
        "List models under `tiers`, and check whether the key may use them.",
        "400",
    ),
    "not_found": Guide(
        "There is nothing at this path or with this name.", "`/api/openapi.json` lists the paths.", "404"
    ),
    "run_not_found": Guide(
        "The project has no run of this id.",
        "`farebox runs list` lists the runs; a run belongs to the project of the key that began it.",
        "404",
    ),
    "run_busy": Guide(
        "The run cannot be reset while its calls are in flight.", "Wait for them, or pause the run first.", "409"
    ),
    "run_nested": Guide(
        "The run shares its budget with runs inside or around it, so it cannot be reset alone.",
        "Raise its budget instead: `farebox runs budget RUN`.",
        "409",
    ),
    "run_of_other_workflow": Guide(
        "The run has begun under another workflow, and a run belongs to one. Calls that name it under another workflow spend from it, too.",
        "Announce it under the workflow that the message names, or choose another id.",
        "409",
    ),
    "budget_of_file": Guide(
        "The budget is defined in the configuration file, and only there.", "Change it there and restart.", "409"
    ),
    "key_revoked": Guide("A revoked key stays revoked.", "Create a new one: `farebox keys create`.", "409"),
    "key_name_taken": Guide(
        "The project has another key of this name, and one of the two has a budget of its own, which is identified by the name.",
        "`farebox keys rotate` gives that key a new secret, and `farebox keys set` new limits; or choose another name.",
        "409",
    ),
    "ambiguous_name": Guide("Several keys have this name.", "Name the key by its id: `farebox keys list`.", "409"),
    "nothing_to_suggest": Guide(
        "No run of the workflow has finished in the last 30 days, so there is nothing to learn a budget from.",
        "Let it run for a while; in `mode: observe`, nothing is refused.",
        "409",
    ),
    "conflicting_settings": Guide(
        "The value would contradict another setting.", "The message names both; change the other one first.", "400"
    ),
    "invalid_request": Guide("The request is not what the endpoint expects.", "The message says why.", "400"),
    "invalid_json": Guide("The body is not a single JSON object.", "Send one, in UTF-8, without NaN.", "400"),
    "invalid_form": Guide("The body is not a form that the endpoint accepts.", "Send `multipart/form-data`.", "400"),
    "invalid_value": Guide(
        "A field has a value that it cannot have.", "`param` names the field, and the message gives its range.", "400"
    ),
    "missing_field": Guide("A required field is missing.", "`param` names it.", "400"),
    "duplicate_key": Guide(
        "A field occurs twice in the body. Two parsers could read different calls, and the cheaper one could be priced.",
        "Send it once.",
        "400",
    ),
    "forbidden_field": Guide(
        "The field would choose the upstream's host, credential, transport or price, which only the configuration does.",
        "Remove it, and set it under `litellm_params` of the model.",
        "400",
    ),
    "field_not_allowed": Guide(
        "LiteLLM would take the field as a setting of its own, or a provider would use it to answer with more than is reserved.",
        "Remove it, use the protocol's own field, or set it in `litellm_params`.",
        "400",
    ),
    "unsupported_endpoint": Guide(
        "The model's provider does not have this endpoint (images, speech, rerank, …). The mock model only has texts and"
        " embeddings.",
        "Use a model of a provider that has it.",
        "400",
    ),
    "unsupported_field": Guide(
        "`previous_response_id`, `conversation` or `prompt` was used with a model whose provider keeps no history: the model"
        " would be asked without it.",
        "Send the earlier items as `input`, or use a model whose provider speaks Responses.",
        "400",
    ),
    "invalid_header": Guide(
        "A header has an invalid value, occurs twice, or would choose where the call goes.",
        "The message names it. Tags match `[A-Za-z0-9._:@/-]{1,128}`, without `.` or `..` alone between slashes.",
        "400",
    ),
    "headers_too_large": Guide(
        "More than 100 headers, or more than 32 KiB of them.", "Send fewer; long context belongs in the body.", "431"
    ),
    "invalid_http": Guide(
        "The request is not valid HTTP/1.1, or its framing is many times its content.",
        "Check the client, or a proxy in between.",
        "400",
    ),
    "invalid_path": Guide(
        "The path is not in its plain form (encoded slashes, dots or double slashes), or a tag in it has forbidden characters.",
        "Send the path in its plain form.",
        "400",
    ),
    "method_not_allowed": Guide("The path does not support this method.", "`allow` lists the supported ones.", "405"),
    "request_timeout": Guide(
        "The headers did not arrive within `server.header_seconds`, or the body within 60 s.",
        "Check the network, or send less.",
        "408",
    ),
    "request_too_large": Guide(
        "The body is larger than `server.body_bytes_max` (32 MiB).", "Send less, or raise the limit.", "413"
    ),
    "unsupported_encoding": Guide("The body is compressed.", "Send it without `content-encoding`.", "415"),
    "unsupported_media_type": Guide("An admin page received something other than a form.", "Use the page.", "415"),
    "foreign_form": Guide(
        "A page of another origin tried to send a form to the admin pages.",
        "Open the admin page itself; if there is a proxy, it must pass `host` unchanged.",
        "403",
    ),
    "foreign_origin": Guide(
        "A web page from another site called a model without an API key, as any page in a browser on this machine could.",
        "Let the page use a key: `farebox keys create`.",
        "403",
    ),
    "too_many_attempts": Guide(
        "Too many wrong keys from one address, or failed logins of one name from it (a whole address or name is locked out much later).",
        "Wait for `retry-after` seconds.",
        "429",
    ),
    "idempotency_conflict": Guide(
        "The `Idempotency-Key` was used for another request, or its first call is still in flight.",
        "Use a new key for a new request; if there is a `retry-after`, wait that long.",
        "409",
    ),
    "idempotency_unavailable": Guide(
        "The storage of kept answers is unreachable, so the gateway cannot know whether the call with this `Idempotency-Key` was "
        "made before. Nothing was spent.",
        "Retry after `retry-after`; see `ledger_out_of_reach`.",
        "503",
    ),
    "too_many_concurrent_requests": Guide(
        "The key has reached its limit of concurrent calls.",
        "Retry after `retry-after`, or raise the key's `--concurrency` or `server.key_concurrency_max`.",
        "429",
    ),
    "too_many_new_runs": Guide(
        "The key has begun `server.new_runs_per_minute_max` runs within a minute.",
        "Let the calls of one task share a run, or raise the limit.",
        "429",
    ),
    "gateway_busy": Guide(
        "The process has `server.concurrency_max` calls in flight, or holds `server.bodies_bytes_max` bytes of request bodies.",
        "Add a gateway, or raise the limit.",
        "503",
    ),
    "gateway_stopping": Guide(
        "The gateway is stopping, and no longer waits for the call.",
        "Retry: another gateway takes the call. Longer answers need a larger `server.drain_seconds`.",
        "503",
    ),
    "upstream_error": Guide(
        "The provider answered with an error, which is in the message.",
        "See the provider's documentation. Its status and `retry-after` are passed on.",
        "502, or the provider's",
    ),
    "upstream_unreachable": Guide(
        "The provider could not be reached, after all attempts and fallbacks.",
        "Check `api_base`, DNS, and any proxy in between; `router_settings` sets the number of attempts.",
        "502",
    ),
    "upstream_timeout": Guide(
        "The provider did not answer in time, or went silent in the middle of a stream.",
        "Raise `router_settings.timeout` or `stream_timeout`, or add a fallback.",
        "504",
    ),
    "upstream_broken": Guide(
        "The provider's answer ended too early, is not valid HTTP or JSON, or has no answer in it.",
        "What was relayed is booked, or the prompt if nothing was. Retry the call; if it happens often, check what is between the "
        "gateway and the provider.",
        "502",
    ),
    "content_policy_violation": Guide(
        "A mock model is configured to answer like this.", "Change its `mock_response`.", "400"
    ),
    "loop_detected": Guide(
        "The run's agent repeats itself, and the run was stopped (`loops.repeats`).",
        "Find out why the agent goes round in circles, then `farebox runs resume`; docs/operations.md says what counts.",
        "402",
    ),
    "gateway_ring": Guide(
        "The call has passed through too many gateways: the model's `api_base` leads back to this one.",
        "Correct the `api_base` of the model.",
        "508",
    ),
    "internal_error": Guide(
        "A fault of the gateway. The call's hold was released, or booked as far as the call went.",
        "The log has `call_failed` or `control_api_failed` with the same request id; please report it.",
        "500",
    ),
}
