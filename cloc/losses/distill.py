"""Distillation from the model that a fine-tuning starts from: embeddings stay near those of the frozen base."""

from __future__ import annotations

from torch import Tensor

from cloc.config.terms import Need
from cloc.contracts import Batch, Features
from cloc.losses.global_batch import GlobalBatch, local_mean
from cloc.losses.term import Term


class Distill(Term):
    """Mean squared distance between the model's embeddings and the teacher's, of pictures, captions and phrases.

    ``mean_i ‖v_i − v'_i‖² + mean_i ‖t_i − t'_i‖² + mean_r ‖p_r − p'_r‖²``, all of unit norm: over the pictures of the
    global batch, their captions, and its valid regions, each with its phrase. A term is between 0 (equal) and 4. It is
    the feature distillation of CLIP-KD (arXiv 2307.12732, Sec. 3), with the base as the teacher: one that does not see
    the other pictures of a batch, so that it is exact however the batch lies on processes and micro-batches.

    What zero-shot use needs is held (pooled picture, text); the patch tokens, which the Prompter reads, are free.
    """

    needs = frozenset({Need.TEACHER})

    def forward(self, features: Features, batch: Batch, gathered: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`cloc.losses.term.Term.forward`; statistics are mean cosines to the teacher.

        Raises:
            ValueError: nobody has put the teacher's embeddings into the batch.
        """
        if batch.teacher_image is None or batch.teacher_text is None or features.text is None:
            raise ValueError(
                "loss.distill: the batch holds no embeddings of a teacher; the engine's task puts them there"
            )
        far = {
            "image": local_mean(distance(features.image, batch.teacher_image).sum(), gathered.pictures),
            "text": local_mean(distance(features.text, batch.teacher_text).sum(), gathered.pictures),
        }
        if features.phrase is not None and batch.teacher_phrase is not None:
            own = batch.region_phrase[batch.region_valid]
            rows = distance(features.phrase, batch.teacher_phrase)[own]
            far["phrase"] = local_mean(rows.sum(), gathered.regions)
        total = far["image"] + far["text"] + far.get("phrase", 0.0)
        return total, {f"teacher_cosine_{name}": 1 - value / 2 for name, value in far.items()}


def distance(own: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance ``[R]`` of rows ``[R,D]`` in the precision of the first."""
    return (own - teacher.to(own.dtype)).square().sum(-1)
