"""Options that several commands share, and how a command takes many of them at once."""

import os
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from math import isfinite
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from spring_rag.files import parse_json

_MOST = 10**9
"""Upper bound of options that count or measure: more than anyone needs, and too small to overflow."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out bad lines, and count them.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of every random draw.")]


class Numbers(list[int]):
    """The numbers of an option such as `0,1,10,50`, each once, ascending."""


def parse_numbers(text: str | Numbers) -> Numbers:
    """Read `0,1,10,50`; a default that is parsed already, which Typer passes too, stays as it is.

    Raises:
        ValueError: it isn't made of whole numbers from 0.
    """
    if isinstance(text, Numbers):
        return text
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        msg = f"{text!r} isn't a list of whole numbers such as 0,1,10,50"
        raise ValueError(msg)
    return Numbers(sorted({int(part) for part in parts}))


def compared_ks(shown: str) -> Any:
    """Return the option `--k` of a command that compares numbers of virtual tokens; `shown` is its default in words."""
    return typer.Option(
        "--k",
        parser=parse_numbers,
        metavar="K,K,…",
        help="Numbers of virtual tokens to compare.",
        show_default=shown,
    )


def parse_object(text: str, option: str, example: str) -> dict[str, Any]:
    """Read an option that is a JSON object.

    Raises:
        typer.BadParameter: it isn't one.
    """
    try:
        found = parse_json(text)
    except ValueError as error:
        msg = f"{text!r} isn't JSON: {error}"
        raise typer.BadParameter(msg, param_hint=option) from error
    if not isinstance(found, dict):
        msg = f"{text!r} isn't a JSON object such as {example}"
        raise typer.BadParameter(msg, param_hint=option)
    return found


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take whole dataclasses: each of their fields becomes an option of the command.

    Numbers without a maximum get one, and values that are no number or no text are refused. A field describes its option in its annotation (`Annotated[str, typer.Option(…)]`), or in its metadata, which holds `help` and may hold
    `names` and whatever else `typer.Option` takes. Fields without a description keep their defaults.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    own: dict[str, list[str]] = {}
    parameters: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        if name in groups:
            made = _parameters(groups[name])
            own[name] = [each.name for each in made]
            parameters += made
        else:
            parameters.append(
                parameter.replace(annotation=_bounded(hints[name]), kind=Parameter.KEYWORD_ONLY)
            )

    @wraps(command)
    def run(**values: Any) -> None:
        values = {name: _checked(name, value) for name, value in values.items()}
        for name, group in groups.items():
            values[name] = group(**{each: values.pop(each) for each in own[name]})
        command(**values)

    # Typer reads the annotations and the signature.
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return run


def _checked(name: str, value: Any) -> Any:
    """Return the value of an option in a form that can be used.

    Raises:
        typer.BadParameter: a number that is none, or text that is no Unicode.
    """
    hint = f"--{name.replace('_', '-')}"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return [_checked(name, each) for each in value]
    if isinstance(value, float) and not isfinite(value):
        msg = f"{value} is no number that could be used"
        raise typer.BadParameter(msg, param_hint=hint)
    if isinstance(value, str) and not os.path.exists(value):
        try:
            # If the locale isn't UTF-8, Python keeps the bytes as they came.
            return os.fsencode(value).decode("utf-8")
        except UnicodeError as error:
            msg = f"{value!r} isn't text in UTF-8"
            raise typer.BadParameter(msg, param_hint=hint) from error
    return value


def _parameters(group: Any) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    made = []
    for each in fields(group):
        hint = _annotation(each, hints[each.name])
        if hint is not None:
            default = Parameter.empty if each.default is MISSING else each.default
            made.append(
                Parameter(each.name, Parameter.KEYWORD_ONLY, default=default, annotation=_bounded(hint))
            )
    return made


def _bounded(hint: Any) -> Any:
    """Give numbers that have only a minimum a maximum, too."""
    if get_origin(hint) is not Annotated:
        return hint
    kind, *told = get_args(hint)
    for each in told:
        if kind in (int, int | None, float, float | None) and each.min is not None and each.max is None:
            each.max = _MOST
    return hint


def _annotation(each: Field[Any], hint: Any) -> Any:
    """Return what Typer needs to make an option of a field; None for a field that is no option."""
    if get_origin(hint) is Annotated:
        return hint
    if "help" not in each.metadata:
        return None
    told = dict(each.metadata)
    return Annotated[hint, typer.Option(*told.pop("names", ()), **told)]
