"""Where a driver may write: a job of the service refuses to run where its results would lie in another place."""

from collections.abc import Callable

from services.files.home_identity import place_identity
from services.settings import Settings, SettingsError, masked
from services.store import schema_version

_REMEDY = "start Ray with the NAS_BLOCKOUT_ variables of the service, then resume the study"


def require(settings: Settings, *, store: str | None, home: str | None, log: Callable[[str], None]) -> None:
    """Refuse to run if this process would write to another store or home than it is meant to; changes nothing.

    Args:
        settings: Settings of the installation that this process belongs to.
        store: Identity of the store that it must write to; None to write to any.
        home: Identity of the home folder or shared storage that it must write to; None to write to any.
        log: Called with the places themselves, which only operators are to know, if they are wrong.

    Raises:
        SettingsError: It would write to another place. The message is for the owner of the study and names none.
        StoreUnreachable: The store does not answer.
    """
    if store is not None and (there := schema_version.identity(settings.store_url)) != store:
        log(f"note: expected the store {store}; {masked(settings.store_url)} is {there or 'not a store yet'}")
        raise SettingsError(
            "NAS_BLOCKOUT_STORE_URL of the cluster names another store than that of the service, where nobody would "
            f"find the results; nothing was run; {_REMEDY}"
        )
    if home is not None and (there := place_identity(settings)) != home:
        place = masked(settings.artifacts) if settings.artifacts else str(settings.home)
        log(f"note: expected the files of {home}; {place} is {there or 'no home of the service'}")
        name = "NAS_BLOCKOUT_ARTIFACTS" if settings.artifacts else "NAS_BLOCKOUT_HOME"
        raise SettingsError(
            f"{name} of the cluster names another place than that of the service, where nobody would find the results; "
            f"nothing was run; {_REMEDY}"
        )
