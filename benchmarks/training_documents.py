"""Make training examples whose passages are chunks of invented everyday documents: price lists, manuals, notes, timetables.

Wikipedia's prose teaches little about tables, bullet lists and `key: value` lines, which people's own files are full of. Each list of five
passages holds first the chunk with the answer, then four chunks of the same document or of similar ones. Four to six questions share a list.
Training shuffles what it draws.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

PASSAGES = 5
FEWEST_WORDS, MOST_WORDS = 80, 220
FEWEST_QUESTIONS, MOST_QUESTIONS = 4, 6

# Pools, apart by semicolons: a name and its values, apart by commas; a value may draw from other pools in braces.
POOLS = """
first: Anna, Tom, Priya, Luis, Mei, Oskar, Fatima, Jonas, Ruth, Kenji, Clara, Idris, Nora, Pavel, Leila, Henry, Sofia, Marek, Grace, Tariq, Elena, Samuel, Ingrid, Victor, Amara, Felix, Yusuf, Hanna, Diego, Bridget, Owen, Zoe; last: Berg, Okafor, Lindqvist, Moreno, Tanaka, Fischer, Novak, Hughes, Rahman, Costa, Peters, Adeyemi, Kowalski, Marsh, Dubois, Iyer, Sandoval, Whitfield, Jansen, Petrov, Byrne, Castellan, Drummond, Eriksen, Farrow, Grant, Holloway, Imanov, Keller, Lowe, Mensah
town: Ashford, Brelow, Carnmoor, Dunhaven, Eastlake, Fernby, Granton, Hollin, Iverdale, Kestrel Bay, Lowmere, Marwick, Northgate, Oakham, Penrow, Quayside, Redhill, Stanmore, Thornby, Upwell, Westbury, Yarrow, Millbrook, Saltney; street: Mill Lane, Station Road, Harbour Street, Church Row, Park Avenue, Elm Street, Bridge Street, Market Square, Canal Walk, Orchard Way, Foundry Road, Quarry Hill; adj: Blue, Silver, Green, Golden, Quiet, Northern, Little, Old, Red, Grand, Copper, Bright, White, Royal, Upper, Lower
thing: Lantern, Anchor, Heron, Willow, Compass, Fox, Harbour, Meadow, Clover, Swan, Maple, Beacon, Otter, Pine, Raven, Thistle; brand: Norvik, Altera, Brio, Cavendo, Delmar, Enko, Fairline, Gantry, Helio, Junip, Kaldra, Lumen, Moravo, Nimbus, Orbix, Pallas, Quill, Ravello, Solvig, Tarn; material: oak, steel, ceramic, linen, bamboo, glass, walnut, copper, felt, cork, wool, slate; ware: desk lamp, bookshelf, coat rack, side table, teapot, fruit bowl, wall clock, cushion, picture frame, storage box, vase, tray, doormat, candle holder, stool, mirror
spec: charcoal grey, matt white, pale green, natural brown, deep blue, rust red, cream, jet black, mustard yellow, lilac; day: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday; month: January, February, March, April, May, June, July, August, September, October, November, December; dept: Accounts, Human Resources, Purchasing, Customer Service, Logistics, Legal Affairs, Research, Maintenance, Marketing, Quality Control, Reception, Payroll, IT Support, Facilities, Training, Export Sales
country: Norway, Portugal, Canada, Japan, Kenya, Poland, Ireland, Chile, Greece, Vietnam, Iceland, Morocco, Denmark, Peru, Turkey, Estonia, Spain, Italy, Finland, Sweden, Austria, Brazil, Mexico, India, Egypt, Croatia, Latvia, Malta, Cyprus, Ghana, Nepal, Jordan, Hungary, Romania, Belgium, Uruguay, Thailand, Australia; machine: coffee machine, label printer, dishwasher, floor polisher, air compressor, laminator, bread slicer, pressure washer, dehumidifier, band saw, projector, heat pump, water cooler, shredder
part: water tank, drain filter, door latch, drive belt, fan, paper tray, temperature sensor, pump, air inlet, control panel, power cable, safety switch, motor, outer casing; fault: blocked, loose, stuck, too hot, missing, worn out, disconnected, wet, dirty; remedy: clean it with a soft cloth, tighten the {n:2-6} screws, press RESET for {n:3-9} seconds, let it cool for {n:10-45} minutes, call the service line, replace it with part {letter}-{n:100-999}, unplug the machine for {n:2-9} minutes, push it in until it clicks
letter: A, B, C, D, F, G, H, K, L, M, N, P, R, S, T, W; food: lentil, pumpkin, chicken, salmon, mushroom, potato, barley, chickpea, spinach, beetroot, leek, bean; dish: soup, pie, stew, curry, casserole, risotto, lasagne, gratin; herb: thyme, parsley, dill, rosemary, sage, basil, chives, coriander; subject: Watercolour, Bookkeeping, Italian, Pottery, First Aid, Photography, Web Design, Choir Singing, Carpentry, Yoga, Creative Writing, Statistics, Sewing, Beekeeping, Spanish, Robotics
level: for Beginners, for Improvers, for Professionals, Weekend Course, Evening Class, Refresher; plant: Fern, Orchid, Palm, Lily, Cactus, Ivy, Begonia, Jasmine, Violet, Fig, Myrtle, Sage; light: full sun, half shade, deep shade, bright indirect light, morning sun only, a north-facing window, filtered light, an east-facing window
feature: dark mode, CSV export, a search bar, two-factor login, keyboard shortcuts, a calendar view, offline mode, file previews, drag and drop, custom labels, single sign-on, a weekly digest, an undo button, bulk editing, QR code scanning, a French translation; bug: a crash when saving large files, wrong totals in invoices, missing icons on small screens, slow start on old laptops, duplicate reminders, broken links in e-mails, a memory leak while syncing, garbled accents in print, a time zone error in the planner, a login loop after password changes
task: order, check, repair, compare prices for, inspect, replace, find a sponsor for, photograph, insure, measure; object: the new chairs, the front gate, the summer fair stalls, the minibus, the first-aid boxes, the stage lights, the website banner, the roof gutter, the coffee machine, the notice board, the bicycle shed, the meeting room carpet; keyverb: cache, retry, session, upload, log, queue, worker, backup, index, mail, token, thread; keynoun: timeout, limit, size, interval, level, count, delay, retention, threshold, weight
team: Rovers, Wanderers, Comets, Falcons, United, Tigers, Rangers, Harriers; act: Talk, Workshop, Concert, Tour, Reading, Film, Panel, Demonstration; topic: wild bees, river history, solar roofs, old maps, bread baking, street music, night skies, local poets, repair culture, rare apples, folk dances, tidal power, urban trees, paper folding, lost railways, sea birds; place: Main Hall, Garden Room, Studio {n:1-6}, Room {n:100-340}, Old Chapel, Library Annex, Courtyard, Seminar Room {letter}, East Wing, Marquee
tool: cargo bike, party tent, chainsaw, camper van, canoe, cement mixer, sound system, trailer, scaffold tower, projector screen, ladder, lawn roller, barbecue, bouncy castle, wood splitter, leaf blower, fog machine, jigsaw, tandem, kayak, steam cleaner, rotary hammer, tile cutter, popcorn machine, generator, hedge trimmer, beer table set, moving van, stage curtain, floor sander, roof box, sewing machine
cover: water damage, theft, broken glass, storm damage, legal costs, lost keys, fire damage, travel delay, dental treatment, accidental damage, cyber fraud, bicycle loss, hail damage, burst pipes, lightning, earthquake damage, lost luggage, pet illness, frozen food spoilage, vandalism, sports injury, jewellery loss, phone repair, trip cancellation, hospital stays, garden furniture loss, tenant liability, power surges
gap: gradual wear, unattended items, damage by pets, events outside {country}, claims under {money:20-90}, business use, faults known before {month}, unlocked doors; sight: Maritime Museum, Castle, Botanical Garden, Covered Market, Cathedral, Cable Car, Harbour Ferry, Folk Village, Glassworks, Lighthouse, Sculpture Park, Salt Mine
remark: Please tell us if something here is out of date., Copies hang in the hallway and lie at the front desk., All details are given without guarantee., Thank you to everybody who helped to bring this together., Please print this on both sides of the paper., Mistakes of an earlier version are now put right., A large-print copy can be had on request., Older versions are kept in the blue folder., Translations are being prepared., Spare copies may be taken home., Pass this on to whoever may need it.
"""

# fact: label | value | sentences | questions. Brackets hold what a reader of this one document leaves out of a question.
COMMON = """
contact: Contact | {first} {last} | Questions about this page go to {v}. / {v} looks after this page. | who do i contact with questions[ about {s}] / who is the contact person[ for {s}] / contact person[ {s}]
phone: Phone | {phone} | Call us on {v}. / You reach us by phone on {v}. | what is the phone number[ of {s}] / phone number[ {s}] / what number do i call[ to reach {s}]
email: E-mail | {email} | Write to {v}. / Our e-mail address is {v}. | what is the email address[ of {s}] / email[ {s}] / where can i send an email[ to {s}]
updated: Last updated | {date} | This information was last updated on {v}. / Last revised on {v}. | when was the information[ on {s}] last updated / date of last update[ {s}]
address: Address | {n:2-190} {street} | You find us at {v}. / Our address is {v}. | what is the address[ of {s}] / where is the place[ called {s}] / address[ {s}]
"""

# kind: titles | subject | introductions. `apart`: its rows can't be dealt out over one document. `steps`: its facts have an order.
# row: name | head of the column of names | heading | how a sentence about a row begins.
# `;;` parts two facts or two columns. `use` takes facts of COMMON.
# col: label | value | ends of that sentence | questions | questions that give the value and ask for the row's name.
KINDS = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")

FACT_LAYOUTS = ("table", "bullets", "lines", "prose", "answers")
ROW_LAYOUTS = ("table", "table", "bullets", "brackets", "blocks", "prose", "sentences")
HEADINGS = ("# {}", "## {}", "**{}**", "{}\n======", "{}")
ASKING = re.compile(
    r"(who|whose|what|when|where|which|how|until|on which|by|up to|in which|from|since|can|the display)\b"
)


@dataclass
class Line:
    """A fact, a column, or (with other meanings of the parts) the names of the rows."""

    label: str
    value: str
    sentences: list[str]
    questions: list[str]
    reverse: list[str] = field(default_factory=list)


@dataclass
class Kind:
    titles: list[str]
    subjects: list[str]
    intros: list[str]
    flags: str = ""
    facts: list[Line] = field(default_factory=list)
    row: Line | None = None
    columns: list[Line] = field(default_factory=list)


@dataclass
class Asked:
    """A statement of a chunk; `name` is the name of the row, or empty for a fact."""

    line: Line
    value: str
    name: str = ""


@dataclass
class Chunk:
    text: str
    subject: str
    asked: list[Asked]


def line(text: str) -> Line:
    label, value, *wordings = text.split(" | ")
    return Line(label, value, *(each.split(" / ") for each in wordings))


def read_kinds() -> list[Kind]:
    common = dict(each.split(": ", 1) for each in COMMON.strip().splitlines())
    kinds: list[Kind] = []
    for each in KINDS.strip().splitlines():
        word, text = each.split(": ", 1)
        if word == "kind":
            titles, subjects, intros, *flags = text.split(" | ")
            kinds.append(
                Kind(titles.split(" / "), subjects.split(" / "), intros.split(" / "), flags="".join(flags))
            )
        elif word == "use":
            kinds[-1].facts += [line(common[name]) for name in text.split()]
        elif word == "row":
            name, head, headings, leads = text.split(" | ")
            kinds[-1].row = Line(head, name, leads.split(" / "), headings.split(" / "))
        else:
            (kinds[-1].facts if word == "fact" else kinds[-1].columns).extend(map(line, text.split(" ;; ")))
    return kinds


class Writer:
    """Fills patterns with values in the style of one list: a few similar names, one clock, one currency."""

    pools = {  # noqa: RUF012
        name: values.split(", ")
        for name, values in (each.split(": ", 1) for each in re.split("[;\n] ?", POOLS.strip()))
    }

    def __init__(self, random: Random) -> None:
        self.random = random
        self._few = {name: random.sample(pool, min(len(pool), 7)) for name, pool in self.pools.items()}
        self._clock = random.choice(["24", "24", "am"])
        self._money = random.choice(["${}", "€{}", "£{}", "{} euros", "CHF {}"])
        self._month_first = random.random() < 0.3

    def fill(self, pattern: str) -> str:
        return re.sub(r"\{(\w\w+|n)(?::([\d:-]+))?\}", lambda m: self._value(m[1], m[2] or ""), pattern)

    def name(self, pattern: str) -> str:
        """Fill until no word occurs twice, since a team doesn't play against its own town."""
        while len(words := (text := self.fill(pattern)).split()) > len(set(words)):
            pass
        return text

    def _value(self, name: str, bounds: str) -> str:
        pick = self.random.randint
        if name in self.pools:
            few = name != "day" and self.random.random() < 0.7
            return self.fill(self.random.choice(self._few[name] if few else self.pools[name]))
        low, high, step = (*map(int, re.findall(r"\d+", bounds)), 1)[:3] if bounds else (0, 0, 1)
        if name == "n":
            return str(self.random.randrange(low, high + 1, step))
        if name == "money":
            amount = pick(low, high)
            cents = self.random.choice(["", ".50", ".90", ".95", ".20"]) if high <= 180 else ""
            return self._money.format(f"{amount:,}{cents}")
        if name == "date":
            day, month, year = pick(1, 28), self.random.choice(self.pools["month"]), pick(2012, 2027)
            return f"{month} {day}, {year}" if self._month_first else f"{day} {month} {year}"
        if name == "phone":
            return f"0{pick(20, 99)} {pick(100, 999)} {pick(1000, 9999)}"
        if name == "email":
            start = self.random.choice(["info", "hello", "office", "desk", "contact"])
            return f"{start}@{self._value('thing', '').lower()}-{self._value('adj', '').lower()}.example"
        first, last = {"morning": (7, 11), "evening": (14, 21), "time": (9, 20)}[name]
        hour, minute = pick(first, last), self.random.choice(["00", "00", "30", "15", "45"])
        if self._clock == "24":
            return f"{hour:02}:{minute}"
        return f"{(hour - 1) % 12 + 1}{'' if minute == '00' else ':' + minute} {'am' if hour < 12 else 'pm'}"


def capital(text: str) -> str:
    return re.sub(r"\bi\b(?!')", "I", text[:1].upper() + text[1:])


def listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])


def write_facts(writer: Writer, facts: list[Asked], subject: str, steps: bool) -> str:
    choice = writer.random.choice
    layout = "steps" if steps and writer.random.random() < 0.6 else choice(FACT_LAYOUTS)
    said = [
        capital(choice(each.line.sentences).replace("{v}", each.value).replace("{s}", subject))
        for each in facts
    ]
    if layout == "steps":
        return "\n".join(f"{number}. {sentence}" for number, sentence in enumerate(said, 1))
    if layout == "prose":
        return " ".join(said)
    if layout == "table":
        return table(
            [[choice(["", "What", "Topic"]), "Details"], *([each.line.label, each.value] for each in facts)]
        )
    if layout == "answers":
        asked = [re.sub(r"\[.*?\]", "", each.line.questions[0]).replace("{s}", subject) for each in facts]
        return "\n\n".join(f"**{capital(q)}?**\n{sentence}" for q, sentence in zip(asked, said, strict=True))
    bullet = choice(["- {}: {}", "* **{}**: {}"]) if layout == "bullets" else "{}: {}"
    return "\n".join(bullet.format(each.line.label, each.value) for each in facts)


def write_rows(writer: Writer, row: Line, rows: dict[str, list[Asked]]) -> str:
    layout = writer.random.choice(ROW_LAYOUTS)
    if layout == "table":
        head = [
            writer.random.choice(row.label.split(" / ")),
            *(each.line.label for each in next(iter(rows.values()))),
        ]
        return table([head, *([name, *(each.value for each in cells)] for name, cells in rows.items())])
    lead = writer.random.choice(row.sentences)
    written = []
    for name, cells in rows.items():
        ends = [writer.random.choice(each.line.sentences).replace("{v}", each.value) for each in cells]
        pairs = [f"{each.line.label}: {each.value}" for each in cells]
        written.append(
            {
                "bullets": f"- **{name}** – {'; '.join(pairs)}",
                "brackets": f"* {name} ({', '.join(pairs)})",
                "blocks": "\n".join([f"### {capital(name)}", *pairs, ""]),
            }.get(layout, f"{capital(lead.replace('{r}', name))} {listed(ends)}.")
        )
    return (" " if layout == "prose" else "\n").join(written).strip()


def write_chunk(
    writer: Writer, kind: Kind, subject: str, facts: list[Line], names: list[str], titled: bool, begins: bool
) -> Chunk:
    """Write one passage: a title, an introduction, and facts and rows in either order."""
    random = writer.random
    said = [Asked(each, writer.fill(each.value)) for each in facts]
    rows = {name: [Asked(each, writer.fill(each.value), name) for each in kind.columns] for name in names}
    heading = random.choice(HEADINGS)
    bodies = [write_facts(writer, said, subject, "steps" in kind.flags)] if said else []
    if kind.row and rows:
        below = "## {}" if heading.startswith("#") else "{}:"
        section = below.format(writer.fill(random.choice(kind.row.questions)))
        bodies.append(f"{section}\n{write_rows(writer, kind.row, rows)}")
    random.shuffle(bodies)
    title = heading.format(capital(random.choice(kind.titles).replace("{s}", subject)))
    intros = random.sample(kind.intros, random.randint(1, len(kind.intros)))
    intro = writer.fill(" ".join(intros)).replace("{s}", subject)
    end = " ".join(random.sample(writer.pools["remark"], random.randint(0, 2)))
    text = "\n\n".join(each for each in (title * titled, intro * begins, *bodies, end) if each)
    return Chunk(text, subject, said + [cell for cells in rows.values() for cell in cells])


def holds(text: str, words: str) -> int:
    """Return how often `words` occur in `text` as whole words."""
    return len(re.findall(rf"(?<![\w.,:]){re.escape(words)}(?!\w|[.,:]\d)", text, re.IGNORECASE))


def write_list(writer: Writer, kind: Kind) -> list[Chunk]:
    """Write five chunks, of one document or of five similar ones; return none if the draw makes them too short."""
    random, days = writer.random, writer.pools["day"]
    one_document = bool(kind.row) and "apart" not in kind.flags and random.random() < 0.5
    pattern = random.choice(kind.subjects)
    subjects = [writer.name(pattern)]
    while len(subjects) < PASSAGES:
        if one_document or (other := writer.name(pattern)) not in subjects:
            subjects.append(subjects[0] if one_document else other)
    kept = sorted(
        random.sample(range(len(kind.columns)), random.randint(min(2, len(kind.columns)), len(kind.columns)))
    )
    shown = Kind(
        kind.titles, kind.subjects, kind.intros, kind.flags, [], kind.row, [kind.columns[i] for i in kept]
    )
    dealt = random.sample(kind.facts, len(kind.facts))
    titled, beginning = random.random() < 0.5, random.randrange(PASSAGES)
    taken: set[str] = set()
    chunks: list[Chunk] = []
    for number, subject in enumerate(subjects):
        for _ in range(40):
            names: set[str] = set()
            wanted = random.randint(3, 8) if kind.row else 0
            for _ in range(4 * wanted):
                name = writer.name(kind.row.value) if kind.row else ""
                if len(names) < wanted and not (one_document and name in taken):
                    names.add(name)
            ordered = sorted(names, key=lambda name: days.index(name) if name in days else name)
            if not names & set(days) and random.random() < 0.3:
                random.shuffle(ordered)
            facts = random.sample(kind.facts, random.randint(2 if kind.row else 6, len(kind.facts)))
            facts = (
                dealt[number::PASSAGES] if one_document else [each for each in kind.facts if each in facts]
            )
            begins = not one_document or number == beginning
            chunk = write_chunk(writer, shown, subject, facts, ordered, titled or begins, begins)
            if FEWEST_WORDS <= len(re.findall(r"\w[^\s|]*", chunk.text)) <= MOST_WORDS:
                break
        else:
            return []
        taken |= names
        chunks.append(chunk)
    return chunks


def ask(writer: Writer, pattern: str, subject: str, inside: bool) -> str:
    """Word a question in one of several styles; leave out the words in brackets if the reader is `inside` the document."""
    random = writer.random
    text = re.sub(r"\[(.*?)\]", "" if inside else r"\1", pattern).replace("{s}", subject).strip()
    hand = random.random()
    if not ASKING.match(text):
        return text if hand < 0.5 else text.lower() if hand < 0.7 else capital(text)
    if hand < 0.55:
        return f"{capital(text)}?"
    return text if hand < 0.75 else text.lower() if hand < 0.9 else f"Quick question: {text}?"


def spellings(answer: str) -> list[str]:
    """Return the answer as written in the passage, and then its other spellings."""
    others = [
        re.sub(r"^(\d+) (am|pm)$", r"\1:00 \2", answer),
        re.sub(r"^(\d+) ([A-Z]\w+) (\d{4})$", r"\2 \1, \3", answer),
        re.sub(r"^(\d+) (kg|cm|ml|°C)$", r"\1\2", answer),
        re.sub(r"^([$€£]|CHF )([\d.,]+)$", r"\2", answer),
        re.sub(r"^(every|within) (\d.*)$", r"\2", answer),
        re.sub(r"^0(\d):", r"\1:", answer),
    ]
    return list(dict.fromkeys([answer, *others]))


def write_questions(writer: Writer, chunks: list[Chunk]) -> list[tuple[str, list[str]]]:
    """Ask what only the first chunk answers; if other chunks have the row too, the question names the document."""
    random = writer.random
    right, others = chunks[0], "\n\n".join(chunk.text for chunk in chunks[1:])
    one_document = right.subject == chunks[1].subject
    found: dict[str, tuple[str, list[str]]] = {}
    for each in random.sample(right.asked, len(right.asked)):
        shared = bool(each.name and holds(others, each.name))
        inside = not shared and random.random() < 0.7 if one_document or each.name else False
        patterns, answer = each.line.questions, each.value
        if each.line.reverse and random.random() < 0.4 and holds(right.text, each.value) == 1:
            if holds(others, each.value):
                continue
            patterns, answer = [text.replace("{v}", each.value) for text in each.line.reverse], each.name
        if answer in right.text and not holds(others, answer) and answer not in found:
            pattern = random.choice(patterns).replace("{r}", each.name)
            found[answer] = ask(writer, pattern, right.subject, inside), spellings(answer)
    return list(found.values())[: random.randint(FEWEST_QUESTIONS, MOST_QUESTIONS)]


def examples(lists: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make training examples on this many lists of passages, always the same ones."""
    random, kinds = Random(seed), read_kinds()
    made: list[dict[str, Any]] = []
    for number in range(lists):
        questions: list[tuple[str, list[str]]] = []
        while len(questions) < FEWEST_QUESTIONS:
            writer = Writer(random)
            chunks = write_list(writer, kinds[number % len(kinds)])
            questions = write_questions(writer, chunks) if chunks else []
        passages = [chunk.text for chunk in chunks]
        made += [
            {"question": asked, "target": answers, "ret_passages": passages} for asked, answers in questions
        ]
    return made
