"""Phrasings about two countries, changes of subject, and words before a first question."""

QUESTIONS = {
    "larger": {
        "train": (
            "Which is larger, {first} or {second}?",
            "Is {first} or {second} larger?",
            "Which country is larger, {first} or {second}?",
            "Which country covers more land, {first} or {second}?",
            "What is larger: {first} or {second}?",
            "Do you know which is larger, {first} or {second}?",
            "Can you tell me whether {first} or {second} is larger?",
            "Which has the larger area, {first} or {second}?",
            "{first} or {second}: which is the larger country?",
            "Of {first} and {second}, which is larger?",
            "Tell me which country is larger, {first} or {second}.",
            "I wonder whether {first} or {second} covers more land.",
        ),
        "valid": (
            "Which one is larger, {first} or {second}?",
            "Which of the two covers more land, {first} or {second}?",
            "Does {first} or {second} have the larger area?",
            "What is the larger country, {first} or {second}?",
        ),
        "test": (
            "Which is the larger country, {first} or {second}?",
            "Does {first} or {second} cover more land?",
            "{first} or {second}: which one is larger?",
            "Between {first} and {second}, which is larger?",
        ),
    },
    "more_people": {
        "train": (
            "Which has more people, {first} or {second}?",
            "Does {first} or {second} have more people?",
            "Which country has more people, {first} or {second}?",
            "Where do more people live, in {first} or in {second}?",
            "Do more people live in {first} or in {second}?",
            "Do you know which has more people, {first} or {second}?",
            "Can you tell me whether {first} or {second} has more people?",
            "Which has the larger population, {first} or {second}?",
            "{first} or {second}: which has more people?",
            "Of {first} and {second}, which has more people?",
            "Tell me which country has more people, {first} or {second}.",
            "I wonder whether {first} or {second} has the larger population.",
        ),
        "valid": (
            "Which one has more people, {first} or {second}?",
            "Which country has the larger population, {first} or {second}?",
            "Who has more people, {first} or {second}?",
            "Does {first} or {second} have more inhabitants?",
        ),
        "test": (
            "Does {first} or {second} have the larger population?",
            "{first} or {second}: where do more people live?",
            "Between {first} and {second}, which has more people?",
            "Which of the two has more people, {first} or {second}?",
        ),
    },
}

# About the same two countries, after the other comparison.
FOLLOW_UPS = {
    "larger": {
        "train": (
            "And which is larger?", "Which of them is larger?", "Which one covers more land?",
            "And which has the larger area?", "Which of the two is the larger country?",
            "And which country covers more land?", "What about the area?", "So which is larger?",
        ),
        "valid": (
            "And which one is larger?", "Which one has the larger area?",
            "Which of the two covers more land?",
        ),
        "test": (
            "And which of them is larger?", "Which is the larger country?",
            "And which covers more land?",
        ),
    },
    "more_people": {
        "train": (
            "And which has more people?", "Which of them has more people?",
            "Where do more people live?",
            "And which has the larger population?", "Which of the two has more people?",
            "And where do more people live?", "What about the population?",
            "So which has more people?",
        ),
        "valid": (
            "And which one has more people?", "Which one has the larger population?",
            "Which country has more people?",
        ),
        "test": (
            "And which of them has more people?", "Who has more people?",
            "And which country has more people?",
        ),
    },
}  # fmt: skip

# The question before, about another country.
SWITCHES = {
    "train": (
        "And {country}?", "What about {country}?", "And what about {country}?",
        "How about {country}?", "And for {country}?", "The same for {country}, please.",
        "Now {country}, please.", "And that of {country}?", "Then what about {country}?",
        "And in the case of {country}?", "What about {country} now?",
        "And how is it for {country}?",
    ),
    "valid": (
        "And how about {country}?", "What about {country}, then?", "Now what about {country}?",
    ),
    "test": ("And now {country}?", "How about {country}, then?", "And the same for {country}?"),
}  # fmt: skip

OPENERS = {
    "train": ("Hi!", "Hello!", "I have a question.", "Hi there, I need some help."),
    "valid": ("Hello there!", "I have a quick question."),
    "test": ("Hey!", "Good morning!"),
}

MADE_UP = {
    "train": (
        "Kestovia", "Ombarra", "Drennland", "Velmora", "Tuskaria", "Quorland", "Ashmeria",
        "Bolvany", "Zantuga", "Mirolia", "Feldoria", "Nambesia", "Ostravania", "Hulmark",
        "Pelagonda", "Ruvania", "Sintara", "Wexland", "Yorubana", "Lumbravia", "Garvonia",
        "Istmark", "Calvonia", "Dombera", "Eskania", "Jantoria", "Arkovia", "Brenmark",
        "Cordania", "Duskland", "Elvaria", "Fanduria", "Grelland", "Hestovia", "Imbaria",
        "Jorvania", "Klemora", "Lotharia", "Menduria", "Nerwania", "Olvaria", "Prentland",
        "Rastovia", "Selmaria", "Torvany", "Ulmaria", "Varkland", "Wolmaria", "Yestria",
        "Zolmark", "Aldoria", "Bastuga", "Corvinia", "Delmark", "Ervania", "Fostria",
        "Gondaria", "Halvonia", "Irdania", "Kolbaria",
    ),
    "valid": ("Vostrany", "Kelmaria", "Tamborland", "Orlavia", "Brundland", "Zemolia"),
    "test": ("Morvania", "Quastland", "Belluria", "Nordavland", "Tarkosia", "Umbania"),
}  # fmt: skip
