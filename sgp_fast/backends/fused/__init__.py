"""The planner in Triton kernels on GPUs, a whole plan as one CUDA graph.

A batch is padded to a bucket; for each bucket the graph of a plan is captured once and replayed. Which regime plans a
bucket is measured once and kept on disk (`choice.py`):

    tile      one program plans a block of problems, all iterations in one launch       many problems, narrow networks
    layered   matrix products, the library's or ours, with fused kernels between them    many problems, wide networks
    ring      one program evaluates 64 problems at most; weights are copied ahead        16 bits on sm_90, narrow networks
    relay     programs share each layer of a few problems, and hand it on in words       16 bits on sm_90 and later
    grid      the same with a barrier behind each layer                                  128 problems at most

Without a GPU, Triton's interpreter runs the same kernels on the CPU (TRITON_INTERPRET=1): slowly, for tests.
"""

from .backend import Fused, graph_stats, why_not, why_unavailable

__all__ = ["Fused", "graph_stats", "why_not", "why_unavailable"]
