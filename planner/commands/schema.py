"""`fitune schema`: the JSON schema of a run file, with which editors complete and check it."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.config.run_config import RunConfig
from planner.report.document import print_json
from profiles.errors import ConfigError


def schema(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it here, and not on stdout.")
    ] = None,
) -> int:
    """Print the JSON schema of a run file.

    Editors with a YAML language server complete a run file and mark mistakes if its first line names the schema:
    `# yaml-language-server: $schema=run.schema.json`. `fitune plan -o` writes that line where run.schema.json lies
    beside the run file.

    \b
    Examples:
      fitune schema -o run.schema.json
      fitune plan 7b --gpu t4 -o run.yaml
    """
    document = RunConfig.model_json_schema()
    if output is None:
        print_json(document)
        return 0
    try:
        output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}") from error
    sys.stderr.write(f"{output} is written. Run files beside it: # yaml-language-server: $schema={output.name}\n")
    return 0
