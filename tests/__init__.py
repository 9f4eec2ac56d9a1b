"""pyconv's tests. A package, so that test files share ``tests.problems`` and ``tests.battery``."""
