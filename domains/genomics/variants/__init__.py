"""How much likelier or unlikelier a model holds the sequence with a variant than the reference: VCF in, VCF out."""
