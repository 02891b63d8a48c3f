#!/bin/sh
# Runs once, when the database is made: roles that log in with a password. What each of them may do,
# `batchmill roles apply` says; batchmill_migrator is left out, since compose migrates as the owner.
set -eu
psql --quiet --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname="$POSTGRES_DB" <<'SQL'
\getenv worker WORKER_PASSWORD
\getenv producer PRODUCER_PASSWORD
\getenv webhooks WEBHOOKS_PASSWORD
\getenv reader READER_PASSWORD
CREATE EXTENSION IF NOT EXISTS vector;
CREATE ROLE batchmill_worker LOGIN PASSWORD :'worker';
CREATE ROLE batchmill_producer LOGIN PASSWORD :'producer';
CREATE ROLE batchmill_webhooks LOGIN PASSWORD :'webhooks';
CREATE ROLE batchmill_reader LOGIN PASSWORD :'reader';
SQL
