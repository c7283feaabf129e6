"""Labels as files spell them (names, numbers, text, lists) -> class ids, scores, or rows of 0 and 1."""
