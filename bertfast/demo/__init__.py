"""`make demo`: a small BERT trained from nothing, exported and used, with no download."""
