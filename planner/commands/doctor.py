"""`fitune doctor`: what stands between this machine and a training run."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from planner.commands.options import Json
from planner.report.document import print_json

if TYPE_CHECKING:
    from planner.machine.doctor import Finding

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(json: Json = False) -> int:
    """Look for what keeps this machine from training.

    Checks Python, packages, driver, card and its number formats, torch and bitsandbytes by a small trial, disk and
    memory, and gives the command that cures each problem.

    Returns 1 if something blocks training here.

    \b
    Examples:
      fitune doctor
      fitune doctor --json
    """
    # Only here: what it needs to judge versions would slow every other verb down.
    from planner.machine.doctor import examine
    from planner.report.console import notes_console

    with notes_console().status("trying torch and bitsandbytes"):
        findings = examine(Path.cwd())
    problems = [finding for finding in findings if finding.status == "problem"]
    if json:
        print_json({"ready": not problems, "findings": [asdict(finding) for finding in findings]})
    else:
        _print_findings(findings, len(problems))
    return 1 if problems else 0


def _print_findings(findings: "list[Finding]", num_problems: int) -> None:
    from rich.text import Text

    from planner.report.console import data_console, print_hanging

    console = data_console()
    subject_width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        status = (f"{finding.status:<7}", STYLES[finding.status])
        lead = Text.assemble("  ", status, f"  {finding.subject:<{subject_width}}  ")
        print_hanging(console, lead, finding.message)
        if finding.cure:
            console.print(Text(" " * lead.cell_len).append(finding.cure, style="bold"), soft_wrap=True)
    blocked = f"{num_problems} problem{'s' * (num_problems != 1)} to cure before this machine can train."
    console.print(f"\n{blocked}" if num_problems else "\nNothing blocks training on this machine.")
