"""How one future follows another, without a thread that waits."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")


def mapped(first: Future[S], function: Callable[[S], T]) -> Future[T]:
    """What the function makes of the result of `first`; or the error of `first`."""

    def apply(result: S) -> Future[T]:
        done: Future[T] = Future()
        done.set_result(function(result))
        return done

    return then(first, apply)


def then(first: Future[S], start: Callable[[S], Future[T]]) -> Future[T]:
    """What `start` comes to with the result of `first`, begun when that is done; or the error of `first`."""
    outer: Future[T] = Future()

    def settle(done: Future[Any]) -> None:
        error = done.exception()
        if error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(done.result())

    def go_on(done: Future[Any]) -> None:
        if done.exception() is not None:
            settle(done)
            return
        try:
            start(done.result()).add_done_callback(settle)
        except BaseException as err:  # whoever waits for `outer` has to hear of it
            outer.set_exception(err)

    first.add_done_callback(go_on)
    return outer
