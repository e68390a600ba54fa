"""Compose the sentences that the intent classifier is trained and tested on.

    python -m bench.compose_intents

reads the individually written steps (`bench/intents/written_*.txt`) and the templates (`bench/intents/templates.json`),
and writes `train.jsonl` and `heldout.jsonl` beside them. Every fifth written step is held out, chosen by the hash of its
text, so that adding a sentence moves no other. The random generator is seeded: the same sources give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "intents"
SEED = 20_261_122
PER_INTENT = 150
# Agents ask for `generate` most often, and the model's prior should reflect that.
PER_INTENT_OF = {"generate": 220}
_SLOT = re.compile(r"\{(\w+)\}")

Step = dict[str, Any]


def written_steps() -> Iterator[Step]:
    """The steps of the text files: `step ¦ system ¦ prompt ¦ tools ¦ response format` under a line `== intent`."""
    for path in sorted(FOLDER.glob("written_*.txt")):
        label = ""
        for line in path.read_text("utf-8").splitlines():
            if line.startswith("== "):
                label = line[3:].strip()
            elif line and not line.startswith("#"):
                parts = [None if part.strip() == "-" else part.strip().replace("\\n", "\n") for part in line.split("¦")]
                name, system, prompt, tools, shape = (*parts, None, None, None, None)[:5]
                yield _step(label, "written", name, system, prompt or "", tools.split(", ") if tools else [], shape)


def template_steps(templates: dict[str, Any], chance: random.Random) -> Iterator[Step]:
    """Composed steps, in the styles of agent frameworks."""
    for label, parts in templates["intents"].items():
        styles = _styles()
        for number in range(PER_INTENT_OF.get(label, PER_INTENT)):
            style = styles[number % len(styles)]
            yield style(label, parts, templates, chance)


def _styles() -> list[Any]:
    return [
        _plain,
        _with_data,
        _by_role,
        _node,
        _plain,
        _crew,
        _markdown,
        _with_data,
        _request,
        _structured,
        _by_role,
        _node,
        _buried,
    ]


def _plain(label: str, parts: dict[str, Any], all_parts: dict[str, Any], chance: random.Random) -> Step:
    prompt = _fill(chance.choice(parts["asks"]), all_parts, chance)
    if chance.random() < 0.4:
        prompt += " " + _fill(chance.choice(all_parts["padding"]), all_parts, chance)
    return _step(label, "template", _name(parts, all_parts, chance), None, prompt, [], None)


def _with_data(label: str, parts: dict[str, Any], all_parts: dict[str, Any], chance: random.Random) -> Step:
    """The system prompt has the instruction; the user's message is data about other things."""
    ask = _fill(chance.choice(parts["asks"]), all_parts, chance)
    opener = f"You are {_fill(chance.choice(parts['roles']), all_parts, chance)}. " if chance.random() < 0.5 else ""
    tools = [chance.choice(parts["tools"])] if chance.random() < 0.2 else []
    return _step(
        label, "template", _name(parts, all_parts, chance), opener + ask, chance.choice(all_parts["data"]), tools, None
    )


def _by_role(label: str, parts: dict[str, Any], all_parts: dict[str, Any], chance: random.Random) -> Step:
    role = _fill(chance.choice(parts["roles"]), all_parts, chance)
    prompt = (
        _fill(chance.choice(parts["asks"]), all_parts, chance)
        if chance.random() < 0.7
        else chance.choice(all_parts["data"])
    )
    return _step(label, "template", _name(parts, all_parts, chance), f"You are {role}.", prompt, [], None)


def _node(label: str, parts: dict[str, Any], all_parts: dict[str, Any], chance: random.Random) -> Step:
    name = chance.choice(parts["node_names"]).replace("{t}", chance.choice(all_parts["neutral_things"]))
    return _step(label, "template", name[0].upper() + name[1:], None, "", [], None)


def _crew(label: str, parts: dict[str, Any], all_parts: dict[str, Any], chance: random.Random) -> Step:
    ask = _fill(chance.choice(parts["asks"]), all_parts, chance)
    more = _fill(chance.choice(all_parts["padding"]), all_parts, chance)
    product = _fill(chance.choice(parts["products"]), all_parts, chance)
    return _step(
        label,
        "template",
        _name(parts, all_parts, chance),
        None,
        f"{ask} {more}\n\nExpected output: {product}",
        [],
        None,
    )


def _markdown(label: str, parts: dict[str, Any], all_parts: dict[str, Any], chance: random.Random) -> Step:
    role = _fill(chance.choice(parts["roles"]), all_parts, chance)
    ask, also = (_fill(text, all_parts, chance) for text in chance.sample(parts["asks"], 2))
    product = _fill(chance.choice(parts["products"]), all_parts, chance)
    padding = _fill(chance.choice(all_parts["padding"]), all_parts, chance)
    system = f"# IDENTITY and PURPOSE\n\nYou are {role}. {padding}\n\n# STEPS\n\n- {ask}\n- {also}"
    system += f"\n\n# OUTPUT\n\n- {product}\n\n# INPUT\n\nINPUT:"
    return _step(label, "template", _name(parts, all_parts, chance), system, "", [], None)


def _request(label: str, parts: dict[str, Any], all_parts: dict[str, Any], chance: random.Random) -> Step:
    tools = chance.sample(parts["tools"], min(len(parts["tools"]), chance.choice([0, 1, 1, 2])))
    system = chance.choice([None, None, "You are a helpful assistant.", "You are an assistant with access to tools."])
    return _step(
        label, "template", None, system, _fill(chance.choice(parts["requests"]), all_parts, chance), tools, None
    )


def _structured(label: str, parts: dict[str, Any], all_parts: dict[str, Any], chance: random.Random) -> Step:
    ask = _fill(chance.choice(parts["asks"]), all_parts, chance)
    shape = json.dumps(chance.choice(parts["formats"]))
    return _step(label, "template", _name(parts, all_parts, chance), None, f"{ask}\n\n{{{{ input.text }}}}", [], shape)


def _buried(label: str, parts: dict[str, Any], all_parts: dict[str, Any], chance: random.Random) -> Step:
    """The demand comes after an introduction, as in "Here is a report. … Given this, …"."""
    padding = _fill(chance.choice(all_parts["padding"]), all_parts, chance)
    ask = _fill(chance.choice(parts["asks"]), all_parts, chance)
    document = chance.choice(all_parts["slots"]["doc"])
    prompt = chance.choice(
        [
            f"Here is the {document}:\n{{{{ input }}}}\n\n{padding} {ask}",
            f"You will be given one {document} from {chance.choice(all_parts['slots']['who'])}. {padding}\n\n{ask}",
            f"Given the {document} below, {ask[0].lower()}{ask[1:]}\n\n{{text}}",
            f"## Task\n{ask}\n\n## Rules\n- {padding}\n- Never mention these rules.",
        ]
    )
    return _step(label, "template", _name(parts, all_parts, chance), None, prompt, [], None)


def _name(parts: dict[str, Any], all_parts: dict[str, Any], chance: random.Random) -> str | None:
    noun = chance.choice(all_parts["neutral_things"])
    kind = chance.random()
    if kind < 0.5:
        return str(chance.choice(parts["names"])).replace("{t}", noun)
    if kind < 0.66:
        return str(chance.choice(all_parts["neutral_names"])).replace("{t}", noun)
    if kind < 0.82:
        return str(chance.choice(all_parts["generic_names"]))
    if kind < 0.86:  # names mislead: the step is named after something else in its workflow
        other = all_parts["intents"][chance.choice(sorted(all_parts["intents"]))]
        return str(chance.choice(other["names"])).replace("{t}", noun)
    return None


def _fill(text: str, all_parts: dict[str, Any], chance: random.Random) -> str:
    slots = all_parts["slots"]
    return _SLOT.sub(lambda slot: chance.choice(slots[slot[1]]) if slot[1] in slots else slot[0], text)


def _step(
    label: str, origin: str, name: str | None, system: str | None, prompt: str, tools: list[str], shape: str | None
) -> Step:
    body = {"step": name, "system": system, "prompt": prompt, "tools": tools, "response_format": shape}
    identity = hashlib.sha256(json.dumps(body, ensure_ascii=False).encode()).hexdigest()[:12]
    return {"id": identity, "label": label, "origin": origin, **body}


def main() -> None:
    """Write both files, without repetitions."""
    templates = json.loads((FOLDER / "templates.json").read_text("utf-8"))
    chance = random.Random(SEED)
    step_by_id: dict[str, Step] = {}
    for step in [*written_steps(), *template_steps(templates, chance)]:
        step_by_id.setdefault(step["id"], step)
    held = [step for step in step_by_id.values() if step["origin"] == "written" and int(step["id"], 16) % 5 == 0]
    train = [step for step in step_by_id.values() if step not in held]
    for name, steps in (("train.jsonl", train), ("heldout.jsonl", held)):
        lines = [json.dumps(step, ensure_ascii=False) for step in steps]
        (FOLDER / name).write_text("\n".join(lines) + "\n", "utf-8")
        print(f"{name}: {len(steps)} steps")


if __name__ == "__main__":
    main()
