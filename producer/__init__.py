"""What callers use: the client, job handles, readers and writers, the command line."""

from producer.check import Check
from producer.client import Client
from producer.job import Job
from producer.readers import read
from producer.results import ItemError, Result

__all__ = ["Check", "Client", "ItemError", "Job", "Result", "read"]
