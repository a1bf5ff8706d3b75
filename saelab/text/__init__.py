"""Text: documents with their split, the sources that they come from, and packing into token rows."""
