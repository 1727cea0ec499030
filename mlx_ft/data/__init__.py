"""From files to batches: read, understood, checked, turned into tokens and loss masks.

`load` -> `formats` -> `validate` (with `chat`) -> `batch`; plain Python and NumPy.
"""
