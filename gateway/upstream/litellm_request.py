"""Builds the arguments of LiteLLM's functions for one call, and keeps clients from setting LiteLLM's own switches.

LiteLLM takes a request's fields and its own switches (`api_base`, `fallbacks`, `mock_response`, …) as keyword arguments
of the same function. Only fields of the protocol are passed as arguments. Others go into `extra_body`, which LiteLLM
adds to the provider's JSON, and names that LiteLLM would act on are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from gateway.upstream.port import STREAMED, Deployment, ProtocolName, UpstreamCall
from gateway.upstream.providers import PROVIDERS
from gateway.upstream.request import HOPS_HEADER, hops_of, request_defaults

FUNCTIONS: Final[Mapping[ProtocolName, str]] = {
    "chat": "acompletion",
    "completions": "atext_completion",
    "responses": "aresponses",
    "messages": "anthropic_messages",
    "embeddings": "aembedding",
    "moderations": "amoderation",
    "rerank": "arerank",
    "images": "aimage_generation",
    "speech": "aspeech",
    "transcriptions": "atranscription",
}
# For other protocols LiteLLM ignores `extra_headers`, or sends it as a field of the request.
_TAKES_HEADERS: Final = STREAMED | {"embeddings"}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SAMPLING: Final = _names("temperature top_p user stream stream_options n stop max_tokens logprobs seed logit_bias")
_FIELDS: Final[Mapping[ProtocolName, frozenset[str]]] = {
    "chat": _SAMPLING
    | _names(
        "messages functions function_call max_completion_tokens modalities prediction audio presence_penalty"
        " frequency_penalty response_format tools tool_choice top_logprobs parallel_tool_calls reasoning_effort verbosity"
        " thinking web_search_options service_tier safety_identifier prompt_cache_key prompt_cache_retention store top_k"
    ),
    "completions": _SAMPLING | _names("prompt suffix echo best_of presence_penalty frequency_penalty"),
    "responses": _names(
        "input include instructions max_output_tokens prompt metadata parallel_tool_calls previous_response_id reasoning"
        " store background stream temperature text tool_choice tools top_p truncation user service_tier safety_identifier"
    ),
    "messages": _names(
        "max_tokens messages metadata stop_sequences stream system temperature thinking tool_choice tools top_k top_p"
        " container context_management mcp_servers output_config output_format service_tier cache_control"
    ),
    "embeddings": _names("input dimensions encoding_format user"),
    "moderations": _names("input"),
    "rerank": _names("query documents top_n rank_fields return_documents max_chunks_per_doc max_tokens_per_doc"),
    "images": _names(
        "prompt n quality response_format size style user background moderation output_compression output_format"
    ),
    "speech": _names("input voice response_format speed instructions"),
    "transcriptions": _names("file language prompt response_format temperature timestamp_granularities include"),
}
# Names that are dangerous wherever LiteLLM finds them. The prefixes further down mark credentials and endpoints.
_FORBIDDEN: Final = _names(
    "api_base api_key api_version api_type base_url organization project extra_headers extra_query extra_body headers"
    " custom_llm_provider model_list model_info fallbacks context_window_fallback_dict mock_response mock_tool_calls"
    " mock_timeout mock_delay num_retries max_retries timeout request_timeout client shared_session callbacks"
    " success_callback failure_callback logger_fn cache caching input_cost_per_token output_cost_per_token"
    " input_cost_per_second output_cost_per_second proxy_server_request secret_fields prompt_id prompt_variables"
    " region_name ssl_verify use_litellm_proxy use_chat_completions_api provider_specific_header drop_params"
    " allowed_openai_params additional_drop_params deployment_id custom_prompt_dict guardrails silent_model rust"
    " max_agentic_loops model_alias_map hf_model_name tenant_id client_id client_secret"
)
# Names by which some provider limits the length or the number of answers. They would override the protocol's own fields,
# on which the reservation is based.
_LENGTHS: Final = _names(
    "max_tokens max_completion_tokens max_output_tokens n best_of maxOutputTokens maxTokens max_new_tokens max_tokens_to_sample"
    " max_gen_len max_length num_predict candidateCount candidate_count num_generations num_return_sequences numResults"
    " num_outputs generationConfig generation_config inferenceConfig textGenerationConfig"
)
_FORBIDDEN_PREFIXES: Final = ("aws_", "azure_", "vertex_", "litellm_", "s3_", "gcs_", "watsonx_", "sagemaker_", "_")
# Parameters of an entry that LiteLLM must not get. Retries and fallbacks are up to the pipeline, as they may need more budget.
_NOT_FROM_ENTRIES: Final = _names(
    "model mock_response mock_delay mock_delay_ms mock_chunk_delay_ms rpm tpm weight order num_retries max_retries"
    " fallbacks context_window_fallback_dict callbacks success_callback failure_callback cache caching logger_fn"
    " timeout stream_timeout request_timeout max_parallel_requests max_budget budget_duration tags extra_body"
)


# For these providers LiteLLM refuses the number of retries as an unknown parameter of the request. It does not retry their requests.
_REFUSES_RETRIES: Final = frozenset({"gradient_ai"})


def forbidden_field(protocol: ProtocolName, body: Mapping[str, Any]) -> str | None:
    """The first field of a request that would control LiteLLM rather than the model, or allow a longer answer than was
    reserved; None if there is none."""
    lengths = _LENGTHS - _FIELDS[protocol] if protocol in STREAMED else frozenset()
    for name in body:
        if name in _FORBIDDEN or name in lengths or name.startswith(_FORBIDDEN_PREFIXES):
            return name
    return _forbidden_tool(protocol, body.get("tools"))


def call_arguments(
    deployment: Deployment, call: UpstreamCall, key: str | None, timeout_s: float, switches: Collection[str]
) -> dict[str, Any]:
    """Keyword arguments for `FUNCTIONS[call.protocol]`. The body must not contain a `forbidden_field`.

    `switches` are the names that LiteLLM itself acts on. Unknown request fields with such a name never become arguments.
    """
    fields = _FIELDS[call.protocol]
    body = {**request_defaults(deployment, call.body), **call.body}
    arguments = {
        name: value
        for name, value in deployment.params.items()
        # The entry's values for request fields are only defaults: `body` already has those that apply.
        if name not in _NOT_FROM_ENTRIES and name not in _DEFAULTED
    }
    arguments.update({name: value for name, value in body.items() if name in fields and value is not None})
    arguments.update(_unknown(deployment, call, fields, switches))
    if call.protocol in STREAMED:
        arguments["stream"] = call.stream
        if not call.stream:
            arguments.pop("stream_options", None)
    if call.protocol in ("chat", "messages", "responses"):
        arguments["_skip_mcp_handler"] = True
    if key is not None:
        arguments["api_key"] = key
    model = str(deployment.params.get("model") or f"{deployment.provider}/{deployment.model}")
    if call.protocol in _TAKES_HEADERS:
        arguments["extra_headers"] = _headers(deployment, call)
    if deployment.provider not in _REFUSES_RETRIES:
        arguments |= {"num_retries": 0, "max_retries": 0}
    return {**arguments, "model": model, "timeout": timeout_s}


_DEFAULTED: Final = frozenset(
    {"max_tokens", "max_completion_tokens", "max_output_tokens", "temperature", "top_p", "n", "metadata", "stream"}
)


def _unknown(
    deployment: Deployment, call: UpstreamCall, fields: frozenset[str], switches: Collection[str]
) -> dict[str, Any]:
    """Fields that the protocol does not define, in the form in which they reach this provider's JSON.

    LiteLLM's OpenAI clients merge `extra_body` into it. Its other clients send unknown arguments as fields, and would send
    `extra_body` as a field of that name.
    """
    configured = deployment.params.get("extra_body")
    unknown = {name: value for name, value in call.body.items() if name not in fields and name != "model"}
    if deployment.provider not in ("openai", "azure"):
        unknown.pop("metadata", None)  # only these two support it; LiteLLM would keep it for its logs
    extra = {**(dict(configured) if isinstance(configured, Mapping) else {}), **unknown}
    if not extra:
        return {}
    if deployment.provider in ("azure", *PROVIDERS) and deployment.provider != "anthropic":
        return {"extra_body": extra}
    return {name: value for name, value in extra.items() if name not in switches}


def _headers(deployment: Deployment, call: UpstreamCall) -> dict[str, str]:
    configured = deployment.params.get("extra_headers")
    headers = {str(name): str(value) for name, value in configured.items()} if isinstance(configured, Mapping) else {}
    return {**call.headers, **headers, HOPS_HEADER: str(hops_of(call.headers) + 1)}


def _forbidden_tool(protocol: ProtocolName, tools: Any) -> str | None:
    """Tools that would make LiteLLM start further model calls by itself, for which nothing is reserved."""
    for tool in tools if isinstance(tools, list) else ():
        if not isinstance(tool, Mapping):
            continue
        if str(tool.get("server_url", "")).startswith("litellm_proxy"):
            return "tools.server_url"
        if protocol == "responses" and tool.get("type") == "file_search":
            return "tools.type=file_search"
    return None
