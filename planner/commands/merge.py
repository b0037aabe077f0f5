"""`fitune merge`: an adapter and its base as one model."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.commands.launch import run_process
from planner.commands.options import Json
from planner.config.run_config import Dtype


def merge(
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN|ADAPTER", help="Folder of a run, or of any adapter of PEFT.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="Folder to write; without it, `merged` in the run folder, or ADAPTER-merged.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="The 16-bit base; the default is the one that the adapter names."),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option("--dtype", metavar="DTYPE", help="bfloat16, float16 or float32; the default is that of the base."),
    ] = None,
    gguf: Annotated[
        str | None,
        typer.Option("--gguf", metavar="TYPE", help="Convert to GGUF too: auto, f16, bf16, q8_0, ... Needs llama.cpp."),
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option(
            "--llama-cpp", metavar="FOLDER", help="Where llama.cpp is, if not on the PATH or in LLAMA_CPP_DIR."
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Make one model of an adapter and its base.

    The model needs neither PEFT nor fitune. It is made on the CPU, a layer at a time, so that a large one needs a few
    GiB of memory; memory and disk are checked first. The folder has weights in safetensors, tokenizer, chat template
    and a model card.

    An adapter that was trained on a quantized base is merged into the 16-bit weights that the base was made from.

    \b
    Examples:
      fitune merge runs/mistral
      fitune merge runs/mistral -o mistral-chat --dtype float16
      fitune merge runs/mistral --gguf q8_0 --llama-cpp ~/llama.cpp
    """
    options = {"--out": output, "--base": base, "--dtype": dtype, "--gguf": gguf, "--llama-cpp": llama_cpp}
    argv = [sys.executable, "-m", "trainer.finish.merge", str(folder)]
    argv += [part for name, value in options.items() if value is not None for part in (name, str(value))]
    return run_process(argv + ["--json"] * json)
