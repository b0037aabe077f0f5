"""A model folder turned into one GGUF file, by the converter of llama.cpp. Needs no torch."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from profiles.errors import EnvironmentFault, InputError, RunError

CONVERTER = "convert_hf_to_gguf.py"
FOLDER_VARIABLE = "LLAMA_CPP_DIR"
TYPES = ("auto", "f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0")
"""What the converter writes (llama.cpp's convert_hf_to_gguf.py, --outtype); smaller ones are made by llama-quantize."""

STDERR = 2
"""Where the converter's words go: stdout is for the answer of the verb."""

PACKAGES = "pip install gguf sentencepiece"
"""What the converter needs beside torch and Transformers; its own list of requirements would bring an older torch."""

GET_IT = f"git clone --depth 1 https://github.com/ggml-org/llama.cpp && {PACKAGES}"


def check_type(gguf_type: str) -> str:
    """The same `gguf_type`. Raises InputError for one that the converter does not write."""
    if gguf_type in TYPES:
        return gguf_type
    raise InputError(
        f"--gguf is {gguf_type}, but llama.cpp's converter writes {', '.join(TYPES)}",
        hint="for a smaller type, such as Q4_K_M, convert to f16 and run llama-quantize on the file",
    )


def find_converter(llama_cpp: Path | None, environment: Mapping[str, str]) -> Path:
    """llama.cpp's converter: in the folder given, in that of the variable LLAMA_CPP_DIR, or on the PATH.

    Raises InputError if it is not in a folder that was named, and EnvironmentFault if it is nowhere.
    """
    named = str(llama_cpp) if llama_cpp else environment.get(FOLDER_VARIABLE)
    if named:
        script = Path(named) / CONVERTER
        if not script.is_file():
            raise InputError(f"there is no {CONVERTER} in {named}", hint=f"{GET_IT} gets one")
        return script
    found = shutil.which(CONVERTER, path=environment.get("PATH"))
    if found is None:
        raise EnvironmentFault(
            f"a GGUF file is written by llama.cpp's {CONVERTER}, which is not on the PATH",
            hint=f"{GET_IT}; then name its folder with --llama-cpp or {FOLDER_VARIABLE}",
        )
    return Path(found)


def conversion_command(converter: Path, model: Path, gguf_type: str, file: Path) -> list[str]:
    """The command that converts the folder `model`."""
    return [sys.executable, str(converter), str(model), "--outfile", str(file), "--outtype", gguf_type]


def convert(converter: Path, model: Path, gguf_type: str) -> Path:
    """The GGUF file of the folder `model`, written into it; whole or not at all. Raises RunError."""
    file = model / f"{model.resolve().name}-{gguf_type}.gguf"
    unfinished = file.with_name(f".{file.name}")
    try:
        done = subprocess.run(
            conversion_command(converter, model, gguf_type, unfinished),
            stdout=STDERR,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        if done.returncode != 0 or not unfinished.exists():
            raise RunError(
                f"{converter} ended with exit code {done.returncode} and no file; its own words are above",
                hint="most often llama.cpp does not know the architecture or the tokenizer, or lacks a package: "
                f"{PACKAGES}",
            )
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return file
