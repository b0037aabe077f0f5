"""`fitune chat`: a first talk with a trained model."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.commands.options import Json


def chat(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder of a run, an adapter, or a merged model.", show_default=False),
    ],
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="Answer this one question and leave.")
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System prompt, which the model reads first.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=1, help="The most tokens of an answer.")
    ] = 512,
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature", metavar="T", min=0, help="Randomness of the answers; 0 always takes the likeliest token."
        ),
    ] = 0.7,
    json: Json = False,
) -> None:
    """Talk to a trained model, for a first look at what it learned.

    An adapter is loaded onto the base that it was trained on, quantized if that was. The model answers on the card of
    this machine, or on its CPU if there is none. Each line is a turn of one conversation, in the model's own chat
    template. Ctrl-C stops an answer, Ctrl-D leaves.

    \b
    Examples:
      fitune chat runs/mistral
      fitune chat runs/mistral/merged --prompt "What is a llama?" --temperature 0
    """
    options = {"--prompt": prompt, "--system": system, "--max-new-tokens": max_new_tokens, "--temperature": temperature}
    argv = [sys.executable, "-m", "trainer.finish.talk", str(folder)]
    argv += [f"{name}={value}" for name, value in options.items() if value is not None]
    # In the place of this process, so that the terminal's keys reach the conversation alone.
    os.execv(sys.executable, argv + ["--json"] * json)  # noqa: S606  # an argv list, no shell
