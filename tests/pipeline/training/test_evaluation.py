"""Scores of training against a truth, summed up honestly."""

from __future__ import annotations

from chorus.pipeline.training.evaluation import FoldScore, summarise, verdict


def test_verdict_says_honestly_when_a_member_is_better() -> None:
    def scores(ensemble: float) -> list[FoldScore]:
        members = [FoldScore("a", f"member-{i}", True, 0.5 + i / 10) for i in range(2)]
        return [*members, FoldScore("a", "ensemble", True, ensemble), FoldScore("a", "member-1", False, 0.99)]

    assert "is not at least as good as its best member (Dice 0.5500; member-1 0.6000)" in verdict(
        summarise(scores(0.55))
    )
    assert "is at least as good" in verdict(summarise(scores(0.6)))
