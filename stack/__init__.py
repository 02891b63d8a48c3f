"""The embedded default: Postgres, Valkey, worker and beat as one supervised process tree."""
