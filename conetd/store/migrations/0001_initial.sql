-- What is wanted. A row whose rev differs from its applied_rev is work to do.
-- One counter (meta.revision) numbers every change of a wish, so a larger rev is always the later one.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE networks (
    name           TEXT PRIMARY KEY,
    type           TEXT NOT NULL,
    config         TEXT NOT NULL,               -- JSON, as the driver's schema dumps it
    default_policy TEXT NOT NULL,               -- JSON
    declared       INTEGER NOT NULL DEFAULT 0,  -- 1: stands in the settings
    uplink_mtu     INTEGER NOT NULL,            -- bytes, as measured when the network was made
    rev            INTEGER NOT NULL,
    applied_rev    INTEGER NOT NULL DEFAULT 0,
    error          TEXT                         -- why applied_rev lags, if an attempt failed
) STRICT, WITHOUT ROWID;

CREATE TABLE containers (
    handle      TEXT PRIMARY KEY,
    attach_to   TEXT,                           -- JSON; NULL: no client configured it
    labels      TEXT NOT NULL DEFAULT '{}',
    properties  TEXT NOT NULL DEFAULT '{}',     -- what the engine forwarded with the last up
    up          INTEGER NOT NULL DEFAULT 0,
    pid         INTEGER,
    start_time  INTEGER,                        -- clock ticks since boot, field 22 of /proc/PID/stat
    netns       INTEGER,                        -- inode
    boot_id     TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE attachments (
    network       TEXT NOT NULL REFERENCES networks (name),
    handle        TEXT NOT NULL REFERENCES containers (handle),
    key           TEXT NOT NULL UNIQUE,
    position      INTEGER NOT NULL,
    ifname        TEXT NOT NULL,
    requested     TEXT NOT NULL,                -- JSON: ip, ip6, mac
    lease         TEXT NOT NULL,                -- JSON, the driver's
    gateways      TEXT NOT NULL,                -- JSON list of IP versions
    default_route TEXT NOT NULL,                -- JSON list of IP versions
    answer        TEXT NOT NULL DEFAULT '{}',   -- JSON: what attach told
    leaving       INTEGER NOT NULL DEFAULT 0,   -- 1: down has been asked for; gone once the kernel has forgotten it
    rev           INTEGER NOT NULL,
    applied_rev   INTEGER NOT NULL DEFAULT 0,
    error         TEXT,
    PRIMARY KEY (handle, network)
) STRICT, WITHOUT ROWID;
CREATE INDEX attachments_network ON attachments (network);

CREATE TABLE claims (
    network TEXT NOT NULL,
    claim   TEXT NOT NULL,
    handle  TEXT NOT NULL,
    PRIMARY KEY (network, claim),
    FOREIGN KEY (handle, network) REFERENCES attachments (handle, network) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX claims_attachment ON claims (handle, network);

CREATE TABLE policies (
    handle   TEXT NOT NULL REFERENCES containers (handle) ON DELETE CASCADE,
    network  TEXT NOT NULL REFERENCES networks (name),
    origin   TEXT NOT NULL CHECK (origin IN ('client', 'garden')),
    document TEXT NOT NULL,
    PRIMARY KEY (handle, network, origin)
) STRICT, WITHOUT ROWID;
CREATE INDEX policies_network ON policies (network);

CREATE TABLE host_ports (
    handle         TEXT NOT NULL,
    network        TEXT NOT NULL,
    ordinal        INTEGER NOT NULL,
    protocol       INTEGER NOT NULL,            -- IANA number
    host_ip        TEXT,                        -- NULL: every local address
    host_port      INTEGER NOT NULL,
    container_port INTEGER NOT NULL,
    asked_host     INTEGER NOT NULL,            -- the entry as the policy has it: 0 is "any"
    asked_container INTEGER NOT NULL,
    PRIMARY KEY (handle, network, ordinal),
    FOREIGN KEY (handle, network) REFERENCES attachments (handle, network) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE sysctls (
    path TEXT PRIMARY KEY,                      -- below /proc/sys/net
    old  TEXT NOT NULL,
    new  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
