"""The networks that extend amplitudes, one a file."""
