"""StarDist's models as a kind of member."""

from __future__ import annotations

from chorus.pipeline.members.kind import MemberKind
from chorus.pipeline.members.kinds.stardist.folder import is_model_folder
from chorus.pipeline.members.kinds.stardist.member import StarDistMember, describe

KIND = MemberKind(
    entry=StarDistMember,
    describe=lambda url, _: (describe(url),),
    recognises=lambda file: is_model_folder(file.folder),
    is_package=is_model_folder,
)
