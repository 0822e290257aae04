"""From amplitudes to atoms: charge flipping, origin, peaks, and the SHELXT driver."""
