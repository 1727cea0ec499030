"""Documents to training data: sections, instruction/response pairs, raw chunks."""
