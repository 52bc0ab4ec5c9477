"""Words to spell, sort and look up: common nouns, and words that no dictionary has, made of syllables."""

from __future__ import annotations

from random import Random


def listed(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


NOUNS = listed("""
apple bridge candle desert engine feather garden hammer island jacket kettle ladder mirror needle orange
pencil quarry ribbon saddle tunnel umbrella valley window yellow zipper anchor basket castle dragon elbow
forest guitar harbor insect jungle kitchen lantern magnet napkin oyster pepper quilt rocket shadow uncle
violin wagon almond button carpet dinner eagle finger glacier honey igloo juice kitten lemon marble nickel
otter planet queen river silver turtle urchin velvet winter acorn beacon cactus donkey emerald flower goblet
hazel iris jewel koala linen meadow nettle olive parrot raven salmon thunder vessel walnut badger cherry
dolphin engineer falcon grape hedge ink jelly knight lilac mango north oven pigeon rabbit spoon table
trumpet village whistle brick cloud dust earth flame grass horse iron joke knee leaf moon nest owl paper
road snow tree voice water bell coat gate egg farm gold hill king lamp milk nose pond rope sand tail actor
adult advice alarm album amount angle animal answer apron arch area arm army arrow artist attic aunt autumn
award baby back bacon bag baker ball balloon bamboo banana band bandage bank bar barber barn barrel base
basin bat bath battle beach bead beak beam bean bear beard beast bed bee beef beetle bench berry bicycle
bill bird birth biscuit blade blanket block blood blossom board boat body bolt bone bonnet book boot border
bottle bottom bowl box boy bracket brain brake branch brass bread breath breeze bride brother brush bubble
bucket bud buffalo builder building bulb bullet bunch bundle burger bus bush butcher butter cabbage cabin
cable cafe cage cake calendar calf camel camera camp canal canary candy cannon canoe canvas cap cape captain
car caravan card cargo carriage carrot cart case cash cat cattle cave ceiling cellar cement centre chain
chair chalk chamber channel chapel chapter charcoal cheek cheese chemist chest chicken chief child chimney
chin chocolate church cinema circle circus city class claw clay cliff climate clock cloth clown club coach
coal coast cobweb cocoa coconut coffee coin collar college colony colour comb comet comic company compass
concert cookie copper cord cork corn corner cottage cotton couch country couple courage course court cousin
cover cow cradle crane crayon cream creature creek crew cricket crocodile crop cross crow crowd crown crumb
crust crystal cup cupboard curtain curve cushion custom cycle daisy dance danger daughter dawn day deck deer
dentist desk dessert dew diamond diary dictionary dinosaur dish ditch doctor dog doll dollar dome dove drain
drawer drawing dream dress drill drink driver drop drum duck dune dusk duty dwarf ear east echo edge editor
elephant elevator empire enemy energy entrance envelope error evening event evidence example exit eye face
factory fairy family fan fang farmer father faucet fence fern ferry festival fever field fig film fin
fireplace fish fist flag flake flannel flash flask fleet flight flock flood floor flour fluid flute fly foam
fog folder food foot football forehead fork fort fossil fountain fox frame freezer friend frog frost fruit
fuel funnel fur furnace future galaxy gallery game garage garlic gas gem general ghost giant gift giraffe
girl glass globe glove glue goal goat goose gorilla gown grain gram granite graph gravel gravy group growth
guard guess guest guide gutter gymnast habit hail hair half hall ham hamster hand handle hangar harp harvest
hat hawk hay head heart heat heaven heel height helmet hen herb herd hero hive hobby hole holiday home hood
hoof hook horn hospital hotel hour house human hunter husband hut idea image inch income infant inn
invention ivory ivy jail jam jar jaw jeans jeep jet job journal journey judge juggler jumper jury keeper
kennel kernel key keyboard kick kid kidney kind kiss kite knife knob knot lab label labour lace lady lake
lamb land lane language lap laptop lark laughter laundry lawn lawyer layer lead leader leather lecture leg
legend leopard lesson letter lettuce level lever library lid life lift light lightning limb lime line lion
lip liquid list litre liver lizard load loaf lobster lock locket lodge log lotion luck lunch lung lyric
machine magazine magic maid mail manager mansion map maple mare market mask master mat match meal measure
meat medal medicine melody melon member memory menu merchant message metal metre microscope middle mile mill
mind mine minute mist mitten mixture model mole moment money monkey monster month moose morning mosquito
moss moth mother motor mountain mouse mouth movie mud muffin mug mule muscle museum mushroom music mustard
nail name nation nature neck necklace neighbour nephew nerve net news newspaper niece night noise noodle
noon notebook nothing novel number nun nurse nut oak oar oasis oat object ocean octopus office officer oil
onion opera opinion orchard orchestra order organ ostrich outfit oval owner ox pace package paddle page pail
pain paint pair palace palm pan panda panel pants parade parcel parent park part partner party passage
passenger pasta paste path patient pattern paw pea peace peach peacock peanut pear pearl pebble pedal peel
pen penguin penny people person phone photo piano picnic picture pie piece pig pile pill pillow pilot pin
pine pipe pirate pit pizza place plain plan plane plant plaster plastic plate platform player pleasure
plough plug plum plumber pocket poem poet point poison pole police pony pool porch port portrait postcard
pot potato pottery pouch powder power prairie present president price prince princess print prison prize
problem profit project promise proof puddle pump pumpkin pupil puppet puppy purple purse puzzle pyramid
quail quart quarter quartz question quiz race rack radar radio radish raft rail railway rain rainbow raisin
rake ranch rat rattle razor recipe record reef region relative remedy report reptile rescue result reward
rhythm rice riddle rifle ring riot robe robin robot rod roof root rose route row ruby rug ruler rumour
runner rust sack sailor salad salary sale salt sandal sandwich satin sauce saucer sausage saw scale
scarecrow scarf scene scent school science scissors scooter score screen screw sea seal season seat seaweed
secret sector seed sentence servant service shade shape shark sheep sheet shelf shell shepherd sheriff
shield ship shirt shock shoe shop shore shoulder shovel shower shrimp shrub side sidewalk sign signal silk
singer sink sister skate skeleton sketch skill skin skirt skull sky sled sleep sleeve slice slipper smell
smile smoke snail snake soap soccer society sock soil soldier song soup south space spade spark sparrow
spear spider spike spinach spine sponge spot spray spring square squash squirrel stable stadium staff stage
stair stall stamp star state statue steak steam steel stem step stew stick stitch stocking stomach stone
stool store stork storm story stove stranger straw stream street stretch string stripe student study subject
subway success suit summer sun supper surface surprise swamp swan sweater swing switch sword symbol syrup
tablet talent target tart task taste taxi tea teacher team tear teeth telescope temper temple tennis tent
test texture theatre theory thief thimble thing thorn thought thread throat throne thumb tide tie tiger tile
timber time tin tissue title toad toast toe tomato tongue tool tooth top torch tornado tortoise touch tour
towel tower town toy track tractor trade traffic trail train tramp tray treasure treat treaty triangle tribe
trick trip troop trouble trousers truck trunk trust truth tub tube tulip tuna tunic turkey turnip tutor twig
twist type tyre uniform unit uplift vacuum van vapour vase vault vegetable vehicle veil vein verse vest vet
victory video view vinegar vine virus visitor vitamin volcano volume vote voyage wage waist waiter wall
wallet walrus war wardrobe warrior wash wasp waste watch waterfall wave wax wealth weapon weather web
wedding week weed weight well west whale wheat wheel whip whisker widow wife wig wind wing wire wisdom wish
witch witness wolf woman wood wool word worker world worm wound wreath wrench wrist writer yard yarn year
yoghurt youth zebra zone
""")
ONSETS = listed("b br c ch d dr f fl g gr h j k l m n p pl pr qu r s sh sl st t th tr v w z")
VOWELS = listed("a e i o u ai ea oo")
CODAS = ["", "", "b", "ck", "d", "l", "m", "n", "nd", "p", "r", "rk", "s", "sh", "st", "t", "x"]


def made(random: Random, syllables: int) -> str:
    """A word of so many syllables that means nothing."""
    return "".join(
        random.choice(ONSETS) + random.choice(VOWELS) + random.choice(CODAS) for _ in range(syllables)
    )


def word(random: Random) -> str:
    """A noun, or a made word as often."""
    return random.choice(NOUNS) if random.random() < 0.5 else made(random, random.choice((1, 2, 2)))


def several(random: Random, count: int) -> list[str]:
    """So many different words."""
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(word(random))
    return list(found)
