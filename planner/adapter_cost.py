"""What a step has to know of an adapter that is given in PEFT's own options."""

import json
from collections.abc import Mapping
from typing import Any

from planner.run_config import Dtype
from planner.step import Adapter
from profiles.peft_method import find_method

WITHOUT_COST = {"lora_alpha", "use_rslora"}
"""Options of LoRA that scale what it adds."""

SHAPE = {"r", "target_modules", "lora_dropout", "use_dora"}
"""Options of LoRA that an `Adapter` has a field for."""


def adapter_in_options(
    peft_type: str, options: Mapping[str, Any], dtype: Dtype, linear_names: tuple[str, ...]
) -> Adapter:
    """The adapter of PEFT's method `peft_type` with `options`, whose weights that learn are of `dtype`.

    It is plain LoRA where nothing else was asked for; `linear_names` are all that `all-linear` stands for.
    """
    targets = options.get("target_modules")
    if peft_type == "LORA" and isinstance(targets, list | tuple | str) and _is_plain(options):
        names = linear_names if targets == "all-linear" else targets
        return Adapter(
            r=options.get("r", find_method("LORA").options["r"].default),
            targets=tuple(sorted(set(names))),
            dropout=options.get("lora_dropout", 0.0),
            dtype=dtype,
            use_dora=options.get("use_dora", False),
        )
    as_json = tuple(sorted((name, json.dumps(value)) for name, value in options.items()))
    return Adapter(r=0, targets=(), dropout=0.0, dtype=dtype, peft_type=peft_type, options=as_json)


def _is_plain(options: Mapping[str, Any]) -> bool:
    """Whether all options that cost something, beyond rank, targets and dropout, are PEFT's defaults."""
    targets = options["target_modules"]
    if isinstance(targets, str) and targets != "all-linear":
        # A regular expression.
        return False
    known = find_method("LORA").options
    return all(value == known[name].default for name, value in options.items() if name not in SHAPE | WITHOUT_COST)
