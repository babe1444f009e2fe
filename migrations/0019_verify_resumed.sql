-- A comparison goes on after a restart of the replicator: behind the last chunk, with the keys that were seen where they are needed.

ALTER TABLE warehouse.verifications ADD COLUMN resume jsonb;
COMMENT ON COLUMN warehouse.verifications.resume IS 'internal: where a comparison that is under way goes on after a restart';

CREATE TABLE warehouse.verification_keys (
    verification bigint NOT NULL REFERENCES warehouse.verifications ON DELETE CASCADE,
    chunk        bigint NOT NULL,
    hashes       bytea NOT NULL,
    PRIMARY KEY (verification, chunk)
);
COMMENT ON TABLE warehouse.verification_keys IS
    'internal: hashes of the source''s keys that a running comparison has seen, for tables whose keys the two sides order differently';
