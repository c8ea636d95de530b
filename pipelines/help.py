"""What ``--help`` prints."""

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.cli import Command, Domain

_WIDTH = 110


def describe_domain(domain: "Domain") -> str:
    """The commands of a domain, an example of each, and what holds for all of them."""
    wide = max(len(word) for word in domain.words)
    commands = "\n".join(f"  {command.word:<{wide}}  {command.summary}" for command in domain.commands)
    examples = "\n".join(f"  {domain.program} {command.examples[0]}" for command in domain.commands)
    return f"""{domain.summary}

usage: {domain.program} <command> [key=value ...] [--debug]

commands:
{commands}

examples:
{examples}

{domain.program} <command> --help explains a command."""


def describe_command(domain: "Domain", command: "Command") -> str:
    """One command: what it does, what can be set, examples."""
    wide = max(len(key) for key, _ in command.options)
    options = "\n".join(f"  {key:<{wide}}  {meaning}" for key, meaning in command.options)
    examples = "\n".join(f"  {domain.program} {example}" for example in command.examples)
    return f"""{command.summary}

usage: {domain.program} {command.word} [key=value ...]

{textwrap.fill(command.about, _WIDTH)}

keys:
{options}

examples:
{examples}

options:
  --cfg job       print the whole configuration with every key, and run nothing
  --multirun, -m  run once for each combination of values, as in seed=0,1,2
  --config-dir D  look for configurations of your own in folder D as well
  --debug         show tracebacks, and what other packages have to say"""
