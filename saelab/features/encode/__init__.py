"""Encode: apply an SAE to a text, document after document."""
