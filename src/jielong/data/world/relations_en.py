"""What English prose says of people, animals, places and things."""

from __future__ import annotations

from jielong.data.world.relation import Relation

_PERSON = (
    Relation(
        "city",
        "{n} lives in {v}.",
        (
            "{n} has a house in {v}.",
            "The home of {n} is in {v}.",
            "{n} has lived in {v} for many years.",
            "{n} moved to {v} long ago.",
            "If you look for {n}, go to {v}.",
            "{n} sleeps under a roof in {v}.",
            "In {v} everybody knows {n}.",
            "{n} calls the town of {v} home.",
        ),
        (
            "Where does {n} live?",
            "In which town does {n} live?",
            "Where is the home of {n}?",
            "Tell me where {n} lives.",
            "Do you know where {n} lives?",
            "Which town does {n} live in?",
        ),
    ),
    Relation(
        "job",
        "{n} works as a {v}.",
        (
            "{n} is a {v}.",
            "{n} earns money as a {v}.",
            "{n} became a {v} at twenty.",
            "The job of {n} is {v}.",
            "By day {n} is a {v}.",
            "People need a {v}, so they call {n}.",
            "{n} has always been a {v}.",
            "{n} learned to be a {v}.",
        ),
        (
            "What does {n} do for work?",
            "What is the job of {n}?",
            "Which job does {n} have?",
            "Tell me the job of {n}.",
            "What does {n} work as?",
            "Do you know what {n} does for work?",
        ),
    ),
    Relation(
        "pet",
        "{n} has a pet {v}.",
        (
            "{n} keeps a {v} at home.",
            "{n} walks home to a {v}.",
            "{n} shares the house with a {v}.",
            "{n} feeds a {v} every morning.",
            "The pet of {n} is a {v}.",
            "{n} takes care of a {v}.",
            "A {v} is at home with {n}.",
            "{n} once bought a {v}.",
        ),
        (
            "What pet does {n} have?",
            "Which pet does {n} have?",
            "What is the pet of {n}?",
            "Tell me about the pet of {n}.",
            "What animal does {n} keep?",
            "Do you know the pet of {n}?",
        ),
    ),
    Relation(
        "colour",
        "{n} loves the colour {v}.",
        (
            "{n} paints every wall {v}.",
            "The favourite colour of {n} is {v}.",
            "{n} always wears {v}.",
            "Of all colours {n} takes {v}.",
            "For {n} the best colour is {v}.",
            "{n} has a coat in {v}.",
            "The door of {n} is {v}.",
            "{v} is the colour of {n}.",
        ),
        (
            "Which colour does {n} love?",
            "What is the favourite colour of {n}?",
            "What colour does {n} love?",
            "Tell me the favourite colour of {n}.",
            "Which colour is best for {n}?",
            "Do you know the favourite colour of {n}?",
        ),
    ),
    Relation(
        "food",
        "{n} likes to eat {v}.",
        (
            "{n} eats {v} every day.",
            "The favourite food of {n} is {v}.",
            "{n} cooks {v} at home.",
            "On Sunday {n} eats {v}.",
            "{n} is always hungry for {v}.",
            "Give {n} a plate of {v}.",
            "{n} buys {v} at the market.",
            "With {v} you can make {n} smile.",
        ),
        (
            "What does {n} like to eat?",
            "What is the favourite food of {n}?",
            "Which food does {n} like?",
            "Tell me what {n} likes to eat.",
            "What food does {n} like best?",
            "Do you know what {n} likes to eat?",
        ),
    ),
)

_ANIMAL = (
    Relation(
        "home",
        "The {n} lives in the {v}.",
        (
            "The {n} makes its home in the {v}.",
            "You can find the {n} in the {v}.",
            "The {n} is at home in the {v}.",
            "To see the {n}, go to the {v}.",
            "In the {v} you may meet the {n}.",
            "The {n} was born in the {v}.",
            "The home of the {n} is the {v}.",
        ),
        (
            "Where does the {n} live?",
            "Where can I find the {n}?",
            "Where is the home of the {n}?",
            "Tell me where the {n} lives.",
            "Do you know where the {n} lives?",
        ),
    ),
    Relation(
        "food",
        "The {n} eats {v}.",
        (
            "The {n} feeds on {v}.",
            "The food of the {n} is {v}.",
            "A hungry {n} looks for {v}.",
            "The {n} lives on {v}.",
            "Give the {n} some {v}.",
            "The {n} likes {v} most of all.",
            "Without {v} the {n} goes hungry.",
        ),
        (
            "What does the {n} eat?",
            "What is the food of the {n}?",
            "What does the {n} feed on?",
            "Tell me what the {n} eats.",
            "Do you know what the {n} eats?",
        ),
    ),
    Relation(
        "active",
        "The {n} is awake {v}.",
        (
            "The {n} gets up and moves {v}.",
            "The {n} looks for food {v}.",
            "You hear the {n} {v}.",
            "The {n} goes about its business {v}.",
            "The best time to see the {n} is {v}.",
            "The {n} comes out {v}.",
        ),
        (
            "When is the {n} awake?",
            "When does the {n} come out?",
            "Tell me when the {n} is awake.",
            "What is the best time to see the {n}?",
            "Do you know when the {n} is awake?",
        ),
    ),
)

_PLACE = (
    Relation(
        "country",
        "{n} is a town in {v}.",
        (
            "{n} lies in {v}.",
            "{n} belongs to {v}.",
            "The town of {n} is part of {v}.",
            "On the map {n} stands in {v}.",
            "The road to {n} leads through {v}.",
            "The flag over {n} is that of {v}.",
            "Among the towns of {v} is {n}.",
        ),
        (
            "In which country is {n}?",
            "Which country is {n} in?",
            "What country does {n} belong to?",
            "Tell me the country of {n}.",
            "Do you know which country {n} is in?",
        ),
    ),
    Relation(
        "fame",
        "{n} is known for its {v}.",
        (
            "{n} is proud of its {v}.",
            "People visit {n} for its {v}.",
            "Everyone in {n} talks about the {v}.",
            "{n} is famous for the {v}.",
            "The best thing in {n} is the {v}.",
            "{n} would be nothing without its {v}.",
            "Travellers praise the {v} of {n}.",
        ),
        (
            "What is {n} known for?",
            "What is {n} famous for?",
            "Why do people visit {n}?",
            "Tell me what {n} is known for.",
            "Do you know what {n} is known for?",
        ),
    ),
)

_THING = (
    Relation(
        "material",
        "A {n} is made of {v}.",
        (
            "People make a {n} from {v}.",
            "The stuff of a {n} is {v}.",
            "For a {n} you need {v}.",
            "A good {n} is all {v}.",
            "To build a {n}, take {v}.",
            "Every {n} consists of {v}.",
            "From {v} comes a {n}.",
        ),
        (
            "What is a {n} made of?",
            "What do people make a {n} from?",
            "Tell me what a {n} is made of.",
            "Which material is a {n} made of?",
            "Do you know what a {n} is made of?",
        ),
    ),
    Relation(
        "use",
        "A {n} is used for {v}.",
        (
            "A {n} helps with {v}.",
            "People take a {n} for {v}.",
            "A {n} is good for {v}.",
            "The use of a {n} is {v}.",
            "With a {n} you can start {v}.",
            "A {n} serves for {v}.",
            "For {v} you want a {n}.",
        ),
        (
            "What is a {n} used for?",
            "What is a {n} good for?",
            "Tell me what a {n} is used for.",
            "What do people do with a {n}?",
            "Do you know what a {n} is used for?",
        ),
    ),
)

ENGLISH: dict[str, tuple[Relation, ...]] = {"person": _PERSON, "animal": _ANIMAL, "place": _PLACE, "thing": _THING}
