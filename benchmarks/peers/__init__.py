"""Those that the benchmarks measure beside ours, on the same weights, and the frame that measures them in turns."""
