"""Files that are whole or absent: atomic writes, manifests with checksums, locks, safe tensor files."""
