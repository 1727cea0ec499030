"""The relational database behind the questions: five small tables read from `facts/*.csv`."""

from __future__ import annotations

import csv
import sqlite3
from pathlib import Path

FACTS = Path(__file__).parent / "facts"

SCHEMA = """
CREATE TABLE country (
    name TEXT PRIMARY KEY, capital TEXT NOT NULL, continent TEXT NOT NULL,
    population INTEGER NOT NULL, area REAL NOT NULL, currency TEXT NOT NULL
);
CREATE TABLE city (name TEXT PRIMARY KEY, country TEXT NOT NULL, population INTEGER NOT NULL);
CREATE TABLE language (
    country TEXT NOT NULL, language TEXT NOT NULL, PRIMARY KEY (country, language)
);
CREATE TABLE currency (name TEXT PRIMARY KEY, code TEXT NOT NULL UNIQUE);
CREATE TABLE border (
    country TEXT NOT NULL, neighbor TEXT NOT NULL, PRIMARY KEY (country, neighbor)
);
"""


def read_facts(table: str) -> list[dict[str, str]]:
    """Read one CSV file of facts as rows of text, in file order."""
    with (FACTS / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def build_database() -> sqlite3.Connection:
    """Build the database in memory; every call gives a new, independent one.

    `border.csv` holds each pair once; the table holds it in both directions.
    """
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    connection.executemany(
        "INSERT INTO country VALUES (:name, :capital, :continent, :population, :area, :currency)",
        read_facts("country"),
    )
    connection.executemany(
        "INSERT INTO city VALUES (:name, :country, :population)", read_facts("city")
    )
    connection.executemany(
        "INSERT INTO language VALUES (:country, :language)", read_facts("language")
    )
    connection.executemany("INSERT INTO currency VALUES (:name, :code)", read_facts("currency"))
    borders = [(row["country"], row["neighbor"]) for row in read_facts("border")]
    both_ways = borders + [(neighbor, country) for country, neighbor in borders]
    connection.executemany("INSERT INTO border VALUES (?, ?)", both_ways)
    connection.commit()
    return connection
