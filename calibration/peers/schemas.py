"""Files held to the peers' own schemas. Run as a program, in a process with the peers on its path.

`python schemas.py PEER FILE...` prints one JSON object on its last line: for each file what the peer says against
it, null if nothing. Imported packages are the peers'; nothing of this project is needed.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

CAPABILITIES = {
    "bf16": True,
    "fp8": False,
    "tf32": True,
    "n_gpu": 1,
    "n_node": 1,
    "compute_capability": "sm_80",
}
"""The card that Axolotl is told of: it has none to look at."""


PLUGINS = (
    "axolotl.integrations.liger.LigerPlugin",
    "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin",
)
"""Axolotl's plugins whose keys are read."""

HERE = {"use_cpu": True}
"""What is said beside a file: without it Transformers refuses bfloat16 on a machine without a card."""


def axolotl(path: Path) -> None:
    """Axolotl's pydantic models with those of its plugins, and a look at keys, as it ignores those that it lacks."""
    from axolotl.utils.schemas.config import AxolotlConfigWCapabilities

    values = yaml.safe_load(path.read_text("utf-8"))
    plugins = [_axolotl_plugin(name) for name in values.get("plugins", [])]
    schema = type("Config", (AxolotlConfigWCapabilities, *plugins), {})
    schema(**values, capabilities=CAPABILITIES, env_capabilities={"torch_version": "2.11.0"})
    _refuse_unknown(values, schema_keys("axolotl"))


def _axolotl_plugin(name: str) -> type:
    """The keys of a plugin, which stand beside it in `args.py`."""
    arguments = _load_file(name.rpartition(".")[0], "args.py")
    found = [value for value in vars(arguments).values() if getattr(value, "__module__", "") == arguments.__name__]
    return next(value for value in found if isinstance(value, type) and value.__name__.endswith("Args"))


def llama_factory(path: Path) -> None:
    """The parser of `llamafactory-cli train`."""
    from llamafactory.hparams.parser import get_train_args

    values = yaml.safe_load(path.read_text("utf-8"))
    # The key is that of Transformers, which opens it only where DeepSpeed is installed.
    if "deepspeed" in values and not Path(values.pop("deepspeed")).is_file():
        raise FileNotFoundError("deepspeed names no file")
    get_train_args(values | HERE)


def trl(path: Path) -> None:
    """The parser of `trl sft|dpo|kto|reward`; which of them stands in the file's head."""
    import trl as library
    from trl.scripts.utils import DatasetMixtureConfig

    start = next(line for line in path.read_text("utf-8").splitlines() if line.startswith("# Start: trl "))
    command = start.removeprefix("# Start: trl ").split()[0]
    settings = {"sft": "SFTConfig", "dpo": "DPOConfig", "kto": "KTOConfig", "reward": "RewardConfig"}[command]
    classes = (library.ScriptArguments, getattr(library, settings), library.ModelConfig, DatasetMixtureConfig)
    library.TrlParser(classes).parse_args_and_config(["--config", str(path), "--use_cpu"])


def unsloth(path: Path) -> None:
    """The pydantic models of `unsloth train`, which need no part of Unsloth."""
    _load_file("unsloth_cli", "config.py").Config.model_validate(yaml.safe_load(path.read_text("utf-8")))


CHECKS: dict[str, Callable[[Path], None]] = {
    "axolotl": axolotl,
    "llama-factory": llama_factory,
    "trl": trl,
    "unsloth": unsloth,
}


def schema_keys(peer: str) -> set[str]:
    """All keys that the peer's schema has, those of sections with a dot."""
    if peer == "axolotl":
        from axolotl.utils.schemas.config import AxolotlInputConfig

        plugins = [_axolotl_plugin(name) for name in PLUGINS]
        return {key for model in (AxolotlInputConfig, *plugins) for key in model.model_fields}
    if peer == "unsloth":
        fields = _load_file("unsloth_cli", "config.py").Config.model_fields
        sections = {name: getattr(field.annotation, "model_fields", None) for name, field in fields.items()}
        return {f"{name}.{key}" if keys else name for name, keys in sections.items() for key in keys or {name: None}}
    return set(_dataclass_keys(peer))


def _dataclass_keys(peer: str) -> Iterable[str]:
    if peer == "llama-factory":
        from llamafactory.hparams.parser import _TRAIN_ARGS

        classes = list(_TRAIN_ARGS)
    elif peer == "trl":
        import trl as library
        from trl.scripts.utils import DatasetMixtureConfig

        names = ("SFTConfig", "DPOConfig", "KTOConfig", "RewardConfig", "ScriptArguments", "ModelConfig")
        classes = [*(getattr(library, name) for name in names), DatasetMixtureConfig]
    else:
        import transformers

        classes = [transformers.TrainingArguments]
    return (field.name for kind in classes for field in dataclasses.fields(kind) if field.init)


def _refuse_unknown(values: dict[str, Any], known: set[str]) -> None:
    unknown = values.keys() - known
    if unknown:
        raise ValueError(f"keys that the schema does not have: {', '.join(sorted(unknown))}")


def _load_file(package: str, name: str) -> Any:  # noqa: ANN401  # a module
    """A file of a package alone: importing the package would ask for all that it needs to train."""
    found = importlib.util.find_spec(package)
    assert found is not None, f"{package} is not on the path"
    assert found.submodule_search_locations is not None, f"{package} is no package"
    alias = f"{package}_{name.removesuffix('.py')}".replace(".", "_")
    spec = importlib.util.spec_from_file_location(alias, Path(found.submodule_search_locations[0]) / name)
    assert spec is not None, name
    assert spec.loader is not None, name
    module = sys.modules[alias] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _said(check: Callable[[Path], None], path: Path) -> str | None:
    try:
        check(path)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a peer says is the answer
        lines = str(error).strip().splitlines() or traceback.format_exc().splitlines()[-1:]
        return " ".join(" ".join(lines).split())[:400]
    return None


def main(argv: list[str]) -> None:
    """Check each file, or with `--keys` tell the keys of the schema."""
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    peer, *files = argv
    with contextlib.redirect_stdout(sys.stderr):
        if files == ["--keys"]:
            answer: Any = sorted(schema_keys(peer))
        else:
            answer = {file: _said(CHECKS[peer], Path(file)) for file in files}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
