"""Hand-made annotation files: the same gene in the conventions of the field.

On contig c of 100 bases, counted from 0: a gene of two coding parts on the forward strand, [10, 25) and [40, 55), and
one of one part on the reverse strand, [60, 90).
"""

GFF3 = """##gff-version 3
##sequence-region c 1 100
##sequence-region bare 1 50
c\tmade\tgene\t11\t55\t.\t+\t.\tID=g1
c\tmade\tmRNA\t11\t55\t.\t+\t.\tID=t1;Parent=g1
c\tmade\tCDS\t11\t25\t.\t+\t0\tID=p1;Parent=t1
c\tmade\tCDS\t41\t55\t.\t+\t0\tID=p1;Parent=t1
c\tmade\tCDS\t61\t90\t.\t-\t0\tParent=t2;Note=a%20note
"""

GTF = """c\tmade\tCDS\t11\t25\t.\t+\t0\tgene_id "g1"; transcript_id "t1";
c\tmade\tCDS\t41\t52\t.\t+\t0\tgene_id "g1"; transcript_id "t1";
c\tmade\tstop_codon\t53\t55\t.\t+\t0\tgene_id "g1"; transcript_id "t1";
c\tmade\tCDS\t64\t90\t.\t-\t0\tgene_id "g2"; transcript_id "t2";
c\tmade\tstop_codon\t61\t63\t.\t-\t0\tgene_id "g2"; transcript_id "t2";
"""

BED = """track name=made
c\t10\t25\tCDS\t0\t+
c\t40\t55\tCDS\t0\t+
c\t60\t90\tCDS\t0\t-
"""

BED12 = """c\t10\t55\tt1\t0\t+\t10\t55\t0\t2\t15,15,\t0,30,
c\t60\t90\tt2\t0\t-\t60\t90\t0\t1\t30\t0
"""

GENBANK = """LOCUS       c                        100 bp    DNA     linear   UNK 01-JAN-1980
DEFINITION  made.
ACCESSION   c
FEATURES             Location/Qualifiers
     source          1..100
                     /organism="made"
     CDS             join(11..25,41..55)
                     /locus_tag="t1"
     CDS             complement(61..90)
                     /locus_tag="t2"
ORIGIN
        1 acgtacgtac acgtacgtac acgtacgtac acgtacgtac acgtacgtac acgtacgtac
       61 acgtacgtac acgtacgtac acgtacgtac acgtacgtac
//
"""

BY_FORMAT = {"GFF3": GFF3, "GTF": GTF, "BED": BED, "BED12": BED12, "GenBank": GENBANK}
