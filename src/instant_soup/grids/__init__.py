"""Many runs: the cells of a grid file, run side by side, here or on a Ray cluster."""
