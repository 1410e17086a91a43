"""The whole way on the built-in sample: write, check, train, predict, judge."""
