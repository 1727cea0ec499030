"""How people ask: for every intent, phrasings for training, validation and test.

No phrasing is in two splits. `{country}`, `{city}`, `{continent}`, `{language}` and
`{currency}` stand for names; a country brings its own article ("the Netherlands").
"""

from mlx_ft.datasets.geography_sql.phrasings import aggregates, joins, lists, lookups, rankings

PHRASINGS: dict[str, dict[str, tuple[str, ...]]] = {
    **lookups.PHRASINGS,
    **lists.PHRASINGS,
    **rankings.PHRASINGS,
    **aggregates.PHRASINGS,
    **joins.PHRASINGS,
}
