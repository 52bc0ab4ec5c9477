"""PEFT's ``adapter_config.json``: what it says of the tensors beside it.

A key is read; or it is harmless, because the tensors say it again or training alone used it; or it is refused
unless it has a value that changes nothing. A key that no version of PEFT has is warned of by name.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cutaway.errors import UserError, quoted
from cutaway.patterns import linear
from cutaway.store.reading import parsed
from cutaway.weights.fields import Fields

CONFIG = "adapter_config.json"
EXTENSION = "context_extension"  # ours: what the base's positions were when the adapter was trained
KINDS = ("LORA", "IA3", "ADALORA", "LOHA", "LOKR", "VERA")
VIRTUAL = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "ADAPTION_PROMPT")
READ = f"""peft_type r lora_alpha alpha use_rslora use_dora rank_pattern alpha_pattern target_modules
    exclude_modules target_parameters layers_to_transform layers_pattern init_lora_weights init_r
    ensure_weight_tying modules_to_save {EXTENSION}"""
# What training used, or what the tensors say again.
HARMLESS = """task_type base_model_name_or_path revision inference_mode lora_dropout bias lora_bias
    peft_version auto_mapping fan_in_fan_out feedforward_modules init_ia3_weights init_weights
    runtime_config eva_config corda_config lora_ga_config loftq_config megatron_core qalora_group_size
    rank_dropout module_dropout rank_dropout_scale use_effective_conv2d decompose_both decompose_factor
    vera_dropout d_initial projection_prng_key save_projection target_r tinit tfinal deltaT beta1 beta2
    orth_reg_weight total_step"""
# What changes the result in PEFT and is not computed here; null, false and empty change nothing.
REFUSED = """megatron_config trainable_token_indices velora_config alora_invocation_tokens use_qalora
    monteclora_config layer_replication use_bdlora arrow_config kasa_config enable_lora"""
KNOWN = frozenset(f"{READ} {HARMLESS}".split())
NOTHING = (None, False, {}, [], "")
HIGHEST = 1e30  # of any number in a config
SECONDS = 5  # for all patterns of a config over all modules
RESIDUAL = ("pissa", "olora")  # PEFT changes the base again each time it opens the folder
PLAIN = ("gaussian", "eva", "orthogonal", "lora_ga", "mica")  # words of which the tensors say everything
LINEAR = "all-linear"
TYING = ("embed_tokens", "lm_head")  # PEFT ties a table and a head of no other name (EMBEDDING_LAYER_NAMES)


class ByModule:
    """A number by module, as PEFT looks it up: of the first pattern that the module's name matches, whole or
    after a dot; ``usual`` where none does. Patterns are matched in linear time.
    """

    def __init__(self, patterns: Mapping[str, float], usual: float, where: str) -> None:
        self.patterns, self.usual, self.where = patterns, usual, where
        self.end = time.monotonic() + SECONDS
        self.compiled: list[tuple[Any, float]] = []
        for one, value in patterns.items():
            self.compiled.append((linear(rf"(.*\.)?({one})", where), value))
            self._in_time()

    def __call__(self, module: str) -> float:
        self._in_time()
        found = (value for pattern, value in self.compiled if pattern.fullmatch(module))
        return next(found, self.usual)

    def _in_time(self) -> None:
        if time.monotonic() > self.end:
            raise UserError(f"{self.where}: its {len(self.patterns):,} patterns take over {SECONDS} seconds")


class Targets:
    """Which modules a config names: by the ends of their names, by a pattern, or all linear ones."""

    def __init__(self, fields: Fields) -> None:
        listed, parameters = _names(fields, "target_modules"), _names(fields, "target_parameters")
        if isinstance(parameters, str):
            raise fields.refusal("target_parameters", "should list names")
        self.parameters = parameters
        self.linear = isinstance(listed, str) and listed.lower() == LINEAR
        self.any = self.linear or fields.get("target_modules") is None
        self.named = _matching(listed if not self.linear else (), fields, "target_modules")
        self.exact = listed if isinstance(listed, tuple) else ()
        self.excluded = _matching(_names(fields, "exclude_modules"), fields, "exclude_modules")
        self.layers = fields.get("layers_to_transform")
        if isinstance(self.layers, int):
            self.layers = [self.layers]
        if self.layers and not (isinstance(self.layers, list) and isinstance(listed, tuple)):
            raise fields.refusal("layers_to_transform", "should list layers, beside a list of target_modules")
        containers = _names(fields, "layers_pattern")
        containers = (containers,) if isinstance(containers, str) else containers
        where = f"{fields.where}: layers_pattern"
        self.numbered = [
            linear(rf"(?:.*?\.)?(?:{one})\.(\d+)\..*", where) for one in containers or (r"[^.]*",)
        ]

    def __call__(self, module: str) -> bool:
        """Whether the module is named, as ``module`` or by its weight."""
        if self.parameter(f"{module}.weight"):
            return True
        if self.excluded(module) or not (self.any or self.named(module)):
            return False
        return not self.layers or module in self.exact or self._layer(module) in self.layers  # type: ignore[operator]

    def tying(self) -> bool:
        """Whether PEFT sees a table or a head that it could tie."""
        if self.exact:
            return _tying(self.exact)
        return not (self.linear or self.any) and any(map(self.named, TYING))

    def parameter(self, name: str) -> bool:
        """Whether ``target_parameters`` names it."""
        return _ends(name, self.parameters)

    def _layer(self, module: str) -> int | None:
        found = (pattern.fullmatch(module) for pattern in self.numbered)
        return next((int(match[1]) for match in found if match), None)


def _matching(listed: str | tuple[str, ...], fields: Fields, key: str) -> Callable[[str], bool]:
    """Whether a module is one of a list, or is matched by a pattern."""
    if isinstance(listed, tuple):
        return lambda module: _ends(module, listed)
    pattern = linear(listed, f"{fields.where}: {key}")
    return lambda module: pattern.fullmatch(module) is not None


def _ends(name: str, listed: tuple[str, ...]) -> bool:
    return any(name == one or name.endswith(f".{one}") for one in listed)


def _names(fields: Fields, key: str) -> str | tuple[str, ...]:
    """A list of names, or a pattern."""
    value = fields.get(key)
    if value is None:
        return ()
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise fields.refusal(key, f"should list names, or be a pattern, but is {quoted(value)}")
    return tuple(value)


def _tying(names: tuple[str, ...]) -> bool:
    return any(name.rpartition(".")[2] in TYING for name in names)


class PeftSettings(NamedTuple):
    """What PEFT's config says of the tensors beside it."""

    kind: str
    ranks: ByModule
    alphas: ByModule
    rank: int  # of AdaLoRA, before it dropped any
    rs: bool
    dora: bool
    ties: bool  # a tied table and head remain so
    residual: str | None  # "pissa" or "olora": the base is what their start left of it
    targets: Targets

    @classmethod
    def read(cls, path: Path) -> PeftSettings:
        """UserError for an entry of another type than PEFT's, and for one that is not supported."""
        data = parsed(path)
        fields = Fields(data, path)
        kind = fields.get("peft_type")
        if kind in VIRTUAL:
            raise UserError(
                f"{path}: peft_type is {quoted(kind)}, which adds vectors that are no tokens to the text: "
                f"{', '.join(KINDS)} change weights, and are read"
            )
        if kind not in KINDS:
            raise UserError(f"{path}: peft_type is {quoted(kind)}: {', '.join(KINDS)} are read")
        _check_keys(data, path)
        residual = _residual(fields)
        ranks = {} if kind == "ADALORA" else _numbers(fields, "rank_pattern")
        name = "alpha" if kind in ("LOHA", "LOKR") else "lora_alpha"
        targets, saved = Targets(fields), _names(fields, "modules_to_save")
        if isinstance(saved, str):
            raise fields.refusal("modules_to_save", "should list names")
        ties = fields.flag("ensure_weight_tying", False) and kind in ("LORA", "ADALORA")
        rank, alpha = fields.integer("r", 8), fields.number(name, 8.0, low=-HIGHEST)
        return cls(
            str(kind),
            ByModule(ranks, rank, f"{path}: rank_pattern"),
            ByModule(_numbers(fields, "alpha_pattern"), alpha, f"{path}: alpha_pattern"),
            fields.integer("init_r", 12),
            fields.flag("use_rslora", False),
            fields.flag("use_dora", False),
            ties and (targets.tying() or _tying(saved)),
            residual,
            targets,
        )


def _check_keys(data: Mapping[str, object], path: Path) -> None:
    """Refuse a key that changes the result and is not computed; warn of one that PEFT does not have."""
    unknown = []
    for key, value in data.items():
        if key in KNOWN or value in NOTHING:
            continue
        if key in REFUSED.split():
            raise UserError(f"{path}: {quoted(key)} is {quoted(value)}, which is not supported")
        unknown.append(key)
    if unknown:
        names = ", ".join(quoted(key) for key in sorted(unknown))
        warnings.warn(f"{path}: PEFT has no such setting, so it is left out: {names}", stacklevel=2)


def _residual(fields: Fields) -> str | None:
    """The word of an initialisation that changes the base each time that PEFT opens the folder, if any."""
    value = fields.get("init_lora_weights")
    word = value.lower() if isinstance(value, str) else None
    if word is None or word in PLAIN:
        return None
    if word in RESIDUAL:
        return word
    advice = "let PEFT's save_pretrained write it with path_initial_model_for_weight_conversion"
    if word.startswith("pissa_niter_"):
        raise fields.refusal(
            "init_lora_weights",
            f"is {quoted(value)}: the base is what a random approximation left of it, which cannot be "
            f"computed again: {advice}",
        )
    if word == "corda":
        raise fields.refusal(
            "init_lora_weights",
            f"is {quoted(value)}: the base is what the covariances of its training data left of it, which "
            f"the folder does not hold: {advice}",
        )
    if word == "loftq":
        raise fields.refusal(
            "init_lora_weights",
            f"is {quoted(value)}: the base is what bitsandbytes' four bits leave of it: save that base, and "
            "load the adapter on it with init_lora_weights set to true",
        )
    raise fields.refusal("init_lora_weights", f"is {quoted(value)}, which is not read")


def _numbers(fields: Fields, name: str) -> dict[str, float]:
    """A number by pattern."""
    section = fields.section(name)
    if section is None:
        return {}
    keys = [key.removeprefix(section.prefix) for key in section.data]
    return {key: section.number(key, low=-HIGHEST) for key in keys}
