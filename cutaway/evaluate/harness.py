"""A model as an object of lm-eval (EleutherAI's harness), in process: any format, packed weights, adapters.

    from cutaway.evaluate.harness import HarnessModel
    lm_eval.simple_evaluate(model=HarnessModel(cutaway.load("smollm2")), tasks=["hellaswag"])

Results do not depend on what is read beside a question: there is no batch size. A chat template renders with
control tokens from the template alone, so that a task's text forges none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from cutaway.errors import OperationalError, UserError
from cutaway.evaluate.likelihood import Likelihood, prefix, rolling, score
from cutaway.extras import install
from cutaway.lm import LanguageModel
from cutaway.tokenizer import chat

try:
    from lm_eval.api.model import TemplateLM
except ImportError:
    raise UserError(f"lm-eval is not installed: {install('eval')}") from None

SAMPLED = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
KNOWN = {"until", "max_gen_toks", "do_sample", *SAMPLED}
LENGTH = 256  # tokens of an answer where a task names no limit
ROUNDS = 1000  # of lm-eval's bootstrap, for metrics that are no mean


class HarnessModel(TemplateLM):
    """The model interface of lm-eval, implemented by a ``LanguageModel``."""

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__()
        self.lm = lm
        self.rendered: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        eos = self.lm.tokenizer.eos
        return prefix(self.lm)[0] if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        return prefix(self.lm)[0]

    @property
    def tokenizer_name(self) -> str:
        return str(self.lm.checkpoint.source).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own template, where one is asked for."""
        return self.lm.checkpoint.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text; its ids are kept, so that control tokens stay the template's alone."""
        template = self.lm.checkpoint.chat_template
        if template is None:
            raise UserError(f"{self.lm.checkpoint.source} has no chat template")
        whole = chat.text(
            chat_history,
            template,
            tokenizer=self.lm.tokenizer,
            add_generation_prompt=add_generation_prompt,
            steering="flag",
        )
        self.rendered[whole.text] = chat.encoded(whole, template, tokenizer=self.lm.tokenizer)
        return whole.text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids; the begin token first where the model expects it, unless ``add_special_tokens`` is False."""
        known = max((text for text in self.rendered if string.startswith(text)), key=len, default=None)
        if known is not None:
            return self.rendered[known] + self.lm.tokenizer.encode(string[len(known) :])
        return self.lm.tokenizer.encode(string) if add_special_tokens is False else self.lm.ids(string)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """The choices of one context are scored together, however many questions there are."""
        together: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for n, (_pair, context, _choice) in enumerate(requests):
            together[tuple(context)].append(n)
        questions = [
            Likelihood(context, tuple(tuple(requests[n][2]) for n in numbers))
            for context, numbers in together.items()
        ]
        out: dict[int, tuple[float, bool]] = {}
        for numbers, row in zip(together.values(), score(self.lm, questions), strict=True):
            for n, scored in zip(numbers, row, strict=True):
                out[n] = scored.log_probability, scored.greedy
                if requests[n][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[n][0], out[n])
        return [out[n] for n in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, each id predicted once."""
        out = []
        for request in requests:
            out.append(float(rolling(self.lm, request.args[0]).sum()))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, out[-1])
        return out

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, through the batch scheduler; requests with the same settings run side by side."""
        alike: dict[str, list[int]] = defaultdict(list)
        for n, request in enumerate(requests):
            alike[repr(sorted(request.args[1].items()))].append(n)
        out: dict[int, str] = {}
        for numbers in alike.values():
            asked = requests[numbers[0]].args[1]
            if unknown := asked.keys() - KNOWN:
                raise UserError(f"lm-eval's generation setting {', '.join(sorted(unknown))} is not known")
            until = asked.get("until") or []
            stops = [until] if isinstance(until, str) else list(until)
            settings: dict[str, Any] = {"temperature": 0.0}
            if asked.get("do_sample"):
                settings = {ours: asked[name] for name, ours in SAMPLED.items() if name in asked}
            length = asked.get("max_gen_toks", LENGTH)
            prompts = [self._fitting(self.tok_encode(requests[n].args[0]), length) for n in numbers]
            made = self.lm.generate_batch(
                prompts, max_tokens=length, stop=[stop for stop in stops if stop], seed=0, **settings
            )
            for n, generation in zip(numbers, made, strict=True):
                out[n] = generation.text
                self.cache_hook.add_partial("generate_until", requests[n].args, out[n])
        return [out[n] for n in range(len(requests))]

    def _fitting(self, ids: list[int], length: int) -> list[int]:
        """The end of a prompt that leaves room for an answer, as lm-eval cuts it."""
        return ids[-max(1, self.lm.context - length) :]


@cache
def _tasks() -> Any:
    """lm-eval's index of its tasks, thousands of files that take seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def evaluate(
    lm: LanguageModel, names: Sequence[str], *, limit: int | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """lm-eval's figures for tasks of its folders, or for YAML files of one's own, by task and metric.

    UserError for a task that it does not know, OperationalError where it cannot have a task's data.
    """
    import lm_eval.evaluator
    from lm_eval.tasks._yaml_loader import load_yaml

    manager = _tasks()
    asked: list[Any] = []
    for name in names:
        if name.endswith((".yaml", ".yml")):
            try:
                asked.append(load_yaml(name, resolve_func=True))
            except Exception as error:  # of YAML's parser, of files, of what the file imports
                raise UserError(f"{name}: is no task of lm-eval: {_line(error)}") from None
        elif name in manager.all_tasks:
            asked.append(name)
        else:
            near = get_close_matches(name, manager.all_tasks, 1)
            hint = f"did you mean {near[0]}?" if near else "`lm-eval ls tasks` lists them"
            raise UserError(f"lm-eval has no task {name!r}: {hint}")
    try:
        ask: Any = lm_eval.evaluator.simple_evaluate  # its decorator hides its types
        found: Any = ask(
            model=HarnessModel(lm),
            tasks=asked,
            limit=limit,
            bootstrap_iters=ROUNDS,
            task_manager=manager,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except (UserError, OperationalError):
        raise
    except Exception as error:  # of data sets, of the network, of a task's own code
        raise OperationalError(
            f"lm-eval could not run {', '.join(names)}: {_line(error)}; its tasks fetch their data from the "
            "Hugging Face hub, a YAML file of your own may name local data"
        ) from None
    return {
        task: {
            metric: value
            for metric, value in figures.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        | {"n": found["n-samples"].get(task, {}).get("effective")}
        for task, figures in found["results"].items()
    }


def _line(error: Exception) -> str:
    """What an error says, on one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}".removesuffix(": ")
