"""One file for each system that can be trained, named after its source."""
