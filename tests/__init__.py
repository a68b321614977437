"""The claims that the project makes, each one held by a test."""
