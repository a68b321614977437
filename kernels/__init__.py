"""Networks, and the passes over them that a plan is made of: plain PyTorch first, one fast kernel a file beside it.

Installed as `sgp_fast.kernels`. Nothing here imports the rest of `sgp_fast`, and `reference`, `network` and `tiling`
import no triton, so they run anywhere that PyTorch does.
"""
