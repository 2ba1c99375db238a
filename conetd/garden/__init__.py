"""Garden's words: how its requests are read, what its rules mean as a policy, and how its answers are written. Pure.

Nothing here does networking. `gojson` is Go's JSON, `wire` the values in requests, `rules` their meaning as entries of
a policy, `answers` what is told.
"""
