"""What measures: never part of the tests, never timed in them."""
