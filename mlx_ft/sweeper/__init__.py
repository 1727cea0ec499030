"""`python train.py -m`: a grid of the swept values, or a search in them, under one parent run."""
