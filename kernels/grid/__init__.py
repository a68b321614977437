"""The grid regime: all programs plan few problems together, with a barrier behind every layer. See `plan`."""
