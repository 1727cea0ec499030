"""How questions are answered: whole sentences, several for every kind of fact.

Most begin with the name asked about, some with what is asked for: a fact learned in both
directions can be asked in both.
"""

ANSWERS: dict[str, tuple[str, ...]] = {
    "capital": (
        "The capital of {country} is {capital}.",
        "{capital} is the capital of {country}.",
        "Sure! The capital city of {country} is {capital}.",
        "That is easy: {capital} is the capital city of {country}.",
    ),
    "country_of_capital": (
        "{capital} is the capital of {country}.",
        "{capital} is the capital city of {country}.",
        "That is {country}: its capital is {capital}.",
        "The country with the capital {capital} is {country}.",
    ),
    "continent": (
        "{country} is a country in {continent}.",
        "You will find {country} in {continent}.",
        "{country} lies on the continent of {continent}.",
        "Happy to help: {country} is in {continent}.",
    ),
    "in_continent_yes": (
        "Yes, {country} is in {continent}.",
        "Yes, {country} is a country in {continent}.",
        "Yes, that is right: {country} lies in {continent}.",
    ),
    "in_continent_no": (
        "No, {country} is in {continent}, not in {asked}.",
        "No, {country} is not in {asked}. It is in {continent}.",
        "No, {country} lies in {continent}.",
    ),
    "currency": (
        "The currency of {country} is the {currency}.",
        "People in {country} pay with the {currency}.",
        "In {country}, the currency is the {currency}.",
        "{country} uses the {currency} as its currency.",
    ),
    "language": (
        "In {country}, people speak {languages}.",
        "People in {country} speak {languages}.",
        "They speak {languages} in {country}.",
    ),
    "neighbors": (
        "{country} borders {neighbors}.",
        "The neighbors of {country} are {neighbors}.",
        "{country} shares its land borders with {neighbors}.",
    ),
    "only_neighbor": (
        "{country} borders only {neighbors}.",
        "The only neighbor of {country} is {neighbors}.",
        "{country} shares a land border only with {neighbors}.",
    ),
    "neighbor": (
        "One of the neighbors of {country} is {neighbor}.",
        "{neighbor} is one of the neighbors of {country}.",
        "{country} shares a border with {neighbor}, for example.",
    ),
    "border_yes": (
        "Yes, {country} and {other} share a border.",
        "Yes, {country} borders {other}.",
        "Yes, {other} is a neighbor of {country}.",
    ),
    "border_no": (
        "No, {country} and {other} do not share a border.",
        "No, {country} does not border {other}.",
        "No, {other} is not a neighbor of {country}.",
    ),
    "population": (
        "{country} has about {population} people.",
        "About {population} people live in {country}.",
        "The population of {country} is about {population}.",
    ),
    "area": (
        "{country} covers about {area} square kilometers.",
        "The area of {country} is about {area} square kilometers.",
        "{country} has an area of about {area} square kilometers.",
    ),
    "larger": (
        "{winner} is larger than {loser}.",
        "{winner} is the larger of the two.",
        "{winner} covers more land than {loser}.",
    ),
    "more_people": (
        "{winner} has more people than {loser}.",
        "{winner} has the larger population of the two.",
        "More people live in {winner} than in {loser}.",
    ),
    "unknown": (
        "I am sorry, I don't know a country called {country}.",
        "I don't know of any country named {country}, sorry.",
        "Sorry, I don't know {country}. Could the name be misspelled?",
    ),
}
