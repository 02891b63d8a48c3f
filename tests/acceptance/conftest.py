"""Fixtures of mills whose programs are forked."""

from tests.acceptance.forked import forked as forked
from tests.acceptance.forked import nursery as nursery
from tests.acceptance.forked import running as running
