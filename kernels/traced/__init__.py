"""Costs given as PyTorch functions, made part of the kernels: recorded (`trace`), and written as Triton or C++."""
