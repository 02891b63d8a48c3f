"""Which of many rows or layers are taken where all would take too long."""

import numpy as np


def evenly(count: int, most: int) -> list[int]:
    """Places from the first to the last, at most so many."""
    places = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
    return [int(place) for place in places]
