"""Running code that nobody has read, with tests, in processes that can do no harm.

`run.py` is our side. `child.py`, `values.py` and `confine.py` run in the processes it starts and
import nothing but each other and the standard library.
"""
