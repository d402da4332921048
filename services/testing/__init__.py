"""The laws of search algorithms and early stopping, as functions, for your own as for this project's.

Both `searcher_laws` and `pruner_laws` return the laws of one case, by what they say::

    LAWS = searcher_laws(SearchCase("my_search", settings={"step": 0.1}))

    @pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
    def test_my_search_keeps_the_laws_of_searchers(law):
        law()

A law that is broken raises an AssertionError. Nothing is trained: trials have learning curves that are made up. Nothing
here needs pytest. The laws of everything else are in `nas_blockout.testing`.
"""

from services.testing.pruner_laws import PrunerCase, pruner_laws
from services.testing.searcher_laws import SearchCase, searcher_laws

__all__ = ["PrunerCase", "SearchCase", "pruner_laws", "searcher_laws"]
