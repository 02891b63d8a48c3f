"""The reference of the command line, from the application itself."""

import re

import typer.cli
from typer.main import get_command

import stack.cli  # noqa: F401  # adds its commands to the application
from producer.cli.app import app

_SHORTENED = re.compile(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n")
"""Lists of subcommands, whose help is cut after some words; each has a section of its own below."""
_HELP = re.compile(r"^\* `--help`: .*\n", re.MULTILINE)
_ONLY = re.compile(r"\*\*Options\*\*:\n\n\n", re.MULTILINE)
_USAGE = re.compile(r"\*\*Usage\*\*:\n\n```console\n\$ (.*)\n```")


def render() -> str:
    """A section for each command, with its arguments and options."""
    command = get_command(app)
    found = typer.cli.get_docs_for_click(
        obj=command, ctx=typer.Context(command, info_name="batchmill"), name="batchmill"
    )
    for pattern, replacement in ((_SHORTENED, ""), (_HELP, ""), (_ONLY, ""), (_USAGE, r"```text\n\1\n```")):
        found = pattern.sub(replacement, found)
    return re.sub("^#", "##", found, flags=re.MULTILINE)
