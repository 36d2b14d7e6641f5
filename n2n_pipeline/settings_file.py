"""Settings in and out: a YAML file and ``--set a.b=c`` words become one checked :class:`RunConfig`.

YAML is read by the rules of its version 1.2 and as plain data: ``no`` is a text, ``010`` is ten, ``1e-4`` is a
number; an alias, a tag or a key given twice is refused. Whatever is wrong is one line that says where.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import yaml
from pydantic import ValidationError

from n2n_pipeline.config import RunConfig, Settings
from n2n_pipeline.errors import ExitCode, InputError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
_NULL = {"", "~", "null", "Null", "NULL"}
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")  # more digits are a float, as int() refuses thousands of them
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

Keys = tuple[str, ...]
S = TypeVar("S", bound=Settings)


class Given(NamedTuple):
    """A value somebody gave, and where: ``config.yaml:12``, ``--set train.lr=no`` or ``--bin``."""

    value: Any
    where: str


def load_settings(
    file: Path | None = None, assignments: Iterable[str] = (), options: Mapping[str, Given] | None = None
) -> RunConfig:
    """Resolve what a run is told; later sources win over earlier ones.

    Parameters
    ----------
    file : pathlib.Path, optional
        A YAML file whose keys are those of :class:`RunConfig`.
    assignments : iterable of str
        ``a.b=c`` words; ``c`` is read as YAML.
    options : mapping, optional
        ``{"a.b": Given("c", "--b")}``: what the options of a command gave.

    Returns
    -------
    RunConfig
        Complete and checked.

    Raises
    ------
    InputError
        With exit code 78: an unknown key, a value of the wrong kind or out of range, or no valid YAML.

    Examples
    --------
    >>> load_settings(assignments=["train.lr=1e-4"]).train.lr
    0.0001
    """
    given: dict[Keys, Given] = {}
    if file is not None:
        given |= _read_file(file)
    for word in assignments:
        given |= _read_assignment(word)
    return _check(RunConfig, given | _read_options(options or {}))


def check_options(model: type[S], options: Mapping[str, Given]) -> S:
    """Make settings of any kind from a command's options.

    Raises
    ------
    InputError
        With exit code 78, naming the option.

    Examples
    --------
    >>> from n2n_pipeline.config import TileConfig
    >>> check_options(TileConfig, {"core_px": Given("256", "--core")}).core_px
    256
    """
    return _check(model, _read_options(options))


def read_settings(model: type[S], file: Path) -> S:
    """Read settings of any kind from a YAML file; what is wrong with it is told as `load_settings` does."""
    return _check(model, _read_file(file))


def dump_settings(config: Settings) -> str:
    """Write settings as the YAML text that :func:`load_settings` reads back."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def _refused(where: object, what: str, todo: str | None = None) -> InputError:
    return InputError(where, what, todo, ExitCode.CONFIG)


def _check(model: type[S], given: Mapping[Keys, Given]) -> S:
    try:
        return model.model_validate(_nest(given))
    except ValidationError as error:
        raise _explain(model, error, given) from None


def _read_options(options: Mapping[str, Given]) -> dict[Keys, Given]:
    return {tuple(name.split(".")): entry for name, entry in options.items()}


def _read_file(file: Path) -> dict[Keys, Given]:
    if not file.is_file():
        raise InputError(file, "no such file", code=ExitCode.NO_INPUT)
    if file.stat().st_size > MAX_BYTES:
        raise _refused(file, f"{file.stat().st_size} bytes, more than settings can need")
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError:
        raise _refused(file, "not a text file in UTF-8") from None
    node = _compose(text, str(file))
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise _refused(f"{file}:1", "settings must be `name: value` lines")
    return _flatten(node, (), str(file))


def _read_assignment(word: str) -> dict[Keys, Given]:
    name, equals, text = word.partition("=")
    where = f"--set {word}"
    if not equals or not name:
        raise _refused(where, "no value", "write --set name=value")
    keys = tuple(name.strip().split("."))
    node = _compose(text, where)
    if isinstance(node, yaml.MappingNode):
        return {path: Given(entry.value, where) for path, entry in _flatten(node, keys, where).items()}
    return {keys: Given(None if node is None else _value(node, where), where)}


def _compose(text: str, name: str) -> yaml.Node | None:
    """Parse one YAML document; depth and aliases are checked on its events, before anything recurses."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            where = f"{name}:{event.start_mark.line + 1 if event.start_mark else 1}"
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise _refused(where, "aliases (& and *) are not allowed in settings")
            if getattr(event, "tag", None):
                raise _refused(where, "tags (!) are not allowed in settings")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise _refused(where, f"nested more than {MAX_DEPTH} deep")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _refused(f"{name}:{line}", f"not valid YAML: {error.problem}") from None
    except yaml.YAMLError:
        raise _refused(name, "not valid YAML") from None


def _flatten(node: yaml.MappingNode, above: Keys, name: str) -> dict[Keys, Given]:
    found: dict[Keys, Given] = {}
    seen: set[str] = set()
    for key, value in node.value:
        where = f"{name}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise _refused(where, "a key must be a name")
        if key.value in seen:
            raise _refused(where, f"key '{key.value}' is given twice")
        seen.add(key.value)
        keys = (*above, key.value)
        if isinstance(value, yaml.MappingNode):
            found |= _flatten(value, keys, name)
        else:
            found[keys] = Given(_value(value, where), where)
    return found


def _value(node: yaml.Node, where: str) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, where) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise _refused(where, "a list holds names and numbers only")
    return node.value if node.style else plain_scalar(node.value)  # a style means that it was quoted


def plain_scalar(text: str) -> str | int | float | None:
    """Read an unquoted word; true and false stay words, for their field to take or to refuse.

    Examples
    --------
    >>> [plain_scalar(word) for word in ("no", "1:30", "010", "1e-4", "~")]
    ['no', '1:30', 10, 0.0001, None]
    """
    if text in _NULL:
        return None
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def _nest(given: Mapping[Keys, Given]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for keys, entry in given.items():
        level = nested
        for key in keys[:-1]:
            if not isinstance(level.get(key), dict):
                level[key] = {}
            level = level[key]
        level[keys[-1]] = entry.value
    return nested


def _explain(model: type[Settings], error: ValidationError, given: Mapping[Keys, Given]) -> InputError:
    """Turn the first complaint into a line; complaints about one value (a union's branches) belong together."""
    complaints = error.errors(include_url=False, include_context=False)
    keys = _given_keys(complaints[0]["loc"], given)
    where = next((entry.where for path, entry in given.items() if path[: len(keys)] == keys), "settings")
    if complaints[0]["type"] == "extra_forbidden":
        return _refused(where, f"unknown key '{keys[-1]}'", _suggest(model, keys))
    first, *others = (_wish(c["msg"]) for c in complaints if _given_keys(c["loc"], given) == keys)
    wishes = [first, *(wish.removeprefix("must be ") for wish in others)]
    name = ".".join(keys) or "settings"
    return _refused(where, f"{name} {' or '.join(wishes)}, got {complaints[0]['input']!r}")


def _given_keys(location: tuple[str | int, ...], given: Mapping[Keys, Given]) -> Keys:
    """Leave out of an error's location what pydantic added: the branches of unions, the items of lists."""
    known = {path[:n] for path in given for n in range(len(path) + 1)}
    names = tuple(str(part) for part in location)
    return next((names[:n] for n in range(len(names), 0, -1) if names[:n] in known), ())


def _wish(message: str) -> str:
    if message.startswith("Input is not a valid path"):
        return "must be a path"
    if not message.startswith("Input should be"):
        return message.removeprefix("Value error, ")
    if "dictionary" in message:
        return "must be a group of settings"
    return (
        message.split(", unable")[0]
        .replace("Input should be", "must be")
        .replace("a valid integer", "a whole number")
        .replace("a valid tuple", "several")
        .replace("a valid boolean", "true or false")
        .replace("a valid tuple", "a list")
        .replace("a valid ", "a ")
        .removesuffix(", got a number with a fractional part")
    )


def _suggest(model: type[Settings], keys: Keys) -> str:
    names = list(_model_at(model, keys[:-1]).model_fields)
    close = get_close_matches(keys[-1], names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(names)}"


def _model_at(model: type[Settings], keys: Keys) -> type[Settings]:
    for key in keys:
        annotation = model.model_fields[key].annotation
        choices = get_args(annotation) or (annotation,)
        model = next(c for c in choices if isinstance(c, type) and issubclass(c, Settings))
    return model
