"""Runs the test modules, and prints how many tests passed and failed."""

import sys
import unittest


class Sentences(unittest.TextTestResult):
    """Prints a test's name with spaces, as a sentence."""

    def getDescription(self, test):
        case = getattr(test, "test_case", test)
        sentence = case.id().rpartition(".")[2].removeprefix("test_").replace("_", " ")
        return sentence if case is test else f"{sentence} {test._subDescription()}"


def main() -> int:
    loader = unittest.TestLoader()
    if sys.argv[1:]:
        loader.testNamePatterns = [f"*{name.replace(' ', '_')}*" for name in sys.argv[1:]]
    suite = loader.discover(".", pattern="test_*.py")
    result = unittest.TextTestRunner(resultclass=Sentences, verbosity=2, stream=sys.stdout).run(suite)
    # Failures of subtests are listed separately: count each test once.
    failed = {getattr(test, "test_case", test).id() for test, _ in result.failures + result.errors}
    for test, reason in result.skipped:
        print(f"skipped: {result.getDescription(test)}: {reason}")
    print(f"{result.testsRun - len(failed) - len(result.skipped)} passed, {len(failed)} failed")
    return 1 if failed or not result.testsRun else 0


if __name__ == "__main__":
    sys.exit(main())
