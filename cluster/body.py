"""Request bodies: read with a limit, decoded strictly, validated with one clear answer to everything that is wrong."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar, get_args

import msgpack
from pydantic import BaseModel, ValidationError

from cluster.schemas import Bounds
from memory_actor.errors import BodyTooLarge, InvalidField, MalformedBody, UnknownField, UnsupportedMediaType

JSON = "application/json"
MSGPACK = "application/msgpack"
ACCEPTED = f"{JSON}, {MSGPACK}"
DEPTH_MAX = 32
PROBLEMS_MAX = 20
GOT_CHARS_MAX = 64
INTEGER_BITS_MAX = 64

M = TypeVar("M", bound=BaseModel)


async def read_body(headers: Mapping[str, str], stream: AsyncIterator[bytes], bytes_max: int) -> bytes:
    """The whole body; counts what arrives as well as what `Content-Length` declares.

    Raises: BodyTooLarge; UnsupportedMediaType for any Content-Encoding: nothing is decompressed here.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", ""}:
        raise UnsupportedMediaType(f"content-encoding {encoding}"[:GOT_CHARS_MAX], "an uncompressed body")
    declared = headers.get("content-length", "")
    # A length that int() cannot take is refused by the HTTP server; here only its size matters.
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > bytes_max):
        raise BodyTooLarge(bytes_max)
    chunks: list[bytes] = []
    size = 0
    async for chunk in stream:
        size += len(chunk)
        if size > bytes_max:
            raise BodyTooLarge(bytes_max)
        chunks.append(chunk)
    return b"".join(chunks)


def decode_body(content_type: str | None, body: bytes) -> Any:
    """The value a body carries: only null, booleans, 64-bit integers, finite floats, valid Unicode, lists, objects.

    Raises: UnsupportedMediaType, MalformedBody (with a reason, never with content).
    """
    kind, _, parameters = (content_type or "").partition(";")
    kind = kind.strip().lower()
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind not in {JSON, MSGPACK} or charset not in {"", "utf-8", "utf8"}:
        raise UnsupportedMediaType((content_type or "none")[:GOT_CHARS_MAX], ACCEPTED)
    try:
        value = _decode_json(body) if kind == JSON else _decode_msgpack(body)
        _check(value)
    except _Refused as refused:
        raise MalformedBody(kind, str(refused)) from None
    except RecursionError:
        raise MalformedBody(kind, f"nested deeper than {DEPTH_MAX} levels") from None
    return value


def validate(model: type[M], value: Any, bounds: Bounds) -> M:
    """`value` as a request model. Raises InvalidField or UnknownField with up to 20 problems at once."""
    if not isinstance(value, dict):
        raise InvalidField("the body must be an object", [_problem(("body",), "must be an object", value)])
    try:
        return model.model_validate(value, context=bounds)
    except ValidationError as invalid:
        raise _refusal(model, invalid) from None


class _Refused(ValueError):
    """Why a body cannot be decoded. Its text goes to the caller and carries no content."""


def _decode_json(body: bytes) -> Any:
    if body.startswith(b"\xef\xbb\xbf"):
        raise _Refused("it starts with a byte order mark")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Refused(f"invalid UTF-8 at byte {error.start}") from None
    if not text.strip():
        raise _Refused("it is empty")
    try:
        return json.loads(
            text,
            object_pairs_hook=_unrepeated,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        reason = "something follows the value" if error.msg == "Extra data" else error.msg
        raise _Refused(f"{reason} at character {error.pos}") from None


def _decode_msgpack(body: bytes) -> Any:
    if not body:
        raise _Refused("it is empty")
    try:
        # Lengths inside are bounded by the body's own length; extension types are refused by _check().
        return msgpack.unpackb(body, raw=False, strict_map_key=False, object_pairs_hook=_unrepeated)
    except _Refused:
        raise
    except msgpack.ExtraData:
        raise _Refused("something follows the value") from None
    except UnicodeDecodeError:
        raise _Refused("a string is not valid UTF-8") from None
    except msgpack.StackError:
        raise _Refused(f"nested deeper than {DEPTH_MAX} levels") from None
    except (ValueError, TypeError, msgpack.UnpackException):
        raise _Refused("it is truncated or damaged") from None


def _unrepeated(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    if not all(isinstance(key, str) for key, _ in pairs):
        raise _Refused("an object key is not a string")
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Refused("an object names the same key twice")
    return made


def _refuse_constant(_: str) -> Any:
    raise _Refused("NaN and Infinity are not numbers")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Refused("a number is too large")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise _Refused("an integer has more than 64 bits")
    return int(digits)


def _check(root: Any) -> None:
    """Refuse depth, NaN, wide integers, lone surrogates and what JSON does not know, without recursion."""
    stack: list[tuple[Any, int]] = [(root, 1)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, (dict, list)):
            if depth > DEPTH_MAX:
                raise _Refused(f"nested deeper than {DEPTH_MAX} levels")
            if isinstance(value, dict):
                stack.extend((key, depth) for key in value)
            stack.extend((item, depth + 1) for item in (value.values() if isinstance(value, dict) else value))
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise _Refused("NaN and Infinity are not numbers")
        elif isinstance(value, int):
            if value.bit_length() > INTEGER_BITS_MAX:
                raise _Refused("an integer has more than 64 bits")
        elif value is not None:
            raise _Refused("it contains a value that is no text, number, boolean, null, list or object")


def _check_text(value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _Refused("a string contains half of a surrogate pair") from None


def _refusal(model: type[BaseModel], invalid: ValidationError) -> InvalidField:
    problems: list[dict[str, Any]] = []
    unknown: list[str] = []
    for error in invalid.errors(include_url=False, include_context=False)[:PROBLEMS_MAX]:
        loc = error["loc"]
        message = error["msg"]
        if error["type"] == "extra_forbidden":
            message = _nearest(str(loc[-1]), _fields_at(model, loc[:-1]))
            unknown.append(message)
        problems.append(_problem(("body", *loc), message, None if error["type"] == "missing" else error["input"]))
    if unknown:
        return UnknownField(unknown[0], problems)
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or "the body"
    more = f" (and {invalid.error_count() - 1} more)" if invalid.error_count() > 1 else ""
    return InvalidField(f"{where}: {first['msg']}{more}", problems)


def _nearest(name: str, known: list[str]) -> str:
    """What to say about an unknown field."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    cure = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(known)}"
    return f"unknown field {clip(name)!r}; {cure}"


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The field names of the model that stands at `loc` inside `model`."""
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for item in get_args(annotation) if (found := _model_in(item))), None)


def _problem(loc: tuple[int | str, ...], message: str, got: Any) -> dict[str, Any]:
    described = {"loc": [clip(part) if isinstance(part, str) else part for part in loc], "msg": message}
    if isinstance(got, (str, int, float)):
        described["got"] = clip(str(got))
    elif got is not None:
        described["got"] = {"dict": "an object", "list": "a list"}.get(type(got).__name__, type(got).__name__)
    return described


def clip(text: str) -> str:
    """At most 64 characters of something a caller sent."""
    return text if len(text) <= GOT_CHARS_MAX else text[: GOT_CHARS_MAX - 1] + "…"
