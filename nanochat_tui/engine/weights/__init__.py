"""From a file's blocks to matrices in the kernels' layout."""
