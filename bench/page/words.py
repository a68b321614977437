"""What the page says of each figure: its title, how to read it, and what measures it where a file has no rows for it."""

from __future__ import annotations

from dataclasses import dataclass

_RUN = "sgp-fast bench run --minutes 5 --out FILE"
_QUALITY = "sgp-fast bench quality FILE"


@dataclass(frozen=True)
class Words:
    """`what` completes "Not measured here: …"; `command` measures it. The ladder fills its caption's gaps."""

    title: str
    caption: str
    what: str
    command: str


WORDS = {
    "ladder": Words(
        "The ladder",
        "Median time to plan the whole batch in float32, on a logarithmic axis{speed}. {colours} The fine line at the end "
        "of a bar: from the 20th to the 80th percentile.",
        "each way to plan the same problems, from the published loop to ours",
        _RUN,
    ),
    "latency": Words(
        "Latency against the batch",
        "Median time to plan the whole batch in float32; the band is from the 20th to the 80th percentile. Both axes are "
        "logarithmic: where a line is level, more problems cost nothing; where it is a diagonal, twice the problems take "
        "twice the time.",
        "how the time of a batch grows with its problems, which needs rungs at two sizes at least",
        "sgp-fast bench run --minutes 30 --out FILE",
    ),
    "roofline": Words(
        "Roofline",
        "Across: FLOPs that the plan needs for each byte of weights that it must read, which grows with the batch. Up: "
        "FLOP/s reached, counting only what the plan needs. The lines are the limits of this machine in this run: a big "
        "copy (slanted) and a big matrix product (level). Weights that fit a cache are read faster than much memory is "
        "copied, so a small network may stand above the slanted line. Filled: ours, a line a model; hollow: the fastest "
        "other way at that case.",
        "reached FLOP/s, of two ways to plan at least, beside what the machine gives at most, measured in the same run",
        _RUN,
    ),
    "cost": Words(
        "Cost against wall-clock",
        "Mean task cost of the controls found (above; lower is better) and their mean penalty for leaving the data "
        "(below), both evaluated in float64, against the median time of a plan in float32. Rungs of the same algorithm "
        "find the same plan and so stand at one height. Sampling planners look at the task cost alone and ignore the "
        "score: a lower cost at a higher penalty is a plan that trusts the model where it has seen no data, not a better "
        "plan.",
        "the cost that each rung’s plan reaches beside the time that it takes, which needs two rungs at a case",
        _RUN,
    ),
    "accuracy": Words(
        "Accuracy against dtype",
        "Above: the relative error of the controls against the float64 reference, ‖u − u₆₄‖/‖u₆₄‖, on a logarithmic "
        "axis. The dark bars are the limits that a rung must keep to be timed at all; a cross broke its limit. Below: "
        "the mean cost against the median float32 cost of the same problems, in percent of it.",
        "the error of every rung against the float64 reference, by the precision of its products, which needs two rungs",
        "sgp-fast bench run --minutes 10 --out FILE",
    ),
    "budget": Words(
        "Return against milliseconds an action",
        "Mean return of the episodes with its 95% interval (Student’s t) against the median time of one action of one "
        "environment. A line is a planner with a growing budget: iterations, or samples. Dashed: the score's distance to "
        "the data is part of a candidate's cost, weighted as tuned on hopper-medium. The level band is the policy that made "
        "the data, mean and interval. All plan on the fastest backend here, which the table names; where sampling planners "
        "are plain PyTorch, like for like is the line of SGP in plain PyTorch.",
        "what more computation buys each planner in closed loop, the plot to choose by",
        _QUALITY,
    ),
    "precision": Words(
        "Return by backend and dtype",
        "A faint dot is an episode, the large one the mean, the bar its 95% interval (Student’s t); the grey band is the "
        "policy that made the data. Planner, models and seeds are the same in all rows. The sentences below compare seed "
        "by seed, which sees more than two intervals side by side.",
        "whether a backend or a dtype changes what a controller earns",
        _QUALITY,
    ),
    "act": Words(
        "A controller’s step, end to end",
        "Median time of one MPC.act() for all environments together, from observations on the host to actions on the "
        "host, with the shift of the warm start and the plan between; the bar is from the 20th to the 80th percentile of "
        "consecutive steps. The axis is logarithmic.",
        "act() from observations on the host to actions on the host, copies included",
        _RUN,
    ),
    "cold": Words(
        "Cold costs",
        "Seconds until the first plan is there, in a process of its own with empty caches: pale, the imports; full, the "
        "first plan with all that it compiles, tunes and captures. On the right, the number of plans after which the "
        "rung, cold costs and all, has taken less time than eager, which compiles nothing.",
        "seconds until the first plan is there, and the number of plans that pay them back",
        "sgp-fast bench run --cold-costs --out FILE",
    ),
    "stages": Words(
        "Where an iteration goes",
        "Shares of a plan’s time by stage of the algorithm, and on the right the whole of it, over its iterations; the last "
        "pass and most of the gaps (the host between stages, what waits) come once a plan. The table has the least that "
        "each stage could take by the ceilings of the same run, and its distance to that.",
        "which stage of the algorithm takes the time, and how far it is from its own roofline",
        "sgp-fast profile --out FILE",
    ),
    "kernels": Words(
        "Kernels, compiled ahead of time",
        "What the compiler makes of each kernel for each architecture, without a GPU: across, the registers of a thread, of "
        "which there are 255; a cross needs a stack or spills. The table has shared memory, the instructions that tell how "
        "a kernel works, how many programs a multiprocessor holds at once, and a roofline of a launch over 16,384 problems "
        "on an H200. No time here was measured.",
        "registers, spills, shared memory and matrix instructions of every kernel",
        "sgp-fast bench static --out FILE",
    ),
}
