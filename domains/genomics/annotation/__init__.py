"""Annotation of genomes: feature files, labelled windows and bases, models of them, and what they must beat."""
