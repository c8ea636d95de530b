"""Words of messages."""


def counted(count: int, noun: str) -> str:
    """A number of things: ``1 contig``, ``0 contigs``, ``2,000 contigs``; of nouns whose plural is formed by an s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
