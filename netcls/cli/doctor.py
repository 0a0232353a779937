"""``netcls doctor``: whether this machine can do it, and what to do if not."""

from __future__ import annotations

import json as json_text

import click

from netcls.cli.options import NetclsCommand, json_option
from netcls.output import Output

EXIT_MISTAKE = 2
_SIGNS = {"ok": "ok  ", "warning": "warn", "error": "FAIL"}


@click.command("doctor", cls=NetclsCommand)
@click.argument("interfaces", nargs=-1, metavar="[IFACE]...")
@json_option
def doctor(interfaces: tuple[str, ...], json: bool) -> int:
    """Look after everything that netcls needs on this machine, and on interfaces.

    Exit code 0 if nothing fails; warnings do not count. 2 if something does.
    """
    from netcls.daemon.doctor import examine

    findings = examine(interfaces)
    failed = any(finding.state == "error" for finding in findings)
    if json:
        rows = [{"check": f.check, "state": f.state, "found": f.found, "remedy": f.remedy} for f in findings]
        text = json_text.dumps({"ok": not failed, "checks": rows}, indent=2)
    else:
        text = "\n".join(
            f"{_SIGNS[f.state]}  {f.check}: {f.found}" + (f"; {f.remedy}" if f.remedy else "")
            for f in findings
        )
    with Output() as output:
        output.write(f"{text}\n".encode())
    return EXIT_MISTAKE if failed else 0
