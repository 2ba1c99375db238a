-- What this host has on networks that span hosts, and what it knows of the others: enough to go on without them.

ALTER TABLE attachments ADD COLUMN identity INTEGER NOT NULL DEFAULT 0;  -- number of its identity on the network

CREATE TABLE host_leases (
    network TEXT NOT NULL REFERENCES networks (name) ON DELETE CASCADE,
    host    TEXT NOT NULL,
    own     INTEGER NOT NULL,                   -- 1: this host's; the others are known to live
    data    TEXT NOT NULL,                      -- JSON, the driver's
    claims  TEXT NOT NULL,                      -- JSON list
    PRIMARY KEY (network, host)
) STRICT, WITHOUT ROWID;

CREATE TABLE identities (
    network TEXT NOT NULL REFERENCES networks (name) ON DELETE CASCADE,
    number  INTEGER NOT NULL,                   -- 1 to 65535
    labels  TEXT NOT NULL,                      -- JSON
    handle  TEXT,                               -- of the one container that some policy names
    PRIMARY KEY (network, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE identity_uses (                    -- identities that the other hosts keep because of this one
    network TEXT NOT NULL REFERENCES networks (name) ON DELETE CASCADE,
    number  INTEGER NOT NULL,
    PRIMARY KEY (network, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE asks (                             -- whose packets and addresses the policies on a host have to know
    network   TEXT NOT NULL REFERENCES networks (name) ON DELETE CASCADE,
    host      TEXT NOT NULL,
    selectors TEXT NOT NULL,                    -- JSON
    PRIMARY KEY (network, host)
) STRICT, WITHOUT ROWID;

CREATE TABLE identity_addresses (
    network   TEXT NOT NULL REFERENCES networks (name) ON DELETE CASCADE,
    number    INTEGER NOT NULL,
    host      TEXT NOT NULL,
    addresses TEXT NOT NULL,                    -- JSON list
    PRIMARY KEY (network, number, host)
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (                           -- what the cluster has yet to be told
    key   TEXT PRIMARY KEY,                     -- below the prefix
    value TEXT                                  -- NULL: the key is to go
) STRICT, WITHOUT ROWID;
