"""Bytes captured from real servers, and the scripts that captured them."""
