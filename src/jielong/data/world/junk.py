"""Rubbish for the curation stage to find: copies, near-copies, boilerplate, private data, leaked evaluation prompts."""

from __future__ import annotations

import random

KINDS = ("duplicate", "near_duplicate", "boilerplate", "symbols", "repetition", "language", "private", "contamination")

_BOILERPLATE = (
    "Accept all cookies to continue",
    "Click here to subscribe",
    "All rights reserved",
    "Sign in | Register | Help",
    "Share this page",
    "Terms of use",
    "Back to top",
    "Read more >>",
    "Advertisement",
    "Enable scripts to view this page",
)
_SYMBOLS = "#$%&*+/<=>@[]^_{|}~"
_FOREIGN = (
    (
        "Das ist ein Satz in einer anderen Sprache und gehört nicht hierher.",
        "Der Hund schläft heute lange im Garten, weil die Sonne scheint.",
        "Wir gehen morgen nicht zur Schule, sondern mit den Eltern an den See.",
        "Am Abend essen wir Brot und trinken eine Tasse Tee.",
        "Ich weiß nicht, wann der nächste Zug nach Hause fährt.",
    ),
    (
        "El perro duerme en la casa y no quiere salir con este frío.",
        "Mañana vamos a la playa con toda la familia.",
        "No sé cuándo sale el próximo tren para la ciudad.",
        "Por la noche comemos pan y tomamos una taza de té.",
        "Los niños juegan en la calle hasta que llega su madre.",
    ),
    (
        "Le chat dort sur la chaise pendant que nous mangeons.",
        "Nous irons demain au marché avec nos voisins.",
        "Je ne sais pas quand part le prochain train pour la ville.",
        "Le soir, nous mangeons du pain et nous buvons du thé.",
        "Les enfants jouent dans la rue jusqu'au retour de leur mère.",
    ),
    (
        "Собака сегодня долго спит в саду.",
        "Завтра мы всей семьёй поедем на озеро.",
        "Вечером мы едим хлеб и пьём чай.",
        "Я не знаю, когда придёт следующий поезд.",
        "Дети играют на улице, пока не вернётся мама.",
    ),
)
_MARKS = ("indeed", "really", "of course", "so far")


def near_copy(rng: random.Random, text: str) -> str:
    """The text with one phrase put in; nothing is taken out, so no number or name changes."""
    words = text.split(" ")
    words.insert(rng.randint(1, max(1, len(words) - 1)), rng.choice(_MARKS))
    return " ".join(words)


def rubbish(rng: random.Random, kind: str) -> str:
    """A document that should not be kept: kind is one of boilerplate, symbols, repetition, language."""
    if kind == "boilerplate":
        return "\n".join(rng.choice(_BOILERPLATE) for _ in range(rng.randint(8, 20)))
    if kind == "symbols":
        lines = ("".join(rng.choice(_SYMBOLS) for _ in range(rng.randint(10, 60))) for _ in range(rng.randint(3, 8)))
        return "\n".join(lines)
    if kind == "repetition":
        return " ".join([rng.choice(_BOILERPLATE)] * rng.randint(15, 40))
    return " ".join(rng.sample(rng.choice(_FOREIGN), 4))


def with_private_data(rng: random.Random, text: str) -> str:
    """The text with an e-mail address, a telephone number or an IP address, all from documentation ranges."""
    user = "".join(rng.choice("abcdefghijklmnop") for _ in range(6))
    lines = [
        f"Write to {user}@example.org for more.",
        f"Call +1 202 555 01{rng.randint(0, 9)}{rng.randint(0, 9)} in the morning.",
        f"The server is 192.0.2.{rng.randint(1, 254)} today.",
    ]
    return "\n".join([text, *rng.sample(lines, rng.randint(1, 3))])


def contaminated(rng: random.Random, text: str, prompts: list[str]) -> str:
    """The text with a few evaluation prompts copied in, without their answers."""
    return "\n".join([text, *rng.sample(prompts, min(3, len(prompts)))])
