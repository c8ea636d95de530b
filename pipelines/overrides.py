"""What a user typed after the command, checked before anything is loaded."""

import difflib
import re
from collections.abc import Mapping, Sequence

from domains.errors import UserError

_LIST_WORDS = 3  # near matches shown


def check_form(overrides: Sequence[str], groups: Mapping[str, Sequence[str]]) -> None:
    """Check that each override reads ``key=value`` and names a file that exists where the key is a group.

    Args:
        overrides: the words of the command line, for example ``["data.fasta=my.fa", "backbone=mamba1"]``.
        groups: group to the names of its files.

    Raises:
        UserError: no equals sign, no value, a value that Hydra cannot read, or an unknown choice.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if key.startswith("~"):
            continue
        if not equals:
            raise UserError(f"{text!r} is not key=value; put the key that it is for before it: <key>={text}")
        if not value.strip():
            raise UserError(f"{key}= has no value; write {key}=<value>, or leave it out for the default")
        _check_reads(text)
        if (name := _bare(key)) in groups:
            _check_choice(name, value, groups[name])


def check_keys(overrides: Sequence[str], keys: Sequence[str], groups: Mapping[str, Sequence[str]]) -> None:
    """Check that each override names a key of the configuration, or a group.

    Raises:
        UserError: an unknown key; the nearest known ones are named.
    """
    tables = {".".join(parts[:i]) for parts in (key.split(".") for key in keys) for i in range(1, len(parts))}
    for text in overrides:
        written = text.partition("=")[0]
        key = _bare(written)
        if key in groups or key.split(".")[0] == "hydra":
            continue
        if key not in keys and key not in tables:
            raise UserError(f"unknown key {key!r}; {suggest(key, [*keys, *groups])}")
        if written != key:
            raise UserError(f"{written} is in the configuration already; write {key}=<value>, without {written[0]!r}")


def suggest(word: str, known: Sequence[str]) -> str:
    """A phrase that names the words of ``known`` nearest to ``word``, or all of them when none is near."""
    near = [name for name in known if name.split(".")[-1] == word.split(".")[-1]]
    near += difflib.get_close_matches(word, known, n=_LIST_WORDS, cutoff=0.6)
    tails = {name.split(".")[-1]: name for name in reversed(known)}
    near += [tails[tail] for tail in difflib.get_close_matches(word.split(".")[-1], tails, n=_LIST_WORDS, cutoff=0.75)]
    if near:
        return f"did you mean {' or '.join(list(dict.fromkeys(near))[:_LIST_WORDS])}?"
    if len(known) > 12:
        return "--cfg job shows every key with its value"
    return f"there are {', '.join(known)}"


def _bare(key: str) -> str:
    """``+data.fasta`` and ``data@data`` without what Hydra reads around the key."""
    return key.lstrip("+~").partition("@")[0]


def _check_reads(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(text)
    except HydraException:
        key, _, value = text.partition("=")
        if value.startswith("~/"):
            raise UserError(f"cannot read {text!r}; write the folder in full: {key}=$HOME{value[1:]}") from None
        raise UserError(f"cannot read {text!r}; put the value in quotes: {key}='\"{value}\"'") from None


def _check_choice(group: str, value: str, choices: Sequence[str]) -> None:
    if not re.fullmatch(r"[\w./-]+(,[\w./-]+)*", value):
        return  # a sweep such as glob(*): Hydra's own business
    for choice in value.split(","):
        if choice not in (*choices, "null"):
            raise UserError(f"{group}={choice}: there is no such choice; {suggest(choice, choices)}")
