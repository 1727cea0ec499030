"""Models: finding, downloading, converting, checking and loading them."""
