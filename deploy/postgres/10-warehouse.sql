-- Runs once, when the Postgres volume is empty: the warehouse and its owner, who is no superuser.
-- The owner may create the extension cube, which is a trusted one since Postgres 13.
\getenv password TAILRACE_PASSWORD
CREATE ROLE tailrace LOGIN PASSWORD :'password';
CREATE DATABASE warehouse OWNER tailrace;
REVOKE CONNECT, TEMPORARY ON DATABASE warehouse FROM PUBLIC;
