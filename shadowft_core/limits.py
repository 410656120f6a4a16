"""Limits on what is read from other people's files and servers; docs/limits.md lists them.

Each limit is far above every known honest use. What exceeds one is refused, with the limit and the value found.
"""

MIB = 1 << 20

# Text that is parsed whole
JSON_BYTES = 64 * MIB
"""bytes of a JSON or YAML file, except those named below"""
TOKENIZER_BYTES = 256 * MIB
"""bytes of tokenizer.json or of a vocabulary file"""
CONFIG_BYTES = 4 * MIB
"""bytes of config.json and the other small files of a model or adapter"""
SETTINGS_BYTES = 256 * 1024
"""bytes of another trainer's YAML file; reading one takes seconds per megabyte"""
SETTINGS_FILES = 16
"""YAML files beside a tuned model that are searched for settings of its training"""
PARAMS_BYTES = 1 * MIB
"""bytes of params.yaml or of a task's YAML file"""
YAML_VALUES = 100_000
"""values in a YAML file, keys included"""
YAML_CHARACTERS = 1 * MIB
"""characters of a YAML file once its aliases are expanded"""
INCLUDES = 16
"""levels of includes in task files"""
DEPTH = 64
"""levels of nesting in JSON and YAML"""
DIGITS = 64
"""digits of a whole number in JSON and YAML"""

# Weights
TENSORS = 1_000_000
"""tensors in a file or in a model"""
RANK = 16
"""dimensions of a tensor"""
HEADER_BYTES = 100_000_000
"""bytes of the header of a safetensors file; the limit of the safetensors library"""
NAME_CHARACTERS = 1_024
"""characters of a tensor's name"""
PART_ELEMENTS = 1 << 26
"""elements of one part of a stored delta, 256 MiB; a part is at least one row, and known rows have under a million"""
SHARDS = 10_000
"""safetensors files of a model"""
LAYERS = 4_096
"""layers, experts or blocks that a config asks for; that many modules are built before any weight is read"""
SIDE_FILE_BYTES = 1024 * MIB
"""bytes of any other file that is copied along with a model's weights"""
TOKENS = 1 << 24
"""every token id is below this; the largest vocabularies have less than a million"""

# Patterns and templates from others
PATTERN_CHARACTERS = 10_000
"""characters of a regular expression in an adapter's settings or a task's template"""
PATTERN_STEPS = 100_000
"""characters of such an expression, times the counts of all its repeats, which the library expands"""
PATTERN_SECONDS = 1.0
"""seconds that one match of such an expression may take"""
PATTERNS_SECONDS = 30.0
"""seconds of CPU time that all matches for one adapter may take together"""
ADAPTER_NAMES = 1_000
"""modules that an adapter's settings may list by name in `modules_to_save` and similar fields"""
ADAPTER_RANK = 65_536
"""rank of an adapter, far above the width of any layer worth adapting"""
TEMPLATE_CHARACTERS = 100_000
"""characters of a chat template, or of a template in a task file"""
TEMPLATE_SECONDS = 5.0
"""seconds of CPU time that a template may take for one conversation or item"""
TEMPLATE_BYTES = 256 * MIB
"""bytes of all values that a template may create for one conversation or item; each step counts as 32"""
TOKENIZER_SECONDS = 5.0
"""seconds that a tokenizer may take for one text; longer texts get one more for each 20,000 characters"""
TOKENIZER_GROWTH = 64
"""characters that all replacements in tokenizer.json together may write for one"""
TOKENIZER_PARTS = 1_000
"""parts of tokenizer.json that change text or tokens, and pieces of its templates"""

# Scores and records of runs
RECORD_BYTES = 16 * MIB
"""bytes of a file that a stage writes about a run (scores.json, verdict.json, run.json), and of a record in a store"""
ITEMS = 1_000_000
"""items of one arm, in items.jsonl"""
ITEM_BYTES = 64 * MIB
"""bytes of a line of items.jsonl, or of another file with one JSON value per line"""
SCORE_ROWS = 5_000_000
"""rows of a table of scores: arms times seeds times items"""
TASKS = 10_000
"""tasks of one arm"""
LABEL_CHARACTERS = 300
"""characters of the name of a task, metric, item, arm or route in scores"""
SCORE = 1e50
"""magnitude of a score; squares and sums of larger ones exceed float64"""
COUNT = 1 << 53
"""a count of items, rows, steps or tokens; larger whole numbers are not exact in float64"""

# Stores and registries
OBJECT_BYTES = 256 * MIB
"""bytes of an object in a store; a chunk is the largest kind"""
OBJECTS = 10_000_000
"""objects in a listing of a store"""

# Data
COLUMNS = 10_000
"""columns of a data file, nested ones included"""
ROWS = 20_000_000
"""rows of one data file, and lines of one"""
ROW_BYTES = 16 * MIB
"""bytes of a row of a data file"""
LINE_BYTES = 1024 * MIB
"""bytes of a line that is skipped because its row is too long"""
EXPANSION = 100
"""times its own size that a compressed file or a table may hold; 64 MiB in any case"""
DECODED_BYTES = 1024 * MIB
"""bytes of memory for decoding one batch of rows of a Parquet or Arrow file"""
IMAGE_PIXELS = 1 << 26
"""pixels of one image: an 8K frame has half as many"""
IMAGE_BYTES = 64 * MIB
"""bytes of one image file"""

# What is shown and recorded
ANSWER_CHARACTERS = 4_000
"""characters of a prompt or an answer that `compare` and `report` keep; `evaluate` writes up to 2,000 to items.jsonl"""
TEXT_CHARACTERS = 1_000
"""characters of a text in a record, such as a trainer's name"""
MESSAGE_CHARACTERS = 2_000
"""characters of an error message"""

# Values of params.yaml
VALUE_CHARACTERS = 4_096
"""characters of a name, path, URL or pattern"""
PROMPT_CHARACTERS = 100_000
"""characters of a system turn or a command"""
ENTRIES = 10_000
"""entries of a list or mapping"""
VALUE_COUNT = 10**9
"""steps, rows, tokens and other counts; also the largest value of any other number"""
MICRO_BATCHES = 1 << 24
"""sequences in a micro-batch, or micro-batches in a step"""
PROCESSES = 1_024
"""processes, devices or threads of a machine"""
SEED = 2**32 - 1
"""the largest seed that numpy takes"""
