"""What can be asked: 28 intents, each with the one shape of SQL that answers it.

Every name in a query stands after `=`; a second table is always reached with
`IN (SELECT ...)`, and that inner query is itself the answer of a simpler intent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Intent:
    """One kind of question. `at_least`: rows the query must give before ORDER BY and LIMIT."""

    sql: str
    at_least: int = 1

    @property
    def slots(self) -> tuple[str, ...]:
        """Kinds of names in the query, in the order in which they appear."""
        return tuple(_SLOT.findall(self.sql))

    @property
    def nested(self) -> bool:
        """Whether the query reads a second table."""
        return "IN (SELECT" in self.sql

    @property
    def joins_or_aggregates(self) -> bool:
        """Whether the query reads a second table, counts or adds up."""
        return self.nested or "COUNT(" in self.sql or "SUM(" in self.sql

    def query(self, names: dict[str, str]) -> str:
        """Write the query for these names, quoted for SQL."""
        return self.sql.format(**{slot: name.replace("'", "''") for slot, name in names.items()})


INTENTS = {
    "capital": Intent("SELECT capital FROM country WHERE name = '{country}'"),
    "population": Intent("SELECT population FROM country WHERE name = '{country}'"),
    "area": Intent("SELECT area FROM country WHERE name = '{country}'"),
    "continent": Intent("SELECT continent FROM country WHERE name = '{country}'"),
    "currency": Intent("SELECT currency FROM country WHERE name = '{country}'"),
    "country_of_capital": Intent("SELECT name FROM country WHERE capital = '{city}'"),
    "city_population": Intent("SELECT population FROM city WHERE name = '{city}'"),
    "currency_code": Intent("SELECT code FROM currency WHERE name = '{currency}'"),
    "cities": Intent("SELECT name FROM city WHERE country = '{country}'", at_least=2),
    "languages": Intent("SELECT language FROM language WHERE country = '{country}'"),
    "language_countries": Intent("SELECT country FROM language WHERE language = '{language}'"),
    "currency_countries": Intent("SELECT name FROM country WHERE currency = '{currency}'"),
    "neighbors": Intent("SELECT neighbor FROM border WHERE country = '{country}'"),
    "largest_city": Intent(
        "SELECT name FROM city WHERE country = '{country}' ORDER BY population DESC LIMIT 1",
        at_least=2,
    ),
    "largest_country": Intent(
        "SELECT name FROM country WHERE continent = '{continent}' ORDER BY area DESC LIMIT 1"
    ),
    "smallest_country": Intent(
        "SELECT name FROM country WHERE continent = '{continent}' ORDER BY area ASC LIMIT 1"
    ),
    "top_countries": Intent(
        "SELECT name FROM country WHERE continent = '{continent}' ORDER BY population DESC LIMIT 3"
    ),
    "neighbor_count": Intent("SELECT COUNT(*) FROM border WHERE country = '{country}'"),
    "continent_count": Intent("SELECT COUNT(*) FROM country WHERE continent = '{continent}'"),
    "continent_population": Intent(
        "SELECT SUM(population) FROM country WHERE continent = '{continent}'"
    ),
    "continent_currency_count": Intent(
        "SELECT COUNT(*) FROM country WHERE continent = '{continent}' AND currency = '{currency}'"
    ),
    "country_currency_code": Intent(
        "SELECT code FROM currency WHERE name IN "
        "(SELECT currency FROM country WHERE name = '{country}')"
    ),
    "capital_population": Intent(
        "SELECT population FROM city WHERE name IN "
        "(SELECT capital FROM country WHERE name = '{country}')"
    ),
    "city_continent": Intent(
        "SELECT continent FROM country WHERE name IN "
        "(SELECT country FROM city WHERE name = '{city}')"
    ),
    "neighbor_capitals": Intent(
        "SELECT capital FROM country WHERE name IN "
        "(SELECT neighbor FROM border WHERE country = '{country}')",
        at_least=2,
    ),
    "largest_neighbor": Intent(
        "SELECT name FROM country WHERE name IN "
        "(SELECT neighbor FROM border WHERE country = '{country}') "
        "ORDER BY population DESC LIMIT 1",
        at_least=2,
    ),
    "neighbor_languages": Intent(
        "SELECT DISTINCT language FROM language WHERE country IN "
        "(SELECT neighbor FROM border WHERE country = '{country}')",
        at_least=2,
    ),
    "continent_language": Intent(
        "SELECT name FROM country WHERE continent = '{continent}' AND name IN "
        "(SELECT country FROM language WHERE language = '{language}')"
    ),
}
