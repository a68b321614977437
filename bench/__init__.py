"""Speed and memory, measured: the cases, the baselines to beat, the runner and the recorded results.

Installed as `sgp_fast.bench`.
"""
