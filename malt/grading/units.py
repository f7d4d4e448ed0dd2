"""Words around a value: a closed list of units, and small words that change nothing. No symbol is ever one of them."""

_UNITS = """
meter meters metre metres m
centimeter centimeters centimetre centimetres cm
millimeter millimeters millimetre millimetres mm
kilometer kilometers kilometre kilometres km
nanometer nanometers nanometre nanometres nm
inch inches in
foot feet ft
yard yards yd
mile miles mi
gram grams g
kilogram kilograms kg
milligram milligrams mg
pound pounds lb lbs
ounce ounces oz
ton tons tonne tonnes
second seconds sec secs s
minute minutes min mins
hour hours hr hrs h
day days
week weeks
month months
year years yr yrs
liter liters litre litres l L
milliliter milliliters millilitre millilitres ml mL
gallon gallons gal
quart quarts qt
pint pints
cup cups
mph
knot knots
newton newtons N
joule joules J
kilojoule kilojoules kJ
watt watts W
kilowatt kilowatts kW
volt volts V
ampere amperes amp amps A
ohm ohms
hertz Hz
kilohertz kHz
megahertz MHz
pascal pascals Pa
kilopascal kilopascals kPa
atmosphere atmospheres atm
kelvin kelvins K
celsius C
fahrenheit F
calorie calories cal
kilocalorie kilocalories kcal
mole moles mol
degree degrees deg
radian radians rad
dollar dollars USD usd
cent cents
euro euros EUR eur
pound-sterling GBP gbp quid
yen JPY jpy
rupee rupees INR inr Rs
percent pct
unit units
acre acres
hectare hectares ha
bit bits
byte bytes
"""
UNITS = {spelling: line.split()[0] for line in _UNITS.strip().splitlines() for spelling in line.split()}
"""The unit that each spelling stands for."""

_COUNTED_TEXT = """
ways students people persons person items coins sides digits steps points cards balls marbles apples eggs books
games numbers integers solutions pairs cookies pages tickets boxes bags pieces triangles squares vertices edges
diagonals teams members players children boys girls men women cars trees flowers cubes tiles bottles
"""
COUNTED = frozenset(_COUNTED_TEXT.split())
"""Plain nouns of what is counted; whatever the question itself names counts as well."""

FILLERS = frozenset({"of", "a", "an", "the", "in", "total", "each", "altogether"})
"""Words after a value that leave it as it is."""

_TURNING_TEXT = """
not no never less fewer more greater than least most above below under over between to through until from or and
either neither nor but except without unless if when where maybe perhaps possibly about plus minus times divided
multiplied mod modulo remainder base square squared cube cubed root cubic half halves third thirds quarter quarters
fourth fifth fifths sixth tenth tenths hundredth hundredths dozen score hundred thousand million billion trillion
negative positive factorial choose pair couple per wrong false incorrect minimum maximum any all every some
only exceeds exceeding at up down out versus vs by approximately short infinite undefined
"""
TURNING = frozenset(_TURNING_TEXT.split())
"""Words that change what a number means: whatever they stand beside was not read unless the reader knows them."""
