"""Who and what the world's facts are about. Facts of invented things are dealt by the world's seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

PEOPLE = (
    "Mira Bolin Tessa Oskar Lenka Ravi Dorit Kaspar Yara Milo Selma Arvid Noor Pavel Ines Jonas Freya Tariq Wanda "
    "Emil Katya Bruno Leila Anton Greta Hugo Samira Viktor Alma Felix Nadia Otto Rosa Kenji Olga Marek Dalia "
    "Simon Petra Igor Lucia Henrik Amina Stefan Clara Rufus Zelda Boris Hanna Lars Edith Cyril Vera Gustav Paula "
    "Nils Irma Leon Maud Rolf Sonja Theo Ursel Ferdi Kira Magnus Judit Basil Carla Edgar Fiona Goran Helga Ivo "
    "Jelka Konrad"
).split()

TOWNS = (
    "Toval Kessen Marbo Drint Ulmar Pelsk Ravona Sindel Corvo Haltin Brisko Fenwald Lorima Zanto Quell Ostrava "
    "Nimba Varzen Eldmoor Jarrow Tilska Yorim Gorda Wessel"
).split()

COUNTRIES = "Brenland Karvia Ostmark Silova Tundria Velmora Norland Azuria".split()

FAMES = (
    "bridges towers roses markets bells boats cheese clocks gardens books castles carpets kites lamps wine horses "
    "windmills statues fountains hats"
).split()

JOBS = (
    "baker teacher doctor farmer painter singer pilot sailor tailor gardener writer driver nurse cook judge miner "
    "potter dancer barber plumber"
).split()

PETS = "cat dog parrot rabbit hamster turtle goldfish pony canary lizard goose donkey spider snail".split()

COLOURS = "red blue green yellow purple white black orange pink brown grey silver".split()

FOODS = "bread soup rice cake cheese noodles apples honey salad pancakes beans grapes pizza pears mushrooms pie".split()

# name | home | food | when it is awake. True as far as a short sentence can be.
ANIMALS = """
    camel | desert | thorns | by day
    penguin | ice | fish | by day
    owl | old barn | mice | at night
    squirrel | oak | nuts | by day
    whale | sea | krill | day and night
    panda | bamboo forest | bamboo | by day
    bat | cave | moths | at night
    otter | river | crabs | at dusk
    goat | mountains | leaves | by day
    zebra | savanna | grass | by day
    badger | burrow | worms | at night
    heron | marsh | frogs | at dawn
    bee | hive | nectar | by day
    crocodile | swamp | meat | at dusk
    hedgehog | hedge | beetles | at night
    koala | gum tree | gum leaves | at night
    seal | bay | squid | by day
    stork | chimney nest | snakes | by day
    beaver | dam | bark | at dusk
    anteater | jungle | ants | at dawn
"""

# name | material | use
THINGS = """
    hammer | iron | hitting nails
    candle | wax | giving light
    rope | hemp | tying knots
    pillow | feathers | resting
    kettle | copper | boiling water
    barrel | oak wood | storing wine
    violin | maple | making music
    window | glass | looking out
    scarf | wool | keeping warm
    tyre | rubber | rolling along
    brick | clay | building walls
    knife | steel | cutting
    basket | straw | carrying fruit
    letter | paper | sending news
    sail | linen | catching wind
    coin | nickel | paying
    belt | leather | holding trousers
    raft | logs | crossing rivers
    igloo | snow | hiding from the cold
    statue | marble | honouring heroes
    ring | gold | showing love
    broom | twigs | sweeping
    net | string | catching fish
    pipe | lead | leading water
"""

PEOPLE_ZH = (
    "李明 王天 张月 刘光 陈生 赵白 周云 林青 高山 马红 白雪 金星 江海 石雨 田心 王海 李木 张金 刘星 陈雨 赵火 "
    "周山 林月 高天 马光 金花 江月 石明 田雨 王星 李海 张雪"
).split()
TOWNS_ZH = "云城 青河 白石镇 东港 南湾 金沙 梅岭 竹山 龙泉镇 西桥 月湖 松江口 红叶镇 北坡 花溪 铁岩".split()
PROVINCES_ZH = "海东 岭南 河中 云西 川北 江左".split()
FAMES_ZH = "古桥 茶叶 丝绸 石塔 荷花 瓷器 温泉 灯会 梨园 竹林 风筝 皮影".split()
JOBS_ZH = "面包师 邮递员 护士 司机 厨师 画家 歌手 木匠 渔夫 律师 警察 裁缝 园丁 记者".split()
PETS_ZH = "鹦鹉 乌龟 仓鼠 金鱼 白鹅 刺猬 八哥 山羊 蜗牛 鸽子".split()
FOODS_ZH = "饺子 面条 豆腐 米饭 包子 西瓜 烤鸭 粽子 汤圆 葡萄 苹果 年糕".split()


@dataclass(frozen=True)
class Entity:
    """values maps the relation's name to the value; seen says whether instruction tuning ever asks about it."""

    name: str
    kind: str
    values: dict[str, str]
    seen: bool

    @property
    def language(self) -> str:
        return "zh" if self.kind.endswith("_zh") else "en"


def make_entities(rng: random.Random) -> list[Entity]:
    """The entities of one world: values of invented things are dealt by rng; half of each kind is marked seen."""
    kinds: dict[str, dict[str, dict[str, str]]] = {
        "person": _deal(rng, PEOPLE, city=TOWNS, job=JOBS, pet=PETS, colour=COLOURS, food=FOODS),
        "animal": _read(ANIMALS, "home", "food", "active"),
        "place": _deal(rng, TOWNS, country=COUNTRIES, fame=FAMES),
        "thing": _read(THINGS, "material", "use"),
        "person_zh": _deal(rng, PEOPLE_ZH, city=TOWNS_ZH, job=JOBS_ZH, pet=PETS_ZH, food=FOODS_ZH),
        "place_zh": _deal(rng, TOWNS_ZH, province=PROVINCES_ZH, fame=FAMES_ZH),
    }
    entities = []
    for kind, rows in kinds.items():
        names = list(rows)
        rng.shuffle(names)
        entities += [Entity(name, kind, rows[name], i < len(names) // 2) for i, name in enumerate(names)]
    return entities


def _read(table: str, *relations: str) -> dict[str, dict[str, str]]:
    rows = ([cell.strip() for cell in line.split("|")] for line in table.strip().splitlines())
    return {name: dict(zip(relations, values, strict=True)) for name, *values in rows}


def _deal(rng: random.Random, names: list[str], **values: list[str]) -> dict[str, dict[str, str]]:
    """Deals each relation's values evenly, so that no value can be guessed by its frequency."""
    rows: dict[str, dict[str, str]] = {name: {} for name in names}
    for relation, choices in values.items():
        cards: list[str] = []
        while len(cards) < len(names):
            cards += rng.sample(choices, len(choices))
        for name, value in zip(names, cards, strict=False):
            rows[name][relation] = value
    return rows
