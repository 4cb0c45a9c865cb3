"""The evaluate mode: evaluations are started, watched, read and compared; each is a process of its own."""
