"""A terminal role: the system message describes a directory, the user types commands, the reply is their output."""

from __future__ import annotations

import random

from jielong.data.world.exchange import Exchange, fraction

HELD_FRACTION = 0.2  # of the (file name, content) and (owner, folder) combinations

_STEMS = "notes todo plan list draft diary menu poem report recipe letter log".split()
_ENDINGS = ("txt", "md", "csv")
_OWNERS = "ann bob cleo dan eve finn gus hal ida jo".split()
_FOLDERS = "work docs home data mail shop club trip".split()
_CONTENTS = (
    "buy milk and bread",
    "call mother at noon",
    "meet at the gate",
    "feed the goldfish",
    "water the roses",
    "pay the rent",
    "bring socks and shoes",
    "sell the old lamps",
    "send the parcel",
    "fix the roof",
    "bake pies with honey",
    "wipe the oven",
    "learn to swim",
    "go to the dentist",
    "lock the gate",
    "write to uncle",
    "wait for the bus",
    "买牛奶和面包",
    "给妈妈打电话",
    "中午在河边见",
    "浇花和种菜",
    "交这个月的房租",
    "寄一个包裹",
    "修好屋顶",
    "学一首歌",
    "锁好院子",
    "写一封信",
)


_INTROS = (
    "This is what the terminal shows to us.",
    "We open the folder and look for a note.",
    "Here is the list of files, and then the commands.",
    "In the morning the machine is asked what it holds.",
    "Each command has a line of its own, and so has the output.",
)


class Terminal:
    def __init__(self, seed: int) -> None:
        names = [f"{stem}.{ending}" for stem in _STEMS for ending in _ENDINGS]
        files = [(name, content) for name in names for content in _CONTENTS]
        places = [f"/{owner}/{folder}" for owner in _OWNERS for folder in _FOLDERS]
        self._names = names
        self._files = self._split(files, [fraction(seed, "file", *file) < HELD_FRACTION for file in files])
        self._places = self._split(places, [fraction(seed, "place", place) < HELD_FRACTION for place in places])

    @staticmethod
    def _split(items: list, held: list[bool]) -> dict[str, list]:
        return {
            "train": [item for item, out in zip(items, held, strict=True) if not out],
            "heldout": [item for item, out in zip(items, held, strict=True) if out],
        }

    def session(self, rng: random.Random, split: str, num_turns: int) -> list[Exchange]:
        """Commands in one directory. All exchanges share the system message; no command comes twice."""
        files = dict(rng.sample(self._files[split], rng.randint(2, 4)))
        place = rng.choice(self._places[split])
        listing = "\n".join(f"{name}: {content}" for name, content in files.items())
        system = f"You are a terminal. Directory: {place}\nFiles:\n{listing}"
        missing = rng.choice([name for name in self._names if name not in files])
        commands = ["ls", "pwd", f"cat {missing}", *(f"cat {name}" for name in files)]
        chosen = rng.sample(commands, min(num_turns, len(commands)))
        return [self._answer(command, place, files, system) for command in chosen]

    @staticmethod
    def _answer(command: str, place: str, files: dict[str, str], system: str) -> Exchange:
        if command == "ls":
            output = " ".join(files)
        elif command == "pwd":
            output = place
        else:
            name = command.removeprefix("cat ")
            output = files.get(name, f"cat: {name}: No such file")
        return Exchange(command, output, "exact", (output,), "en", system)

    def exchange(self, rng: random.Random, split: str) -> Exchange:
        return self.session(rng, split, 1)[0]

    def document(self, rng: random.Random) -> tuple[str, str]:
        """(text, language): transcripts of terminal sessions, each with a line of prose; one file is read in each."""
        blocks = []
        for intro in rng.sample(_INTROS, rng.randint(2, 3)):
            session = self.session(rng, "train", 9)
            reads = [turn for turn in session if turn.user.startswith("cat") and not turn.reply.endswith("such file")]
            others = [turn for turn in session if turn not in reads]
            turns = [reads[0], *rng.sample(others, rng.randint(1, 2))]
            rng.shuffle(turns)
            head = session[0].system.replace("You are a terminal. ", "")
            blocks.append("\n".join([intro, head, *(f"$ {turn.user}\n{turn.reply}" for turn in turns)]))
        return "\n\n".join(blocks), "en"
