"""`sgp-fast train`: the function behind the command, typed so that the command line can be made from it."""

from __future__ import annotations

from pathlib import Path

from ..trained import MODELS_FILE, Models
from .config import TrainConfig
from .run import check_home, train


def train_command(data: str, out: Path, config: TrainConfig | None = None, resume: bool = True) -> Models:
    """Train dynamics, score and cost on a data set and keep the run in a folder; what is there already is taken up.

    data    a file, a Minari id or a name, as `load_dataset` takes it
    out     the folder of the run
    config  what to train, see `TrainConfig`
    resume  go on with what is in the folder; False deletes it and starts anew
    """
    from ..data import load_dataset

    check_home(out)  # before the data, which may have to be made first
    before = resume and (out / MODELS_FILE).is_file()
    models = train(load_dataset(data), config, out, resume=resume)
    info = models.info
    print(f"{'network':10}{'steps':>8}{'best at':>9}{'train':>11}{'validation':>12}{'seconds':>9}")
    for name, row in info["networks"].items():
        validation = row["best_validation_loss"]
        print(
            f"{name:10}{row['steps']:>8,}{row['best_step']:>9,}{row['train_loss']:>11.5f}"
            f"{'-' if validation is None else format(validation, '.5f'):>12}{row['seconds']:>9.1f}"
        )
    when = ", trained before; --no-resume trains anew" if before else ""
    print(f"{info['dataset']}: {info['transitions']:,} transitions, {info['seconds']:.0f} s → {out}{when}")
    return models
