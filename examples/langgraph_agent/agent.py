"""A LangGraph agent that searches in circles, and the budget that ends it with an answer instead of a bill.

The graph has an exit for when the budget is used up: `conclude` answers from what was found. Offline, the model always asks for
another search, as a real one does on a bad day.
"""

from __future__ import annotations

import os
import uuid
from typing import Annotated, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from openai import APIStatusError

RUN = os.environ.get("RUN_ID", f"research-{uuid.uuid4().hex[:8]}")


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    refusal: str


@tool
def search(query: str) -> str:
    """Search travel pages."""
    return f"Three pages about {query}: a garden above the river, a library with a courtyard, a chapel nobody visits."


llm = ChatOpenAI(
    model="searcher",
    base_url=os.environ.get("FAREBOX_BASE_URL", "http://127.0.0.1:4000/v1"),
    api_key=os.environ.get("FAREBOX_KEY", "local"),  # type: ignore[arg-type]
    include_response_headers=True,
    default_headers={
        "x-workflow-id": "example-research",
        "x-workflow-run-id": RUN,
        "x-workflow-step": "think",
    },
).bind_tools([search])


def think(state: State) -> dict[str, object]:
    try:
        answer = llm.invoke(state["messages"])
    except APIStatusError as error:
        if error.status_code != 402:
            raise
        return {"refusal": f"{error.code}: {error.body['message']}"}  # type: ignore[index]
    headers = answer.response_metadata["headers"]
    print(f"think: {headers.get('x-budget-actions', 'as asked')}, {headers['x-budget-run-remaining']} tokens left")
    return {"messages": [answer]}


def act(state: State) -> dict[str, object]:
    last = state["messages"][-1]
    calls = last.tool_calls if isinstance(last, AIMessage) else []
    return {"messages": [ToolMessage(search.invoke(call["args"]), tool_call_id=f"{call['id']}") for call in calls]}


def conclude(state: State) -> dict[str, object]:
    """Answer without a model: the budget is used up, but what was found is still useful."""
    found = [str(message.content) for message in state["messages"] if isinstance(message, ToolMessage)]
    print(f"conclude: {state['refusal']}")
    return {"messages": [AIMessage(f"After {len(found)} searches: {found[-1] if found else 'nothing was found'}")]}


def next_node(state: State) -> str:
    if state.get("refusal"):
        return "conclude"
    last = state["messages"][-1]
    return "act" if isinstance(last, AIMessage) and last.tool_calls else END


graph = StateGraph(State)
graph.add_node("think", think)
graph.add_node("act", act)
graph.add_node("conclude", conclude)
graph.add_edge(START, "think")
graph.add_conditional_edges("think", next_node, ["act", "conclude", END])
graph.add_edge("act", "think")
graph.add_edge("conclude", END)

question = HumanMessage("Where in Lisbon is it quiet on a Sunday?")
# LangGraph's own recursion limit counts steps; the budget counts what they cost.
result = graph.compile().invoke({"messages": [question], "refusal": ""}, {"recursion_limit": 100})
print(result["messages"][-1].content)
