"""Bodies of requests: read up to a limit, and turned into plain values only if they are harmless."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import yaml
from fastapi import Request

from services.api.errors import Refused
from services.api.state import service_of
from services.store.checked_values import MAX_INTEGER
from services.study_config.schema import yaml_value

SECONDS = 10.0
MOST_DEPTH = 32
MOST_NODES = 20_000
MOST_DIGITS = 200
JSON_TYPES = frozenset({"application/json"})
YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "text/plain", ""})
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # written in C where that was built: events only
_OPENING = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_CLOSING = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


async def body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        Refused: It is larger than is allowed, or comes too slowly.
    """
    most = service_of(request).settings.api_body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > most:
        raise _too_large(most)
    found = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for chunk in request.stream():
                found += chunk
                if len(found) > most:
                    raise _too_large(most)
    except TimeoutError:
        raise Refused(408, "too_slow", f"a request is sent within {SECONDS:.0f} s", remedy="try again") from None
    return bytes(found)


def media_type(request: Request) -> str:
    """Return the media type of the body of a request, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def document(content: bytes, kind: str) -> dict[str, Any]:
    """Return what a body holds, as plain values.

    Args:
        content: The body.
        kind: Its media type: JSON or YAML.

    Raises:
        Refused: It is neither, breaks the rules of its kind, is no mapping, or is built to do harm.
    """
    if kind not in JSON_TYPES | YAML_TYPES:
        raise Refused(
            415,
            "unsupported_media_type",
            f"a body is application/yaml or application/json, got {kind[:100]}",
            key="Content-Type",
            value=kind,
            remedy="send the study as YAML or JSON",
        )
    try:
        text = content.decode("utf-8")
        value = _from_json(text) if kind in JSON_TYPES else _from_yaml(text)
        check(value)
    except UnicodeDecodeError as error:
        raise _malformed(f"a body is UTF-8 text: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise _malformed(f"the body is nested more than {MOST_DEPTH} deep") from None
    except (yaml.YAMLError, ValueError) as error:
        raise _malformed(" ".join(str(error).split())[:500]) from None
    if not isinstance(value, dict):
        raise _malformed(f"a body is a mapping of keys, got {type(value).__name__}")
    return value


def _from_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:100]!r} stands twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"numbers are finite, got {text}")


def _from_yaml(text: str) -> Any:
    depth = 0
    for nodes, event in enumerate(yaml.parse(text, Loader=_LOADER), 1):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"aliases (*{event.anchor}) are not allowed")
        if isinstance(event, yaml.ScalarEvent) and _is_long_number(event):
            raise ValueError(f"a number has at most {MOST_DIGITS} digits")
        depth += isinstance(event, _OPENING) - isinstance(event, _CLOSING)
        _check_size(depth, nodes)
    return yaml_value(text)


def check(value: Any) -> None:
    """Refuse what a database or JSON cannot hold, and what is nested or divided beyond any study.

    Raises:
        ValueError: It is.
    """
    for nodes, (depth, each) in enumerate(_walk(value)):
        _check_size(depth, nodes)
        if isinstance(each, int) and not isinstance(each, bool) and abs(each) > MAX_INTEGER:
            raise ValueError("whole numbers lie within 64 bits, got a larger one")
        if isinstance(each, float) and not abs(each) < float("inf"):
            raise ValueError(f"numbers are finite, got {each}")
        if isinstance(each, str) and ("\0" in each or any("\ud800" <= mark <= "\udfff" for mark in each)):
            raise ValueError("texts hold no NUL characters and no halves of surrogate pairs")
        if not isinstance(each, dict | list | str | int | float | None):
            raise ValueError(f"values are texts, numbers, lists and mappings, got a {type(each).__name__}: quote it")


def _is_long_number(event: yaml.ScalarEvent) -> bool:
    """Whether a scalar may be a number for which PyYAML takes quadratic time."""
    plain = event.implicit[0]
    return plain and len(event.value) > MOST_DIGITS and event.value[0] in "+-.0123456789"


def require_harmless(value: Any) -> None:
    """Refuse plain values as a body would be.

    Raises:
        Refused: They are built to do harm.
    """
    try:
        check(value)
    except ValueError as error:
        raise _malformed(str(error)) from None


def _walk(value: Any) -> Iterator[tuple[int, Any]]:
    """Yield every key and value with its depth, without recursion."""
    left = [(0, value)]
    while left:
        depth, each = left.pop()
        yield depth, each
        inner = [*each.keys(), *each.values()] if isinstance(each, dict) else each if isinstance(each, list) else ()
        left.extend((depth + 1, item) for item in inner)


def _check_size(depth: int, nodes: int) -> None:
    if depth > MOST_DEPTH:
        raise ValueError(f"a body is nested at most {MOST_DEPTH} deep")
    if nodes > MOST_NODES:
        raise ValueError(f"a body has at most {MOST_NODES} values")


def _malformed(message: str) -> Refused:
    return Refused(422, "malformed_body", message, remedy="send one study as YAML or JSON, in UTF-8")


def _too_large(most: int) -> Refused:
    return Refused(
        413,
        "too_large",
        f"a body has at most {most} bytes",
        remedy="send a smaller study, or raise NAS_BLOCKOUT_API_BODY_BYTES",
        headers={"Connection": "close"},
    )
