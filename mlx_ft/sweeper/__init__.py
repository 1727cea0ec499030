"""`python train.py -m`: every combination of the swept values, under one parent run."""
