"""The little grammar that questions need: verbs, headings, noun phrases."""

from __future__ import annotations

import re

from mlx_ft.documents.prose import word_set, words

# Verbs that instructions begin with.
VERBS = word_set(
    "access activate add adjust allow append apply assign attach authenticate avoid build call "
    "cancel catch change check choose clean clear clone close combine compare compile compose "
    "compute configure connect control convert copy create customize debug declare define delete "
    "deploy describe detect develop disable display distribute document download edit enable "
    "ensure execute expand explore export extend extract fetch filter find fix format generate get "
    "group handle hide implement import include initialize insert inspect install integrate "
    "invoke launch limit list load locate log make manage map mark measure merge migrate mock "
    "modify monitor mount move obtain open optimize organize override package parse pass pick "
    "prepare prevent print process protect provide publish pull push put read receive record "
    "recover register reload remove rename render replace report reproduce reset resolve restart "
    "restore resume retrieve retry return reuse run save scale schedule search secure select send "
    "serve set share show skip sort specify split start stop store stream submit subscribe switch "
    "test track train translate trigger tune turn uninstall unpack update upgrade upload use "
    "validate verify view visualize wait wrap write keep follow watch ignore ask do give let learn "
    "sign try query plot draw stay go see consider enforce evaluate prefer remember require "
    "examine look"
)
# Gerunds that are hardly ever adjectives, so that what follows is their object.
_GERUNDS = {
    "accessing": "access", "adding": "add", "applying": "apply", "avoiding": "avoid",
    "building": "build", "calling": "call", "changing": "change", "choosing": "choose",
    "combining": "combine", "configuring": "configure", "connecting": "connect",
    "converting": "convert", "creating": "create", "customizing": "customize",
    "debugging": "debug", "following": "follow",
    "declaring": "declare", "defining": "define", "deploying": "deploy",
    "disabling": "disable", "downloading": "download", "enabling": "enable",
    "exporting": "export", "extending": "extend", "generating": "generate", "getting": "get",
    "handling": "handle", "implementing": "implement", "importing": "import",
    "installing": "install", "loading": "load", "making": "make", "managing": "manage",
    "modifying": "modify", "overriding": "override", "passing": "pass", "reading": "read",
    "registering": "register", "removing": "remove", "rendering": "render",
    "replacing": "replace", "resolving": "resolve", "restoring": "restore", "returning": "return",
    "running": "run", "saving": "save", "selecting": "select", "sending": "send",
    "serving": "serve", "setting": "set", "sharing": "share", "specifying": "specify",
    "testing": "test", "updating": "update", "upgrading": "upgrade", "uploading": "upload",
    "using": "use", "validating": "validate", "viewing": "view", "writing": "write",
}  # fmt: skip
# Verbs by which a sentence says what a thing does.
DOES = word_set(
    "accepts adds allows applies builds calculates calls catches changes checks cleans closes "
    "collects combines compares compiles computes configures connects contains controls converts "
    "copies counts creates declares defines deletes describes determines disables displays "
    "downloads emits enables ensures evaluates executes exports extends extracts fetches filters "
    "finds forces formats generates gives groups handles holds implements imports indicates "
    "initializes inserts installs invokes iterates joins limits lists loads logs looks maps marks "
    "matches measures merges modifies moves normalizes opens overrides parses performs picks "
    "prevents prints processes produces provides raises reads records reduces registers removes "
    "renames renders replaces reports represents resets resolves restores returns runs saves "
    "scales selects sends serves sets shows skips sorts specifies splits starts stops stores "
    "tells trains transforms translates tries triggers turns unpacks updates uses validates "
    "verifies waits wraps writes yields"
)
_AUXILIARY = re.compile(
    r"\b(?:is|are|was|were|be|been|does|do|did|has|have|had|can|cannot|could|will|would|should|"
    r"must|may|might|isn't|aren't|don't|doesn't|can't|won't|shouldn't)\b",
    re.IGNORECASE,
)
_OBJECT = re.compile(
    r"(?:an?|the|your|my|its|all|any|each|every|from|with|to|into|in|on|up|as|for|by|multiple|"
    r"several|custom|new|different|existing|more|only|additional|other|files?|code|data)\b|`",
    re.IGNORECASE,
)
# Headings that say nothing by themselves.
_BARE = word_set(
    "notes note overview introduction intro usage use example examples quickstart tutorial start "
    "requirements prerequisites more misc other others miscellaneous details background motivation "
    "summary conclusion conclusions faq then tips tip warning arguments parameters returns options "
    "api reference basics advanced tests limitations description discussion further general "
    "information content contents features setup install installation guide hello welcome about "
    "why how what questions results result remarks comments abstract preface foreword synopsis "
    "getting started next steps known issues caveats quick"
)
_APPARATUS = re.compile(
    r"change ?log|changes$|changes in\b|^version|release notes?|releases|what's new|history|"
    r"contents|contributors|contribution|authors?$|licen[cs]e|copyright|references|bibliography|"
    r"^links?$|see also|further (?:reading|resources)|acknowledge?ments?|credits|^index$|todo|"
    r"roadmap|sponsors?|backers|donat|badges|^related|footnotes|code of conduct|"
    r"^v?\d+\.\d+|unreleased|migration notes|indices and tables|community|support us|trademarks?",
    re.IGNORECASE,
)


def apparatus(title: str) -> bool:
    """Whether a heading announces what surrounds a text: a changelog, a licence, links."""
    return bool(_APPARATUS.search(title))


def bare(title: str) -> bool:
    """Whether a heading is of words that could stand over anything."""
    found = words(title)
    return not found or set(found) <= _BARE or (len(found) == 1 and len(title) < 5)


def finite(text: str) -> bool:
    """Whether a heading holds an auxiliary verb, and so is a clause."""
    return bool(_AUXILIARY.search(text))


def how_to(title: str) -> str:
    """`install a package` from "Installing a package" or "Install a package"; "" if neither."""
    task = re.fullmatch(r"how to\s+(\w+\s.+)", title, re.IGNORECASE)
    if task:
        return task[1]
    first, _, rest = title.partition(" ")
    if (
        finite(rest)
        or "," in rest
        or re.match(r"(?:is|are|was|can|and|or|vs|versus|or not)\b", rest)
        or not rest
    ):
        return ""
    verb = first.lower()
    if verb == "setting" and not rest.lower().startswith("up "):
        return ""
    # "Calling convention" is no call; what is used or installed needs no article, though.
    thing = verb in ("using", "installing") or _OBJECT.match(rest) or plural(rest)
    if verb in _GERUNDS and thing:
        return f"{_GERUNDS[verb]} {small(rest)}"
    if verb in VERBS and _OBJECT.match(rest) and first[0].isupper():
        return f"{verb} {rest}"
    return ""


def verbal(title: str) -> bool:
    """Whether a heading begins with a verb, or with a noun that looks like one."""
    first = title.split()[0].lower()
    return first in VERBS or first in _GERUNDS


def small(text: str) -> str:
    """The text with a small first letter, unless its first word is a name, code or acronym."""
    first = re.match(r"[A-Za-z']+", text)
    if first is None or first[0] in ("I", "I'm") or any(c.isupper() for c in first[0][1:]):
        return text
    if first[0].casefold() in _STARTERS or first[0].casefold() in VERBS | _GERUNDS.keys():
        return text[0].lower() + text[1:]
    return text


def sentence_cased(title: str, names: frozenset[str]) -> str:
    """A heading as it would stand within a sentence: names, code and acronyms keep their capitals.

    Only in Title Case do words after the first lose theirs.
    """
    long = re.findall(
        r"(?<![\w`./-])(?!with|from|into|your|when|then|than|over|upon)[A-Za-z]{4,}", title
    )
    titled = len(long) > 1 and all(word[0].isupper() for word in long)

    def lower(found: re.Match[str]) -> str:
        return found[0] if found[0].split("'")[0] in {"I", *names} else found[0].lower()

    if not titled and not re.match(r"[A-Z]", title):
        return title
    word = r"(?<![\w`./-])[A-Z][a-z']*(?![\w`./-])"
    return re.sub(word, lower, title, count=0 if titled else 1)


def mine(text: str) -> str:
    """A phrase to the reader, said by the reader: your -> my, you -> I, yourself -> myself."""
    for theirs, ours in {"yourself": "myself", "yours": "mine", "your": "my", "you": "I"}.items():
        text = re.sub(rf"\b{theirs}\b", ours, text, flags=re.IGNORECASE)
    return text


def plural(phrase: str) -> bool:
    """Whether the head of a noun phrase (its last word before a preposition) is a plural."""
    head = re.split(r"\s+(?:of|for|in|with|to|that|which|from|on|by|and|\()", phrase.strip())[0]
    last = head.rstrip(".,:;)").split()[-1:] or [""]
    return bool(re.fullmatch(r"[A-Za-z-]{3,}s", last[0])) and not re.search(
        r"(?:ss|us|is|ous|ics|always|does|has|was|this)$", last[0]
    )


_STARTERS = word_set(
    "a an the this these some any each every all most many few several one two three four five "
    "six no your my our its their of to in on at by for with from about when where which who what "
    "why how if because while as there here you we they it and or not only both either another "
    "other more new different multiple custom common available supported following"
)
