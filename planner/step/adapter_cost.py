"""What a step has to know of an adapter that is given in PEFT's own options."""

import json
from collections.abc import Mapping
from typing import Any

from planner.config.run_config import Dtype
from planner.step.step_spec import Adapter
from profiles.peft_method import find_method

DESCRIBED = {"r", "target_modules", "lora_dropout", "use_dora"}
"""Options of LoRA that an `Adapter` has a field for."""

WITHOUT_COST = {"lora_alpha", "use_rslora"}
"""Options of LoRA that only scale what it adds."""

BEGINNINGS = {True, False, "gaussian", "olora", "orthogonal", "pissa"}
"""Values of `init_lora_weights` that only choose the first numbers; with mica one of the matrices does not learn."""


def adapter_in_options(
    peft_type: str, options: Mapping[str, Any], dtype: Dtype, linear_names: tuple[str, ...]
) -> Adapter:
    """The adapter of PEFT's method `peft_type` with `options`, whose weights that learn are of `dtype`.

    It is plain LoRA where nothing else was asked for; `linear_names` are all that `all-linear` stands for.
    """
    if peft_type == "LORA" and _is_plain(options):
        targets = options["target_modules"]
        return Adapter(
            r=options["r"] if "r" in options else find_method("LORA").options["r"].default,
            targets=tuple(sorted(linear_names if targets == "all-linear" else set(targets))),
            dropout=options.get("lora_dropout", 0.0),
            dtype=dtype,
            use_dora=options.get("use_dora", False),
        )
    as_json = tuple(sorted((name, json.dumps(value)) for name, value in options.items()))
    return Adapter(r=0, targets=(), dropout=0.0, dtype=dtype, peft_type=peft_type, options=as_json)


def _is_plain(options: Mapping[str, Any]) -> bool:
    """Whether targets are named, and all other options that cost something are PEFT's defaults."""
    targets = options.get("target_modules")
    if targets is None or (isinstance(targets, str) and targets != "all-linear"):
        # PEFT's own choice of modules, and a regular expression.
        return False
    if options.get("init_lora_weights", True) not in BEGINNINGS:
        return False
    others = options.keys() - DESCRIBED - WITHOUT_COST - {"init_lora_weights"}
    return all(options[name] == find_method("LORA").options[name].default for name in others)
