"""Phrasings about a country's money, languages and size."""

QUESTIONS = {
    "currency": {
        "train": (
            "What is the currency of {country}?",
            "Which currency does {country} use?",
            "What money do people use in {country}?",
            "What currency is used in {country}?",
            "Do you know the currency of {country}?",
            "Can you tell me the currency of {country}?",
            "I am going to {country}. Which currency do I need?",
            "What is {country}'s currency?",
            "With which money do I pay in {country}?",
            "Tell me the currency used in {country}.",
            "Which money do they use in {country}?",
            "How do people pay in {country}? Which currency is it?",
        ),
        "valid": (
            "What currency does {country} use?",
            "Which currency do people use in {country}?",
            "Please tell me the currency of {country}.",
            "I am traveling to {country}. What money do I need?",
        ),
        "test": (
            "Which currency is used in {country}?",
            "What currency do people pay with in {country}?",
            "What money do I need in {country}?",
            "Could you tell me which currency {country} uses?",
        ),
    },
    "language": {
        "train": (
            "What language do people speak in {country}?",
            "Which languages are spoken in {country}?",
            "What do people speak in {country}?",
            "What is the official language of {country}?",
            "Which language is spoken in {country}?",
            "Do you know what people speak in {country}?",
            "Can you tell me the main language of {country}?",
            "I am going to {country}. Which language do they speak?",
            "What are the official languages of {country}?",
            "Tell me what language they speak in {country}.",
            "Which language do they speak in {country}?",
            "What will I hear people speak in {country}?",
        ),
        "valid": (
            "Which language do people speak in {country}?",
            "What is the main language of {country}?",
            "What languages are spoken in {country}?",
            "Please tell me what people speak in {country}.",
        ),
        "test": (
            "What language is spoken in {country}?",
            "Which languages do people speak in {country}?",
            "Could you tell me what language they speak in {country}?",
            "What do they speak in {country}?",
        ),
    },
    "population": {
        "train": (
            "How many people live in {country}?",
            "What is the population of {country}?",
            "How large is the population of {country}?",
            "Do you know how many people live in {country}?",
            "Can you tell me the population of {country}?",
            "About how many people live in {country}?",
            "How many inhabitants does {country} have?",
            "What is {country}'s population?",
            "Tell me how many people there are in {country}.",
            "Roughly how many people does {country} have?",
            "I wonder how many people live in {country}.",
            "How many people are there in {country}?",
        ),
        "valid": (
            "How many people does {country} have?",
            "Roughly how many people live in {country}?",
            "Please tell me the population of {country}.",
            "How big is the population of {country}?",
        ),
        "test": (
            "Roughly what is the population of {country}?",
            "Could you tell me how many people live in {country}?",
            "About how many people are there in {country}?",
            "How many inhabitants are there in {country}?",
        ),
    },
    "area": {
        "train": (
            "How large is {country}?",
            "What is the area of {country}?",
            "How many square kilometers does {country} cover?",
            "What area does {country} cover?",
            "Do you know the area of {country}?",
            "Can you tell me how large {country} is?",
            "How big is {country} in square kilometers?",
            "What is {country}'s area?",
            "Tell me the area of {country}.",
            "About how many square kilometers is {country}?",
            "How much land does {country} cover?",
            "I wonder how large {country} is in square kilometers.",
        ),
        "valid": (
            "How large is the area of {country}?",
            "How many square kilometers is {country}?",
            "Please tell me the area of {country}.",
            "How big an area does {country} cover?",
        ),
        "test": (
            "What is the area of {country} in square kilometers?",
            "Could you tell me the area of {country}?",
            "How large an area does {country} cover?",
            "About how many square kilometers does {country} cover?",
        ),
    },
}

FOLLOW_UPS = {
    "currency": {
        "train": (
            "And its currency?", "What is its currency?", "Which currency do they use there?",
            "What about the currency?", "And what money do they use?",
            "What do people pay with there?",
            "And the currency?", "Which money do I need there?",
        ),
        "valid": (
            "And what is its currency?", "What currency do they use there?",
            "What money do people use there?",
        ),
        "test": (
            "And which currency do they use?", "What is the currency there?",
            "And what do they pay with?",
        ),
    },
    "language": {
        "train": (
            "And its language?", "What do people speak there?",
            "Which language do they speak there?",
            "What about the language?", "And what do they speak?",
            "Which languages are spoken there?",
            "What is the official language there?", "And the language?",
        ),
        "valid": (
            "And what language do they speak?", "What language is spoken there?",
            "What is its main language?",
        ),
        "test": (
            "And which language do they speak?", "What do they speak there?",
            "And which languages are spoken there?",
        ),
    },
    "population": {
        "train": (
            "And its population?", "How many people live there?", "What is its population?",
            "What about the population?", "And how many people live there?",
            "How many people does it have?",
            "And the population?", "About how many people live there?",
        ),
        "valid": (
            "And what is its population?", "How many people are there?",
            "Roughly how many people live there?",
        ),
        "test": (
            "And how many people does it have?", "How large is its population?",
            "And roughly how many people live there?",
        ),
    },
    "area": {
        "train": (
            "And its area?", "How large is it?", "What is its area?", "What about the area?",
            "And how large is it?", "How many square kilometers is that?", "And the area?",
            "How much land does it cover?",
        ),
        "valid": (
            "And what is its area?", "How large is that country?",
            "How many square kilometers does it cover?",
        ),
        "test": (
            "And how many square kilometers is it?", "How large is its area?",
            "And how much land does it cover?",
        ),
    },
}  # fmt: skip
