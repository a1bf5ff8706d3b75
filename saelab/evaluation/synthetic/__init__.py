"""Data whose true features are known, and how many of them a dictionary found."""
