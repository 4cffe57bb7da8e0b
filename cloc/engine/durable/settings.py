"""What becomes of a setting that is not that of the checkpoint which a run continues from (below ``resume``).

The engine's keys are here; a task has the same for its own (:class:`cloc.engine.task.Task`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

from cloc.engine.agreement import is_within


class After(Enum):
    """What becomes of a key whose value is not that of the checkpoint which a run continues from."""

    HOLDS = "the new value holds from the next step on"
    HOW = "likewise; it says how a run is computed, kept and watched, not what it learns"
    START = "it served to begin the run: no effect, and that is told"
    REFUSED = "it cannot change"
    FITS = "refused where it gives a parameter another optimizer, else it holds"
    PART = "refused, but for what only acts while training and for paths to the same thing"
    COMMAND = "says where a run is and how it is started: nothing that it computes"


def keys_of(group: str, names: str) -> list[str]:
    """Dotted keys of one group."""
    return [f"{group}.{name}" for name in names.split()]


# Every leaf of `RunConfig`; a group whose keys are free stands for all of them.
ENGINE: dict[str, After] = {
    **dict.fromkeys(("run_dir", "resume", "dry_run", "profile"), After.COMMAND),
    "evaluation.at_start": After.START,
    # The order of the samples and the first weights come from the seed; half of it could not change.
    **dict.fromkeys(("task", "seed"), After.REFUSED),
    **dict.fromkeys(keys_of("optim", "name muon_projections"), After.FITS),
    **dict.fromkeys(("samples", "batch_size"), After.HOLDS),
    **dict.fromkeys(("name", "objective", "logger"), After.HOW),
    **dict.fromkeys(keys_of("optim", "lr muon_lr weight_decay muon_weight_decay betas warmup final"), After.HOLDS),
    **dict.fromkeys(keys_of("optim", "clip_grad tower_rate head_rate layer_decay"), After.HOLDS),
    **dict.fromkeys(keys_of("trainer", "precision ema"), After.HOLDS),
    **dict.fromkeys(keys_of("trainer", "accelerator devices num_nodes strategy threads"), After.HOW),
    **dict.fromkeys(keys_of("trainer", "log_every checkpoint_every checkpoint_minutes keep_last timeout"), After.HOW),
    **dict.fromkeys(keys_of("trainer", "max_skipped_steps compile checkpoint_activations accumulate"), After.HOW),
    **dict.fromkeys(keys_of("evaluation", "every data limit best parts metrics sources"), After.HOW),
    **dict.fromkeys(keys_of("evaluation", "batch_size bootstrap"), After.HOW),
}
IN_TRAINING = re.compile(r"drop|^remember$")  # of a part: its weights mean the same with it as without
PATHS = ("pretrained", "tokenizer")  # of a part: what lies there is compared, not where


def look_up(key: str, table: Mapping[str, After]) -> After:
    """What becomes of a key of the configuration.

    Args:
        key: of a leaf, with dots.
        table: by keys of leaves and of groups.

    Raises:
        KeyError: the table does not know it.
    """
    group = next((known for known in table if is_within(key, (known,))), None)
    if group is None:
        raise KeyError(f"{key}: not in the table of what may change when a run is resumed")
    if table[group] is not After.PART:
        return table[group]
    leaf = key.rpartition(".")[2]
    if IN_TRAINING.search(leaf):
        return After.HOLDS
    return After.START if leaf in PATHS else After.REFUSED
