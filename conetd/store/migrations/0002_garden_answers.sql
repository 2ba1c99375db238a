-- What Garden's NetIn answered to a caller who may ask again: one who lost the answer must not get a second port.

CREATE TABLE garden_answers (
    handle TEXT NOT NULL REFERENCES containers (handle) ON DELETE CASCADE,
    call   TEXT NOT NULL,                       -- the caller's name for this one request
    answer TEXT NOT NULL,                       -- JSON
    PRIMARY KEY (handle, call)
) STRICT, WITHOUT ROWID;
