"""Models of raw sound: a generator, and two classifiers with one head."""
