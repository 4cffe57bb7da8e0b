"""Word lists by which phrases are taken apart: small, curated, English.

Serves ``negatives``. An attribute is exchanged for another of its group; words within brackets mean the same, and are
never exchanged for one another. What is not listed here is part of a thing's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def _group(text: str) -> tuple[tuple[str, ...], ...]:
    """``"big large, small"`` → ``(("big", "large"), ("small",))``."""
    return tuple(tuple(same.split()) for same in text.split(","))


ATTRIBUTES: dict[str, tuple[tuple[tuple[str, ...], ...], ...]] = {
    "color": (
        _group(
            "red crimson maroon scarlet, orange, yellow golden gold blond blonde, green olive, blue navy teal "
            "turquoise, purple violet lavender, pink magenta, brown tan beige khaki, black dark, white, gray "
            "grey silver"
        ),
    ),
    "size": (
        _group("big large huge giant enormous massive, small little tiny miniature"),
        _group("tall high long, short low"),
        _group("wide broad thick, narrow thin"),
    ),
    "number": (_group("two, three, four, five, six, seven, eight, nine, ten"),),
    "material": (
        _group(
            "wooden wood, metal metallic steel iron, plastic rubber, brick, stone marble, glass, leather, concrete "
            "cement, wicker straw, paper cardboard, denim, wool woolen knitted, cotton"
        ),
    ),
    "pattern": (_group("striped, plaid checkered, spotted dotted, floral flowered, plain"),),
    "state": (
        _group("wet, dry dusty"),
        _group("open, closed"),
        _group("empty, full crowded"),
        _group("clean, dirty muddy"),
        _group("smiling laughing happy, crying sad angry"),
        _group("old elderly aged, young"),
        _group("bearded, clean-shaven"),
        _group("male, female"),
    ),
    "person": (
        # One annotator's girl is another's woman: only the other sex is wrong for certain.
        _group("man guy gentleman boy, woman lady girl"),
        _group("men guys gentlemen boys, women ladies girls"),
        _group("father dad, mother mom"),
        _group("brother, sister"),
        _group("brothers, sisters"),
        _group("groom, bride"),
        _group("king, queen"),
    ),
}
"""Kind of attribute → groups of words that exclude each other."""

DETERMINERS = frozenset(
    "a an the this that these those his her hers their its my your our some another other one each both several "
    "many few all any no".split()
)
"""Words that a noun phrase may begin with; they are no part of a thing's name."""
PLURAL_DETERMINERS = frozenset("these those both several many few all".split())

STOPS = frozenset(
    "in on at by with without from to into onto over under above below behind beside between among near next "
    "around through across along against off of up down out for and or but as while who whom whose which that is "
    "are was were be being has have having where when what than like inside outside toward towards after before "
    "during about atop underneath beneath".split()
)
"""Words at which a thing's name ends."""

MEASURES = frozenset(
    "slice piece pair pairs bunch group groups crowd bag bags mug mugs cup cups loaf ball ear bottle bottles glass "
    "glasses bowl bowls plate plates box boxes pile piles stack stacks row rows team herd flock line set sets "
    "couple sheet body bit type kind lot lots number can cans cart carton pot pack bundle bouquet basket bucket "
    "tray string".split()
)
"""Words behind which ``of`` goes on with the thing's name: "a slice of pizza"."""

NOUNS_IN_ING = frozenset(
    "ring string king wing building clothing railing ceiling painting sling wedding parking swimming thing swing "
    "evening morning sibling duckling sapling awning crossing landing drawing opening clearing icing siding "
    "fencing housing lighting plumbing stocking earring spring marking covering".split()
)
"""Words in -ing that name things, also behind another noun."""

VAGUE = frozenset(
    "one ones other others something someone somebody anything everything everyone thing things lot lots side sides "
    "front back middle edge end top bottom center part background foreground distance way upside average closeup night "
    "day time picture photo image camera area scene setting view number kind type".split()
)
"""Words that end a phrase and name no thing that could stand in for another."""

SAME = (
    "person people human man woman boy girl child kid baby toddler infant adult guy lady gentleman male female "
    "player worker rider runner biker cyclist skier snowboarder skateboarder surfer climber hiker swimmer dancer "
    "singer musician performer artist athlete soldier officer policeman fireman chef cook waiter driver pedestrian "
    "spectator crowd audience team couple friend family group teenager teen student teacher someone men women "
    "children father mother brother sister groom bride king queen individual figure vendor customer passenger fan "
    "member referee umpire pitcher batter catcher jockey cowboy bicyclist jogger racer wrestler boxer fisherman "
    "farmer doctor nurse clown guitarist drummer acrobat gymnast model youth youngster dad mom husband wife son "
    "daughter bystander onlooker",
    "dog puppy pup hound poodle retriever terrier collie animal pet greyhound labrador dachshund bulldog",
    "cat kitten kitty animal pet",
    "horse pony foal mare animal",
    "cow bull calf cattle animal",
    "sheep lamb goat animal",
    "bird seagull pigeon duck goose parrot eagle chick chicken animal",
    "elephant giraffe zebra bear lion tiger monkey animal",
    "bike bicycle cycle",
    "motorcycle motorbike bike dirtbike scooter vehicle",
    "car automobile vehicle taxi cab sedan truck van jeep suv",
    "bus van vehicle train truck",
    "boat ship canoe kayak raft sailboat vessel",
    "airplane plane aircraft jet helicopter",
    "shirt t-shirt tshirt tee top blouse jersey sweater sweatshirt hoodie tank vest uniform outfit clothes clothing",
    "jacket coat parka hoodie blazer suit vest",
    "pants trousers jeans slacks shorts leggings",
    "dress gown skirt costume outfit clothes clothing",
    "hat cap helmet beanie bonnet headgear hood",
    "shoe boot sneaker sandal footwear heel",
    "sunglasses glasses goggles shades eyewear",
    "bag purse handbag backpack suitcase luggage pack briefcase",
    "road street highway lane",
    "sidewalk pavement path trail walkway",
    "couch sofa chair seat bench stool armchair",
    "table desk counter",
    "water ocean sea lake river pool pond stream creek wave surf",
    "beach sand shore coast",
    "grass lawn field meadow yard ground park pasture",
    "ground floor dirt field sand",
    "mountain hill cliff slope",
    "rock stone boulder cliff",
    "tree wood forest branch bush plant palm",
    "flower rose tulip sunflower plant bouquet",
    "house building home structure store shop church castle barn tower apartment",
    "snow ice slope",
    "sky cloud air",
    "picture photo photograph image painting",
    "cup mug glass drink beverage bottle",
    "television tv screen monitor",
    "laptop computer monitor screen",
    "phone telephone cellphone",
    "ball basketball football baseball volleyball soccer tennis",
    "food meal dish snack",
    "cake cupcake dessert pie",
    "fruit apple orange peach pear banana lemon",
    "hand arm finger",
    "head face hair mouth nose eye",
    "rope leash string cord",
    "stick branch pole bat",
    "fence railing wall barrier gate",
    "ramp slope jump",
    "instrument guitar violin drum saxophone trumpet",
    "toy doll bear",
)
"""Names that may be true of the same thing: none of a line is exchanged for another of it."""


def synonyms(lines: Iterable[str] = SAME) -> Mapping[str, frozenset[int]]:
    """Word → the lines of ``SAME`` that it stands in."""
    found: dict[str, set[int]] = {}
    for number, line in enumerate(lines):
        for word in line.split():
            found.setdefault(word, set()).add(number)
    return {word: frozenset(numbers) for word, numbers in found.items()}


IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "mice": "mouse",
    "knives": "knife",
    "leaves": "leaf",
    "wolves": "wolf",
    "loaves": "loaf",
    "shelves": "shelf",
    "scarves": "scarf",
    "calves": "calf",
    "dice": "die",
}
"""Plural → singular, where no rule leads there."""
NO_PLURALS = frozenset(
    "tennis iris debris trellis oasis glasses sunglasses pants jeans shorts trousers clothes leggings scissors "
    "goggles".split()
)
"""Words that end like a plural and name one thing."""
