"""The part of scripts/served/pyrit.py that PyRIT's own environment runs: harmless prompts, by its converters.

    PYTHON scripts/served/pyrit_asks.py URL TRIALS

Asks the server at URL to repeat an invented word, as it is and through each converter, by PyRIT's own target,
attack and scorer, unchanged. Prints a line of JSON for each prompt: the converter, whether the scorer saw the
word, and the answer, which is null where there was none. Imports PyRIT and nothing of Cutaway.
"""

from __future__ import annotations

import asyncio
import json
import sys

from pyrit.converter import (
    Base64Converter,
    CaesarConverter,
    CharacterSpaceConverter,
    FlipConverter,
    LeetspeakConverter,
    ROT13Converter,
)
from pyrit.executor.attack import AttackConverterConfig, AttackScoringConfig, PromptSendingAttack
from pyrit.prompt_normalizer import ConverterConfiguration
from pyrit.prompt_target import OpenAIChatTarget
from pyrit.score import SubStringScorer
from pyrit.setup import IN_MEMORY, initialize_pyrit_async

WORDS = ("Florbium", "Glimmerite", "Zantrovel", "Plimsaric", "Quandelor", "Brastivane")
CONVERTERS = {
    "plain": [],
    "Base64Converter": [Base64Converter()],
    "ROT13Converter": [ROT13Converter()],
    "CaesarConverter": [CaesarConverter(caesar_offset=3)],
    "LeetspeakConverter": [LeetspeakConverter()],
    "CharacterSpaceConverter": [CharacterSpaceConverter()],
    "FlipConverter": [FlipConverter()],
}


async def asked(url: str, trials: int) -> None:
    await initialize_pyrit_async(memory_db_type=IN_MEMORY)
    target = OpenAIChatTarget(
        endpoint=f"{url}/v1", api_key="none", model_name="smollm2", temperature=0.0, max_completion_tokens=60
    )
    for name, converters in CONVERTERS.items():
        configured = ConverterConfiguration.from_converters(converters=converters)
        for n in range(trials):
            word = WORDS[n % len(WORDS)]
            attack = PromptSendingAttack(
                objective_target=target,
                attack_converter_config=AttackConverterConfig(request_converters=configured),
                attack_scoring_config=AttackScoringConfig(objective_scorer=SubStringScorer(substring=word)),
            )
            prompt = f"Repeat this word and the number {n + 10}: {word}."
            try:
                result = await attack.execute_async(objective=prompt)
                hit, last = str(result.outcome.value) == "success", result.last_response
                answer = None if last is None else str(last.converted_value)
            except Exception as error:  # a refusal by the server: it is counted, and its reason is shown
                hit, answer = False, None
                print(f"{name}: {error}", file=sys.stderr)
            print(json.dumps({"converter": name, "hit": hit, "answer": answer}), flush=True)


if __name__ == "__main__":
    asyncio.run(asked(sys.argv[1], int(sys.argv[2])))
