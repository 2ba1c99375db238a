"""Events as lines: text and JSON, whatever keys they carry and whatever is in them."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from conetd import log


def record(event: str, *args: object, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"msg": event, "args": args, "levelno": level, "levelname": logging.getLevelName(level)}
    )
    made.created = 1795485600.123  # 2026-11-24T02:00:00.123Z
    made.__dict__.update(extra)
    return made


def text(event: str, **extra: Any) -> str:
    return log.TextFormatter().format(record(event, **extra))


def test_a_text_line_is_time_level_event_and_keys() -> None:
    line = text("attached", network="blue", handle="web", ms=12)
    assert line == "2026-11-24T02:00:00.123Z INFO attached network=blue handle=web ms=12"


def test_a_json_line_holds_the_same() -> None:
    line = log.JsonFormatter().format(record("attached", network="blue", handle="web", ms=12))
    assert json.loads(line) == {
        "time": "2026-11-24T02:00:00.123Z",
        "level": "INFO",
        "event": "attached",
        "network": "blue",
        "handle": "web",
        "ms": 12,
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('say "hi"', r'"say \"hi\""'),
        ("line\nend", r'"line\nend"'),
        ("carriage\rreturn", r'"carriage\rreturn"'),
        ("\x1b[31mred", r'"\u001b[31mred"'),
        ("line\u2028separator", r'"line\u2028separator"'),
        ("tab\there", r'"tab\there"'),
        ("10.0.0.1/24", "10.0.0.1/24"),
        ("fd00::1", "fd00::1"),
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        (["a", "b"], '["a", "b"]'),
        ({"a": 1}, '{"a": 1}'),
    ],
)
def test_a_value_is_quoted_where_it_would_not_stay_one_word(value: object, shown: str) -> None:
    assert text("seen", key=value).endswith(f" seen key={shown}")


@pytest.mark.parametrize(
    "event", ["two\nlines", "spoofed handle=web", 'with "quotes"', "back\\slash", "esc \x1b[2J", "é"]
)
def test_an_event_that_could_be_taken_for_something_else_is_quoted(event: str) -> None:
    assert text(event) == f"2026-11-24T02:00:00.123Z INFO {json.dumps(event)}"


def test_arguments_are_put_into_the_event() -> None:
    assert log.TextFormatter().format(record("%d done", 3)).endswith(" INFO 3 done")


@pytest.mark.parametrize("formatter", [log.TextFormatter(), log.JsonFormatter()])
def test_an_exception_stays_on_the_line_of_its_event(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        line = formatter.format(record("failed", level=logging.ERROR, exc_info=sys.exc_info()))
    assert "\n" not in line
    assert "ValueError" in line
    assert "Traceback" in line


def test_json_writes_what_it_does_not_know_as_text() -> None:
    assert json.loads(log.JsonFormatter().format(record("x", key={1, 2})))["key"] == "{1, 2}"


@pytest.fixture
def logging_put_back() -> Any:
    root, ours = logging.getLogger(), logging.getLogger("conetd")
    before = (root.handlers[:], root.level, ours.level, logging._srcfile, logging.logThreads, logging.logProcesses)
    multiprocessing = logging.logMultiprocessing
    yield
    root.handlers[:], root.level, ours.level, logging._srcfile, logging.logThreads, logging.logProcesses = before
    logging.logMultiprocessing = multiprocessing
    logging.captureWarnings(False)


@pytest.mark.usefixtures("logging_put_back")
def test_set_up_twice_each_event_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("text")
    log.setup("json")
    logging.getLogger("conetd.anything").info("serving", extra={"ms": 1})
    out, err = capsys.readouterr()
    assert out == ""
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["serving"]


@pytest.mark.usefixtures("logging_put_back")
@pytest.mark.parametrize("debug", [False, True])
def test_debug_events_are_written_only_when_asked_for(debug: bool, capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("text", debug=debug)
    logging.getLogger("conetd.anything").debug("looked")
    assert ("DEBUG looked" in capsys.readouterr().err) is debug
