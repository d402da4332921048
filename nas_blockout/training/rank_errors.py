"""Why a rank cannot go on: the first one has ended the training, or another one has failed."""


class RanksEndedError(RuntimeError):
    """The first rank has ended the training, or has died."""


class RankFailedError(RanksEndedError):
    """Another rank has failed; the message says which, and its reason."""
