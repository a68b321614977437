"""The layered regime: layer by layer, the library's products with what stands between them, or our own. See `network`."""
