"""One file for each system: `python -m experiments` lists them."""
