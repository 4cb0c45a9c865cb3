"""Jobs: tables, threads, caches and draws that the compiled program works on."""
