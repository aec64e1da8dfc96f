"""Where tasks come from: files, generators, the tracer; and the order in which they are drawn."""
