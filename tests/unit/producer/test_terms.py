from datetime import timedelta
from typing import Any

import pytest

from contracts.errors import BatchmillError
from producer import terms

DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("given", "meant"), [(None, None), (90, timedelta(seconds=90)), (0.5, timedelta(seconds=0.5)), (DAY, DAY)]
)
def test_times(given: Any, meant: timedelta | None) -> None:
    assert terms.check_expires_in(given) == meant


@pytest.mark.parametrize("given", [0, -1, -DAY, float("nan"), float("inf"), 1e300, 10**40, True, "2h", timedelta.max])
def test_what_is_no_time(given: Any) -> None:
    with pytest.raises(BatchmillError, match=r"^expires_in .*give a time"):
        terms.check_expires_in(given)


def test_percentages() -> None:
    assert terms.check_progress_at([75, 25, 25, 50], "https://a.example") == (25, 50, 75)
    assert terms.check_progress_at([], None) == ()
    for wrong in (0, 100, 2.5, True, "25"):
        with pytest.raises(BatchmillError, match="whole percentages from 1 to 99"):
            terms.check_progress_at([wrong], "https://a.example")
    with pytest.raises(BatchmillError, match="callback_url"):
        terms.check_progress_at([25], None)


def test_metadata_has_a_limit() -> None:
    fits = {"k": "x" * (terms.MAX_METADATA_BYTES - len('{"k":""}'))}
    assert terms.check_metadata(fits) == fits
    assert terms.check_metadata(None) == {}
    with pytest.raises(BatchmillError, match="metadata takes 8,193 bytes"):
        terms.check_metadata({"k": fits["k"] + "x"})
    with pytest.raises(BatchmillError, match=r"^metadata: \$\.k: .*NaN"):
        terms.check_metadata({"k": float("nan")})
