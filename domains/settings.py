"""Settings: nested dataclasses to plain dictionaries and YAML, and back with every key and type checked."""

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from domains.errors import UserError
from domains.files import atomic_file

Settings = TypeVar("Settings")

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    type(None): "nothing",
}


def from_dict(cls: type[Settings], values: Mapping[str, Any], where: str = "config") -> Settings:
    """Build a dataclass, and those nested in it, out of plain values; keys left out take their defaults.

    Args:
        cls: the dataclass. Field types may be bool, int, float, str, None, list, tuple, dataclasses, and unions.
        values: plain values. A whole number is accepted for a float, and so is text such as ``1e-3``, which YAML
            does not take for a number.
        where: what the values came from, for messages.

    Raises:
        UserError: an unknown key (the nearest known one is named), a value of the wrong type, or values that the
            dataclass itself refuses with a ValueError.
    """
    return _build(cls, values, where, "")


def to_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain values: dictionaries, lists, text, numbers, booleans, None."""
    return _plain(dataclasses.asdict(settings))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML file that holds a table of settings; nothing in it can run code.

    Raises:
        UserError: the file cannot be read, is not YAML, or holds something other than a table.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is not valid YAML ({reason}); correct it") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, not a table of settings; write 'key: value' lines")
    return values


def write_yaml(path: Path | str, values: Mapping[str, Any]) -> None:
    """Write plain values as YAML, in their order, atomically."""
    with atomic_file(path) as file:
        yaml.safe_dump(dict(values), file, sort_keys=False, allow_unicode=True, encoding="utf-8")


def _build(cls: type[Settings], values: Any, where: str, prefix: str) -> Settings:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: {prefix.rstrip('.') or 'it'} must be a table of settings, not {values!r}")
    hints = get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise UserError(f"{where}: {prefix}{key} is no setting; {_near(str(key), prefix, fields)}")
    converted = {key: _convert(hints[key], value, where, f"{prefix}{key}") for key, value in values.items()}
    try:
        return cls(**converted)
    except ValueError as error:
        raise UserError(": ".join([where, *filter(None, [prefix.rstrip(".")]), str(error)])) from None


def _near(key: str, prefix: str, fields: set[str]) -> str:
    if near := difflib.get_close_matches(key, fields, n=1):
        return f"did you mean {prefix}{near[0]}?"
    return f"there are {', '.join(sorted(fields))}"


def _convert(hint: Any, value: Any, where: str, name: str) -> Any:
    """``value`` as the type ``hint`` asks for, or a UserError."""
    for option in _options(hint):
        found, converted = _try(option, value, where, name)
        if found:
            return converted
    wanted = " or ".join(_describe(option) for option in _options(hint))
    raise UserError(f"{where}: {name} must be {wanted}, not {value!r}")


def _try(hint: Any, value: Any, where: str, name: str) -> tuple[bool, Any]:
    """Whether ``value`` fits ``hint``, and what it becomes. Inside lists and tables a misfit raises, with its place."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return True, _build(hint, value, where, f"{name}.")
    origin = get_origin(hint) or hint
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return _try_items(origin, get_args(hint), value, where, name)
    if origin is float:
        return _try_float(value)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if origin in (bool, str, type(None)):
        return isinstance(value, origin), value
    return hint is Any, value


def _try_items(origin: type, kinds: tuple[Any, ...], value: Any, where: str, name: str) -> tuple[bool, Any]:
    if origin is tuple and kinds[-1] is not Ellipsis:
        if len(kinds) != len(value):
            return False, value
    else:
        kinds = (kinds[0],) * len(value)
    items = (
        _convert(kind, item, where, f"{name}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )
    return True, origin(items)


def _try_float(value: Any) -> tuple[bool, Any]:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return False, value
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return False, value
    return True, float(value)


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _describe(hint: Any) -> str:
    origin = get_origin(hint) or hint
    if origin is tuple and get_args(hint)[-1] is not Ellipsis:
        return f"a list of {len(get_args(hint))}"
    return _WORDS.get(origin, "a table of settings")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
