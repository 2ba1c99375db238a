"""The doors: two UNIX sockets that speak HTTP, in front of one service. The only place with `async`.

Nothing is imported here: `conetd.api.sockets` has to be there before the HTTP server's 200 ms of imports.
"""
