-- Copies that were read as of one position: changes up to there are left out, because replaying them would not be harmless.

ALTER TABLE warehouse.tables ADD COLUMN consistent_copy boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN warehouse.tables.consistent_copy IS
    'the last copy shows the table as of consistent_from exactly, as tables without a key and under cascades need it';
