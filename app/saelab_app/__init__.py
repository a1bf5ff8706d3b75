"""The browser workbench on top of saelab. Its pages are not there yet; the package keeps their place."""
