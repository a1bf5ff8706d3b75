"""The sparse autoencoder: its configuration, units, weights on disk, encode and decode."""
