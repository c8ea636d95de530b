"""One line for what a user can put right; nothing for a fault of ours."""

import errno
import re

from domains.errors import UserError

_TYPES = {"Integer": "a whole number", "Float": "a number", "bool": "true or false", "String": "text"}
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def explain(error: BaseException) -> str | None:
    """The line to print for ``error``, or None when it is a fault of Serpentine and deserves a traceback."""
    text = _explain(error)
    return None if text is None else " ".join(text.split())


def _explain(error: BaseException) -> str | None:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return _operating_system(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return (
            "the GPU has too little memory; give smaller batches (for train, half of data.tokens_per_step and twice "
            "trainer.accumulate) or shorter pieces (elsewhere, a smaller chunk)"
        )
    return _configuration(error)


def _operating_system(error: OSError) -> str | None:
    place = error.filename or "the disk"
    if error.errno in _NO_SPACE:
        return f"{place}: no space is left; make room, or choose another folder"
    if error.errno == errno.EFBIG:
        return f"{place}: files may not grow that large here; raise the limit (ulimit -f), or choose another folder"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"{place}: may not be written or read by you; choose another folder or change its permissions"
    if isinstance(error, IsADirectoryError) and error.filename:
        return f"{error.filename2 or error.filename}: a folder stands where a file is wanted; choose another name"
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename:
        return f"{place}: a file stands where a folder is wanted; choose another name"
    return None


def _configuration(error: BaseException) -> str | None:
    """Hydra's and OmegaConf's exceptions. Hydra wraps OmegaConf's, which knows the key, as the cause."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OmegaConfBaseException):
            return _value(str(seen.full_key or ""), str(seen.msg or seen).splitlines()[0])
        seen = seen.__cause__
    return _first_lines(str(error)) if isinstance(error, HydraException) else None


def _value(key: str, message: str) -> str:
    if found := re.match(r"Value '(.*)'(?: of type '.*' could not be converted to| is not a valid) (\w+)", message):
        value, kind = found.groups()
        return f"{key}={value}: must be {_TYPES.get(kind, kind)}"
    if "is not a ListConfig" in message or ("Cannot assign" in message and "ListConfig" in message):
        return f"{key} takes a list; write {key}=[<value>,<value>]"
    if "is not Optional" in message:
        return f"{key} must have a value; leave it out for the default"
    return f"{key}: {message}" if key and key not in message else message


def _first_lines(text: str) -> str:
    """The first paragraph of one of Hydra's messages: its advice to use ``+key`` comes after it."""
    return text.strip().split("\n\n")[0]
