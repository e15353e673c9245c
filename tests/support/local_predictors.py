"""Ensembles in this very process: for tests, and for looking into what happens without Ray."""

from __future__ import annotations

from chorus.serving.contract.metrics import ReplicaMetrics
from chorus.serving.contract.predictors import LargeTask, PredictorOutcome, Refusal, Task
from chorus.serving.contract.schemas import EnsembleInfo
from chorus.serving.contract.settings import ServeSettings
from chorus.serving.prediction.predictor import Predictor


class LocalPredictors:
    """See `chorus.serving.contract.predictors.Predictors`."""

    def __init__(self, settings: ServeSettings) -> None:
        self.hosts = {
            name: Predictor(name, url, settings, ReplicaMetrics(name, in_ray=False))
            for name, url in settings.ensembles.items()
        }

    @property
    def names(self) -> list[str]:
        return list(self.hosts)

    async def predict(self, name: str, task: Task) -> PredictorOutcome:
        return await self.hosts[name].predict(task)

    async def start(self, name: str, large: LargeTask) -> Refusal | None:
        return await self.hosts[name].start(large)

    async def info(self, name: str) -> EnsembleInfo:
        return self.hosts[name].info

    def close(self) -> None:
        """Wait for what is on its way."""
        for host in self.hosts.values():
            host.close()
