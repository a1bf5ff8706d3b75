"""A feature index in the formats of other tools."""
