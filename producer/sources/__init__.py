"""Where models come from: each kind of source found, and examined as far as a client without torch can."""

from producer.sources.finding import find_model
from producer.sources.found import FoundModel

__all__ = ["FoundModel", "find_model"]
