"""Request bodies: read up to a size limit, and parsed into plain values within limits that no study reaches."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from fastapi import Request

from services.api.errors import RequestError
from services.api.state import service_of
from services.store.checked_values import MAX_INTEGER
from services.study_config.yaml_reader import yaml_value

SECONDS = 10.0  # for the whole body: a client that sends a byte now and then must not hold a connection for long
MAX_DEPTH = 32
MAX_NODES = 20_000
MAX_DIGITS = 200
JSON_TYPES = frozenset({"application/json"})
YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "text/plain", ""})
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # written in C where that was built: events only
_LINE = re.compile(r", line ([0-9]{1,7}), column")
_OPENING = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_CLOSING = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


async def body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        RequestError: It is too large, or arrives too slowly.
    """
    max_bytes = service_of(request).settings.api_body_bytes
    declared = request.headers.get("content-length", "")
    # Refused before it is read, if the client says so; one that lies, or does not say, is stopped below.
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    content = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise RequestError(408, "too_slow", f"no complete body within {SECONDS:.0f} s", remedy="try again") from None
    return bytes(content)


def media_type(request: Request) -> str:
    """Return the media type of a request body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def document(content: bytes, kind: str) -> dict[str, Any]:
    """Parse a body into plain values.

    Args:
        content: The body.
        kind: Its media type.

    Raises:
        RequestError: It is neither JSON nor YAML, malformed, not a mapping, or beyond the limits.
    """
    if kind not in JSON_TYPES | YAML_TYPES:
        raise RequestError(
            415,
            "unsupported_media_type",
            f"the body must be application/yaml or application/json, got {kind[:100]}",
            key="Content-Type",
            value=kind,
            remedy="send the study as YAML or JSON",
        )
    try:
        text = content.decode("utf-8")
        if kind in JSON_TYPES:
            value = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
        else:
            value = _from_yaml(text)
        check(value)
    except UnicodeDecodeError as error:
        raise _malformed(f"the body must be UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise _malformed(f"the body must be nested at most {MAX_DEPTH} levels deep") from None
    except (yaml.YAMLError, ValueError) as error:
        text = " ".join(str(error).split()).replace(' in "<unicode string>",', " at")
        raise _malformed(text[:500], line=_line_of(error)) from None
    if not isinstance(value, dict):
        raise _malformed(f"the body must be a mapping, got {type(value).__name__}")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for name, value in pairs:
        if name in mapping:
            raise ValueError(f"the key {name[:100]!r} occurs twice")
        mapping[name] = value
    return mapping


def _no_constant(text: str) -> Any:
    raise ValueError(f"numbers must be finite, got {text}")


def _from_yaml(text: str) -> Any:
    # From events, before any value is built: aliases can multiply a small body to gigabytes.
    depth = 0
    for nodes, event in enumerate(yaml.parse(text, Loader=_LOADER), 1):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"aliases (*{event.anchor}) are not allowed")
        if isinstance(event, yaml.ScalarEvent) and _is_long_number(event):
            raise ValueError(f"numbers must have at most {MAX_DIGITS} digits")
        depth += isinstance(event, _OPENING) - isinstance(event, _CLOSING)
        _check_size(depth, nodes)
    return yaml_value(text)


def check(value: Any) -> None:
    """Check that JSON and the database can represent a value, and that it is within the limits of depth and size.

    Raises:
        ValueError: It is not.
    """
    for nodes, (depth, item) in enumerate(_walk(value)):
        _check_size(depth, nodes)
        if isinstance(item, int) and not isinstance(item, bool) and abs(item) > MAX_INTEGER:
            raise ValueError("whole numbers must fit into 64 bits, got a larger one")
        if isinstance(item, float) and not abs(item) < float("inf"):
            raise ValueError(f"numbers must be finite, got {item}")
        if isinstance(item, str) and ("\0" in item or any("\ud800" <= mark <= "\udfff" for mark in item)):
            raise ValueError("strings must not contain NUL characters or lone surrogates")
        if not isinstance(item, dict | list | str | int | float | None):
            raise ValueError(f"values must be text, numbers, lists or mappings, got a {type(item).__name__}: quote it")


def _is_long_number(event: yaml.ScalarEvent) -> bool:
    """Whether a scalar may be a number so long that PyYAML, in quadratic time, would take seconds to convert it."""
    plain = event.implicit[0]
    return plain and len(event.value) > MAX_DIGITS and event.value[0] in "+-.0123456789"


def require_within_limits(value: Any) -> None:
    """Check plain values like those of a body.

    Raises:
        RequestError: They are beyond the limits.
    """
    try:
        check(value)
    except ValueError as error:
        raise _malformed(str(error)) from None


def _walk(value: Any) -> Iterator[tuple[int, Any]]:
    """Yield every key and value with its depth, without recursion, which a deep value could exhaust."""
    stack = [(0, value)]
    while stack:
        depth, item = stack.pop()
        yield depth, item
        inner = [*item.keys(), *item.values()] if isinstance(item, dict) else item if isinstance(item, list) else ()
        stack.extend((depth + 1, value) for value in inner)


def _check_size(depth: int, nodes: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"the body must be nested at most {MAX_DEPTH} levels deep")
    if nodes > MAX_NODES:
        raise ValueError(f"the body must have at most {MAX_NODES} values")


def _line_of(error: Exception) -> int | None:
    """Return the line of a YAML text, from 1, at which an error is, or None if it names none."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return int(mark.line) + 1
    named = _LINE.search(str(error))  # our own errors name it in their text
    return int(named[1]) if named else None


def _malformed(message: str, *, line: int | None = None) -> RequestError:
    error = RequestError(422, "malformed_body", message, remedy="send one study as YAML or JSON, in UTF-8")
    error.problem = error.problem.model_copy(update={"line": line})
    return error


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(
        413,
        "too_large",
        f"the body must have at most {max_bytes} bytes",
        remedy="send a smaller study, or raise NAS_BLOCKOUT_API_BODY_BYTES",
        headers={"Connection": "close"},
    )
