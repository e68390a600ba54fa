"""How to point a client at Farebox and tag its calls: one snippet per client, in `snippets/`.

`farebox env --client NAME` prints a snippet, docs/clients.md shows them all, and the tests of `tests/clients` run them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Final


@dataclass(frozen=True, slots=True)
class SnippetValues:
    """The values that are filled into a snippet. `url` is the gateway's address, without a path."""

    url: str = "http://127.0.0.1:4000"
    key: str = "local"
    model: str = "mock"
    workflow: str = "my-workflow"
    run: str = "run-1"
    step: str = "draft"


@dataclass(frozen=True, slots=True)
class Client:
    title: str
    language: str  # of the snippet, as Markdown names it
    install: str = ""  # the command that installs the client, if there is a common one
    refusal: str = ""  # what the client shows or raises on a refusal, unless it simply shows the message
    note: str = ""


CLIENTS: Final[dict[str, Client]] = {
    "openai-python": Client(
        "OpenAI SDK for Python",
        "python",
        "pip install openai",
        "`openai.APIStatusError` with `status_code` 402, or `openai.RateLimitError` for a budget that renews; `.code` and "
        "`.body['metadata']` name the budget.",
        "The same works for Responses, embeddings and completions; `AsyncOpenAI` takes the same arguments.",
    ),
    "openai-node": Client(
        "OpenAI SDK for Node",
        "javascript",
        "npm install openai",
        "`OpenAI.APIError` with `status` 402, or `OpenAI.RateLimitError`; `.code` and `.error.metadata` name the budget.",
    ),
    "anthropic-python": Client(
        "Anthropic SDK for Python",
        "python",
        "pip install anthropic",
        "`anthropic.PaymentRequiredError`, or `anthropic.RateLimitError` for a budget that renews.",
        "The base URL has no `/v1`. The model may be from any provider: calls to others than Anthropic are translated.",
    ),
    "anthropic-node": Client(
        "Anthropic SDK for Node",
        "javascript",
        "npm install @anthropic-ai/sdk",
        "`Anthropic.APIError` with `status` 402, or `Anthropic.RateLimitError`.",
        "The base URL has no `/v1`.",
    ),
    "langchain": Client(
        "LangChain",
        "python",
        "pip install langchain-openai",
        "`openai.APIStatusError`, unwrapped.",
        "`stream_usage=True` shows the usage of streams; Farebox counts it either way.",
    ),
    "llamaindex": Client(
        "LlamaIndex", "python", "pip install llama-index-llms-openai-like", "`openai.APIStatusError`, unwrapped."
    ),
    "crewai": Client("CrewAI", "python", "pip install crewai", "CrewAI's own error, with the message in its text."),
    "openai-agents": Client(
        "OpenAI Agents SDK",
        "python",
        "pip install openai-agents",
        "`openai.APIStatusError`, unwrapped.",
        'It uses Responses by default; `set_default_openai_api("chat_completions")` switches it to chat completions.',
    ),
    "pydantic-ai": Client(
        "Pydantic AI",
        "python",
        'pip install "pydantic-ai-slim[openai]"',
        "`pydantic_ai.exceptions.ModelHTTPError` with `status_code` 402 and the error object as `body`.",
    ),
    "litellm": Client(
        "LiteLLM as a client",
        "python",
        'pip install "litellm[mcp]"',
        "`litellm.APIError` with the message.",
        "Without its extra `mcp`, LiteLLM 1.106 fails on calls with tools.",
    ),
    "vercel-ai": Client(
        "Vercel AI SDK",
        "javascript",
        "npm install ai @ai-sdk/openai-compatible",
        "`APICallError` with `statusCode` 402 and `isRetryable` false.",
    ),
    "llm": Client("llm", "yaml", "pip install llm", "`Error:` with the message, exit code 1."),
    "claude-code": Client(
        "Claude Code", "bash", "", "", "The model may be any model of the configuration, from any provider."
    ),
    "codex": Client("Codex", "toml"),
    "aider": Client(
        "aider",
        "bash",
        "pip install aider-chat",
        "the message, repeatedly for a minute: LiteLLM turns a 402 into its `APIError`, which aider 0.86 takes for a transient"
        " error. Each retry is refused and costs nothing; Ctrl-C ends it.",
        "The path carries the tags. Headers work, too, and take precedence: `extra_params: {extra_headers: {...}}` of the model"
        " in `.aider.model.settings.yml`.",
    ),
    "cursor": Client("Cursor", "text"),
    "open-webui": Client("Open WebUI", "bash", "pip install open-webui"),
    "n8n": Client("n8n", "text"),
    "curl": Client("curl", "bash"),
}


def snippet(name: str, values: SnippetValues) -> str:
    """The snippet of a client of `CLIENTS`. Raises `KeyError` for any other name."""
    if name not in CLIENTS:
        raise KeyError(name)
    text = (files("gateway.cli") / "snippets" / f"{name}.txt").read_text()
    for part in fields(SnippetValues):
        text = text.replace("{{" + part.name + "}}", getattr(values, part.name))
    return text


def clients_page() -> str:
    """The text of docs/clients.md: an introduction, then every client."""
    text = (files("gateway.cli") / "snippets" / "clients.md").read_text()
    return text.rstrip() + "\n" + "".join(_section(name, client) for name, client in CLIENTS.items())


def _section(name: str, client: Client) -> str:
    parts = [f"\n## {client.title}\n"]
    if client.install:
        parts.append(f"`{client.install}`\n")
    parts.append(f"```{client.language}\n{snippet(name, SnippetValues())}```\n")
    parts += [f"{client.note}\n"] if client.note else []
    parts += [f"On a refusal: {client.refusal}\n"] if client.refusal else []
    return "\n".join(parts)
