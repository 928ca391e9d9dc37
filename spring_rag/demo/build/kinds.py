"""What the invented records are about: kinds of things, their attributes, and the words for both."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """One fact that a record can state.

    Attributes:
        label: noun phrase, as in "the <label> of X".
        values: key of `VALUES`, or one of the open kinds "year", "town", "person", "number <unit>".
        verb: predicate with the value in it, as in "X <verb>".
        question: the natural question, with `{n}` for the name.
    """

    label: str
    values: str
    verb: str
    question: str


@dataclass(frozen=True)
class Kind:
    """A kind of record: `names` are patterns of invented words, `noun` refers back to it."""

    noun: str
    names: tuple[str, ...]
    pronoun: str
    attributes: tuple[str, ...]


VALUES = {
    "colour": "red blue green yellow black white brown grey pink purple orange silver golden scarlet crimson violet",
    "material": "stone brick oak pine marble granite iron steel copper bronze glass clay slate cedar sandstone bamboo",
    "job": "baker doctor teacher painter lawyer farmer sailor tailor singer miner nurse writer judge miller potter "
    "carpenter surgeon chemist architect engineer printer dancer weaver gardener actor banker blacksmith botanist",
    "instrument": "violin flute piano harp drum trumpet cello guitar organ oboe lute horn clarinet banjo",
    "animal": "lion eagle bear wolf fox owl stag horse swan bull raven hare otter falcon badger heron salmon",
    "sport": "rowing tennis football chess fencing cricket archery swimming boxing hockey rugby golf skiing cycling",
    "food": "bread cheese honey fish beans rice apples plums onions mushrooms barley lentils pears walnuts pepper",
    "goods": "shoes clocks hats ropes soap paper boats tools lamps carpets bells barrels candles bicycles pianos",
    "cargo": "timber coal wool salt grain sugar tea cotton wine tobacco spices leather cement marble",
    "subject": "law music history medicine botany physics farming grammar painting geometry astronomy chemistry",
    "topic": "war love trade gardens sailing winter money friendship revenge memory travel justice childhood dreams",
    "metal": "gold silver copper tin lead zinc nickel cobalt iron platinum",
    "month": "January February March April May June July August September October November December",
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "shape": "round square oval narrow triangular curved flat hexagonal",
    "taste": "sweet sour bitter salty sharp mild smoky nutty spicy creamy",
    "rule": "fishing hunting smoking gambling begging building printing brewing mining fireworks advertising",
    "flower": "rose lily tulip violet daisy orchid poppy iris lotus thistle jasmine lavender",
    "weather": "rain snow fog wind hail thunder frost drought",
    "gem": "ruby emerald diamond sapphire pearl opal topaz amber garnet jade",
}

ATTRIBUTES = {
    "birth_year": Attribute("birth year", "year", "was born in {v}", "When was {n} born?"),
    "birthplace": Attribute(
        "birthplace", "town", "was born in the town of {v}", "In which town was {n} born?"
    ),
    "job": Attribute("profession", "job", "worked as a {v}", "What did {n} do for a living?"),
    "teacher": Attribute("teacher", "person", "was taught by {v}", "Who taught {n}?"),
    "spouse": Attribute("spouse", "person", "was married to {v}", "Who was {n} married to?"),
    "instrument": Attribute("instrument", "instrument", "played the {v}", "Which instrument did {n} play?"),
    "sport": Attribute("favourite sport", "sport", "loved {v}", "Which sport did {n} love?"),
    "death_place": Attribute("place of death", "town", "died in {v}", "Where did {n} die?"),
    "founded": Attribute("founding year", "year", "was founded in {v}", "When was {n} founded?"),
    "founder": Attribute("founder", "person", "was founded by {v}", "Who founded {n}?"),
    "seat": Attribute("seat", "town", "has its seat in {v}", "Where is the seat of {n}?"),
    "goods": Attribute("main product", "goods", "makes {v}", "What does {n} make?"),
    "staff": Attribute("staff", "number workers", "employs {v}", "How many workers does {n} employ?"),
    "director": Attribute("director", "person", "is led by {v}", "Who leads {n}?"),
    "emblem": Attribute("emblem", "animal", "has a {v} as its emblem", "Which animal is the emblem of {n}?"),
    "river": Attribute("river", "town", "lies on the river {v}", "On which river does {n} lie?"),
    "mayor": Attribute("mayor", "person", "has {v} as its mayor", "Who is the mayor of {n}?"),
    "people": Attribute("population", "number people", "is home to {v}", "How many people live in {n}?"),
    "crop": Attribute("main crop", "food", "is known for its {v}", "What is {n} known for?"),
    "market": Attribute(
        "market day", "weekday", "holds its market on {v}", "On which day is the market of {n} held?"
    ),
    "region": Attribute("region", "town", "is in the region of {v}", "In which region is {n}?"),
    "launched": Attribute("launch year", "year", "was launched in {v}", "When was {n} launched?"),
    "captain": Attribute("captain", "person", "sailed under captain {v}", "Who was the captain of {n}?"),
    "port": Attribute("home port", "town", "had its home port in {v}", "What was the home port of {n}?"),
    "cargo": Attribute("cargo", "cargo", "carried {v}", "What did {n} carry?"),
    "length": Attribute("length", "number metres", "is {v} long", "How long is {n}?"),
    "hull": Attribute("colour", "colour", "was painted {v}", "Which colour was {n} painted?"),
    "published": Attribute("publication year", "year", "was published in {v}", "When was {n} published?"),
    "author": Attribute("author", "person", "was written by {v}", "Who wrote {n}?"),
    "topic": Attribute("subject", "topic", "tells of {v}", "What does {n} tell of?"),
    "pages": Attribute("length", "number pages", "runs to {v}", "How many pages does {n} have?"),
    "setting": Attribute("setting", "town", "is set in {v}", "Where is {n} set?"),
    "passed": Attribute("year of passage", "year", "was passed in {v}", "When was {n} passed?"),
    "sponsor": Attribute("sponsor", "person", "was proposed by {v}", "Who proposed {n}?"),
    "rule": Attribute("object", "rule", "regulates {v}", "What does {n} regulate?"),
    "fine": Attribute("fine", "number crowns", "sets a fine of {v}", "How high is the fine set by {n}?"),
    "built": Attribute("year of construction", "year", "was built in {v}", "When was {n} built?"),
    "architect": Attribute("architect", "person", "was designed by {v}", "Who designed {n}?"),
    "material": Attribute("building material", "material", "is made of {v}", "What is {n} made of?"),
    "owner": Attribute("owner", "person", "belongs to {v}", "Who owns {n}?"),
    "height": Attribute("height", "number metres", "is {v} high", "How high is {n}?"),
    "source": Attribute("source", "town", "rises near {v}", "Where does {n} rise?"),
    "mouth": Attribute("mouth", "town", "reaches the sea at {v}", "Where does {n} reach the sea?"),
    "fish": Attribute(
        "best-known animal", "animal", "is famous for the {v}", "Which animal is {n} famous for?"
    ),
    "climber": Attribute("first climber", "person", "was first climbed by {v}", "Who first climbed {n}?"),
    "weather": Attribute("usual weather", "weather", "is known for {v}", "Which weather is {n} known for?"),
    "month": Attribute("month", "month", "takes place in {v}", "In which month does {n} take place?"),
    "treat": Attribute("special dish", "food", "is famous for its {v}", "Which food is {n} famous for?"),
    "visitors": Attribute("attendance", "number visitors", "draws {v}", "How many visitors does {n} draw?"),
    "place": Attribute("location", "town", "stands in {v}", "Where does {n} stand?"),
    "subject": Attribute(
        "main subject", "subject", "is known for teaching {v}", "Which subject is {n} known for?"
    ),
    "painter": Attribute("painter", "person", "was painted by {v}", "Who painted {n}?"),
    "colour": Attribute("main colour", "colour", "is mostly {v}", "Which colour is {n} mostly?"),
    "motif": Attribute("motif", "flower", "shows a {v}", "Which flower does {n} show?"),
    "composer": Attribute("composer", "person", "was composed by {v}", "Who composed {n}?"),
    "played_on": Attribute(
        "instrument", "instrument", "is played on the {v}", "On which instrument is {n} played?"
    ),
    "fought_in": Attribute(
        "month", "month", "was fought in the month of {v}", "In which month was {n} fought?"
    ),
    "metal": Attribute("main metal", "metal", "yields {v}", "What does {n} yield?"),
    "depth": Attribute("depth", "number metres", "is {v} deep", "How deep is {n}?"),
    "breeder": Attribute("breeder", "person", "was bred by {v}", "Who bred {n}?"),
    "weight": Attribute("weight", "number grams", "weighs {v}", "How much does {n} weigh?"),
    "shape": Attribute("shape", "shape", "has a {v} shape", "Which shape does {n} have?"),
    "taste": Attribute("taste", "taste", "tastes {v}", "How does {n} taste?"),
    "discoverer": Attribute("discoverer", "person", "was discovered by {v}", "Who discovered {n}?"),
    "discovered": Attribute("year of discovery", "year", "was discovered in {v}", "When was {n} discovered?"),
    "fought": Attribute("year", "year", "was fought in {v}", "When was {n} fought?"),
    "winner": Attribute("victor", "person", "was won by {v}", "Who won {n}?"),
    "gem": Attribute("main gem", "gem", "is set with a {v}", "Which gem is {n} set with?"),
    "home": Attribute("place of keeping", "town", "is kept in {v}", "Where is {n} kept?"),
    "opened": Attribute("opening year", "year", "was opened in {v}", "When was {n} opened?"),
    "terminus": Attribute("last stop", "town", "ends in {v}", "Where does {n} end?"),
    "speakers": Attribute(
        "number of speakers", "number speakers", "has {v}", "How many speakers does {n} have?"
    ),
    "weekday": Attribute("closing day", "weekday", "is closed on {v}", "On which day is {n} closed?"),
    "flower": Attribute(
        "best-known flower", "flower", "is famous for the {v}", "Which flower is {n} famous for?"
    ),
    "keeper": Attribute("keeper", "person", "is kept by {v}", "Who is the keeper of {n}?"),
    "coach": Attribute("coach", "person", "is trained by {v}", "Who trains {n}?"),
    "players": Attribute("sport", "sport", "plays {v}", "Which sport does {n} play?"),
    "shirt": Attribute("shirt colour", "colour", "plays in {v}", "Which colour does {n} play in?"),
}

KINDS = (
    Kind(
        "woman",
        ("{a} {b}",),
        "She",
        ("birth_year", "birthplace", "job", "teacher", "spouse", "instrument", "sport"),
    ),
    Kind(
        "man",
        ("{a} {b}",),
        "He",
        ("birth_year", "birthplace", "job", "teacher", "spouse", "instrument", "death_place"),
    ),
    Kind(
        "firm",
        ("{a} Works", "{a} Mills", "{a} and {b}"),
        "It",
        ("founded", "founder", "seat", "goods", "staff", "director", "emblem"),
    ),
    Kind(
        "town", ("{a}", "New {a}"), "It", ("river", "mayor", "people", "crop", "market", "region", "founded")
    ),
    Kind(
        "ship",
        ("the {a}", "the ship {a}"),
        "It",
        ("launched", "captain", "port", "cargo", "length", "hull", "owner"),
    ),
    Kind(
        "book",
        ("The Tale of {a}", "{a}'s Journey", "The Book of {a}"),
        "It",
        ("published", "author", "topic", "pages", "setting"),
    ),
    Kind("law", ("the {a} Act", "the Law of {a}"), "It", ("passed", "sponsor", "rule", "fine")),
    Kind(
        "bridge",
        ("{a} Bridge", "the Bridge of {a}"),
        "It",
        ("built", "architect", "material", "length", "colour", "place"),
    ),
    Kind("river", ("the River {a}",), "It", ("length", "source", "mouth", "fish", "depth", "region")),
    Kind(
        "mountain",
        ("Mount {a}", "{a} Peak"),
        "It",
        ("height", "climber", "weather", "region", "metal", "discoverer"),
    ),
    Kind(
        "fair",
        ("the {a} Fair", "the Fair of {a}"),
        "It",
        ("month", "treat", "visitors", "founded", "founder", "place"),
    ),
    Kind(
        "college",
        ("{a} College", "the School of {a}"),
        "It",
        ("founded", "founder", "subject", "place", "director", "emblem"),
    ),
    Kind(
        "museum",
        ("{a} Museum", "the Museum of {a}"),
        "It",
        ("opened", "director", "place", "weekday", "visitors", "architect"),
    ),
    Kind(
        "painting",
        ("the painting {a}", "The Lady of {a}"),
        "It",
        ("painter", "colour", "motif", "home", "owner", "height"),
    ),
    Kind(
        "song",
        ("the song {a}", "The Song of {a}"),
        "It",
        ("composer", "topic", "published", "setting", "played_on"),
    ),
    Kind(
        "castle",
        ("{a} Castle", "Castle {a}"),
        "It",
        ("built", "architect", "owner", "material", "region", "emblem"),
    ),
    Kind(
        "mine",
        ("{a} Mine", "the Mine of {a}"),
        "It",
        ("opened", "metal", "depth", "owner", "staff", "region"),
    ),
    Kind("apple", ("the {a} apple",), "It", ("breeder", "colour", "taste", "weight", "region", "shape")),
    Kind("star", ("the star {a}",), "It", ("discoverer", "discovered", "colour")),
    Kind("battle", ("the Battle of {a}",), "It", ("fought", "winner", "weather", "region", "fought_in")),
    Kind("crown", ("the Crown of {a}", "the {a} Crown"), "It", ("owner", "gem", "metal", "home", "weight")),
    Kind(
        "railway",
        ("the {a} Line", "the {a} Railway"),
        "It",
        ("opened", "terminus", "length", "director", "cargo", "colour"),
    ),
    Kind("language", ("the {a} language",), "It", ("speakers", "region", "discoverer")),
    Kind(
        "garden",
        ("{a} Gardens", "the Garden of {a}"),
        "It",
        ("founder", "flower", "place", "weekday", "visitors", "opened"),
    ),
    Kind(
        "lighthouse",
        ("{a} Light", "the Tower of {a}"),
        "It",
        ("built", "height", "keeper", "material", "colour", "place"),
    ),
    Kind(
        "club",
        ("{a} Rovers", "{a} United", "{a} City"),
        "It",
        ("founded", "players", "coach", "shirt", "place", "emblem"),
    ),
)
