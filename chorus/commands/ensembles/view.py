"""An ensemble as people read it: purpose, input, members, origin, and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from chorus.commands.ensembles.builtin import numbers, of_the_ensemble
from chorus.pipeline.core.geometry import shown_size
from chorus.pipeline.core.outputs import CLASSES
from chorus.pipeline.ensembles import weights as ensemble_weights
from chorus.pipeline.preprocessing.normalisation import MeanStd, Normalisation, Percentile

if TYPE_CHECKING:
    from chorus.pipeline.core.provenance import About, TrainingSummary
    from chorus.pipeline.ensembles.ensemble import Ensemble
    from chorus.pipeline.ensembles.entries import Sentinel
    from chorus.pipeline.inference.adaptive_bound import EffortBound
    from chorus.pipeline.members.contract import MemberEntry

# Number of members and of image sets that are shown by default.
_ROWS = 5
# Of a member: what its own columns of the table, or those of all, show already.
_SHOWN = {"kind", "weights", "sha256", "activation", "architecture", "encoder"}


def view(ensemble: Ensemble, *, everything: bool = False) -> Iterator[RenderableType]:
    """Yield the parts of the view, from top to bottom: what fits a screen, or `everything`."""
    spec = ensemble.spec
    yield Text(spec.name, style="bold")
    # Meant to be copied: never broken, however narrow the terminal.
    yield Text(ensemble.url, no_wrap=True, overflow="ignore")
    yield Text(ensemble.hash, no_wrap=True, overflow="ignore")
    yield _facts(
        {
            "classes": _swatches(ensemble),
            "channels": Text(", ".join(spec.input.channels)),
            "axes": None if spec.input.axes == "yx" else Text(f"{spec.input.axes}, volumes"),
            "pixel size": Text(_pixel_size(spec.input.pixel_size_um)),
            "diameter": None if spec.input.diameter_px is None else Text(f"{spec.input.diameter_px:g} pixels"),
            "normalisation": Text(
                normalisation(spec.input.normalisation)
                + (", after division by the type's maximum" if spec.input.scale else "")
            ),
            "activation": Text(
                spec.activation + "".join(f", and {role.name}" for role in spec.answers.roles if role != CLASSES)
            ),
            "tile": Text(f"{shown_size(spec.tile)} pixels, overlap {shown_size(spec.overlap)}"),
            "augmentations": Text(", ".join(spec.augmentations)),
            "effort": None if spec.effort is None else Text(_effort(spec.effort)),
        }
    )
    yield _members(ensemble) if everything else _kinds(ensemble)
    if spec.sentinels:
        yield _sentinels(spec.sentinels)
    yield from _about(spec.about, everything=everything)
    if not everything:
        yield Text("\n--all says more of members, training, data and scores", style="dim")


def normalisation(settings: Normalisation) -> str:
    """Describe the normalisation in words."""
    if isinstance(settings, Percentile):
        return f"percentiles {settings.low:g} and {settings.high:g} of the image become 0 and 1"
    if isinstance(settings, MeanStd):
        if settings.mean is None or settings.std is None:
            return "mean and std of the image become 0 and 1"
        return f"mean {_listed(settings.mean)}, std {_listed(settings.std)}"
    return "by the members" if settings.kind == "member" else "none"


def _effort(bound: EffortBound) -> str:
    """Describe which tiles stop early, and on what data that was measured."""
    reference = f", {bound.reference}" if bound.reference else ""
    return (
        f"adaptive: as many augmentations as it takes that at most {bound.changed:.2%} of a tile's labels change "
        f"(measured on {bound.images} images{reference})"
    )


def _swatches(ensemble: Ensemble) -> Text:
    text = Text()
    for index, entry in enumerate(ensemble.classes):
        text.append("  " if index else "")
        text.append("██ ", style=entry.color)
        text.append(f"{entry.name} ({entry.color})")
    return text


def _members(ensemble: Ensemble) -> RenderableType:
    table = _table("", "weights", "kind", "network", "size", "sha256")
    for index, member in enumerate(ensemble.spec.members):
        size = ensemble_weights.size(ensemble.asked(index).url)
        cells = (
            f"{index}",
            member.weights,
            member.kind,
            _network(member),
            "?" if size is None else decimal(size),
            (member.sha256 or "")[:12],
        )
        table.add_row(*map(Text, cells))
    return Group(Text(f"\n{len(ensemble.spec.members)} members", style="bold"), table)


def _kinds(ensemble: Ensemble) -> RenderableType:
    """Return a table of the number of members of each kind and network."""
    table = _table("", "kind", "network")
    counts = Counter((member.kind, _named(member)) for member in ensemble.spec.members)
    for (kind, network), count in counts.most_common(_ROWS):
        table.add_row(*map(Text, (f"{count}", kind, network)))
    return Group(Text(f"\n{len(ensemble.spec.members)} members", style="bold"), table)


def _named(member: MemberEntry) -> str:
    """Return architecture and encoder, or the weights of a member that names none."""
    content = member.model_dump(mode="json", exclude_defaults=True)
    return "/".join(str(content[key]) for key in ("architecture", "encoder") if key in content) or member.weights


def _sentinels(sentinels: Iterable[Sentinel]) -> RenderableType:
    table = _table("", "Dice", "tolerance", "image", "label")
    for one in sentinels:
        cells = (one.name, numbers(one.dice), f"{one.tolerance:g}", one.image, one.label)
        table.add_row(*map(Text, cells))
    return Group(Text("\nsentinels, on which every run is tried", style="bold"), table)


def _network(member: MemberEntry) -> str:
    """Return architecture and format, as far as ``ensemble.yaml`` has them."""
    content = member.model_dump(mode="json", exclude_defaults=True)
    names = "/".join(str(content[key]) for key in ("architecture", "encoder") if key in content)
    others = [f"{key}={value}" for key, value in content.items() if key not in _SHOWN]
    own = [f"activation {member.activation}"] if member.activation else []
    return ", ".join([*([names] if names else []), *others, *own])


def _about(about: About, *, everything: bool) -> Iterator[RenderableType]:
    data = [
        ", ".join(filter(None, [d.name, d.url, d.licence, f"{d.images} images" if d.images is not None else None]))
        for d in about.data
    ]
    rows = {
        "description": about.description,
        "intended use": about.intended_use,
        "limits": about.limits,
        "licence": about.licence or "",
    }
    origin = {
        "authors": ", ".join(person.name for person in about.authors),
        "cite": "\n".join(" ".join(filter(None, [c.text, c.doi or c.url])) for c in about.cite),
        "data": "\n".join(data),
    }
    rows |= origin if everything else {}
    if any(rows.values()):
        yield Text("\nabout", style="bold")
        yield _facts({name: Text(text) for name, text in rows.items() if text})
    if about.training is not None:
        yield _training(about.training, everything=everything)
    if about.scores:
        of_sets = {data: of_the_ensemble(values) for data, values in about.scores.items()}
        shown = of_sets if everything else dict(islice(of_sets.items(), _ROWS))
        yield _scores("scores on images that nobody trained on", "data", shown)
        if len(shown) < len(of_sets):
            yield Text(f"and {len(of_sets) - len(shown)} more")


def _training(training: TrainingSummary, *, everything: bool) -> RenderableType:
    objects = "" if training.objects is None else f" with {training.objects} objects"
    text = Text(f"\ntrained on {training.images} images{objects}")
    if not training.folds or not everything:
        return text
    folds = {f"fold {index}": scores for index, scores in enumerate(training.folds)}
    return Group(text, _scores("validation scores", "", folds))


def _scores(title: str, what: str, rows: Mapping[str, Mapping[str, float]]) -> RenderableType:
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    table = _table(what, *names)
    for row, values in rows.items():
        table.add_row(Text(row), *(f"{values[name]:.4g}" if name in values else "" for name in names))
    return Group(Text(f"\n{title}", style="bold"), table)


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(Text(name), overflow="fold")
    return table


def _facts(rows: Mapping[str, Text | None]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, value)
    return table


def _pixel_size(size: float | Sequence[float] | None) -> str:
    return "as the image is" if size is None else f"{shown_size(size)} micrometers"


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
