"""Adapts a configuration file for LiteLLM's proxy: what has a meaning here, and what is reported as ignored.

    model_list            unchanged; credentials of `credential_list` are merged into the entries that name them
    router_settings       the keys for forwarding; aliases become models, default fallbacks become a fallback of `*`
    litellm_settings      how requests are translated, and the keys that LiteLLM accepts here for its router
    environment_variables set before anything reads the environment
    the rest              ignored, with a warning that names it: keys, spending, caches and logs are Farebox's own

A section that LiteLLM does not know either, or such a key of router_settings, is left in place, and is an error like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.config.marked_yaml import Path


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Sections of LiteLLM's proxy that Farebox does not use.
_SECTIONS: Final[Mapping[str, str]] = {
    "general_settings": "Farebox has its own keys (farebox keys create), store and alerts",
    "guardrails": "Farebox has no guardrails: put them before it or behind it",
    **dict.fromkeys(
        _names(
            "assistant_settings callback_settings files_settings finetune_settings mcp_servers mcp_aliases mcp_tools agent_list"
            " agents policies policy_attachments prompts sandbox_tools search_tools vector_store_registry vector_stores"
            " default_team_settings default_internal_user_params pass_through_endpoints worker_startup_hooks"
        ),
        "Farebox forwards model calls only",
    ),
}
# Keys of LiteLLM's Router that Farebox does not support.
_ROUTER: Final = _names(
    "alerting_config allowed_fails_policy assistants_config auto_router_capability_limit background_health_check_model_groups"
    " cache_kwargs cache_responses caching_groups client_ttl content_policy_fallbacks debug_level"
    " default_litellm_params default_max_parallel_requests default_priority deployment_affinity_ttl_seconds"
    " enable_health_check_routing enable_pre_call_checks enable_tag_filtering enable_weighted_failover fallback_access_check"
    " fallback_budget_check guardrail_list health_check_ignore_transient_errors health_check_staleness_threshold"
    " ignore_invalid_deployments max_fallbacks max_retries model_group_affinity_config model_group_retry_policy"
    " optional_pre_call_checks plugins polling_interval provider_budget_config redis_db redis_host redis_password redis_port"
    " redis_url retry_policy router_general_settings routing_groups routing_strategy_args search_tools set_verbose"
    " tag_filtering_match_any tag_routing_prefix weights"
)
_OTHER_STRATEGIES: Final = _names(
    "usage-based-routing usage-based-routing-v2 latency-based-routing cost-based-routing provider-budget-routing"
)
# Keys of litellm_settings that are for the router, with their names there.
_FOR_ROUTER: Final[Mapping[str, str]] = {
    "num_retries": "num_retries",
    "request_timeout": "timeout",
    "allowed_fails": "allowed_fails",
    "cooldown_time": "cooldown_time",
    "fallbacks": "fallbacks",
    "context_window_fallbacks": "context_window_fallbacks",
    "default_fallbacks": "default_fallbacks",
}
_DEPLOYMENT_LIMITS: Final = ("max_budget", "budget_duration", "max_parallel_requests")
LITELLM_SETTINGS: Final = _names("drop_params modify_params")


@dataclass(slots=True)
class Adopted:
    """A file's data, converted for Farebox. `ignored` and `faults` are sentences with their places; `origins` maps paths of
    moved data to where the file has it."""

    data: dict[str, Any]
    ignored: list[tuple[Path, str]] = field(default_factory=list)
    faults: list[tuple[Path, str]] = field(default_factory=list)
    origins: dict[Path, Path] = field(default_factory=dict)


def adopt(data: Mapping[str, Any]) -> Adopted:
    """Changes nothing in a file without keys of LiteLLM's own."""
    adopted = Adopted(dict(data))
    if "include" in data:
        adopted.faults.append((("include",), "put the files that it names into this one"))
        del adopted.data["include"]
    for section, reason in _SECTIONS.items():
        if section in adopted.data:
            section_value = adopted.data.pop(section)
            if section_value:
                field_names = f" ({', '.join(map(str, section_value))})" if isinstance(section_value, Mapping) else ""
                adopted.ignored.append(((section,), f"ignored{field_names}: {reason}"))
    _report_limits(adopted)
    _adopt_litellm_settings(adopted)
    _adopt_router_settings(adopted)
    _adopt_credentials(adopted)
    return adopted


def _section(adopted: Adopted, name: str) -> dict[str, Any] | None:
    """A copy of the section without null values, which replaces it; None if there is no readable one."""
    section_value = adopted.data.get(name, _ABSENT)
    if section_value is None:
        del adopted.data[name]
    if not isinstance(section_value, Mapping):
        return None
    section = {key: value for key, value in section_value.items() if value is not None}
    adopted.data[name] = section
    return section


_ABSENT: Final = object()


def _adopt_litellm_settings(adopted: Adopted) -> None:
    settings = _section(adopted, "litellm_settings")
    if settings is None:
        return
    moved = {name: settings.pop(name) for name in list(settings) if name in _FOR_ROUTER}
    router = adopted.data.get("router_settings")
    if moved and (router is None or isinstance(router, Mapping)):
        adopted.data["router_settings"] = {
            **{_FOR_ROUTER[name]: value for name, value in moved.items()},
            **(router or {}),
        }
        for name in moved:
            if _FOR_ROUTER[name] not in (router or {}):
                adopted.origins["router_settings", _FOR_ROUTER[name]] = ("litellm_settings", name)
    server = adopted.data.get("server")
    if settings.pop("require_auth_for_metrics_endpoint", None) is True and (
        server is None or isinstance(server, Mapping)
    ):
        adopted.data["server"] = {"metrics_auth": True, **(server or {})}
    _leave_out_budget(adopted, settings)
    left_out = [name for name in settings if name not in LITELLM_SETTINGS]
    for name in left_out:
        del settings[name]
    if left_out:
        reason = "Farebox keeps its own books, logs and cache (model_info.cache_ttl_seconds)"
        adopted.ignored.append((("litellm_settings",), f"ignored {', '.join(left_out)}: {reason}"))


def _leave_out_budget(adopted: Adopted, settings: dict[str, Any]) -> None:
    """The proxy's own budget. It is reported separately, with what to write instead, because its windows differ."""
    limit, _ = settings.pop("max_budget", None), settings.pop("budget_duration", None)
    if limit is not None:
        budget = f"{{scope: project, usd: {limit}, window: month}}"
        reason = f"ignored: write `budgets: [{budget}]`, with the window that you want"
        adopted.ignored.append((("litellm_settings", "max_budget"), reason))


def _adopt_router_settings(adopted: Adopted) -> None:
    router = _section(adopted, "router_settings")
    if router is None:
        return
    strategy = router.get("routing_strategy")
    if strategy in _OTHER_STRATEGIES:
        router["routing_strategy"] = "least-busy"
        reason = f"{strategy} is not offered; least-busy is used"
        adopted.ignored.append((("router_settings", "routing_strategy"), reason))
    if router.pop("disable_cooldowns", False):
        router["cooldown_time"] = 0
    everything = router.pop("default_fallbacks", None)
    if isinstance(everything, list):
        fallbacks = _listed(router.get("fallbacks"))
        router["fallbacks"] = [*fallbacks, {"*": everything}]
        adopted.origins["router_settings", "fallbacks", len(fallbacks), "*"] = ("router_settings", "default_fallbacks")
    aliases = router.pop("model_group_alias", None)
    if isinstance(aliases, Mapping):
        adopted.data["model_list"] = _with_aliases(adopted, aliases)
    left_out = [name for name in router if name in _ROUTER]
    for name in left_out:
        del router[name]
    if left_out:
        adopted.ignored.append((("router_settings",), f"ignored {', '.join(left_out)}: Farebox has nothing like it"))


def _report_limits(adopted: Adopted) -> None:
    """Limits of single deployments: ignoring one silently would break it."""
    for position, entry in enumerate(_listed(adopted.data.get("model_list"))):
        params = entry.get("litellm_params") if isinstance(entry, Mapping) else None
        limit_names = [
            name for name in _DEPLOYMENT_LIMITS if isinstance(params, Mapping) and params.get(name) is not None
        ]
        if limit_names:
            reason = "budgets are put on runs, keys and projects here, not on deployments"
            adopted.ignored.append(
                (("model_list", position, "litellm_params"), f"ignored {', '.join(limit_names)}: {reason}")
            )


def _with_aliases(adopted: Adopted, aliases: Mapping[str, Any]) -> list[Any]:
    """The entries, plus a copy under each alias of the entries that it stands for."""
    entries = _listed(adopted.data.get("model_list"))
    all_entries = list(entries)
    for alias, stands_for in aliases.items():
        name = stands_for.get("model") if isinstance(stands_for, Mapping) else stands_for
        targets = [
            (position, entry)
            for position, entry in enumerate(entries)
            if isinstance(entry, Mapping) and entry.get("model_name") == name
        ]
        for position, entry in targets:
            adopted.origins["model_list", len(all_entries)] = ("model_list", position)
            all_entries.append({**entry, "model_name": alias, **_hidden(stands_for, entry)})
        if not targets:
            path = ("router_settings", "model_group_alias", alias)
            adopted.faults.append((path, f"stands for {name!r}, which model_list does not have"))
    return all_entries


def _hidden(stands_for: Any, entry: Mapping[str, Any]) -> dict[str, Any]:
    """LiteLLM's `hidden: true`: the alias can be called, but is in no list of models."""
    if not isinstance(stands_for, Mapping) or not stands_for.get("hidden"):
        return {}
    info = entry.get("model_info")
    return {"model_info": {**(info if isinstance(info, Mapping) else {}), "hidden": True}}


def _adopt_credentials(adopted: Adopted) -> None:
    credentials = _listed(adopted.data.pop("credential_list", None))
    if not isinstance(adopted.data.get("model_list"), list):
        return
    credential_by_name = {
        credential.get("credential_name"): (number, values)
        for number, credential in enumerate(credentials)
        if isinstance(credential, Mapping) and isinstance(values := credential.get("credential_values") or {}, Mapping)
    }
    entries = [dict(entry) if isinstance(entry, Mapping) else entry for entry in adopted.data["model_list"]]
    for position, entry in enumerate(entries):
        params = entry.get("litellm_params") if isinstance(entry, dict) else None
        if not isinstance(params, Mapping) or "litellm_credential_name" not in params:
            continue
        name = params["litellm_credential_name"]
        if name not in credential_by_name:
            name_path = ("model_list", position, "litellm_params", "litellm_credential_name")
            adopted.faults.append((name_path, f"{name!r} is not in credential_list"))
            continue
        number, values = credential_by_name[name]
        own_params = {key: value for key, value in params.items() if key != "litellm_credential_name"}
        entry["litellm_params"] = {**values, **own_params}
        for key in values.keys() - own_params.keys():
            path = ("model_list", position, "litellm_params", key)
            adopted.origins[path] = ("credential_list", number, "credential_values", key)
    adopted.data["model_list"] = entries


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
