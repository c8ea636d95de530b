import pytest

from domains.errors import UserError
from domains.genomics.contig_names import check_contigs, suggest_contig

UCSC = {"chr1": 1000, "chr2": 900, "chrX": 500, "chrM": 16}


def check(names, known=UCSC, **options):
    return check_contigs(names, known, source="genes.gff3", genome="made.fa", **options)


def test_names_that_the_genome_has_are_fine():
    assert check(["chr2", "chr1", "chr2"]) == []
    assert check([]) == []


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["1", "2", "1"], "has no contig '1', '2'; this genome writes its names with 'chr': did you mean 'chr1'?"),
        (["chr1", "chr02"], "has no contig 'chr02'; did you mean 'chr2'?"),
        (["CHRX"], "has no contig 'CHRX'; did you mean 'chrX'?"),
        (["MT"], "has no contig 'MT'; did you mean 'chrM'?"),
        (["NC_000001.11"], "has no contig 'NC_000001.11'; it has chr1, chr2, chrX, chrM;"),
        (["chr10"], "has no contig 'chr10'; it has chr1, chr2, chrX, chrM;"),  # not the chr1 that is spelt nearly so
        (list("3456"), "has no contig '3', '4', '5' and 1 more;"),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_names_that_it_lacks_are_told_in_one_line_with_a_remedy(names, told, partial):
    with pytest.raises(UserError) as caught:
        check(names, partial=partial)
    message = str(caught.value)
    assert message.startswith("genes.gff3: made.fa ")
    assert told in message
    assert message.endswith("; rename them in one of the two files")
    assert "\n" not in message


def test_a_part_of_a_genome_may_go_with_the_whole_annotation():
    names = ["chr1", "chr7", "chr8"]
    assert check(names, partial=True) == ["chr7", "chr8"]
    with pytest.raises(UserError, match="has no contig 'chr7', 'chr8'"):
        check(names)
    with pytest.raises(
        UserError, match=r"'chr7', 'chr01'; did you mean 'chr1'\?; rename"
    ):  # chr01 is chr1 under another name
        check([*names[:2], "chr01"], partial=True)
    with pytest.raises(UserError, match="'chr7'"):
        check(names[1:], partial=True)


@pytest.mark.parametrize(("name", "meant"), [("chr1", "'1'"), ("01", "'1'"), ("NC_2", "'NC_2.1'"), ("mito", "'MT'")])
def test_a_genome_without_chr(name, meant):
    assert f"did you mean {meant}?" in suggest_contig(name, ["1", "NC_2.1", "MT"])


def test_a_million_names_are_searched_in_no_time():
    known = {f"contig{i:07d}": 1 for i in range(100_000)}
    assert suggest_contig("contog0000007", known).startswith("did you mean 'contig")
    assert suggest_contig("elsewhere", known).endswith(" and 99,995 more")
