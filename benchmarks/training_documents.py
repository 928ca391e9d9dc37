"""Training examples whose passages are chunks of invented workaday documents: price lists, manuals, notes, timetables.

Wikipedia's prose teaches little about tables, bullet lists and `key: value` lines, of which people's own files are full. Each list of five
passages holds the chunk that answers first, then four chunks of the same document or of resembling ones; four to six questions share a list.
Training shuffles what it draws.
"""

import re
from dataclasses import dataclass, field
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
KINDS = """
kind: {s}: opening hours / Opening hours of {s} / When to visit {s} | {town} Library / {town} Swimming Pool / {town} Toy Museum / {adj} {thing} Bakery / {town} Recycling Centre | Here you see when {s} is open. Hours change on public holidays. / We look forward to your visit at {s}. Please mind the times below. | apart
fact: Quietest day | {day} | It is quietest on {v}. | on which day is it quietest[ at {s}] / quietest day[ {s}] ;; Winter break | {n:18-30} December to {n:2-25} January | Our winter break lasts from {v}. | when is the winter break[ at {s}] / winter break dates[ {s}]
use: phone address updated
row: {day} | Day | Hours / Times | On {r} we / Every {r} we
col: Opens | {morning} | open at {v} | when does[ {s}] open on {r} / {r} opening time[ {s}] / what time can i come[ to {s}] on {r} at the earliest ;; Closes | {evening} | close at {v} | when does[ {s}] close on {r} / until when is[ {s}] open on {r} / {r} closing time[ {s}]
kind: {s} price list / Prices at {s} / {s}: catalogue | {adj} {thing} Homeware / {last} & {last} Interiors / {brand} Living | All prices include tax. {s} ships from {town}. / Thank you for your interest in {s}. Prices are valid until {date}.
fact: Free delivery from | {money:60-300} | Orders over {v} are delivered free of charge. | from what amount is delivery free[ at {s}] / free delivery threshold[ {s}] ;; Return period | {n:14-60} days | Goods may be returned within {v}. | how long can i return goods[ to {s}] / return period[ {s}]
use: email phone
row: {material} {ware} | Article / Product | Articles | The {r}
col: Price | {money:6-180} | costs {v} / is {v} | how much is the {r}[ at {s}] / price of the {r}[ {s}] / what does the {r} cost[ at {s}] ;; Item no. | {letter}{letter}-{n:1000-9999} | has item number {v} | what is the item number of the {r}[ from {s}] / item no. {r}[ {s}] | which article[ of {s}] has the number {v} ;; Colour | {spec} | comes in {v} | what colour is the {r}[ at {s}] / in which colour does the {r}[ by {s}] come ;; Weight | {n:1-14}.{n:1-9} kg | weighs {v} | how heavy is the {r}[ from {s}] / weight {r}[ {s}]
kind: {s} staff directory / Who is who at {s} / {s}: telephone list | {last} Logistics / {town} Town Hall / {brand} Engineering / {town} General Hospital | Dial 0 for an outside line. New colleagues at {s} get an extension in their first week. / This list of {s} is for internal use.
use: updated address
fact: Emergency number | {n:2000-9999} | In an emergency dial {v} from any desk. | which number do i dial in an emergency[ at {s}] / internal emergency number[ {s}]
row: {first} {last} | Name | Colleagues / Directory | {r}
col: Department | {dept} | works in {v} / belongs to {v} | which department is {r} in[ at {s}] / where does {r} work[ at {s}] / {r} department[ {s}] ;; Ext. | {n:2000-9999} | has extension {v} / answers on extension {v} | what is {r}'s extension[ at {s}] / extension of {r}[ {s}] / how do i reach {r} by phone[ at {s}] | whose extension is {v}[ at {s}] ;; Room | {letter}{n:100-499} | sits in room {v} | which room is {r} in[ at {s}] / where can i find {r}[ at {s}] / {r} room[ {s}] | who sits in room {v}[ at {s}]
kind: {s} shipping rates / Shipping with {s} / Delivery table: {s} | {brand} Parcel / {town} Couriers / {adj} {thing} Freight | {s} collects parcels every weekday before {evening}. / Rates of {s} hold for one parcel without customs duties.
fact: Collection fee | {money:3-15} | Collection from your door costs {v}. | how much is collection[ with {s}] / collection fee[ {s}] / what do i pay to have a parcel collected from home[ by {s}] ;; Claims | within {n:5-40} days | Report damage {v}. | how soon must damage be reported[ to {s}] / deadline for damage claims[ {s}]
use: phone updated
row: {country} | Destination / Country | Rates by country | A parcel to {r}
col: Price | {money:5-90} | costs {v} | how much is shipping to {r}[ with {s}] / shipping cost {r}[ {s}] / what does it cost to send a parcel to {r}[ with {s}] ;; Delivery | {n:2-5} to {n:6-14} days | takes {v} / arrives in {v} | how long does delivery to {r} take[ with {s}] / delivery time {r}[ {s}] ;; Weight limit | {n:10-45} kg | may weigh up to {v} | what is the weight limit for {r}[ with {s}] / how heavy may a parcel to {r} be[ with {s}] / max weight {r}[ {s}]
kind: {s} changelog / Release notes for {s} / What is new in {s} | {brand} Notes / {brand} Planner / {brand} Invoice / {thing}Sync | {s} updates itself at the next start. / All notable changes to {s} are listed here, with thanks to {first} {last} for many reports.
fact: Oldest supported system | {adj}OS {n:7-24} | Since this year {s} needs {v} or newer. | what is the oldest supported system[ for {s}] / minimum operating system[ {s}]
use: email
row: Version {n:1-5}.{n:0-14}.{n:0-9} | Release | Releases / History | {r}
col: Released | {date} | came out on {v} / was released on {v} | when was {r}[ of {s}] released / release date of {r}[ {s}] / {r}[ {s}] date ;; Added | {feature} | added {v} / brought {v} | what did {r}[ of {s}] add / what was new in {r}[ of {s}] | which version[ of {s}] added {v} / which version was the first[ of {s}] with {v} ;; Fixed | {bug} | fixed {v} | what bug was fixed in {r}[ of {s}] / {r}[ {s}] fix | in which version[ of {s}] was {v} fixed
kind: {s} FAQ / Frequently asked questions: {s} / Good to know about {s} | {adj} {thing} Fitness / {town} Car Sharing / {brand} Mobile / {town} Food Box | Before you write to us, look through these answers. / {s} has {n:300-9000} members. Here is what they ask most.
fact: Monthly fee | {money:9-80} | Membership costs {v} a month. / Each month we charge {v}. | how much is membership[ at {s}] per month / monthly fee[ {s}] / what does membership cost a month[ at {s}] ;; Notice period | {n:2-12} weeks | You can cancel with {v} of notice. / The notice period is {v}. | how much notice must i give to cancel[ {s}] / notice period[ {s}] ;; Minimum age | {n:14-21} | Members must be at least {v} years old. | how old must i be to join[ {s}] / minimum age[ {s}]
fact: Payment day | {day} | We debit the fee on the first {v} of the month. | on which weekday is the fee[ of {s}] debited / payment day[ {s}] ;; Lost card | {money:3-30} | A new card costs {v} if yours is lost. | what does a replacement card cost[ at {s}] / lost card fee[ {s}] ;; Trial | {n:3-30} days | You may try everything for {v} without paying. / The free trial lasts {v}. | how long is the free trial[ at {s}] / trial period[ {s}]
fact: Referral bonus | {money:5-60} | Whoever brings a friend gets {v}. | how much do i get for bringing a friend[ to {s}] / referral bonus[ {s}] ;; Longest pause | {n:2-9} months | You can pause your membership for {v} at most. | how long can i pause my membership[ at {s}] / longest pause[ {s}]
use: phone email address
kind: Minutes: {s} / {s} / Notes of the {s} | {town} Parents' Council meeting of {date} / {dept} team meeting on {date} / {adj} {thing} Club board meeting of {date} | Present: {first} {last}, {first} {last} and {first} {last}. The last minutes were approved. / The meeting began late. {first} {last} gave a short report on the year.
fact: Chair | {first} {last} | {v} chaired the meeting. | who chaired the {s} / who led the {s} ;; Minutes by | {first} {last} | {v} took the minutes. | who took the minutes at the {s} / minute taker {s} ;; Next meeting | {n:1-28} {month} | We meet again on {v}. / The next meeting is on {v}. | when is the next meeting after the {s} / next meeting date {s} ;; Budget approved | {money:200-9000} | A budget of {v} was approved for repairs. | how much money was approved at the {s} / what budget did the {s} approve
row: {task} {object} | Task | Action items / To do | The job to {r}
col: Owner | {first} {last} | goes to {v} / is taken on by {v} | who has to {r}[ after the {s}] / who will {r}[ according to the {s}] / who agreed to {r}[ at the {s}] ;; Due | {n:1-28} {month} | is due on {v} / must be done by {v} | by when must someone {r}[, according to the {s}] / deadline to {r}[ from the {s}]
kind: {s} manual / User guide: {s} / {s}: error codes | {brand} {letter}{n:10-99} {machine} / {brand} {n:100-990} {machine} | Keep this guide near the machine. Never open the housing while it is plugged in. / Read all of this before you first use the {s}.
fact: Power | {n:200-2400} watts | The rated power is {v}. | what is the rated power[ of the {s}] / wattage[ {s}] ;; Warranty | {n:12-60} months | The warranty runs for {v}. | how long is the warranty[ on the {s}] / warranty[ {s}] ;; Service line | {phone} | Our service line is {v}. | what is the service number[ for the {s}] / service line[ {s}] ;; Cleaning interval | {n:3-30} days | Clean the filter every {v}. | how often must i clean the filter[ of the {s}] / filter cleaning interval[ {s}]
row: E{n:10-99} | Code / Error | Error codes / When something goes wrong | {r}
col: Meaning | {part} {fault} | means "{v}" / stands for "{v}" | what does {r} mean[ on the {s}] / error {r}[ {s}] / the display[ of the {s}] shows {r}, what is wrong | which code[ of the {s}] means {v} / what code appears[ on the {s}] when it is "{v}" ;; What to do | {remedy} | asks you to {v} / is cured if you {v} | what should i do about {r}[ on the {s}] / how do i fix {r}[ on the {s}] / {r} remedy[ {s}]
kind: {s}: setting up / How to install the {s} / {s} quick start | {brand} {letter}{n:10-99} {machine} / {brand} {n:100-990} {machine} | Allow an hour. Two people should lift the machine. / These steps take you from the box to the first use of the {s}. | steps apart
fact: Unpack | {n:2-12} screws | Take the machine out and remove the {v} that hold it in place for transport. | how many transport screws must be removed from the {s} / what holds the {s} in place for transport ;; Clearance | {n:5-60} cm | Leave {v} of free space to the wall. | how far from the wall must the {s} stand / distance to the wall {s} ;; Rest | {n:2-12} hours | Let it stand upright for {v} before you plug it in. | how long must the {s} stand before i plug it in / how long should the {s} rest before use
fact: Fuse | {n:6-25} amps | Use a socket with a fuse of {v}. | what fuse is needed[ for the {s}] / fuse rating[ {s}] ;; Start | {n:3-15} seconds | Hold the main button for {v} until the lamp turns green. | how long do i hold the main button[ of the {s}] / {s} start button how long ;; First run | {n:10-55} minutes | Run it empty for {v}. | how long should the first empty run be[ with the {s}] / first run duration[ {s}]
fact: Registration | within {n:2-9} weeks | Register the serial number {v} of purchase. | by when must the serial number be registered[ for the {s}] / registration deadline[ {s}]
kind: {s} / Recipe: {s} / How we cook {s} | {last}'s {food} {dish} / {town} {food} {dish} / {adj} {thing} {food} {dish} | A favourite of {first} {last}, who got it from an aunt in {town}. / This keeps well and tastes even better on the next day. | steps apart
fact: Serves | {n:2-12} people | It is enough for {v}. / Have bowls ready for {v}. | how many people does {s} serve / servings {s} / how many people can eat from {s} ;; Soak | {n:2-14} hours | Soak the dried beans for {v} in cold water. | how long are the beans for {s} soaked / soaking time {s} ;; Onions | {n:2-9} onions | Chop {v} and fry them gently in butter. | how many onions go into {s} / onions needed {s} ;; Stock | {n:300-1800:50} ml | Pour in {v} of stock and bring to the boil. | how much stock do i need for {s} / amount of stock {s}
fact: Simmer | {n:12-95} minutes | Let it simmer for {v} with the lid on. | how long does {s} simmer / simmering time {s} ;; Oven | {n:140-240:5} °C | Heat the oven to {v} and put the dish in. | what oven temperature does {s} need / how hot should the oven be for {s} / oven temp {s} ;; Bake | {n:10-70} minutes | Bake until brown, about {v}. | how long do i bake {s} / baking time {s} ;; Herb | {herb} | Sprinkle with chopped {v} at the end. | which herb goes on top of {s} / what is {s} sprinkled with
kind: {s} programme / Programme of the {s} / What's on: {s} | {town} Science Days / {town} Book Week / {adj} {thing} Festival | Entry to the {s} is free for children under {n:5-16}. / The {s} takes place for the {n:3-40}th time. Doors open half an hour before each event.
fact: Day ticket | {money:6-60} | A day ticket costs {v}. | how much is a day ticket[ for the {s}] / day ticket price[ {s}] ;; Parking | {street} | Please park in {v}. | where can visitors[ of the {s}] park / parking[ {s}]
use: phone email
row: {act} on {topic} | Event | Events / Day {n:1-4} | The {r}
col: Starts | {time} | starts at {v} / begins at {v} | when does the {r}[ at the {s}] start / what time is the {r}[ at the {s}] / {r} time[ {s}] ;; Where | {place} | takes place in: {v} | where is the {r}[ at the {s}] / which room is the {r} in[ at the {s}] / {r} venue[ {s}] ;; With | {first} {last} | is led by {v} | who leads the {r}[ at the {s}] / who gives the {r}[ at the {s}] / {r} speaker[ {s}] | which event[ at the {s}] is led by {v}
kind: {s}: course catalogue / Courses at {s} / {s} timetable | {town} Evening School / {adj} {thing} Academy / {town} Community College | Enrol at the desk of {s} or online. Fees are due before the first evening. / Courses run for {n:6-14} weeks.
fact: Enrolment closes | {date} | Enrolment closes on {v}. | when does enrolment close[ at {s}] / last day to enrol[ {s}] ;; Discount | {n:10-50} percent | Students and pensioners get {v} off. | what discount do students get[ at {s}] / student discount[ {s}]
use: contact address
row: {subject} {level} | Course | Courses / This term | {r}
col: Teacher | {first} {last} | is taught by {v} | who teaches {r}[ at {s}] / teacher of {r}[ {s}] / {r} instructor[ {s}] | which course[ at {s}] does {v} teach ;; When | {day} {evening} | meets on {v} / is held on {v} | when is {r}[ at {s}] / on which day and at what time is {r}[ at {s}] ;; Fee | {money:40-400} | costs {v} | how much is {r}[ at {s}] / fee for {r}[ {s}] / what do i pay for {r}[ at {s}] ;; Code | {letter}{letter}{n:100-999} | has code {v} | what is the course code of {r}[ at {s}] / {r} code[ {s}] | which course[ at {s}] has code {v}
kind: {s}: rental terms / Renting from {s} / {s} rental conditions | {town} Tool Hire / {last} Rentals / {adj} {thing} Hire | Please bring a photo ID. {s} keeps a copy until the item is back. / Items of {s} are checked before each hire.
fact: Late fee | {money:4-50} | Each hour of delay costs {v}. | what is the late fee[ at {s}] per hour / late return charge[ {s}] / what does it cost to return something an hour late[ to {s}] ;; Cancellation | {n:12-96} hours | Bookings can be cancelled free of charge up to {v} before. | until when can i cancel a booking for free[ at {s}] / free cancellation[ {s}] ;; Return by | {evening} | Bring items back by {v} on the last day. | by what time must items be returned[ to {s}] / latest return time[ {s}]
use: phone address
row: {tool} | Item | What we rent out / Rates | The {r}
col: Per day | {money:8-150} | costs {v} a day / is {v} per day | how much is the {r} per day[ at {s}] / daily rate {r}[ {s}] / what does it cost to rent the {r} for a day[ from {s}] ;; Deposit | {money:20-600} | requires a deposit of {v} | what deposit is required for the {r}[ at {s}] / deposit {r}[ {s}] / how much deposit do i leave for the {r}[ at {s}] ;; Longest hire | {n:2-30} days | may be kept for {v} | how long can i keep the {r}[ from {s}] / maximum hire {r}[ {s}]
kind: Results: {s} / {s} / {s} match report | {town} Football League, round {n:2-30} / {town} Handball Cup {n:1995-2024} / {adj} {thing} Hockey Trophy {n:1995-2024} | It rained on most grounds in the {s}, but spirits were high. / Referees showed {n:3-20} yellow cards this time.
fact: Next round | {date} | The next round is played on {v}. | when is the next round[ after the {s}] / next round date[ {s}] ;; Top scorer | {first} {last} | {v} leads the list of scorers. | who is the top scorer[ in the {s}] / who leads the scorers' list[, {s}]
row: {town} {team} v {town} {team} | Match | Matches / Results | {r}
col: Score | {n:0-9}:{n:0-9} | ended {v} / finished {v} | what was the score of {r}[ in the {s}] / how did {r} end[ in the {s}] / {r} result[ {s}] ;; Attendance | {n:150-9800} | drew {v} spectators | how many people watched {r}[ in the {s}] / attendance {r}[ {s}] ;; Best player | {first} {last} | saw {v} as best player | who was the best player in {r}[ in the {s}] / best player {r}[ {s}] | in which match[ of the {s}] was {v} the best player
kind: {s} plant care / Plant care cards from {s} / {s}: looking after your plants | {town} Garden Centre / {last} Nursery / {adj} {thing} Greenhouse | Every plant from {s} comes with a card. Here are all of them. / Water with care: more plants drown than dry out.
fact: Guarantee | {n:2-18} months | All our plants are guaranteed for {v}. | how long are plants guaranteed[ at {s}] / plant guarantee[ {s}]
use: contact phone
row: {adj} {plant} | Plant | Cards / Our plants | {r}
col: Water | every {n:2-24} days | needs water {v} | how often do i water {r}[ from {s}] / how often should the {r} be watered[, {s}] / {r} watering[ {s}] ;; Light | {light} | likes {v} / wants {v} | what light does {r} need[, according to {s}] / where should i put the {r}[ from {s}] / {r} light[ {s}] ;; Height | {n:15-290} cm | grows to {v} | how tall does {r} get[, according to {s}] / {r} height[ {s}]
col: Min. temperature | {n:2-18} °C | should not be kept below {v} | what is the lowest temperature for {r}[, according to {s}] / {r} minimum temperature[ {s}]
kind: {s}: guest guide / Welcome to {s} / {s} A to Z | Hotel {adj} {thing} / {town} Guest House / {thing} Inn {town} | Dear guest, we wish you a pleasant stay at {s}. / {s} has {n:9-140} rooms and has been run by the {last} family since {n:1890-2015}.
fact: Check-in | {evening} | Your room is ready from {v}. / Check-in starts at {v}. | when can i check in[ at {s}] / check-in time[ {s}] / from when is my room ready[ at {s}] ;; Check-out | {morning} | Please leave your room by {v}. / Check-out is at {v}. | when do i have to leave my room[ at {s}] / check out time[ {s}] / until when is check-out[ at {s}] ;; Breakfast | {place} | Breakfast is served here: {v}. | where is breakfast served[ at {s}] / breakfast room[ {s}]
fact: Wi-Fi password | {thing}{n:1000-9999} | The Wi-Fi password is {v}. | what is the wifi password[ at {s}] / wifi password[ {s}] / which password do i need to get online[ at {s}] ;; Dogs | {money:5-30} | Dogs are welcome for {v} a night. | what does a dog cost per night[ at {s}] / dog fee[ {s}] ;; Parking | {money:6-40} | The garage costs {v} a day. | how much is parking[ at {s}] / garage price[ {s}] ;; Sauna | {evening} | The sauna is heated from {v}. | from when is the sauna open[ at {s}] / sauna opening time[ {s}]
fact: Night porter | {n:100-999} | After midnight dial {v} for the night porter. | what number is the night porter[ at {s}] / night porter number[ {s}]
use: address email
kind: {s}: what is covered / Your policy: {s} / Terms of the {s} policy | {brand} Home / {brand} Travel Plus / {town} Mutual Household / {adj} {thing} Protect | These terms of {s} are valid from {date}. / Please report any loss as soon as you can, with photographs. No claim is paid without a receipt.
fact: Excess | {money:50-500} | You bear the first {v} of each claim. / The excess is {v} per claim. | what is the excess[ with {s}] / how much do i pay myself per claim[ under {s}] / excess[ {s}] ;; Not covered | {gap} | Not covered: {v}. | what is not covered[ by {s}] / exclusion[ {s}] ;; Yearly premium | {money:80-900} | The premium is {v} a year. | how much is the yearly premium[ of {s}] / what does the insurance cost per year[ with {s}]
use: phone email
row: {cover} | Risk | Cover / Limits | Cover for {r}
col: Limit | {money:500-90000} | goes up to {v} / is limited to {v} | up to what sum is {r} covered[ by {s}] / limit for {r}[ {s}] / how much is paid for {r}[ under {s}] ;; Waiting period | {n:5-120} days | begins after {v} | what is the waiting period for {r}[ with {s}] / how soon am i covered for {r}[ under {s}] ;; Report within | {n:12-96} hours | demands a report within {v} | how soon must i report {r}[ to {s}] / reporting deadline for {r}[ {s}]
kind: {s} configuration / Configuring {s} / {s} settings reference | {brand} Server / {brand}DB / {thing} Gateway / {brand} Mailer | Settings of {s} are read once at start. Unknown keys stop it with an error. / Values in the file win over environment variables.
fact: Config file | /etc/{keyverb}/{keynoun}{n:10-99}.toml | All settings live in {v}. / Edit {v} and restart. | where is the config file[ of {s}] / config file path[ {s}] ;; Default port | {n:3000-9900} | It listens on port {v}. / Connections come in on port {v}. | which port does[ {s}] listen on by default / default port[ {s}]
row: {keyverb}_{keynoun} | Key / Setting | Settings / Reference | The key {r}
col: Default | {n:2-900} | defaults to {v} / is {v} by default | what is the default of {r}[ in {s}] / {r} default value[ {s}] / what is {r} set to if i don't change it[ in {s}] ;; Maximum | {n:1000-90000} | may be at most {v} | what is the largest value of {r}[ in {s}] / {r} maximum[ {s}] / how high can i set {r}[ in {s}] ;; Since | v{n:1-6}.{n:0-19} | exists since {v} | since which version does {r} exist[ in {s}] / {r} introduced[ {s}]
kind: {s} / Itinerary: {s} / Travel plan: {s} | {country} trip of the {last} family / {town} and {town} tour / {country} round trip in {month} | Please have passports ready. Your guide is {first} {last}. / All times of the {s} are local. Lunch is not included.
fact: Flight | {letter}{letter} {n:100-9999} | You fly with {v}. | what is the flight number[ for the {s}] / flight number[ {s}] / which flight do we take[ on the {s}] ;; Hotel | Hotel {adj} {thing} | You stay at {v}. / The hotel is {v}. | which hotel do we stay at[ on the {s}] / hotel[ {s}] ;; Luggage | {n:10-32} kg | Each traveller may bring {v} of luggage. | how much luggage may i bring[ on the {s}] / baggage allowance[ {s}]
fact: Emergency contact | {phone} | In an emergency call {v}. | what is the emergency number[ on the {s}] / emergency contact[ {s}]
row: {town} {sight} | Stop | Stops / Sights | The visit to {r}
col: Date | {n:1-28} {month} | is on {v} | when do we visit {r}[ on the {s}] / on which day is {r}[ during the {s}] / {r} date[ {s}] ;; Meet at | {time} | begins at {v} | what time do we meet for {r}[ on the {s}] / {r} meeting time[ {s}] ;; Ticket | {money:4-60} | costs {v} | how much is the ticket for {r}[ on the {s}] / entrance fee {r}[ {s}]
"""

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
    """Something that a chunk says: `name` is the row's, or empty for a fact."""

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
    """Fill patterns with values, in one list's habits: few names that resemble each other, one clock, one currency."""

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
        """Fill until no word stands twice: a team doesn't play against its own town."""
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
    """How often `words` stand in `text` as whole words."""
    return len(re.findall(rf"(?<![\w.,:]){re.escape(words)}(?!\w|[.,:]\d)", text, re.IGNORECASE))


def write_list(writer: Writer, kind: Kind) -> list[Chunk]:
    """Write five chunks, of one document or of five that resemble each other; none where a draw gives too short ones."""
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
    """Word a question: with its brackets' words unless the reader is `inside` the document, in one of several hands."""
    random = writer.random
    text = re.sub(r"\[(.*?)\]", "" if inside else r"\1", pattern).replace("{s}", subject).strip()
    hand = random.random()
    if not ASKING.match(text):
        return text if hand < 0.5 else text.lower() if hand < 0.7 else capital(text)
    if hand < 0.55:
        return f"{capital(text)}?"
    return text if hand < 0.75 else text.lower() if hand < 0.9 else f"Quick question: {text}?"


def spellings(answer: str) -> list[str]:
    """The answer as it stands in the passage, then how else people write it."""
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
    """Ask what the first chunk alone answers; a row that other chunks have too is asked for with its document's name."""
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
    """Training examples on so many lists of passages; the same each time."""
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
