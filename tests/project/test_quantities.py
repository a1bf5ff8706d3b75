"""Numbers and times as people write them."""

import pytest

from saelab.errors import UsageError
from saelab.quantities import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("90", 90), ("30m", 1800), ("2.5h", 9000), ("1h30m", 5400), (" 1h1m1s ", 3661)],
)
def test_times_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0s", "-1h", "1d", "30m1h", "h"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UsageError, match="is not a time; write for example 90s, 30m"):
        parse_duration(text)
