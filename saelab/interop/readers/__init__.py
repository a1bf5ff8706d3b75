"""One reader for each format, all from files to a `ForeignSAE`."""
