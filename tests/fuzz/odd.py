"""Texts, numbers and pieces of JSON and YAML that readers take badly."""

from typing import Any


class Raw(str):
    """Text that is written as it is, without quotes."""


# Split at two spaces.
_PLAIN = (
    "x  0  1  -1  null  true  nan  None  F32  ../x  ../../outside.txt  /etc/passwd  /dev/zero  ..  .  a/b  //  ~  "
    "C:\\x  file:///etc/passwd  $(touch ran)  ; touch ran #  `touch ran`  | cat  %s%n  {0.__class__}  ${HOME}  "
    "{{ 7 * 7 }}  --help  {% for a in range(10**9) %}{% endfor %}  __import__('os').system('touch ran')  (a+)+$  "
    "(((((  [  \\  2024-01-01  2024-02-30T25:61:00Z  1e999  0x10  1_000  ١٢  http://u:p@h/x  http://[  s3://  sha256:  "
    "__class__  __proto__"
)
TEXTS = [
    *("", " ", "a\0b", "a\nb", "a\r\nb", "\t", "\x1b[2J\x1b]0;x\x07", "\u202egpj.exe", "\u2028", "\ufeff", "\u200b"),
    *("e\u0301", "\ud800", "\udfff", "\U0001f4a9", "\x7f\x80", "K" * 300, "x" * 200_000, "ab" * 2_500, "0" * 64),
    *(f"sha256:{'0' * 64}", f"sha256:{'0' * 63}g"),
    *_PLAIN.split("  "),
]
NUMBERS = [0, 1, 2, 3, 7, 255, 65_536, 2**31, 2**32 + 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**12, 10**70]
_JSON = '\'x\'  01  +1  .5  1.  tru  "\\x"  "\\ud8"  "a  {"a":1,"a":2}  {"a":1}{  [1,]  //'
VALUES: list[Any] = [
    *(None, True, False, 0.5, -0.5, 1e-320, 1e308, -1e308, 3.0),
    *([], {}, [[]], [{}], [None], {"": None}, {"a": 1}, [1, 2]),
    *NUMBERS,
    *(-number for number in NUMBERS[1:]),
    *map(Raw, ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "-0", "-0.0", "1e-999"]),
    *map(Raw, ("0.1" + "0" * 5_000, "[" * 60 + "]" * 60, "[" + "0," * 50_000 + "0]")),
]
BROKEN: list[Any] = [  # no reader may accept these
    *map(Raw, _JSON.split("  ")),
    *map(Raw, ("", "1" * 5_000, "[" * 70 + "]" * 70, "[" * 2_000 + "]" * 2_000, "[" * 100_000)),
    Raw('{"a":' * 3_000 + "1" + "}" * 3_000),
]
_YAML = (
    "~  .inf  -.inf  .nan  yes  off  017  0o17  0b1  1:30  1:30.5  1_0  1e3  2024-01-01  2024-13-01  &a [*a]  "
    "&a {b: *a}  2001-12-14t21:59:43.10-05:00  !!binary aGk=  !!binary '*'  !!set {a, b}  !!omap [a: 1]  *none  "
    "!!pairs [a: 1]  {a: 1, a: 2}  !!python/object/apply:os.system ['touch ran']  !!python/name:os.system  !!int x  "
    "!!python/tuple [1]  !own {a: 1}  !!float x  !!timestamp x  !!str 1  {? [a] : 1}  {<<: 1}  {<<: {a: 1}}  "
    "{1: 2, 01: 3}  {null: 1}  {.nan: 1}  !function os.system  !include x  !!bool x  !!null x  {2024-01-01: 1}"
)
YAML_VALUES: list[Any] = [Raw(text) for text in _YAML.split("  ")]
# Nine levels of nine aliases each: 9 ** 10 strings if they are written out.
LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
_LINES = (
    "%YAML 9.9  %TAG ! tag:x,2000:  ---  ...  - x  \t- x  a: b: c  ?  &a  *a  <<: *a  !!python/none  '  \"  {  [  |  "
    ">-  #  @  \0  \x1b  \ud800  a: !!python/object/new:os.system [touch ran]"
)
YAML_LINES = [*_LINES.split("  "), LAUGHS]
