"""Words of messages."""

import pytest

from domains.words import counted


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [(0, "contig", "0 contigs"), (1, "contig", "1 contig"), (2000, "empty file", "2,000 empty files")],
)
def test_things_are_counted(count: int, noun: str, said: str) -> None:
    assert counted(count, noun) == said
