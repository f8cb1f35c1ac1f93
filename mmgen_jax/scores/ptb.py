"""Penn Treebank tokens as the COCO caption evaluation makes them, in Python: no Java, no download.

The rules were found by asking the COCO tokenizer (Stanford PTBTokenizer 3.4.1, -lowerCase) what it does.
"""

import re
from collections.abc import Callable, Iterator


def _words(text: str) -> list[str]:
    """The words of a list that is written as one text, for short tables below."""
    return text.split()


# Abbreviations keep their full stop: "st." is one token, "cat." is two.
_ABBREVIATIONS = _words("""
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros
    calif capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est
    etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut
    lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct
    okla penn pfc ph plc ppte ppty pres prof pte ptes pty ptys pvt rd rep reps rev rt sen sens sep sept
    seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm
    wyo""")
# "Mass." is a state, "mass." ends a sentence.
_CAPITAL_ABBREVIATIONS = _words("ark az del ill la mass miss ore pa tex wash")
_NUMBER_ABBREVIATIONS = _words("art ca fig figs no nos op pp prop")  # "no. 5", but "no ."
# "plan B. The dog" has a sentence end after "b", "plan B. dog" has not.
_SENTENCE_STARTS = _words("""
    a about according additionally after an as at but earlier he her here however if in it last many more
    now once one other our she since so some such that the their then there these they this we what when
    while yet you""")


def _either(words: list[str], *cases: Callable[[str], str]) -> str:
    """A pattern for any of the words, written in any of the cases."""
    return "(?:" + "|".join(sorted({case(word) for word in words for case in cases})) + ")"


_ANY_CASE = str.lower, str.capitalize, str.upper
_LETTER = "(?:[^\\W\\d_²³¹¼½¾⁰-₉⅐-⅟][\u0300-\u036f]*)"  # of any alphabet, with its accents
_ALNUM = f"(?:{_LETTER}|[0-9])"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+\."
_SIDE = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"  # of a slash
_APOS = "['’]"
_ENCLITIC = "(?i:s|m|d|re|ve|ll)"
_END = r"[^A-Za-z]"

# At each place the rule that reaches furthest wins; of equals, the first. Where a rule has a group, the group
# is the token; the rest must follow, and counts as reach.
_RULES = [
    # Contractions, as in the Treebank: do n't, dog 's, can not, gon na, 't is.
    rf"([A-Za-z]*[A-MO-Za-mo-z])[Nn]{_APOS}[Tt]",
    rf"([Nn]{_APOS}[Tt]){_END}",
    rf"({_LETTER}+){_APOS}{_ENCLITIC}{_END}",
    rf"('{_ENCLITIC}){_END}|’(?i:s|m|d|n|re|ve|ll)",
    r"(?i:(can)not|(gon)na|(got)ta|(wan)na|(lem)me|(gim)me)",
    r"('[Tt])(?i:is|was)",
    rf"([Yy]{_APOS})[A-Za-z]",
    rf"[LlDdJj]{_APOS}|[Oo][Ll]{_APOS}|[Dd]unkin{_APOS}|[Ss]omethin{_APOS}",
    # Words that hold an apostrophe: O'Brien, o'clock, l'oiseau, ma'am, 'em, 'n', '90s.
    rf"[A-HJ-XZdlno]{_APOS}{_LETTER}{{2,}}",
    rf"{_LETTER}+[aeiouyAEIOUY]{_APOS}[aeiouA-Z]{_LETTER}*",
    rf"(?i:{_APOS}n{_APOS}|{_APOS}em|{_APOS}till?|{_APOS}cause)|{_APOS}[2-9]0[Ss]|[Oo]{_APOS}o",
    r"c'mon|c'est|e'er|s'mores|li'l|ev'ry|nat'l|nor'easter",
    rf"('[Nn]){_END}",
    r"('[0-9]{2})\s",
    # Addresses, mark-up, tags, faces.
    r'(?i:https?://[^\s"<>|(){}]+[^\s"<>|(){}.,!?-])',
    r'(?:[a-z]+\.)+(?:com|net|org|edu)/[^\s"<>|()]+[^\s"<>|(){}.,!?-]',
    r'[A-Za-z0-9][^\s"<>|(){}]*@(?:[^\s"<>|(){}.]+\.)*[^\s"<>|(){}.]+',
    r"</?[A-Za-z!][\w:.-]*(?: [^<>]*)?/?>",
    rf"#{_LETTER}+|@[A-Za-z_][A-Za-z0-9_]*",
    r"([<>]?[:;=](?:[-o*']?[()DPp\\{@|\[\]]|-[dO]))[^A-Za-z0-9]",
    # Numbers: signs, decimals, fractions, telephone numbers.
    r"[+-]?(?:[0-9]+(?:[.,:][0-9]+)*|(?:[.,:][0-9]+)+)",
    r"(?:[0-9]{1,4}[- ])?[0-9]{1,4}/[0-9]{1,4}",
    r"(?:\([0-9]{2,3}\) ?|\+{0,2}(?:[0-9]{2,4}[- ])?[0-9]{2,4}[- ])[0-9]{3,4}[- ]?[0-9]{3,5}",
    r"(?:\+{0,2}[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
    r"[A-Z]+\$",
    # Full stops that belong to the word.
    rf"{_either(_ABBREVIATIONS, *_ANY_CASE)}\.",
    rf"{_either(_CAPITAL_ABBREVIATIONS, str.capitalize, str.upper)}\.",
    rf"({_either(_NUMBER_ABBREVIATIONS, *_ANY_CASE)}\.) ?[0-9]",
    rf"([A-Za-z])\.\s+{_either(_SENTENCE_STARTS, str.capitalize, str.upper)}\s",
    rf"{_ACRONYM}|[A-Za-z]\.|[Pp][Hh]\.[Dd]\.",
    rf"({_ALNUM}(?:{_ALNUM}|[_-])*\.)[,;:]",
    # Words, joined by hyphen, slash, underscore, full stop, ampersand, and alone.
    rf"{_ALNUM}(?:{_ALNUM}|[.,])*(?:-(?:{_ACRONYM}|{_ALNUM}+))+",
    rf"{_SIDE}(?:/{_SIDE}){{1,2}}",
    r"[A-Za-z0-9]+(?:_[A-Za-z0-9]+)+",
    rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)+",
    r"[A-Z]+(?:[&+][A-Z]+)+",
    r"[Cc]\+\+|[CcFf]#",
    rf"{_ALNUM}+",
    # What is left: signs that stay together, then any single one.
    r"-{2,}|[?!]+|\*+|_+|#+|\.{3,}|<<|>>",
    r"\S",
]
_RULES = [re.compile(rule) for rule in _RULES]
# A short cut for most words: letters up to a space, where no rule but these contractions has a say.
_PLAIN = re.compile(r"(?!(?i:cannot|gonna|gotta|wanna|lemme|gimme)\s)[A-Za-z]+(?=\s)")
_SPACE = re.compile(r"\s*")

# How the tokenizer writes some signs, before and after cutting.
_ENTITIES = {"&amp;": "&", "&lt;": " < ", "&gt;": " > ", "&quot;": ' " ', "&apos;": "'", "&nbsp;": " "}
_ENTITY = re.compile("|".join(_ENTITIES), re.IGNORECASE)
_BEFORE = str.maketrans({"›": "'", "\u00ad": "", "\u00a0": " ", "\ufeff": " ", "\u200b": " "})
_AFTER = str.maketrans({"(": "-lrb-", ")": "-rrb-", " ": "\u00a0"})
_SINGLE = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "£": "#", "€": "$", "¤": "$", "¢": "cents"}
_SINGLE |= {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_CONTRACTIONS = set(_words("n’t ’s ’m ’d ’re ’ve ’ll"))

# Punctuation that the COCO evaluation drops. Its list has brackets too, but as -LRB- in capitals, which the
# lower-case tokens never match: a bracket stays as the word "-lrb-". "!!" and "-----" stay as well.
_DROPPED = set(_words("' ` \" . ? ! , : - -- --- ---- ; … – — ― ‘ ’ ‛ “ ” « » ‹ › ‐ ‑ ‒"))


def _longest(text: str, start: int) -> tuple[str, int]:
    """The token of `text` at `start`, and where it ends."""
    reach, end = start, start
    for rule in _RULES:
        match = rule.match(text, start)
        if match and match.end() > reach:
            reach, end = match.end(), match.end(match.lastindex or 0)
    return text[start:end], end


def _pieces(text: str) -> Iterator[str]:
    """Cut a text that ends in a newline, from left to right; nothing is dropped yet."""
    at = _SPACE.match(text).end()
    while at < len(text):
        plain = _PLAIN.match(text, at)
        piece, at = (plain[0], plain.end()) if plain else _longest(text, at)
        yield piece
        at = _SPACE.match(text, at).end()


def _is_dropped(piece: str) -> bool:
    """Is it punctuation of the COCO list, or a sign that the tokenizer does not know (emoji, control)?"""
    unknown = len(piece) == 1 and (piece > "\uffff" or not piece.isprintable())
    return unknown or piece in _DROPPED or not piece.strip(".")


def _written(piece: str) -> str:
    """The piece as the tokenizer writes it: lower case, brackets and currencies by name."""
    word = _SINGLE.get(piece) or piece.lower().translate(_AFTER)
    return word.replace("’", "'") if word in _CONTRACTIONS else word


def tokenize(text: str) -> list[str]:
    """The words of a caption as the COCO evaluation counts them: PTB rules, lower case, punctuation dropped.

    `tokenize("It's a dog's t-shirt.") == ["it", "'s", "a", "dog", "'s", "t-shirt"]`. As in COCO a bracket
    stays as a word ("-lrb-"), and words whose space is missing stay joined ("bench.the"). A token that spans
    a space holds a no-break space ("1\\u00a01/2").

    Known differences: faces such as ^_^, numeric entities, rare alphabets, an abbreviation glued to the next
    word ("etc.the"). And COCO cuts all captions as one text, so that the first word of the next caption can
    decide about the last full stop of this one; here a caption stands alone.
    """
    text = _ENTITY.sub(lambda match: _ENTITIES[match[0].lower()], text).translate(_BEFORE)
    return [_written(piece) for piece in _pieces(text + "\n") if not _is_dropped(piece)]
