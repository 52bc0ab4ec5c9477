"""The layouts that published data sets have, as the five that training reads.

    examples   {"messages": [...]}, {"prompt": ..., "completion": ...} or {"text": ...}
    pairs      {"prompt": ..., "chosen": ..., "rejected": ...}
    labelled   {"prompt": ..., "completion": ..., "label": true}

become of

    conversations [{from, value}]                   ShareGPT (OpenHermes 2.5); a list of texts (LIMA)
    instruction, input, output                      Alpaca; instruction, context, response (Dolly)
    system_prompt, question, response               OpenOrca; question, answer (GSM8K); prompt, response
    system, question, chosen, rejected              orca_dpo_pairs
    prompt as text, chosen and rejected as messages UltraFeedback binarized
    chosen and rejected as "\n\nHuman: ..."         hh-rlhf

A question with its answer is a conversation, which the model's chat template writes; ``prompt`` with
``completion``, or with ``chosen`` and ``rejected`` as texts, is text that continues text, as in trl. What
is ambiguous is refused with the keys that were found. Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from cutaway.errors import UserError, escaped, quoted

Kind = Literal["examples", "pairs", "labelled"]
Row = Mapping[str, Any]

TALKS = ("messages", "conversations", "conversation", "conversational")
SYSTEMS = ("system", "system_prompt")
QUESTIONS = ("instruction", "question", "prompt", "query", "problem")
ANSWERS = ("output", "response", "answer", "solution")
BESIDE = {"instruction": ("input", "context")}  # what a question may come with
ALWAYS = ("tools", "chat_template_kwargs")
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("system", "developer", "tool", "function"), None),  # as they are
    **dict.fromkeys(("observation", "function_response"), "tool"),
}
SPEAKERS = ("system", "developer", "user", "assistant", "tool", "function")  # that templates write
SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")
LABELS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
METHODS = {"examples": "sft", "pairs": "dpo", "labelled": "kto"}
KNOWN = {
    "examples": "messages, conversations, instruction and output, prompt and response, question and answer, "
    "prompt and completion, or text",
    "pairs": "chosen and rejected, with prompt, question or instruction unless both begin with it",
    "labelled": "prompt, completion and label, or chosen and rejected",
}


def standard(kind: Kind, row: Row, where: str) -> tuple[dict[str, Any], set[str]]:
    """A row in the layout that training reads, and which of its keys that took. UserError for another."""
    find = {"examples": _example, "pairs": _pair, "labelled": _labelled}[kind]
    try:
        found, used = find(row, where)
    except UserError:
        empty = [name for name in getattr(row, "empty", ()) if _fits(kind, {**row, name: ""})]
        if empty and not _fits(kind, row):
            raise UserError(f"{where}: {empty[0]} is empty: fill it, or leave the row out") from None
        raise
    kept = {name: row[name] for name in ALWAYS if name in row}
    return found | kept, used | kept.keys()


# ---- one row -----------------------------------------------------------------------------------------------


def _example(row: Row, where: str) -> tuple[dict[str, Any], set[str]]:
    for name in TALKS:
        if name in row:
            turns = messages(row[name], f"{where}: {name}")
            head, used = _system(row, where)
            if head and turns[0]["role"] != "system":
                return {"messages": [*head, *turns]}, {name, *used}
            return {"messages": turns}, {name}
    asked, used = _asked(row, where)
    if "completion" in row and ("prompt" in row or not asked) and not any(row.get(name) for name in SYSTEMS):
        prompt = {"prompt": row["prompt"]} if "prompt" in row else {}
        return {**prompt, "completion": row["completion"]}, {"completion", *prompt}
    answers = [name for name in (*ANSWERS, "completion") if isinstance(row.get(name), str)]
    if asked and len(answers) > 1:
        raise UserError(f"{where}: has several answers, {' and '.join(answers)}: keep one of these columns")
    if asked and answers:
        return {"messages": [*asked, _turn("assistant", row[answers[0]])]}, {*used, *answers}
    if isinstance(row.get("text"), str):
        return {"text": row["text"]}, {"text"}
    raise _unknown("examples", row, where)


def _pair(row: Row, where: str) -> tuple[dict[str, Any], set[str]]:
    if "chosen" not in row or "rejected" not in row:
        raise _unknown("pairs", row, where)
    chosen, rejected, names = row["chosen"], row["rejected"], {"chosen", "rejected"}
    margin = {"margin": row["margin"]} if "margin" in row else {}
    names |= margin.keys()
    if isinstance(chosen, str) and isinstance(rejected, str):
        if chosen.lstrip()[:1] == rejected.lstrip()[:1] == "[" and is_json(chosen) and is_json(rejected):
            chosen, rejected = json.loads(chosen), json.loads(rejected)  # messages in a CSV file
        else:
            found, used = _texts(row, chosen, rejected, where)
            return found | margin, used | names
    one, other = (messages(each, f"{where}: {n}") for each, n in ((chosen, "chosen"), (rejected, "rejected")))
    if isinstance(row.get("prompt"), list):
        before = messages(row["prompt"], f"{where}: prompt")
        return {"prompt": before, "chosen": one, "rejected": other} | margin, names | {"prompt"}
    if len(one) > 1 and one[0] == other[0]:  # both hold the prompt themselves
        return {"chosen": one, "rejected": other} | margin, names | ({"prompt"} & row.keys())
    asked, used = _asked(row, where)
    if not asked:
        return {"chosen": one, "rejected": other} | margin, names
    return {"prompt": asked, "chosen": one, "rejected": other} | margin, names | used


def _texts(row: Row, chosen: str, rejected: str, where: str) -> tuple[dict[str, Any], set[str]]:
    """A pair of texts."""
    one, other = _transcript(chosen), _transcript(rejected)
    if "prompt" not in row and one and other:
        return {"chosen": one, "rejected": other}, set()
    if "prompt" in row and not any(row.get(name) for name in SYSTEMS):
        return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}, {"prompt"}
    asked, used = _asked(row, where)
    if not asked:
        raise UserError(
            f"{where}: its answers are texts without a prompt (it has: {_listed(row)}): add a column prompt"
        )
    answers = {
        name: [_turn("assistant", text)] for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    return {"prompt": asked, **answers}, used


def _labelled(row: Row, where: str) -> tuple[dict[str, Any], set[str]]:
    if "chosen" in row:
        return _pair(row, where)
    label = row.get("label")
    known = LABELS.get(str(label).strip().lower())
    if known is None:
        raise _unknown("labelled", row, where)
    found, used = _example({name: value for name, value in row.items() if name != "text"}, where)
    if "messages" in found:
        *before, last = found.pop("messages")
        found |= {"prompt": before, "completion": [last]}
    return found | {"label": known}, used | {"label"}


def _asked(row: Row, where: str) -> tuple[list[dict[str, Any]], set[str]]:
    """The messages before an answer, of a question's columns; none where there is no question."""
    name = next((name for name in QUESTIONS if isinstance(row.get(name), str)), None)
    if name is None:
        return [], set()
    head, used = _system(row, where)
    beside = [extra for extra in BESIDE.get(name, ()) if isinstance(row.get(extra), str)]
    text = "\n\n".join([row[name], *(row[extra] for extra in beside if row[extra].strip())])
    return [*head, _turn("user", text)], {name, *beside, *used}


def _system(row: Row, where: str) -> tuple[list[dict[str, Any]], set[str]]:
    """A system message from its column."""
    for name in SYSTEMS:
        if name in row:
            if not isinstance(row[name], str):
                raise UserError(f"{where}: {name} is {quoted(row[name])}; it must be text")
            return ([_turn("system", row[name])] if row[name].strip() else []), {name}
    return [], set()


def messages(given: Any, where: str) -> list[dict[str, Any]]:
    """Messages with role and content, of those or of ShareGPT's from and value; UserError for another."""
    if isinstance(given, str) and given.lstrip()[:1] == "[" and is_json(given):
        given = json.loads(given)  # a cell of a CSV file
    if isinstance(given, list) and given and all(isinstance(each, str) for each in given):
        return [_turn("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(given)]
    if not isinstance(given, list) or not given or not all(isinstance(each, dict) for each in given):
        raise UserError(f'{where}: should be a list of messages such as {{"role": "user", "content": "..."}}')
    return [_message(each, where) for each in given]


def _message(given: dict[str, Any], where: str) -> dict[str, Any]:
    found = {name: value for name, value in given.items() if value is not None}
    if "role" in found:
        return found
    if not isinstance(found.get("from"), str) or "value" not in found:
        raise UserError(
            f"{where}: should be a list of messages, each with role and content or with from and value; one "
            f"has {_listed(found)}"
        )
    speaker = found["from"].lower()
    if speaker not in ROLES:
        raise UserError(f"{where}: speaks from {quoted(found['from'])}; known: {', '.join(ROLES)}")
    return _turn(ROLES[speaker] or speaker, found["value"])


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _transcript(text: str) -> list[dict[str, Any]]:
    """hh-rlhf's "\\n\\nHuman: ...\\n\\nAssistant: ..." as messages; none for another text."""
    before, *parts = SPEAKER.split(text)
    if before or len(parts) < 4 or parts[-2] != "Assistant":
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    return [_turn(roles[who], text.strip()) for who, text in zip(parts[::2], parts[1::2], strict=True)]


def is_json(text: str) -> bool:
    """Whether a text is JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


# ---- rows that fit none ------------------------------------------------------------------------------------


def _unknown(kind: Kind, row: Row, where: str) -> UserError:
    """What a row of this kind needs, the keys that it has, and what they would fit."""
    needs = {
        "examples": "has none of messages, prompt and completion, or text",
        "pairs": "has no chosen and rejected answers",
        "labelled": "has no completion with a label, true or false",
    }[kind]
    others: tuple[Kind, ...] = ("labelled", "pairs", "examples")
    fits = next((other for other in others if other != kind and _fits(other, row)), None)
    if fits is not None:
        mend = f"`cutaway finetune {METHODS[fits]}` trains on such rows"
    else:
        mend = f"rename its columns to {KNOWN[kind]}"
    return UserError(f"{where}: {needs} (it has: {_listed(row)}): {mend}")


def _fits(kind: Kind, row: Row) -> bool:
    """Whether a row has the keys of this kind."""
    if kind == "examples":
        return bool(row.keys() & {*TALKS, "completion", "text"}) or bool(
            row.keys() & {*QUESTIONS} and row.keys() & {*ANSWERS}
        )
    if kind == "pairs":
        return {"chosen", "rejected"} <= row.keys()
    return "label" in row and bool(row.keys() & {"completion", *ANSWERS})


def _listed(row: Row) -> str:
    return f"{escaped(', '.join(map(str, row))):.300}" or "nothing"
