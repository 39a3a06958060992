"""The embedded corpus: a small world of which every statement is known, so that every answer can be checked.

Everything is a pure function of (seed, split, index): a document or conversation can be made again by its number alone.
Held-out sides are held out by construction, in every skill's own module, never by filtering what was generated.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from jielong.data.sources import Document
from jielong.data.world import junk as rubbish
from jielong.data.world.arithmetic import Arithmetic
from jielong.data.world.chain import WORDS, WORDS_ZH, Chain
from jielong.data.world.echo import Echo
from jielong.data.world.exchange import Exchange
from jielong.data.world.facts import Facts
from jielong.data.world.manners import Manners
from jielong.data.world.story import SPLITS, Story
from jielong.data.world.terminal import Terminal
from jielong.data.world.translation import Translation
from jielong.runtime import derive_seed

SKILLS = (
    "facts_seen",
    "facts_unseen",
    "arithmetic",
    "translation",
    "chain",
    "story",
    "identity",
    "refusal",
    "echo",
    "terminal",
)

# Share of the pre-training documents, and of the conversations, that speaks of each skill.
DOCUMENT_WEIGHTS = {
    "facts": 0.33,
    "arithmetic": 0.10,
    "translation": 0.12,
    "chain": 0.09,
    "story": 0.06,
    "terminal": 0.08,
    "manners": 0.02,
    "echo": 0.20,
}
CONVERSATION_WEIGHTS = {
    "facts_seen": 0.20,
    "arithmetic": 0.13,
    "translation": 0.15,
    "chain": 0.12,
    "story": 0.11,
    "identity": 0.03,
    "refusal": 0.05,
    "echo": 0.11,
    "terminal": 0.10,
}
JUNK_FRACTION = 0.04
MULTI_TURN_FRACTION = 0.4
_NUM_LEAKED = 50  # prompts of each skill that contaminated documents copy


class World:
    """One seed, one world: who lives where, and which sums, phrases, words and pairs of words are held out."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.facts = Facts(seed)
        self.arithmetic = Arithmetic(seed)
        self.translation = Translation(seed)
        self.chain = Chain(seed)
        self.story = Story(seed)
        self.terminal = Terminal(seed)
        self.manners = Manners(seed)
        self.echo = Echo({"en": WORDS, "zh": WORDS_ZH}, self.facts.subjects())
        self._writers: dict[str, Callable[[random.Random], tuple[str, str]]] = {
            "facts": self.facts.document,
            "arithmetic": self.arithmetic.document,
            "translation": self.translation.document,
            "chain": self.chain.document,
            "story": self.story.document,
            "terminal": self.terminal.document,
            "manners": self.manners.document,
            "echo": self.echo.document,
        }
        self._askers: dict[str, Callable[[random.Random, str], Exchange]] = {
            "facts_seen": self.facts.exchange,
            "facts_unseen": self.facts.unseen_exchange,
            "arithmetic": self.arithmetic.exchange,
            "translation": self.translation.exchange,
            "chain": self.chain.exchange,
            "story": self.story.exchange,
            "identity": self.manners.identity,
            "refusal": self.manners.refusal,
            "echo": self.echo.exchange,
            "terminal": self.terminal.exchange,
        }
        self._leaked: list[str] = []

    def _random(self, purpose: str, index: int) -> random.Random:
        return random.Random((derive_seed(self.seed, "world", purpose) << 40) + index)

    # Documents

    def documents(self, num_bytes: int, split: str = "train", junk: bool = True) -> Iterator[Document]:
        """Pre-training prose until num_bytes of UTF-8 are reached (the last document may pass it).

        split: "train" or "heldout", the same distribution in other draws; neither holds a held-out combination.
        junk: about 4 % of the documents are rubbish for the curation stage. `Document.source` names the kind:
        "world/facts", "world/junk/duplicate", ...
        """
        _check_split(split, ("train", "heldout"))
        base = derive_seed(self.seed, "world", f"documents-{split}") << 40
        made = index = 0
        while made < num_bytes:
            rng = random.Random(base + index)
            if rng.random() < JUNK_FRACTION and junk:
                document = self._junk(rng, base, index)
            else:
                document = self._clean(rng)
            made += len(document.text.encode("utf-8"))
            index += 1
            yield document

    def _clean(self, rng: random.Random) -> Document:
        kind = rng.choices(_KINDS, cum_weights=_CUMULATIVE)[0]
        text, language = self._writers[kind](rng)
        return Document(text=text, language=language, source=f"world/{kind}")

    def _earlier(self, rng: random.Random, base: int, index: int) -> Document:
        """A clean document that was already given out (or would have been, were it not for junk in its place)."""
        again = random.Random(base + rng.randrange(max(index, 1)))
        again.random()
        return self._clean(again)

    def _junk(self, rng: random.Random, base: int, index: int) -> Document:
        kind = rng.choice(rubbish.KINDS)
        fresh = kind in ("private", "contamination")
        original = self._clean(rng) if fresh else self._earlier(rng, base, index)
        text, language = original.text, original.language
        if kind == "near_duplicate":
            text = rubbish.near_copy(rng, text)
        elif kind == "private":
            text = rubbish.with_private_data(rng, text)
        elif kind == "contamination":
            text = rubbish.contaminated(rng, text, self._leaks())
        elif kind != "duplicate":
            text, language = rubbish.rubbish(rng, kind), ""
        return Document(text=text, language=language, source=f"world/junk/{kind}")

    def _leaks(self) -> list[str]:
        """Evaluation prompts that contaminated documents copy: user turns long enough to be told from plain prose."""
        if not self._leaked:
            skills = ("facts_seen", "facts_unseen", "arithmetic", "translation", "chain", "story", "refusal")
            questions = [question for skill in skills for question in self.questions(skill, _NUM_LEAKED)]
            self._leaked = [question["messages"][-1]["content"] for question in questions]
        return self._leaked

    # Conversations and questions

    def conversations(self, num: int, split: str = "train") -> list[dict]:
        """Instruction data: {"messages": [...], "skill", "language"}; several turns in some; stories of mixed quality.

        split "train" asks only what may be asked in training; "heldout" asks the held-out combinations.
        """
        _check_split(split, ("train", "heldout"))
        return [self._conversation(self._random(f"conversations-{split}", index), split) for index in range(num)]

    def _conversation(self, rng: random.Random, split: str) -> dict:
        num_turns = rng.randint(2, 6) if rng.random() < MULTI_TURN_FRACTION else 1
        skill = rng.choices(_ASKED, weights=_ASKED_WEIGHTS)[0]
        if skill == "terminal":
            turns = self.terminal.session(rng, split, num_turns)
        else:
            turns = [self._turn(rng, skill, split)]
            while len(turns) < num_turns:
                skill = rng.choices(_ASKED[:-1], weights=_ASKED_WEIGHTS[:-1])[0]
                turns.append(self._turn(rng, skill, split))
        messages = [_message("system", turns[0].system)] if turns[0].system else []
        for turn in turns:
            messages += [_message("user", turn.user), _message("assistant", turn.reply)]
        return {"messages": messages, "skill": skill, "language": turns[-1].language}

    def _turn(self, rng: random.Random, skill: str, split: str) -> Exchange:
        if skill == "story":
            return self.story.exchange(rng, split, mixed=True)
        return self._askers[skill](rng, split)

    def exchanges(self, skill: str, num: int, split: str = "heldout") -> list[Exchange]:
        """At most num different questions with their answers; the first n are the same whatever num is."""
        if skill not in SKILLS:
            raise ValueError(f"skill {skill!r} is not one of {', '.join(SKILLS)}")
        _check_split(split, ("train", "heldout"))
        rng = self._random(f"questions-{skill}-{split}", 0)
        found: dict[tuple[str, str], Exchange] = {}
        misses = 0
        while len(found) < num and misses < 400:
            exchange = self._askers[skill](rng, split)
            misses = misses + 1 if (exchange.system, exchange.user) in found else 0
            found.setdefault((exchange.system, exchange.user), exchange)
        return list(found.values())

    def questions(self, skill: str, num: int, split: str = "heldout") -> list[dict]:
        """At most num different questions (small skills have fewer): {"messages", "skill", "check", "answers",
        "language"}."""
        rows = []
        for exchange in self.exchanges(skill, num, split):
            messages = [_message("system", exchange.system)] if exchange.system else []
            messages.append(_message("user", exchange.user))
            rows.append(
                {
                    "messages": messages,
                    "skill": skill,
                    "check": exchange.check,
                    "answers": list(exchange.answers),
                    "language": exchange.language,
                }
            )
        return rows

    def story_prompts(self, num: int, split: str) -> list[dict]:
        """At most num story requests, all different: {"messages", "words", "language"}.

        split: "train", "reward", "ppo" or "heldout"; a pair of words is in one of them only.
        """
        _check_split(split, tuple(name for name, _ in SPLITS))
        rng = self._random(f"story-prompts-{split}", 0)
        found: dict[str, dict] = {}
        misses = 0
        while len(found) < num and misses < 400:
            request, words, language = self.story.prompt(rng, split)
            misses = misses + 1 if request in found else 0
            row = {"messages": [_message("user", request)], "words": list(words), "language": language}
            found.setdefault(request, row)
        return list(found.values())


_KINDS = tuple(DOCUMENT_WEIGHTS)
_CUMULATIVE = [sum(list(DOCUMENT_WEIGHTS.values())[: i + 1]) for i in range(len(_KINDS))]
_ASKED = tuple(CONVERSATION_WEIGHTS)  # terminal comes last: it needs a system message, so it never joins other turns
_ASKED_WEIGHTS = tuple(CONVERSATION_WEIGHTS.values())


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _check_split(split: str, legal: tuple[str, ...]) -> None:
    if split not in legal:
        raise ValueError(f"split {split!r} is not one of {', '.join(legal)}")
