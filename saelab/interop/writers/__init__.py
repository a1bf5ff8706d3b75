"""One writer for each format, all from a run to a folder of files."""
