"""How events are written: one line each on standard error, as text or as JSON, with whatever keys they carry."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any

# what every record has anyway; the rest came as `extra`
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_BARE_VALUE = re.compile(r"[A-Za-z0-9_.,:/@+%*\[\]-]+")
# Printable ASCII without what could pass for a key, a quote or an escape: such a message needs no quotes.
_BARE_EVENT = re.compile(r"[ !#-<>-\[\]-~]+")


def setup(form: str, *, debug: bool = False) -> None:
    """Send all events to standard error as `text` or `json`. Repeating it changes the form.

    INFO and above are written; with `debug` also conetd's own DEBUG events.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("conetd").setLevel(logging.DEBUG if debug else logging.INFO)
    logging.captureWarnings(True)
    # Where an event was logged, by which thread and process is never written, so it need not be found out: the
    # documented way to say so (Logging HOWTO, "Optimization"). It halves the cost of a line.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class TextFormatter(logging.Formatter):
    """`2026-11-24T02:00:00.123Z INFO attached network=blue handle=web ms=12`.

    Anything that could end the line or pass for another key is written as a JSON string.
    """

    def format(self, record: logging.LogRecord) -> str:
        event = record.getMessage()
        parts = [_timestamp(record.created), record.levelname]
        parts.append(event if _BARE_EVENT.fullmatch(event) else json.dumps(event))
        parts += [f"{_key(key)}={_text(value)}" for key, value in _extra(self, record).items()]
        return " ".join(parts)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `event`, and the event's own keys."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _timestamp(record.created),
            "level": record.levelname,
            "event": record.getMessage(),
        }
        return json.dumps(line | _extra(self, record), default=str)


def _extra(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, Any]:
    found = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
    if record.exc_info and record.exc_info[1] is not None:
        found["error"] = repr(record.exc_info[1])
        found["traceback"] = formatter.formatException(record.exc_info)
    return found


def _timestamp(seconds: float) -> str:
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"


def _key(key: str) -> str:
    return key if _BARE_VALUE.fullmatch(key) else json.dumps(key)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value if _BARE_VALUE.fullmatch(value) else json.dumps(value)
    if isinstance(value, bool | int | float | dict | list | tuple) or value is None:
        return json.dumps(value, default=str)
    return _text(str(value))
