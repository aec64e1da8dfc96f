"""Tasks without end, for the demo and for tests: drawn by chance, checked by the same verifiers as any other.

word_problems     math: arithmetic in several steps
list_functions    code: one-line functions, with choices that only tests tell
short_programs    trace: what variables hold, line by line
broken_modules    repair: a tiny repository with one wrong word
"""

from collections.abc import Mapping

from rl.tasks.generators.base import Generator, Problem
from rl.tasks.generators.broken_modules import BrokenModules
from rl.tasks.generators.list_functions import ListFunctions
from rl.tasks.generators.short_programs import ShortPrograms
from rl.tasks.generators.word_problems import WordProblems

__all__ = ["GENERATORS", "Generator", "Problem"]

GENERATORS: Mapping[str, Generator] = {
    generator.domain: generator for generator in (WordProblems(), ListFunctions(), ShortPrograms(), BrokenModules())
}
"""By the name that a source gives in `generator`."""
