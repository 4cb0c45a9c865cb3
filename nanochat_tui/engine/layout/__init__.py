"""What Python and machine code agree on: slots of tables, kinds of matrices, memory. A change here breaks old code."""
