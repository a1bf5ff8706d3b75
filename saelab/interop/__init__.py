"""Other tools' SAEs: read into runs of ours, and ours written in their formats."""
