-- The foreign keys through which the source changes a table without logging it, as the replicator has taken them into account.

ALTER TABLE warehouse.tables ADD COLUMN foreign_keys jsonb NOT NULL DEFAULT '[]';
COMMENT ON COLUMN warehouse.tables.foreign_keys IS
    'keys whose cascades the source does not log: the replicator derives the changes from those of the referenced tables';
