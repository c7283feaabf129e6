"""The suites as other tools run them."""
