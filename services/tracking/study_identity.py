"""Which study of which store is written: names and row numbers occur in every store, UUIDs do not."""

from collections.abc import Mapping
from dataclasses import dataclass

STUDY_TAG = "nas.study_uuid"
STORE_TAG = "nas.store_uuid"
_SHORT_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class StudyIdentity:
    """A study, as everybody on a shared tracking server can tell it from others.

    Args:
        name: Its name, unique in its store.
        uuid: Its UUID.
        store: UUID of its store.
    """

    name: str
    uuid: str
    store: str

    @property
    def names(self) -> tuple[str, str, str]:
        """Names for it, best first: a later one is for where the earlier ones belong to studies of other stores.

        A study's name has no dot, so that none of them is the name of another study.
        """
        return self.name, f"{self.name}.{self.uuid[:_SHORT_CHARACTERS]}", f"{self.name}.{self.uuid}"

    @property
    def tags(self) -> dict[str, str]:
        """The tags of its experiment, its runs and its registered model."""
        return {"nas.study": self.name, STUDY_TAG: self.uuid, STORE_TAG: self.store}

    def is_of_another(self, tags: Mapping[str, str]) -> bool:
        """Whether tags name another study; those of releases before there were identities name none."""
        return tags.get(STUDY_TAG, self.uuid) != self.uuid

    def is_named_in(self, tags: Mapping[str, str]) -> bool:
        """Whether tags name this study."""
        return tags.get(STUDY_TAG) == self.uuid
