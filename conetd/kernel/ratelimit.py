"""How many events of each container are told, so that none floods the log; what is left out is counted. Pure."""

from __future__ import annotations

from dataclasses import dataclass

BURST = 100
"""Events of one key that are told at once after a quiet time."""
PER_SECOND = 10.0
"""Events of one key a second after that. A file of lines of 200 bytes then grows by 7 MB an hour and container."""
REPORT_AFTER_S = 1.0


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float
    left_out: int = 0
    since: float = 0.0


class RateLimit:
    """A token bucket for each key. Times are seconds of any clock that never goes back."""

    def __init__(self, burst: int = BURST, per_second: float = PER_SECOND) -> None:
        self._burst = burst
        self._per_second = per_second
        self._buckets: dict[str, _Bucket] = {}

    def admit(self, key: str, now: float) -> bool:
        """Whether an event of the key may be told now; if not, it is counted as left out."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self._burst, now)
        self._fill(bucket, now)
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return True
        if not bucket.left_out:
            bucket.since = now
        bucket.left_out += 1
        return False

    def take_left_out(self, key: str) -> int:
        """How many events of the key were left out since this was last told."""
        bucket = self._buckets.get(key)
        if bucket is None:
            return 0
        count, bucket.left_out = bucket.left_out, 0
        return count

    def due(self, now: float) -> list[tuple[str, int]]:
        """Each key of which the first event was left out a second ago or earlier, and how many since. Told once.

        Keys that were quiet long enough for a full burst are forgotten.
        """
        found = []
        for key, bucket in list(self._buckets.items()):
            if bucket.left_out and now - bucket.since >= REPORT_AFTER_S:
                found.append((key, self.take_left_out(key)))
            self._fill(bucket, now)
            if not bucket.left_out and bucket.tokens >= self._burst:
                del self._buckets[key]
        return found

    def idle(self) -> bool:
        """Whether there is nothing that `due` could ever tell or forget."""
        return not self._buckets

    def _fill(self, bucket: _Bucket, now: float) -> None:
        bucket.tokens = min(float(self._burst), bucket.tokens + (now - bucket.filled_at) * self._per_second)
        bucket.filled_at = now
