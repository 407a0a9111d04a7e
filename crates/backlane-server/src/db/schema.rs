//! The schema of the state database, as the steps that lead to it (§4).
//!
//! A step that was released is never changed; `user_version` counts the steps that a database has seen.

/// Marks a database as ours: "BKLN".
pub(super) const APPLICATION_ID: i64 = 0x424b_4c4e;

/// Each step leads from the version of its index to the next.
pub(super) const STEPS: &[&str] = &[
    "
    CREATE TABLE hosts (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        enrolled_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE certificates (
        serial BLOB PRIMARY KEY,
        host_id INTEGER NOT NULL REFERENCES hosts (id),
        issued_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE slots (
        pool BLOB NOT NULL,
        slot INTEGER NOT NULL,
        host_id INTEGER NOT NULL REFERENCES hosts (id),
        PRIMARY KEY (pool, slot)
    ) STRICT;
    CREATE TABLE tokens (
        hash BLOB PRIMARY KEY,
        host TEXT NOT NULL,
        issued_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        used_at INTEGER
    ) STRICT;
    CREATE TABLE packs (
        host_id INTEGER NOT NULL REFERENCES hosts (id),
        id BLOB NOT NULL,
        contents INTEGER NOT NULL,
        PRIMARY KEY (host_id, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE arrivals (
        host_id INTEGER NOT NULL REFERENCES hosts (id),
        kind TEXT NOT NULL,
        id BLOB NOT NULL,
        bytes INTEGER NOT NULL,
        arrived_at INTEGER NOT NULL,
        PRIMARY KEY (host_id, kind, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE audit (
        number INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        event TEXT NOT NULL,
        host TEXT,
        detail TEXT NOT NULL
    ) STRICT;
",
    "ALTER TABLE hosts ADD COLUMN removals INTEGER NOT NULL DEFAULT 0;",
    "ALTER TABLE tokens ADD COLUMN pool BLOB; ALTER TABLE tokens ADD COLUMN slot INTEGER;",
    // The audit is a file, with a chain (audit.rs).
    "
    DROP TABLE audit;
    ALTER TABLE certificates ADD COLUMN revoked_at INTEGER;
    CREATE TABLE permissions (
        number INTEGER PRIMARY KEY,
        host_id INTEGER NOT NULL REFERENCES hosts (id),
        granted_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        arrived_by INTEGER
    ) STRICT;
",
    "ALTER TABLE arrivals ADD COLUMN removed_at INTEGER;
    ALTER TABLE hosts ADD COLUMN quota INTEGER;",
    // 0: to read file contents; 1: to remove what isn't needed; 2: to read archived WAL.
    "ALTER TABLE permissions ADD COLUMN leave INTEGER NOT NULL DEFAULT 0;",
    // What a host has stored, counted as it comes and goes. The smallest object takes a block of the disk.
    "
    ALTER TABLE hosts ADD COLUMN used INTEGER NOT NULL DEFAULT 0;
    UPDATE hosts SET used = (
        SELECT coalesce(sum(max(bytes, 4096)), 0) FROM arrivals
        WHERE host_id = hosts.id AND removed_at IS NULL
    );
    CREATE TRIGGER arrival_came AFTER INSERT ON arrivals WHEN NEW.removed_at IS NULL BEGIN
        UPDATE hosts SET used = used + max(NEW.bytes, 4096) WHERE id = NEW.host_id;
    END;
    CREATE TRIGGER arrival_went AFTER DELETE ON arrivals WHEN OLD.removed_at IS NULL BEGIN
        UPDATE hosts SET used = used - max(OLD.bytes, 4096) WHERE id = OLD.host_id;
    END;
    CREATE TRIGGER arrival_changed AFTER UPDATE ON arrivals BEGIN
        UPDATE hosts SET used = used
            - iif(OLD.removed_at IS NULL, max(OLD.bytes, 4096), 0)
            + iif(NEW.removed_at IS NULL, max(NEW.bytes, 4096), 0)
        WHERE id = NEW.host_id;
    END;
",
];
