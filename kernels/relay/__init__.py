"""The relay regime: programs share the layers of few problems, and hand them on word by word. See `plan`."""
