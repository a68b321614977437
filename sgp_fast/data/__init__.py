"""Offline data: one `Dataset`, read from D4RL and Minari files or made here from policy snapshots.

Nothing here imports h5py, minari, gymnasium or mujoco until it is used.
"""

from .actors import Actor, load_actor, snapshots
from .catalog import load_dataset
from .convert import convert
from .d4rl import read_d4rl_hdf5, write_d4rl_hdf5
from .dataset import Dataset, DatasetError
from .make import QUALITIES, TASKS, make_dataset
from .minari_storage import read_minari, write_minari
from .npz import read_npz, write_npz
from .scores import NormalizedScore, ReferenceScore, normalized_score, reference_score

__all__ = [
    "QUALITIES",
    "TASKS",
    "Actor",
    "Dataset",
    "DatasetError",
    "NormalizedScore",
    "ReferenceScore",
    "convert",
    "load_actor",
    "load_dataset",
    "make_dataset",
    "normalized_score",
    "read_d4rl_hdf5",
    "read_minari",
    "read_npz",
    "reference_score",
    "snapshots",
    "write_d4rl_hdf5",
    "write_minari",
    "write_npz",
]
