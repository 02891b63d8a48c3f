"""Postgres and files: tables, one repository per aggregate, bulk paths, digests, artifacts, tickets."""
