"""Check JetNtuple files, and compare their jets with those of CMS simulation.

    python -m data.validate 'jets/*.root'
    python -m data.validate 'train:train/*.root' 'validation:val/*.root' 'test:test/*.root' --page
        validation.html

Checks: the schema, values that are not finite or out of range, candidates and generator jets whose
values contradict each other, and, where several sets are named as `name:pattern`, jets that are in
two of them. Comparisons with the real sample: resolution, closure of the standard JEC, response of
quarks and gluons, composition, multiplicity (data.targets). The exit code is 1 if a check failed; a
comparison does not change it, because your jets may be of another kind.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from common import storage
from common.cli import Parser, output_address, require, run_main
from common.errors import InputError
from common.progress import Progress
from common.storage.addresses import is_storage_scheme
from data import checks, summary
from data.checks import ERROR, Finding
from data.jetntuple import BY_NAME, TREE, TREE_NAME, Columns, concatenate
from data.targets import Comparison, compare
from data.trees import find_files, open_tree, read_branches

SET = re.compile(r"(?P<name>[A-Za-z_]\w*):(?!//)(?P<pattern>.+)")
CHUNK = 20_000  # jets read at a time: with 150 candidates of 9 branches each about 100 MB
PAGE = "validation.html"
NONE = "none"


def validate(sets: Mapping[str, list[str]]) -> tuple[dict[str, Columns], list[Finding]]:
    """Read and check the files of each set; return data.summary columns by set, and the findings.

    sets: name -> URIs. Files with an error in their schema are not read further. Raises InputError
    for a file that is no ROOT file or has no such tree.
    """
    findings: list[Finding] = []
    jets: dict[str, Columns] = {}
    for name, files in sets.items():
        chunks: list[Columns] = []
        for uri in files:
            chunks += _summaries(uri, findings)
        if chunks:
            jets[name] = concatenate(chunks)
    findings += checks.duplicates(jets)
    return jets, checks.summarise(findings)


def _summaries(uri: str, findings: list[Finding]) -> Iterator[Columns]:
    """Read a file's jets, a chunk at a time; append problems to `findings`."""
    with open_tree(uri, TREE, "python -m data.from_nanoaod makes one of NanoAOD") as tree:
        if not hasattr(tree, "branches"):
            raise InputError(
                f"{uri}: {TREE} is a {tree.classname}; give a file in which it is a TTree"
            )
        present = {branch.name: type_name(branch.interpretation) for branch in tree.branches}
        schema = checks.schema(uri, present)
        findings += schema
        if any(finding.level == ERROR for finding in schema):
            return
        with Progress(
            f"reading {storage.name(uri)}", total=tree.num_entries, unit="jets"
        ) as progress:
            for start in range(0, tree.num_entries, CHUNK):
                arrays = read_branches(uri, tree, list(BY_NAME), start, start + CHUNK)
                wrong_forms = checks.forms(uri, arrays)
                if wrong_forms:
                    findings += wrong_forms
                    return
                columns = _columns(arrays)
                findings += checks.values(uri, columns)
                yield summary.summarise(columns)
                progress.advance(len(columns["jetPt"]))


def type_name(interpretation: Any) -> str:
    """Return the NumPy name of a branch's type ('float32'); of its values where it holds lists.

    interpretation: uproot's, of the branch. A type that NumPy does not have is named as uproot
    writes it.
    """
    values = getattr(interpretation, "content", interpretation)
    if not hasattr(values, "to_dtype"):
        return str(interpretation)
    return values.to_dtype.newbyteorder("=").name


def _columns(arrays: Mapping[str, Any]) -> Columns:
    """The schema's columns, (N,) or (entries of all jets,), of uproot's arrays."""
    import awkward as ak

    columns = {}
    for name, array in arrays.items():
        values = ak.to_numpy(ak.flatten(array, axis=None))
        columns[name] = values.astype(BY_NAME[name].dtype, copy=False)
    return columns


# ----------------------------------------------------------------------------------------- output


def lines(
    sets: Mapping[str, Columns], findings: Iterable[Finding], comparisons: Iterable[Comparison]
) -> Iterator[str]:
    """Write the results as lines for the console."""
    for name, jets in sets.items():
        yield f"{name}: {len(jets['jetPt']):,} jets"
    for finding in findings:
        yield f"{finding.level}: {finding.where}: {finding.problem}; {finding.remedy}"
    for number in comparisons:
        mark = "as in CMS simulation" if number.within else "unlike CMS simulation"
        yield (
            f"{number.topic}, {number.where}: {number.value:.4g} ± {number.error:.2g}"
            f" ({mark}: {number.low:.4g} to {number.high:.4g})"
        )


def main(argv: list[str] | None = None) -> int:
    """Return the command `python -m data.validate`."""
    parser = Parser(prog="python -m data.validate", description=__doc__)
    parser.add_argument(
        "files",
        type=str,  # patterns, which line breaks may separate
        nargs="+",
        metavar="FILE",
        help=f"files of jets (tree {TREE_NAME}): paths, addresses or patterns; NAME:PATTERN names a"
        " set",
    )
    parser.add_argument(
        "--page",
        type=output_address,
        default=PAGE,
        metavar="FILE",
        help="HTML file for the plots, as path or address; 'none' writes none (default:"
        " %(default)s)",
    )
    options = parser.parse_args(argv)
    return run_main(lambda: _run(options))


def _run(options: Namespace) -> int:
    sets, findings = validate(named_sets(options.files))
    comparisons = compare(concatenate(list(sets.values()))) if sets else []
    print("\n".join(lines(sets, findings, comparisons)))
    errors = sum(item.level == ERROR for item in findings)
    near = sum(item.within for item in comparisons)
    print(
        f"{errors} errors, {len(findings) - errors} warnings, {near} of {len(comparisons)} numbers"
        " as in CMS simulation"
    )
    if options.page != NONE:
        from reporting.validation_page import render

        storage.write_text(options.page, render(sets, findings, comparisons, num_errors=errors))
        print(f"next: look at {options.page}")
    return 1 if errors else 0


def named_sets(patterns: Iterable[str]) -> dict[str, list[str]]:
    """Name -> URIs, from patterns with or without a set's name.

    Raises InputError for a pattern that matches nothing.
    """
    sets: dict[str, list[str]] = {}
    for pattern in patterns:
        match = SET.fullmatch(pattern)
        if match and match["pattern"].startswith("/") and is_storage_scheme(match["name"]):
            match = None  # s3:/x is a misspelt address, which is refused
        name = match["name"] if match else "jets"
        files = find_files(match["pattern"] if match else pattern, TREE)
        sets.setdefault(name, []).extend(files)
    require(bool(sets), "no files; name some, as 'train:train/*.root' 'test:test/*.root'")
    return sets


if __name__ == "__main__":
    sys.exit(main())
